#!/bin/bash
# The API server is no node, and yet reaches pods by their addresses when it proxies: here by the blocks that nodes took.
here=$(cd "$(dirname "$0")" && pwd); . "$here/env.sh"
kubectl get blockaffinities.crd.projectcalico.org --watch -o 'jsonpath={.spec.node} {.spec.cidr}{"\n"}' | while read -r node cidr; do
	case $cidr in
	*:*) ip -n "$P-cp" -6 route replace "$cidr" via "$(node6 "${node#n}")" ;;
	*) ip -n "$P-cp" route replace "$cidr" via "$(node4 "${node#n}")" ;;
	esac
done
