#!/bin/bash -e
# The images of the test cluster's pods, out of programs of this machine.   usage: build.sh [pods|felixpy]...
# felixpy is what 'make install' installs, beside the programs that the Dockerfile installs.
here=$(cd "$(dirname "$0")" && pwd)
CACHE=${CACHE:-$HOME/.cache/felixpy-kubernetes}; bin=${BIN:-$CACHE/bin} out=${IMAGES:-$CACHE/images}; mkdir -p "$out"
PATH=$PATH:/usr/sbin:/sbin
root=$(cd "$here/../../.." && pwd)
applets="sh cat ls ip ping ping6 nc wget sleep nslookup httpd ps true false test echo mkdir rm touch seq head tail grep sed awk tr cut sort
	timeout date hostname id env netstat kill"
links() { for name in $applets; do case " $1 " in *" $name "*) ;; *) echo "/bin/$name->busybox" ;; esac; done; }

pods() {
	local agnhost version
	agnhost=$(cd "$here/../go" && go list -mod=mod -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost)
	version=$(cat "$agnhost/VERSION")
	gcc -Os -static -s -o "$bin/pause" "$here/pause.c"
	"$here/image.py" "$out/pause.tar" registry.k8s.io/pause:3.10,registry.k8s.io/pause:3.10.2 --entrypoint /pause "$bin/pause=/pause"
	# shellcheck disable=SC2046  # one word a link
	"$here/image.py" "$out/busybox.tar" registry.k8s.io/e2e-test-images/busybox:1.37.0-1 --cmd /bin/sh /bin/busybox=/bin/busybox $(links "")
	echo 'root:x:0:0::/:/bin/sh' >"$bin/passwd"; echo 'hosts: files dns' >"$bin/nsswitch.conf"
	# A static busybox runs its own applets: sh is dash, and nc the one whose flags the tests know.
	# shellcheck disable=SC2046
	"$here/image.py" "$out/agnhost.tar" "registry.k8s.io/e2e-test-images/agnhost:$version" --entrypoint /agnhost --cmd pause \
		"$bin/agnhost=/agnhost" "/agnhost-2->agnhost" "$agnhost/porter/localhost.crt=/localhost.crt" "$agnhost/porter/localhost.key=/localhost.key" \
		"$bin/passwd=/etc/passwd" "$bin/nsswitch.conf=/etc/nsswitch.conf" /bin/busybox=/bin/busybox $(links "sh nc") \
		"/bin/sh->/usr/bin/dash" "/bin/nc->/usr/bin/nc.openbsd" --tool dash --tool nc.openbsd --tool "$bin/agnhost" --tool curl --tool ss
}

felixpy() {
	local version prefix=$CACHE/image/opt/felixpy family name files=() plugins=()
	version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
	# Anew where the dependencies are others; felixpy itself is copied each time, compiled as pip does.
	if ! cmp -s "$root/constraints.txt" "$CACHE/image/constraints.txt"; then
		rm -rf "$CACHE/image"
		make -C "$root" --no-print-directory install DESTDIR="$CACHE/image" PREFIX=/opt/felixpy >"$CACHE/image.log" 2>&1 || { cat "$CACHE/image.log"; exit 1; }
		rm -rf "$prefix"/lib/python3*/site-packages/{pip,setuptools,pkg_resources}
		cp "$root/constraints.txt" "$CACHE/image/constraints.txt"
	fi
	for name in "$prefix"/lib/python3*/site-packages; do
		rm -rf "$name/felixpy"; cp -r "$root/felixpy" "$name/"
		"$prefix/bin/python3" -m compileall -q "$name/felixpy"
	done
	gcc -Os -static -s -o "$bin/felixpy-cni" "$root"/felixpy/cni/stub/felixpy-cni.c && plugins=("$bin/felixpy-cni=/opt/cni/bin/felixpy-cni")
	if [ -e "$bin/portmap" ]; then plugins+=("$bin/portmap=/opt/cni/bin/portmap"); fi
	for family in ip ip6; do for kind in legacy nft; do for name in "" -save -restore; do
		files+=("/usr/sbin/${family}tables-$kind$name->xtables-$kind-multi")
	done; done; done
	for name in kmod modprobe; do [ -e "/usr/sbin/$name" ] && files+=("/usr/sbin/$name=/usr/sbin/$name"); done
	"$here/image.py" "${FELIXPY_IMAGE:-$out/felixpy.tar}" "docker.io/library/felixpy:$version" --entrypoint felixpy --cmd run \
		--env PATH=/opt/felixpy/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --env PYTHONUNBUFFERED=1 --env PYTHONDONTWRITEBYTECODE=1 \
		"$prefix=/opt/felixpy" "$root/config/kubernetes/host-settings=/usr/local/bin/felixpy-host-settings" "$root/config/kubernetes/install-cni=/usr/local/bin/felixpy-install-cni" "${plugins[@]}" \
		/usr/bin/python3.11=/usr/bin/python3.11 "/usr/bin/python3->python3.11" "/sbin/ldconfig->/usr/sbin/ldconfig" /usr/lib/python3.11=/usr/lib/python3.11 \
		"${files[@]}" /usr/lib/x86_64-linux-gnu/xtables=/usr/lib/x86_64-linux-gnu/xtables /etc/ld.so.cache=/etc/ld.so.cache /etc/protocols=/etc/protocols \
		"$bin/passwd=/etc/passwd" "$bin/nsswitch.conf=/etc/nsswitch.conf" /bin/busybox=/bin/busybox $(links "sh ip") "/bin/cp->busybox" "/bin/mv->busybox" "/bin/chmod->busybox" "/bin/sha256sum->busybox" \
		"/bin/sh->/usr/bin/dash" --tool dash --tool /usr/sbin/xtables-legacy-multi --tool /usr/sbin/xtables-nft-multi --tool /usr/sbin/nft --tool /usr/sbin/ipset \
		--tool /usr/sbin/ldconfig --tool ip
}

for what in ${@:-pods felixpy}; do "$what"; done
