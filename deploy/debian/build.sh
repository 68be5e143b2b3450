#!/usr/bin/env bash
# Builds the Debian package: build.sh [BINARIES [OUT]]
# BINARIES is target/dist by default, OUT target/debian. The same binaries give the same package.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${1:-$root/target/dist} out=${2:-$root/target/debian}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)
arch=$(dpkg --print-architecture)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/sbc
put() { install -D -m "$1" "$2" "$tree/$3"; }
for name in sbc-node sbcctl; do
    put 0755 "$bin/$name" "usr/bin/$name"
    strip --strip-debug "$tree/usr/bin/$name"
done
put 0644 "$root/deploy/systemd/sbc.service" lib/systemd/system/sbc.service
put 0644 "$root/deploy/systemd/sysusers.conf" usr/lib/sysusers.d/sbc.conf
put 0644 "$root/deploy/systemd/60-sbc.conf" usr/share/doc/sbc/60-sbc.conf
put 0644 "$root/deploy/systemd/logrotate" etc/logrotate.d/sbc
put 0644 "$root/deploy/systemd/sbc.default" etc/default/sbc
put 0640 "$root/deploy/examples/minimal.toml" etc/sbc/sbc.toml
put 0644 "$root/README.md" usr/share/doc/sbc/README.md
put 0644 "$here/copyright" usr/share/doc/sbc/copyright
for doc in "$root"/docs/*.md; do put 0644 "$doc" "usr/share/doc/sbc/docs/$(basename "$doc")"; done
for file in $(cd "$root/deploy/examples" && find . -type f); do
    put 0644 "$root/deploy/examples/$file" "usr/share/doc/sbc/examples/$file"
done
put 0644 "$root/helm/sbc/files/alerts.yaml" usr/share/sbc/alerts.yaml
put 0644 "$root/helm/sbc/files/dashboard.json" usr/share/sbc/dashboard.json
for shell in bash zsh fish; do
    case $shell in
    bash) to=usr/share/bash-completion/completions/sbcctl ;;
    zsh) to=usr/share/zsh/vendor-completions/_sbcctl ;;
    fish) to=usr/share/fish/vendor_completions.d/sbcctl.fish ;;
    esac
    mkdir -p "$tree/$(dirname "$to")"
    "$tree/usr/bin/sbcctl" completions "$shell" >"$tree/$to"
    chmod 0644 "$tree/$to"
done

mkdir "$tree/DEBIAN" "$work/debian"
printf 'Source: sbc\nPackage: sbc\nArchitecture: any\n' >"$work/debian/control"
# Which packages hold the libraries that the binaries ask for.
depends=$(cd "$work" && dpkg-shlibdeps -O sbc/usr/bin/sbc-node sbc/usr/bin/sbcctl 2>/dev/null |
    sed -n 's/^shlibs:Depends=//p')
size=$(du -sk --apparent-size "$tree" | cut -f1)
cat >"$tree/DEBIAN/control" <<CONTROL
Package: sbc
Version: $version
Architecture: $arch
Maintainer: The sbc authors <sbc@localhost>
Installed-Size: $size
Depends: ${depends:-libc6}, systemd (>= 250) | systemd-standalone-sysusers | adduser
Recommends: nftables
Section: comm
Priority: optional
Description: clustered Session Border Controller
 Stands between an operator's SIP network and everyone else's: back-to-back user
 agent, topology hiding, media relay in the kernel, registrar, protection from
 floods, and calls that live on when the node that carried them dies.
CONTROL
printf '/etc/sbc/sbc.toml\n/etc/default/sbc\n/etc/logrotate.d/sbc\n' >"$tree/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 0755 "$here/$script" "$tree/DEBIAN/$script"; done
(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs md5sum >DEBIAN/md5sums)
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
deb=$out/sbc_${version}_$arch.deb
dpkg-deb --root-owner-group -Z"${SBC_DEB_COMPRESSION:-xz}" --build "$tree" "$deb" >/dev/null
echo "$deb"
