#!/bin/bash -e
# Starts one program of the control plane, also again after it was killed.   usage: RUN=folder start.sh PROGRAM
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"; cd "$RUN/pki"
case $1 in
etcd) set -- etcd "$BIN/etcd" --data-dir "$RUN/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
	--listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync --log-level warn ;;
kube-apiserver|kube-apiserver-beside) # two of one etcd, of which the agents know the first: chaos.sh
	port="--secure-port 6443"; [ "$1" = kube-apiserver ] || port="--secure-port 6444 --endpoint-reconciler-type none"
	set -- "$1" "$BIN/kube-apiserver" $port --etcd-servers http://127.0.0.1:2379 --bind-address :: --advertise-address "$CP" \
	--tls-cert-file apiserver.crt --tls-private-key-file apiserver.key --client-ca-file ca.crt \
	--service-account-issuer https://kubernetes.default.svc.cluster.local --service-account-key-file sa.pub --service-account-signing-key-file sa.key \
	--authorization-mode Node,RBAC --allow-privileged --service-cluster-ip-range "$SVC" \
	--kubelet-client-certificate admin.crt --kubelet-client-key admin.key --kubelet-preferred-address-types InternalIP ;;
kube-controller-manager)
	six=$((${POD##*/} + 16)); [ "$six" -le 120 ] || six=120 # Kubernetes wants no more than 16 bits between the two
	masks="--node-cidr-mask-size-ipv4 24 --node-cidr-mask-size-ipv6 $six"
	[ "$FAMILIES" = dual ] || masks="--node-cidr-mask-size $([ "$FAMILIES" = ipv4 ] && echo 24 || echo $six)"
	set -- kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig "$RUN/kubeconfig" --root-ca-file ca.crt --service-account-private-key-file sa.key \
	--use-service-account-credentials --cluster-cidr "$POD" --service-cluster-ip-range "$SVC" --allocate-node-cidrs $masks --leader-elect=false ;;
kube-scheduler) set -- kube-scheduler "$BIN/kube-scheduler" --kubeconfig "$RUN/kubeconfig" --leader-elect=false ;;
mosquitto) printf 'listener 1883\nallow_anonymous true\n' >"$RUN/mosquitto.conf"
	set -- mosquitto mosquitto -c "$RUN/mosquitto.conf" ;;
calico-routes) set -- calico-routes "$here/calico-routes.sh" ;;
dns) set -- dns "$PYTHON" "$here/dns.py" "$CP" ;;
*) echo "start.sh: no program $1" >&2; exit 2 ;;
esac
name=$1; shift
setsid nsenter --net="/run/netns/$P-cp" "$@" >>"$RUN/log/$name.log" 2>&1 </dev/null &
echo $! >"$RUN/pid/$name"
