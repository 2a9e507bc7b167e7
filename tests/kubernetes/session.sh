# One cluster with felixpy as its network, from nothing to Ready and back: sourced by what tests on it.
# What it looks like: FAMILIES, PROXY, BACKEND, ENCAPSULATION, HUB, IMAGE, CALICO, as conformance.sh tells. OUT: folder of reports and logs.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd); root=$(cd "$here/../.." && pwd)
export CACHE=${CACHE:-$HOME/.cache/felixpy-kubernetes}
export CHAOS=${CHAOS:-} BIN=$CACHE/bin IMAGES=$CACHE/images FAMILIES=${FAMILIES:-dual} PYTHON=${PYTHON:-$root/.venv/bin/python}
export PATH=$PATH:/usr/sbin:/sbin
export PROXY=${PROXY:-nftables}
OUT=${OUT:-$root/build/conformance}

say() { echo "conformance: $*"; }
fail() { say "not run: $*" >&2; exit 1; } # said of no spec: .ci/run tells it from one that failed

prepare() {
	mkdir -p "$OUT"
	if [ -n "${CALICO:-}" ]; then
		[ -x "$CALICO/calico" ] && [ -x "$CALICO/calico-ipam" ] || fail "CALICO=$CALICO has no programs calico and calico-ipam"
		[ -z "${HUB:-}${ENCAPSULATION:-}" ] || fail "with CALICO there is neither a hub nor an encapsulation"
	fi
	"$here/build.sh" --missing "$@" || fail "cannot build the programs of the cluster"
	[ -e "$IMAGES/agnhost.tar" ] || "$here/images/build.sh" pods || fail "cannot make the images"
}

up() { # [SEED]: a folder that installs felixpy in another way than config/kubernetes alone
	mkdir -p "$CACHE"
	RUN=$(mktemp -d "$CACHE/fpy-XXXX"); export RUN
	trap down EXIT
	trap 'exit 130' INT TERM
	if [ -n "${IMAGE:-}" ]; then cp "$IMAGE" "$RUN/felixpy.tar"; else FELIXPY_IMAGE=$RUN/felixpy.tar "$here/images/build.sh" felixpy; fi || fail "cannot make the image of felixpy"
	"$here/cluster/control.sh" || fail "no control plane: see $OUT/log"
	. "$here/cluster/env.sh"
	[ -z "${HUB:-}" ] || "$here/cluster/start.sh" mosquitto
	# A node's own is mounted over it. It goes again: any agent of this machine writes the MTU there once it is there.
	if [ -n "${CALICO:-}" ] && mkdir /var/lib/calico 2>/dev/null; then touch "$RUN/made-calico"; fi
	# As kubeadm leaves it behind: that is where the ranges of the default pools come from.
	[ "${KUBEADM:-}" = no ] || kubectl -n kube-system create configmap kubeadm-config --from-literal=ClusterConfiguration="networking: {podSubnet: \"$POD\"}" >/dev/null
	"$here/cluster/node.sh" 1 "$PROXY" & "$here/cluster/node.sh" 2 "$PROXY"; wait $!
	if [ -n "${CHAOS:-}" ]; then # a third one to be rebooted; the suite takes this taint for that of a control plane, and waits for none of its pods
		"$here/cluster/node.sh" 3 "$PROXY"
		kubectl taint node n3 node-role.kubernetes.io/control-plane=:NoSchedule >/dev/null
	fi
	install "$@"
}

# What the ConfigMap of the manifests has besides, as it stands in a YAML object of one line.
settings() {
	local of=()
	case ${BACKEND:-} in
	nftables) of+=('FELIX_NFTABLESMODE: Enabled') ;;
	legacy) of+=('FELIX_NFTABLESMODE: Disabled' 'FELIX_IPTABLESBACKEND: Legacy') ;;
	nft) of+=('FELIX_NFTABLESMODE: Disabled' 'FELIX_IPTABLESBACKEND: NFT') ;;
	esac
	case ${HUB:+${ENCAPSULATION:-}} in # alone it is an overlay of its own
	vxlan) of+=('CALICO_IPV4POOL_VXLAN: Always' 'CALICO_IPV6POOL_VXLAN: Always') ;;
	ipip) of+=('CALICO_IPV4POOL_IPIP: Always') ;;
	esac
	[ -z "${HUB:-}" ] || of+=("FELIX_MQTTHOST: '$CP'")
	(IFS=,; echo "${of[*]}")
}

# What the operator would act on comes before its nodes.
installation() {
	if grep -q 'IPIP$' "$RUN/seed/installation.yaml" && ! { ip -n "$P-n1" link add probe type ipip local 192.0.2.1 && ip -n "$P-n1" link del probe; } 2>/dev/null; then
		say "this kernel has no IPIP: the seed runs with VXLAN in its place"
		sed -i 's/encapsulation: IPIP$/encapsulation: VXLAN/' "$RUN/seed/installation.yaml"
	fi
	kubectl apply -k "$RUN/shipped/installation" >"$RUN/log/installation.log" &&
		kubectl wait --for=condition=Established crd/installations.operator.tigera.io --timeout=60s >>"$RUN/log/installation.log" &&
		kubectl apply -f "$RUN/seed/installation.yaml" >>"$RUN/log/installation.log" || fail "the Installation cannot be applied"
}

install() { # [SEED]
	local start=$SECONDS what=../shipped
	cp -r "$root/config/kubernetes" "$RUN/shipped"; mkdir "$RUN/installed"
	[ -z "${ENCAPSULATION:-}" ] || what=../shipped/$ENCAPSULATION
	[ -z "${HUB:-}" ] || what=../shipped/hub
	if [ -n "${CALICO:-}" ]; then
		what=../shipped/beside-calico
		"$here/cluster/calico.sh" || fail "Calico's plugin cannot be set up: see $OUT/log"
	fi
	if [ $# -gt 0 ]; then
		cp -r "$1" "$RUN/seed"; what=../seed
		[ ! -e "$1/installation.yaml" ] || installation
	fi
	# Privileged, unlike on a machine: only in a machine's own network do new interfaces begin with the values of
	# neigh/default that the init container sets; here they begin with the kernel's, and /proc/sys has to be written.
	cat >"$RUN/installed/kustomization.yaml" <<-Y
		resources: [$what]
		patches:
		- patch: '{apiVersion: v1, kind: ConfigMap, metadata: {name: felixpy, namespace: felixpy}, data: {$(settings | sed "s/'/''/g")}}'
		- target: {kind: DaemonSet}
		  patch: '[{"op": "replace", "path": "/spec/template/spec/containers/0/securityContext", "value": {"privileged": true}}]'
	Y
	kubectl apply -k "$RUN/installed" >"$RUN/log/apply.log" 2>&1 || { sleep 2; kubectl apply -k "$RUN/installed" >>"$RUN/log/apply.log" 2>&1; } || { cat "$RUN/log/apply.log"; fail "the manifests cannot be applied"; }
	kubectl wait --for=condition=Ready nodes --all --timeout=180s >/dev/null || { kubectl get pods -A -o wide; kubectl -n felixpy logs ds/felixpy --all-containers --tail=20; fail "the nodes do not become Ready"; }
	# Where another's plugin attaches pods, a node is Ready before there is policy on it.
	kubectl -n felixpy rollout status ds/felixpy --timeout=180s >/dev/null || { kubectl get pods -A -o wide; fail "the agents do not become ready"; }
	say "both nodes Ready $((SECONDS - start)) s after kubectl apply -k"
}

down() {
	trap - EXIT
	[ -n "${KEEP:-}" ] && { say "the cluster is left: RUN=$RUN $here/cluster/down.sh ends it"; return; }
	for n in 1 2 ${CHAOS:+3}; do "$here/cluster/in-node.sh" $n sh -c 'cat /var/log/pods/felixpy_felixpy-*/felixpy*/*.log' >"$RUN/log/n$n-felixpy.log" 2>/dev/null; done
	KEEP_LOGS=$OUT/log "$here/cluster/down.sh"
}
