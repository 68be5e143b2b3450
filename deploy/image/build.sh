#!/usr/bin/env bash
# Builds the image: build.sh [BINARIES [NAME]]
# BINARIES is target/dist by default (make build PROFILE=dist), NAME sbc:VERSION. Uses buildah, or docker
# where that is missing; ENGINE=docker chooses.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${1:-$root/target/dist}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)
name=${2:-sbc:$version}
engine=${ENGINE:-$(command -v buildah >/dev/null && echo buildah || echo docker)}
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH=$epoch

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/rootfs.sh" "$bin" "$work/rootfs"
tar -C "$work/rootfs" --format=posix --pax-option=delete=atime,delete=ctime --sort=name --numeric-owner \
    --owner=0 --group=0 --xattrs --xattrs-include=security.capability -cf "$work/rootfs.tar" .
rm -r "$work/rootfs"
cp "$here/Containerfile" "$work/"
mkdir "$work/own" && touch -d "@$epoch" "$work/own"
case $engine in
# The same files give the same image: all times are the commit's, and nothing names who built it. Docker's
# format, because OCI's has no health check.
buildah)
    built=$(mktemp -u sbc-build:XXXXXXXX | tr '[:upper:]' '[:lower:]')
    buildah build --format docker --timestamp "$epoch" --layers=false -f "$work/Containerfile" -t "$built" "$work" >&2
    buildah push -q "localhost/$built" "dir:$work/image" >&2
    "$here/settle.py" "$work/image"
    id=$(buildah pull -q "dir:$work/image")
    buildah tag "$id" "$name"
    buildah rmi "localhost/$built" >/dev/null
    ;;
docker) docker build -f "$work/Containerfile" -t "$name" "$work" ;;
*) echo "build: ENGINE is buildah or docker" >&2; exit 2 ;;
esac
echo "$name"
