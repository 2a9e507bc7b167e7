#!/bin/bash -e
# The first process of a node: its own view of what belongs to a machine, then containerd, kubelet, kube-proxy. Its end ends the node.
. "$HERE/env.sh"
hostname "$NODE"
mount --make-rshared /
mount -t proc proc /proc
mkdir -p "$DIR/cg"; mount -t tmpfs tmpfs "$DIR/cg"
for subsystem in cpu cpuacct cpuset memory devices freezer blkio pids; do
	mkdir "$DIR/cg/$subsystem"; mount -t cgroup -o "$subsystem" cgroup "$DIR/cg/$subsystem"
done
mkdir "$DIR/cg/systemd"; mount -t cgroup -o none,name=systemd cgroup "$DIR/cg/systemd"
mount -t sysfs sysfs /sys
mount --rbind "$DIR/cg" /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/{containerd,netns,lock}
mine() { mount --bind "$DIR/$1" "$2"; }
mine kubelet /var/lib/kubelet; mine containerd /var/lib/containerd; mine cni /var/lib/cni; mine felixpy /var/lib/felixpy
[ ! -d /var/lib/calico ] || mine calico /var/lib/calico
mine cninet /etc/cni/net.d; mine cnibin /opt/cni/bin; mine pods /var/log/pods; mine containers /var/log/containers
# The kubelet checks these, and would set them for the whole machine: it is shown the values that it wants.
pretend() { echo "$2" >"$DIR/tmp/$(basename "$1")"; mount --bind "$DIR/tmp/$(basename "$1")" "/proc/sys/$1"; }
pretend vm/overcommit_memory 1; pretend vm/panic_on_oom 0; pretend kernel/panic 10; pretend kernel/panic_on_oops 1
pretend kernel/keys/root_maxkeys 1000000; pretend kernel/keys/root_maxbytes 25000000
pretend kernel/random/boot_id "$(cat /proc/sys/kernel/random/uuid)" # by which the kubelet knows that it was booted

export PATH=${CONTAINERD_DIR:+$CONTAINERD_DIR:}$BIN:/usr/sbin:$PATH
containerd -c "$DIR/containerd.toml" >>"$RUN/log/$NODE-containerd.log" 2>&1 &
for _ in $(seq 300); do [ -S /run/containerd/containerd.sock ] && break; sleep .1; done
for image in "$IMAGES"/{pause,busybox,agnhost}.tar "$RUN"/*.tar; do ctr -n k8s.io images import --local "$image" 2>/dev/null || ctr -n k8s.io images import "$image"; done
kubelet --config "$DIR/kubelet.yaml" --kubeconfig "$RUN/kubeconfig" --hostname-override "$NODE" --node-ip "$(NODE_IP "$N")" \
	>>"$RUN/log/$NODE-kubelet.log" 2>&1 &
[ "$MODE" = none ] || kube-proxy --config "$DIR/proxy.yaml" >>"$RUN/log/$NODE-proxy.log" 2>&1 &
trap 'exit 0' TERM INT
while :; do sleep 1 & wait $!; done
