#!/bin/bash -e
# Starts node N (1, 2, ...) in namespaces of its own: network, mounts, processes, host name, control groups, time since its boot.
# Again after 'node-down.sh N reboot'.
# usage: RUN=folder node.sh N [nftables|iptables|none]      the mode of kube-proxy
# The node is Ready when something writes a CNI configuration into its /etc/cni/net.d; nobody waits for that here.
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"
n=$1 mode=${2:-nftables} name=n$1 dir=$RUN/n$1 ns=$P-n$1
mkdir -p "$dir"/{kubelet,containerd,cni,cnibin,cninet,pods,containers,tmp,felixpy,calico} \
	/var/lib/{kubelet,containerd,cni,felixpy} /etc/cni/net.d /opt/cni/bin /var/log/{pods,containers}
cp "${CNI_PLUGINS:-/usr/lib/cni}"/{loopback,bandwidth} "$dir/cnibin/"
[ -z "${CALICO:-}" ] || cp "${CNI_PLUGINS:-/usr/lib/cni}/portmap" "$dir/cnibin/" # else felixpy's init container brings it

ip netns add "$ns"
ip link add "$P-v$n" netns "$P-cp" type veth peer name eth0 netns "$ns"
ip -n "$P-cp" link set "$P-v$n" master br0 up
ip netns exec "$ns" sysctl -qw net.ipv6.conf.{default,all}.accept_dad=0 net.ipv4.conf.all.rp_filter=0
ip -n "$ns" link set lo up
ip -n "$ns" link set eth0 up
[ -n "${ONLY_IPV6:-}" ] || { ip -n "$ns" addr add "$(node4 "$n")/24" dev eth0; ip -n "$ns" route add default via "$CP4"; }
ip -n "$ns" addr add "$(node6 "$n")/64" dev eth0 nodad
ip -n "$ns" -6 route add default via "$CP6"

cat >"$dir/containerd.toml" <<T
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "${RUNC:-/usr/sbin/runc}"
  SystemdCgroup = false
T
cat >"$dir/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
enforceNodeAllocatable: []
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 0%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
protectKernelDefaults: true
makeIPTablesUtilChains: false
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: ["$CP"]
resolvConf: $dir/resolv.conf
maxPods: 250
Y
: >"$dir/resolv.conf"
cat >"$dir/proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN/kubeconfig}
hostnameOverride: $name
mode: $mode
clusterCIDR: $POD
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y

# A control group per node below our own, in every hierarchy; the node sees it as the root.
cat >"$dir/enter" <<'S'
#!/bin/bash -e
while IFS=: read -r id list path; do
	list=${list#name=}
	[ -d "/sys/fs/cgroup/$list" ] && [ "$id" != 0 ] || continue
	group=/sys/fs/cgroup/$list${path%/}/$NS
	mkdir -p "$group"
	echo "$group" >>"$DIR/cgroups"
	[ "$list" = cpuset ] && for file in cpuset.cpus cpuset.mems; do cat "${group%/*}/$file" >"$group/$file"; done
	echo $$ >"$group/cgroup.procs"
done <<<"$(cat /proc/self/cgroup)"
exec nsenter --net="/run/netns/$NS" unshare --mount --pid --uts --ipc --cgroup --time --boottime "-$(cut -d. -f1 /proc/uptime)" --fork --kill-child --propagation private "$HERE/node-inside.sh"
S
chmod +x "$dir/enter"
NS=$ns DIR=$dir HERE=$here NODE=$name MODE=$mode N=$n setsid "$dir/enter" >"$RUN/log/$name.log" 2>&1 </dev/null &
echo $! >"$RUN/pid/$name"

for _ in $(seq 600); do
	cidrs=$(kubectl get node "$name" -o 'jsonpath={.spec.podCIDRs[*]}' 2>/dev/null) && [ -n "$cidrs" ] && break
	kill -0 "$(cat "$RUN/pid/$name")" 2>/dev/null || break
	sleep .2
done
[ -n "$cidrs" ] || { echo "node $name did not register: see $RUN/log" >&2; exit 1; }
# The API server is no node, and yet reaches pods by their addresses when it proxies: it goes by the node's.
for cidr in $cidrs; do
	case $cidr in
	*:*) ip -n "$P-cp" -6 route replace "$cidr" via "$(node6 "$n")" ;;
	*) ip -n "$P-cp" route replace "$cidr" via "$(node4 "$n")" ;;
	esac
done
echo "node $name registered after ${SECONDS} s"
