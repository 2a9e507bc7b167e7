# Names and addresses of one cluster. RUN is its folder, from whose name the network namespaces have theirs: two clusters
# side by side need two folders and nothing else, because every address is inside a namespace.
CACHE=${CACHE:-$HOME/.cache/felixpy-kubernetes}
BIN=${BIN:-$CACHE/bin}
IMAGES=${IMAGES:-$CACHE/images}
RUN=${RUN:?the folder of the cluster}
P=$(basename "$RUN")
PYTHON=${PYTHON:-python3}  # with aiohttp and PyYAML
export KUBECONFIG=$RUN/kubeconfig KUBECACHEDIR=$RUN/kubectl-cache  # every cluster has the same address, and other kinds
CP4=172.30.0.1 CP6=fd30::1
node4() { echo "172.30.0.1$1"; }
node6() { echo "fd30::1$1"; }
# FAMILIES: dual, ipv4 or ipv6, the family of pods and Services; nodes have addresses of both, with ONLY_IPV6=1 of IPv6 alone.
FAMILIES=${FAMILIES:-dual}
case $FAMILIES in
dual) POD=10.48.0.0/16,fd48::/48 SVC=10.96.0.0/16,fd96::/112 ;;
ipv4) POD=10.48.0.0/16 SVC=10.96.0.0/16 ;;
ipv6) POD=fd48::/48 SVC=fd96::/112 ;;
*) echo "FAMILIES=$FAMILIES: dual, ipv4 or ipv6" >&2; exit 2 ;;
esac
POD=${POD_RANGES:-$POD}  # ranges of pods of one's own
CP=$CP4
NODE_IP() { echo "$(node4 "$1"),$(node6 "$1")"; }
if [ "$FAMILIES" = ipv4 ]; then NODE_IP() { node4 "$1"; }; fi
if [ "$FAMILIES" = ipv6 ]; then CP=$CP6; NODE_IP() { node6 "$1"; }; fi
# With CHAOS the agents alone ask the first API server, which is killed: it would take kube-proxy a minute to ask again.
API_PORT=6443; [ -z "${CHAOS:-}" ] || API_PORT=6444
bracketed() { case $1 in *:*) echo "[$1]" ;; *) echo "$1" ;; esac; }
kubectl() { nsenter --net="/run/netns/$P-cp" "$BIN/kubectl" "$@"; }
