#!/bin/sh
# Builds the Dockerfile for test_image.py: $1 tree of the base, $2 empty folder for images and their tree ($2/tree).
# Without a registry: the base is the Debian tree of .ci/debian-tree in place of the public image.
set -eu
cd "$(dirname "$0")/../.."
in="--root $2/images --runroot $2/run --storage-driver vfs"
export BUILDAH_ISOLATION=chroot
# shellcheck disable=SC2086  # several words on purpose
{
    container=$(buildah $in from scratch)
    cp -a "$1/." "$(buildah $in mount "$container")/"
    # What pip trusts here, it has to trust there.
    for file in /etc/ssl/certs/ca-certificates.crt "${PIP_CERT:-}"; do
        [ ! -f "$file" ] || install -D -m 644 "$file" "$(buildah $in mount "$container")$file"
    done
    buildah $in config --env "PIP_CERT=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$container"
    buildah $in commit --quiet --rm "$container" localhost/base
    buildah $in build --quiet --pull-never --format docker --build-arg BASE=localhost/base --tag felixpy .
    buildah $in inspect --type image felixpy >"$2/inspect.json"
    container=$(buildah $in from --pull-never felixpy)
    cp -a "$(buildah $in mount "$container")" "$2/tree"
    buildah $in rm "$container"
} >"$2/log" 2>&1
