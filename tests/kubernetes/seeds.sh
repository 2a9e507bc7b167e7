#!/bin/bash
# Calico's and Kubernetes' walkthroughs to IPv6 and dual stack, each on a cluster of its own, to where their texts end.
# usage: seeds.sh [SEED]...      folders of seeds/, none: all. Each has
#   cluster.env         what its cluster is like, and NAT, the families in which pods leave it under the node's address
#   installation.yaml   the operator's Installation, if that is its way
#   kustomization.yaml  what is changed in config/kubernetes
set -u
. "$(cd "$(dirname "$0")" && pwd)/session.sh"

# What is neither node nor control plane: the router in between knows it, it knows the router.
outside() {
	ip netns add "$P-out"
	ip link add out0 netns "$P-cp" type veth peer name eth0 netns "$P-out"
	ip -n "$P-cp" link set out0 up; ip -n "$P-out" link set lo up; ip -n "$P-out" link set eth0 up
	ip -n "$P-cp" addr add 198.51.100.1/24 dev out0; ip -n "$P-cp" addr add 2001:db8:51::1/64 dev out0 nodad
	ip -n "$P-out" addr add 198.51.100.2/24 dev eth0; ip -n "$P-out" addr add 2001:db8:51::2/64 dev eth0 nodad
	ip -n "$P-out" route add default via 198.51.100.1; ip -n "$P-out" -6 route add default via 2001:db8:51::1
	setsid nsenter --net="/run/netns/$P-out" "$BIN/agnhost" netexec --http-port=8080 --udp-port=-1 >"$RUN/log/outside.log" 2>&1 </dev/null &
	echo $! >"$RUN/pid/outside"
}

one() ( # seed; a shell of its own, because what a cluster is like is said by its environment
	set -a; . "$here/seeds/$1/cluster.env"; set +a
	up "$here/seeds/$1"
	outside
	(cd "$root" && "$PYTHON" -m tests.kubernetes.seeds "$RUN" "$POD_RANGES" "$NAT")
)

prepare kube agnhost portmap
seeds=("$@"); [ $# -gt 0 ] || seeds=($(ls "$here/seeds"))
passed=0 failed=()
for seed in "${seeds[@]}"; do
	say "$seed"
	if one "$seed"; then passed=$((passed + 1)); else failed+=("$seed"); fi
done
echo "seeds: $passed of ${#seeds[@]} passed"
for seed in "${failed[@]}"; do echo "  failed: $seed"; done
[ "${#failed[@]}" = 0 ]
