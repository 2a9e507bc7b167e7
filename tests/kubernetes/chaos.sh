#!/bin/bash
# What goes wrong in a cluster, until it is told to end (SIGTERM): agents are killed, the API server is killed and comes
# back after five seconds, the DaemonSet is rolled; each waits until the one before it has been got over.
# All but the agents ask another API server of the same etcd: what is tested is what they do, not how long Kubernetes' own
# programs wait before they ask again.
# usage: CHAOS=1 RUN=folder chaos.sh      its last line has the counts; ends with 1 if something did not happen at all
here=$(cd "$(dirname "$0")" && pwd); . "$here/cluster/env.sh"
AWAY_SECONDS=5
agents=0 servers=0 rolls=0 ended=
trap 'ended=1' TERM

pod_of() { kubectl -n felixpy get pods -l app.kubernetes.io/name=felixpy --field-selector "spec.nodeName=n$1" -o "jsonpath={.items[0]$2}"; }

kill_agent() { # node
	local id
	id=$(pod_of "$1" '.status.containerStatuses[0].containerID') && [ -n "$id" ] || return
	"$here/cluster/in-node.sh" "$1" ctr -n k8s.io tasks kill -s SIGKILL "${id#containerd://}" || return
	agents=$((agents + 1)); echo "$(date +%T) agent of n$1 killed"
	until now=$(pod_of "$1" '.status.containerStatuses[0].containerID') && [ -n "$now" ] && [ "$now" != "$id" ]; do [ -z "$ended" ] || return; sleep .5; done
	ready
}

kill_server() {
	kill -KILL -- "-$(cat "$RUN/pid/kube-apiserver")"; echo "$(date +%T) API server killed"
	sleep "$AWAY_SECONDS"
	"$here/cluster/start.sh" kube-apiserver
	until kubectl --server "https://$(bracketed "$CP"):6443" get --raw /readyz >/dev/null 2>&1; do sleep .2; done
	servers=$((servers + 1)); echo "$(date +%T) API server back"
}

roll() {
	kubectl -n felixpy rollout restart ds/felixpy || return
	ready && rolls=$((rolls + 1))
}

ready() { kubectl -n felixpy rollout status ds/felixpy --timeout=120s; }

while [ -z "$ended" ]; do
	for what in 'kill_agent 1' kill_server 'kill_agent 2' roll; do
		[ -n "$ended" ] || $what
	done
done
ready
echo "$agents agents killed, $servers times the API server, $rolls times the DaemonSet rolled"
[ "$agents" -gt 0 ] && [ "$servers" -gt 0 ] && [ "$rolls" -gt 0 ]
