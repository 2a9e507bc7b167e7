#!/bin/bash
# Upstream's end-to-end tests on a cluster whose only network is felixpy, installed by config/kubernetes: two nodes in
# namespaces of this machine. Builds what is missing, prints counts, takes everything down again.
# usage: conformance.sh [SUITE]...      conformance, dual-stack, netpol, matrix (ours: policy over each family), connectivity
#                                       (felixpy's own), seeds (clusters of their own: seeds.sh), or a focus of your own;
#                                       none: the first four
# FAMILIES=dual|ipv4|ipv6  PROXY=nftables|iptables (mode of kube-proxy)  BACKEND=nftables|legacy|nft (of felixpy; else it chooses)
# ENCAPSULATION=vxlan|ipip (of the pools; else none)  HUB=1 (config/kubernetes/hub and a broker)  CHAOS=1 (chaos.sh beside each suite)
# CALICO=folder of Calico's programs calico and calico-ipam: they attach the pods, felixpy is in the place of Felix (config/kubernetes/beside-calico)
# IMAGE=build/image.tar (what 'make image' built; else one of this machine's files)
# PROCS=4 specs at a time  ATTEMPTS=1 for a spec that fails  OUT=folder of reports and logs  KEEP=1 leaves the cluster  RUN=folder of one that is kept: only the suites
set -u
. "$(cd "$(dirname "$0")" && pwd)/session.sh"
PROCS=${PROCS:-4}
suites=("$@"); [ $# -gt 0 ] || suites=(conformance dual-stack netpol matrix)

# What of upstream's suite, and what not: with the reason.
choose() {
	skip=()
	case $1 in
	conformance) focus='\[sig-network\].*\[Conformance\]'
		skip=('\[sig-network\] DNS ') ;; # their pods want an image with dig that only a registry has
	dual-stack) focus='\[Feature:IPv6DualStack\]' skip=('\[Slow\]' SCTP) ;;
	netpol) focus=Netpol skip=(SCTPConnectivity) ;; # the kernel of most test machines has no SCTP
	*) focus=$1 ;;
	esac
}

run() { # suite
	local report log flags=() one start=$SECONDS
	if [ "$1" = connectivity ]; then
		nsenter --net="/run/netns/$P-cp" "$PYTHON" -m felixpy connectivity --kubeconfig "$RUN/kubeconfig" 2>&1 | tee "$OUT/connectivity.log"
		[ "${PIPESTATUS[0]}" = 0 ] || status=1
		return
	fi
	choose "$1"
	report=$OUT/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$1").xml log=$OUT/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$1").log
	for one in "${skip[@]}"; do flags+=("--skip=$one"); done
	nsenter --net="/run/netns/$P-cp" "$BIN/ginkgo" --procs="$PROCS" --no-color --timeout="${TIMEOUT:-60m}" --flake-attempts="${ATTEMPTS:-1}" --focus="$focus" "${flags[@]}" \
		--output-dir="$OUT" --junit-report="$(basename "$report")" "$BIN/e2e.test" -- \
		-kubeconfig "$RUN/kubeconfig" -kubectl-path "$BIN/kubectl" -provider skeleton -num-nodes 2 >"$log" 2>&1
	one=$(grep -c 'Attempt #1 Failed' "$log"); [ "$one" = 0 ] || say "$1: $one specs failed at first and were run again"
	"$PYTHON" "$here/counts.py" "$1" "$report" $((SECONDS - start)) "$here/expected/$1.txt" || status=1
}

beside() { # suite: with CHAOS beside chaos, which has to have come to something
	[ -n "${CHAOS:-}" ] || { run "$1"; return; }
	local chaos
	"$here/chaos.sh" >"$OUT/chaos.log" 2>&1 & chaos=$!
	run "$1"
	kill -TERM "$chaos"; wait "$chaos" || status=1
	sed "s/^/$1, beside: /" "$OUT/chaos.log" | tail -1
}

status=0
if [ "${suites[*]}" = seeds ]; then exec "$here/seeds.sh"; fi # no other cluster is needed
prepare
if [ -n "${RUN:-}" ]; then export RUN; else up; fi
. "$here/cluster/env.sh"
for suite in "${suites[@]}"; do
	case $suite in
	matrix) (cd "$root" && "$PYTHON" -m tests.kubernetes.matrix "$RUN") || status=1 ;;
	seeds) "$here/seeds.sh" || status=1 ;;
	*) beside "$suite" ;;
	esac
done
exit $status
