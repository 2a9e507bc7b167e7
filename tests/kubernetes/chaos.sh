#!/bin/bash
# What goes wrong in a cluster, until it is told to end (SIGTERM): agents are killed, the API server is killed and comes
# back after five seconds, the DaemonSet is rolled, node 3 is rebooted; with HUB the hub that writes is killed, too, and the
# broker, which forgets everything. Each waits until the one before it has been got over.
# All but the agents ask another API server of the same etcd: what is tested is what they do, not how long Kubernetes' own
# programs wait before they ask again. The suite has no pod on node 3: a pod of ours there has to be back after each boot,
# and to be reached from another node over each family.
# usage: CHAOS=1 RUN=folder chaos.sh      its last line has the counts; ends with 1 if something did not happen at all
here=$(cd "$(dirname "$0")" && pwd); . "$here/cluster/env.sh"
AWAY_SECONDS=5
IMAGE=$(sed -n 's/^IMAGE = "\(.*\)"/\1/p' "$here/on_cluster.py")
declare -A times=()
ended=
trap 'ended=1' TERM
happened() { times[$1]=$((${times[$1]:-0} + 1)); echo "$(date +%T) $1"; }

of_felixpy() { kubectl -n felixpy get "$@"; }
container_of() { of_felixpy pods -l "app.kubernetes.io/name=$1" --field-selector "spec.nodeName=n$2" -o 'jsonpath={.items[0].status.containerStatuses[0].containerID}'; } # program, node
kill_container() { "$here/cluster/in-node.sh" "$1" ctr -n k8s.io tasks kill -s SIGKILL "${2#containerd://}"; } # node, id
end_program() { kill -KILL -- "-$(cat "$RUN/pid/$1")"; }

kill_agent() { # node
	local id now
	id=$(container_of felixpy "$1") && [ -n "$id" ] && kill_container "$1" "$id" || return
	happened "agents killed"
	until now=$(container_of felixpy "$1") && [ -n "$now" ] && [ "$now" != "$id" ]; do [ -z "$ended" ] || return; sleep .5; done
	ready
}

kill_server() {
	end_program kube-apiserver
	sleep "$AWAY_SECONDS"
	"$here/cluster/start.sh" kube-apiserver
	until kubectl --server "https://$(bracketed "$CP"):6443" get --raw /readyz >/dev/null 2>&1; do sleep .2; done
	happened "API servers killed"
}

roll() {
	kubectl -n felixpy rollout restart ds/felixpy || return
	ready && happened "DaemonSets rolled"
}

kill_hub() { # the one that has the lease
	local holder node id now
	holder=$(holder_of_lease); node=${holder%%_*} node=${node#n}
	id=$(container_of felixpy-hub "$node") && [ -n "$id" ] && kill_container "$node" "$id" || return
	happened "hubs killed"
	until now=$(holder_of_lease) && [ -n "$now" ] && [ "$now" != "$holder" ]; do [ -z "$ended" ] || return; sleep .5; done
	ready
}

holder_of_lease() { of_felixpy lease felixpy-hub -o 'jsonpath={.spec.holderIdentity}'; }

kill_broker() {
	end_program mosquitto
	sleep "$AWAY_SECONDS"
	"$here/cluster/start.sh" mosquitto
	happened "brokers killed"
	ready
}

reboot() {
	local before now
	before=$(container_of_kept)
	"$here/cluster/node-down.sh" 3 reboot
	"$here/cluster/node.sh" 3 "$PROXY" || return
	until now=$(container_of_kept) && [ -n "$now" ] && [ "$now" != "$before" ] && is_reached; do [ -z "$ended" ] || return; sleep .5; done
	happened "nodes rebooted"
	ready
}

pods() {
	cat <<-Y
		apiVersion: v1
		kind: Namespace
		metadata: {name: chaos}
	Y
	for pod in "kept n3" "asks n1"; do
		cat <<-Y
			---
			apiVersion: v1
			kind: Pod
			metadata: {name: ${pod% *}, namespace: chaos}
			spec:
			  nodeName: ${pod#* }
			  terminationGracePeriodSeconds: 0
			  tolerations: [{operator: Exists}]
			  containers: [{name: main, image: "$IMAGE", args: [netexec, --http-port=8080, --udp-port=-1], readinessProbe: {httpGet: {port: 8080}}}]
		Y
	done
}

container_of_kept() { kubectl -n chaos get pod kept -o 'jsonpath={.status.containerStatuses[0].containerID}'; }

is_reached() {
	local address
	for address in $(kubectl -n chaos get pod kept -o 'jsonpath={.status.podIPs[*].ip}'); do
		kubectl -n chaos exec asks -- /agnhost connect "$(bracketed "$address"):8080" --timeout=2s >/dev/null 2>&1 || return
	done
	[ -n "$address" ]
}

ready() { kubectl -n felixpy rollout status ds/felixpy --timeout=120s; }

steps=('kill_agent 1' reboot kill_server 'kill_agent 2' roll)
wanted=("agents killed" "nodes rebooted" "API servers killed" "DaemonSets rolled")
[ -z "${HUB:-}" ] || { steps+=(kill_hub kill_broker); wanted+=("hubs killed" "brokers killed"); }
pods | kubectl apply -f -
while [ -z "$ended" ]; do
	for what in "${steps[@]}"; do
		[ -n "$ended" ] || $what
	done
done
ready
for _ in $(seq 120); do is_reached && break; sleep 1; done
is_reached || { echo "the pod of n3 is not reached in the end"; exit 1; }
kubectl delete namespace chaos --wait=false
line= status=0
for what in "${wanted[@]}"; do line+=", $what: ${times[$what]:-0}"; [ -n "${times[$what]}" ] || status=1; done
echo "${line#, }"
exit $status
