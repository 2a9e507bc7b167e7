#!/bin/bash -e
# etcd, kube-apiserver, kube-controller-manager and kube-scheduler in the network namespace $P-cp, and the cluster's DNS.
# usage: RUN=folder control.sh [apiserver]      with "apiserver": etcd and the API server only
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"
mkdir -p "$RUN"/{pki,etcd,log,pid}; cd "$RUN/pki"

ip netns add "$P-cp"
ip netns exec "$P-cp" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.{default,all}.accept_dad=0
ip -n "$P-cp" link set lo up
ip -n "$P-cp" link add br0 type bridge
ip -n "$P-cp" link set br0 up
ip -n "$P-cp" addr add "$CP4/24" dev br0
ip -n "$P-cp" addr add "$CP6/64" dev br0 nodad

# One authority, a certificate of the server, one of the administrator; service accounts' tokens have a key of their own.
openssl_() { openssl "$@" 2>>"$RUN/log/openssl.log"; }
key() { openssl_ ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
key ca; openssl_ req -x509 -new -key ca.key -subj /CN=ca -days 30 -out ca.crt
signed() { # name, subject, extensions
	key "$1"
	openssl_ req -new -key "$1.key" -subj "$2" -out "$1.csr"
	openssl_ x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile <(echo "$3") -out "$1.crt"
}
names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost
signed apiserver /CN=kube-apiserver "subjectAltName=$names,IP:127.0.0.1,IP:$CP4,IP:$CP6,IP:10.96.0.1,IP:fd96::1"
signed admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
key sa; openssl_ ec -in sa.key -pubout -out sa.pub
cat >"$RUN/kubeconfig" <<Y
apiVersion: v1
kind: Config
current-context: admin
clusters: [{name: c, cluster: {server: "https://$(bracketed "$CP"):$API_PORT", certificate-authority: $RUN/pki/ca.crt}}]
users: [{name: admin, user: {client-certificate: $RUN/pki/admin.crt, client-key: $RUN/pki/admin.key}}]
contexts: [{name: admin, context: {cluster: c, user: admin}}]
Y

"$here/start.sh" etcd
"$here/start.sh" kube-apiserver
[ -z "${CHAOS:-}" ] || "$here/start.sh" kube-apiserver-beside
[ "$1" = apiserver ] || for program in dns kube-controller-manager kube-scheduler; do "$here/start.sh" "$program"; done
for _ in $(seq 1200); do
	kubectl get --raw /readyz >/dev/null 2>&1 && { echo "API server ready after ${SECONDS} s"; exit 0; }
	sleep .1
done
echo "the API server is not ready: see $RUN/log" >&2; exit 1
