#!/bin/bash -e
# Runs a command as a process of node N.   usage: RUN=folder in-node.sh N COMMAND...
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"
first=$(cat "/proc/$(cat "$RUN/pid/n$1")/task/$(cat "$RUN/pid/n$1")/children"); first=${first%% *}; shift
export PATH=$BIN:/usr/sbin:$PATH
exec nsenter --target "$first" --mount --pid --net --uts --ipc "$@"
