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
cp "$here/Containerfile" "$work/"
mkdir "$work/own" && touch -d "@$epoch" "$work/own"
case $engine in
# The same files give the same image: all times are the commit's.
buildah) buildah build --format docker --timestamp "$epoch" --layers=false -f "$work/Containerfile" -t "$name" "$work" ;;
docker) docker build -f "$work/Containerfile" -t "$name" "$work" ;;
*) echo "build: ENGINE is buildah or docker" >&2; exit 2 ;;
esac
echo "$name"
