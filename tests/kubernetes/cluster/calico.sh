#!/bin/bash -e
# What a cluster of Calico's has besides its agent: kinds as Calico stores them, pools, and on each node its CNI plugin with IPAM.
# CALICO: folder with Calico's programs calico and calico-ipam (of its image: /opt/cni/bin).   usage: RUN=folder CALICO=folder calico.sh
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"

# As calico-node's start-up writes them.
objects() {
	local cidr
	echo 'apiVersion: crd.projectcalico.org/v1
kind: ClusterInformation
metadata: {name: default}
spec: {datastoreReady: true, clusterType: "k8s,kdd"}'
	for cidr in ${POD//,/ }; do
		case $cidr in
		*:*) set -- 6 122 false ;;
		*) set -- 4 26 true ;;
		esac
		cat <<-Y
			---
			apiVersion: crd.projectcalico.org/v1
			kind: IPPool
			metadata: {name: default-ipv$1-ippool}
			spec: {cidr: "$cidr", blockSize: $2, natOutgoing: $3, ipipMode: Never, vxlanMode: Never, nodeSelector: all(), allowedUses: [Workload, Tunnel]}
		Y
	done
}

rights() {
	cat <<-Y
		apiVersion: v1
		kind: ServiceAccount
		metadata: {name: calico-cni-plugin, namespace: kube-system}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRole
		metadata: {name: calico-cni-plugin}
		rules:
		- {apiGroups: [""], resources: [pods, nodes, namespaces], verbs: [get]}
		- {apiGroups: [""], resources: [pods/status], verbs: [patch]}
		- apiGroups: [crd.projectcalico.org]
		  resources: [blockaffinities, ipamblocks, ipamhandles, clusterinformations, ippools, ipreservations, ipamconfigs]
		  verbs: [get, list, create, update, delete]
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRoleBinding
		metadata: {name: calico-cni-plugin}
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: calico-cni-plugin}
		subjects: [{kind: ServiceAccount, name: calico-cni-plugin, namespace: kube-system}]
	Y
}

# On node $1: programs, credentials and the list of plugins, as Calico's install-cni leaves them.
on_node() {
	local dir=$RUN/n$1
	cp "$CALICO"/{calico,calico-ipam} "$dir/cnibin/"
	echo "n$1" >"$dir/calico/nodename"
	cat >"$dir/cninet/calico-kubeconfig" <<-Y
		apiVersion: v1
		kind: Config
		current-context: c
		clusters: [{name: c, cluster: {server: "https://$(bracketed "$CP"):$API_PORT", certificate-authority-data: $(base64 -w0 "$RUN/pki/ca.crt")}}]
		users: [{name: u, user: {token: $(kubectl -n kube-system create token calico-cni-plugin --duration=24h)}}]
		contexts: [{name: c, context: {cluster: c, user: u}}]
	Y
	cat >"$dir/cninet/.10-calico.conflist" <<-J
		{"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [
		 {"type": "calico", "log_level": "info", "log_file_path": "/var/lib/calico/cni.log", "datastore_type": "kubernetes", "nodename": "n$1", "mtu": 0,
		  "ipam": {"type": "calico-ipam"$(for family in 4 6; do printf ', "assign_ipv%s": "%s"' $family "$(assigned $family)"; done)},
		  "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"}},
		 {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}
	J
	mv "$dir/cninet/.10-calico.conflist" "$dir/cninet/10-calico.conflist" # from the same folder: containerd looks when something is moved away
}

assigned() { # family
	case $FAMILIES in dual | "ipv$1") echo true ;; *) echo false ;; esac
}

"$here/calico-kinds.sh" | kubectl apply -f - >"$RUN/log/calico.log"
kubectl wait --for=condition=Established crd --all --timeout=60s >>"$RUN/log/calico.log"
{ objects; echo ---; rights; } | kubectl apply -f - >>"$RUN/log/calico.log"
"$here/start.sh" calico-routes
on_node 1; on_node 2
