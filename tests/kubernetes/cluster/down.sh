#!/bin/bash
# Ends the cluster: the processes whose numbers it wrote down, its namespaces, control groups and files.   usage: RUN=folder down.sh
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"
end() { for file in "$RUN"/pid/*; do [ -f "$file" ] && kill "-$1" -- "-$(cat "$file")" 2>/dev/null; done; }
end TERM; sleep 1; end KILL; sleep .5
for ns in $(ip netns list | cut -d' ' -f1 | grep "^$P-"); do ip netns del "$ns"; done
for list in "$RUN"/n*/cgroups; do
	[ -f "$list" ] && while read -r group; do find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null; done <"$list"
done
[ -n "$KEEP_LOGS" ] && [ -d "$RUN/log" ] && mkdir -p "$KEEP_LOGS" && cp -r "$RUN/log/." "$KEEP_LOGS/"
[ ! -e "$RUN/made-calico" ] || rm -rf /var/lib/calico
rm -rf "$RUN"
