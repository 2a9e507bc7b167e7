#!/bin/bash
# Upstream's end-to-end tests on a cluster whose only network is felixpy, installed by config/kubernetes: two nodes in
# namespaces of this machine. Builds what is missing, prints counts, takes everything down again.
# usage: conformance.sh [SUITE]...      conformance, dual-stack, netpol, matrix (ours: policy over each family), connectivity
#                                       (felixpy's own), or a focus of your own; none: the first four
# FAMILIES=dual|ipv4|ipv6  PROXY=nftables|iptables (mode of kube-proxy)  BACKEND=nftables|legacy|nft (of felixpy; else it chooses)
# ENCAPSULATION=vxlan|ipip (of the pools; else none)
# PROCS=4 specs at a time  ATTEMPTS=1 for a spec that fails  OUT=folder of reports and logs  KEEP=1 leaves the cluster  RUN=folder of one that is kept: only the suites
set -u
here=$(cd "$(dirname "$0")" && pwd); root=$(cd "$here/../.." && pwd)
export CACHE=${CACHE:-$HOME/.cache/felixpy-kubernetes}
export BIN=$CACHE/bin IMAGES=$CACHE/images FAMILIES=${FAMILIES:-dual} PYTHON=${PYTHON:-$root/.venv/bin/python}
export PATH=$PATH:/usr/sbin:/sbin
PROXY=${PROXY:-nftables} PROCS=${PROCS:-4} OUT=${OUT:-$root/build/conformance}
suites=("$@"); [ $# -gt 0 ] || suites=(conformance dual-stack netpol matrix)

say() { echo "conformance: $*"; }
fail() { say "not run: $*" >&2; exit 1; } # said of no spec: .ci/run tells it from one that failed

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

prepare() {
	"$here/build.sh" --missing || fail "cannot build the programs of the cluster"
	[ -e "$IMAGES/agnhost.tar" ] || "$here/images/build.sh" pods || fail "cannot make the images"
}

up() {
	mkdir -p "$CACHE"
	RUN=$(mktemp -d "$CACHE/fpy-XXXX"); export RUN
	trap down EXIT
	trap 'exit 130' INT TERM
	FELIXPY_IMAGE=$RUN/felixpy.tar "$here/images/build.sh" felixpy || fail "cannot make the image of felixpy"
	"$here/cluster/control.sh" || fail "no control plane: see $OUT/log"
	. "$here/cluster/env.sh"
	# As kubeadm leaves it behind: that is where the ranges of the default pools come from.
	kubectl -n kube-system create configmap kubeadm-config --from-literal=ClusterConfiguration="networking: {podSubnet: \"$POD\"}" >/dev/null
	"$here/cluster/node.sh" 1 "$PROXY" & "$here/cluster/node.sh" 2 "$PROXY"; wait $!
	install
}

install() {
	local settings start=$SECONDS
	case ${BACKEND:-} in
	nftables) settings='FELIX_NFTABLESMODE: Enabled' ;;
	legacy) settings='FELIX_NFTABLESMODE: Disabled, FELIX_IPTABLESBACKEND: Legacy' ;;
	nft) settings='FELIX_NFTABLESMODE: Disabled, FELIX_IPTABLESBACKEND: NFT' ;;
	esac
	case ${ENCAPSULATION:-} in
	vxlan) settings="${settings:+$settings, }CALICO_IPV4POOL_VXLAN: Always, CALICO_IPV6POOL_VXLAN: Always" ;;
	ipip) settings="${settings:+$settings, }CALICO_IPV4POOL_IPIP: Always" ;;
	esac
	cp -r "$root/config/kubernetes" "$RUN/shipped"; mkdir "$RUN/installed"
	# Privileged, unlike on a machine: only in a machine's own network do new interfaces begin with the values of
	# neigh/default that the init container sets; here they begin with the kernel's, and /proc/sys has to be written.
	cat >"$RUN/installed/kustomization.yaml" <<-Y
		resources: [../shipped]
		patches:
		- patch: '{apiVersion: v1, kind: ConfigMap, metadata: {name: felixpy, namespace: felixpy}, data: {${settings:-}}}'
		- target: {kind: DaemonSet}
		  patch: '[{"op": "replace", "path": "/spec/template/spec/containers/0/securityContext", "value": {"privileged": true}}]'
	Y
	kubectl apply -k "$RUN/installed" >"$RUN/log/apply.log" 2>&1 || { sleep 2; kubectl apply -k "$RUN/installed" >>"$RUN/log/apply.log" 2>&1; } || { cat "$RUN/log/apply.log"; fail "the manifests cannot be applied"; }
	kubectl wait --for=condition=Ready nodes --all --timeout=180s >/dev/null || { kubectl get pods -A -o wide; kubectl -n felixpy logs ds/felixpy --all-containers --tail=20; fail "the nodes do not become Ready"; }
	say "both nodes Ready $((SECONDS - start)) s after kubectl apply -k"
}

down() {
	[ -n "${KEEP:-}" ] && { say "the cluster is left: RUN=$RUN $here/cluster/down.sh ends it"; return; }
	for n in 1 2; do "$here/cluster/in-node.sh" $n sh -c 'cat /var/log/pods/felixpy_felixpy-*/felixpy/*.log' >"$RUN/log/n$n-felixpy.log" 2>/dev/null; done
	KEEP_LOGS=$OUT/log "$here/cluster/down.sh"
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

mkdir -p "$OUT"
prepare
if [ -n "${RUN:-}" ]; then export RUN; else up; fi
. "$here/cluster/env.sh"
status=0
for suite in "${suites[@]}"; do
	if [ "$suite" = matrix ]; then "$PYTHON" "$here/matrix.py" "$RUN" || status=1; else run "$suite"; fi
done
exit $status
