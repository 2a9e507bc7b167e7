#!/bin/sh
# Builds the Dockerfile for test_image.py: $1 trees of .ci/debian-tree, $2 empty folder for images and their tree ($2/tree).
# Without a registry: the base is a Debian tree in place of the public image, and no Go is fetched for portmap. Packages that the trees keep as downloaded
# are not fetched again, but installed, and compiled, they are. Images lie in memory; only the tree is left at the end.
set -eu
cd "$(dirname "$0")/../.."
mkdir "$2/images"
mount -t tmpfs tmpfs "$2/images"
in="--root $2/images/root --runroot $2/images/run --storage-driver overlay"
# shellcheck disable=SC2086  # several words on purpose
buildah $in info >/dev/null 2>&1 || in="--root $2/images/vfs --runroot $2/images/run --storage-driver vfs"
export BUILDAH_ISOLATION=chroot
# shellcheck disable=SC2086
{
    container=$(buildah $in from scratch)
    cp -a "$1/base/." "$(buildah $in mount "$container")/"
    buildah $in config --env PIP_NO_INDEX=1 --env PIP_FIND_LINKS=/packages "$container"
    buildah $in commit --quiet --rm "$container" localhost/base
    buildah $in build --quiet --pull-never --format docker --build-arg BASE=localhost/base --build-arg PORTMAP= --tag felixpy \
        --volume "$1/fresh/packages:/packages:ro" \
        --volume "$1/fresh/var/cache/apt/archives:/var/cache/apt/archives:O" \
        --volume "$1/fresh/var/lib/apt/lists:/var/lib/apt/lists:O" .
    buildah $in inspect --type image felixpy >"$2/inspect.json"
    container=$(buildah $in from --pull-never felixpy)
    cp -a "$(buildah $in mount "$container")" "$2/tree"
} >"$2/log" 2>&1
