#!/bin/bash
# Ends one node: its processes at once, as if its power were gone.   usage: RUN=folder node-down.sh N [reboot]
# With "reboot" its disk stays, and the cluster is told nothing: node.sh N is the node's next boot.
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"
kill -9 -- "-$(cat "$RUN/pid/n$1")" 2>/dev/null; sleep 1
ip netns del "$P-n$1"
while read -r group; do find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null; done <"$RUN/n$1/cgroups"
rm -f "$RUN/n$1/cgroups" "$RUN/pid/n$1"
[ "${2:-}" != reboot ] || exit 0
rm -rf "$RUN/n$1"; kubectl delete node "n$1" --ignore-not-found
