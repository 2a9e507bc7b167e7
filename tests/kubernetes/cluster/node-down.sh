#!/bin/bash
# Ends one node.   usage: RUN=folder node-down.sh N
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"
kill -9 -- "-$(cat "$RUN/pid/n$1")" 2>/dev/null; sleep 1
ip netns del "$P-n$1"
while read -r group; do find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null; done <"$RUN/n$1/cgroups"
rm -rf "$RUN/n$1" "$RUN/pid/n$1"; kubectl delete node "n$1" --ignore-not-found
