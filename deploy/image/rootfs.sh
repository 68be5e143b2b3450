#!/usr/bin/env bash
# Gathers the image's files: rootfs.sh BINARIES OUT
# BINARIES holds sbc-node and sbcctl. Run twice over the same binaries and libraries it gives the same
# bytes: times are those of SOURCE_DATE_EPOCH, by default those of the last commit.
set -euo pipefail
bin=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}

rm -rf "$out"
mkdir -p "$out"/usr/bin "$out"/etc/sbc "$out"/etc/ssl/certs "$out"/var/lib "$out"/run "$out"/tmp \
    "$out"/usr/share/sbc "$out"/usr/share/doc/sbc
for name in sbc-node sbcctl; do
    install -m 0755 "$bin/$name" "$out/usr/bin/$name"
    [ -n "${SBC_IMAGE_UNSTRIPPED:-}" ] || strip --strip-debug "$out/usr/bin/$name"
done
# Every library that the binaries ask for, and the loader, where the loader looks for them.
ldd "$out"/usr/bin/* | awk '/=> \//{print $3} /^\t\/.*ld-/{print $1}' | sort -u | while read -r library; do
    install -D -m 0755 "$(readlink -f "$library")" "$out$library"
done
install -m 0644 "$root/LICENSE" "$out/usr/share/doc/sbc/LICENSE"
[ ! -f /etc/ssl/certs/ca-certificates.crt ] || install -m 0644 /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"
printf 'root:x:0:0::/:/nonexistent\nsbc:x:10001:10001::/var/lib/sbc:/nonexistent\n' >"$out/etc/passwd"
printf 'root:x:0:\nsbc:x:10001:\n' >"$out/etc/group"
printf 'hosts: files dns\n' >"$out/etc/nsswitch.conf"
chmod 0644 "$out"/etc/passwd "$out"/etc/group "$out"/etc/nsswitch.conf
chmod 1777 "$out/tmp"
"$here/sbom.py" "$root" "$out" "$epoch" >"$out/usr/share/sbc/sbom.cdx.json"
chmod 0644 "$out/usr/share/sbc/sbom.cdx.json"
if [ "$(id -u)" = 0 ]; then
    chown -R 0:0 "$out"
    # Permitted, not effective: it starts without them too, and raises what it was given.
    setcap cap_net_admin,cap_net_bind_service,cap_bpf,cap_perfmon=p "$out/usr/bin/sbc-node" ||
        echo "rootfs: no file capabilities here: media in the kernel and floating addresses need root" >&2
fi
find "$out" -exec touch -h -d "@$epoch" {} +
