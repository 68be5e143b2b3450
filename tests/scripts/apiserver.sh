#!/usr/bin/env bash
# Builds kube-apiserver and kube-controller-manager from Debian's `kubernetes` source package, for the test
# that installs the chart into a real API (tests/deploy/apiserver.rs). Takes the better part of an hour
# on two cores, and 4 GB. Usage: apiserver.sh [DIRECTORY]   (default: target/kubernetes)
#
# Needs root for the packages golang-1.19-go and etcd-server, when they are missing; nothing else is
# touched outside DIRECTORY: the source package comes by an apt configuration of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
place=$(mkdir -p "${1:-target/kubernetes}" && cd "${1:-target/kubernetes}" && pwd)
what=(${APISERVER_PROGRAMS:-kube-apiserver kube-controller-manager})
go=/usr/lib/go-1.19/bin/go
cd "$place"

if [ ! -x "$go" ] || ! command -v etcd >/dev/null; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -q >/dev/null
    "${sudo[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends golang-1.19-go etcd-server >/dev/null
fi

if [ ! -d src ]; then
    mkdir -p apt/lists/partial apt/cache/archives/partial
    for kind in deb deb-src; do
        echo "$kind ${DEBIAN_MIRROR:-http://deb.debian.org/debian} bookworm main"
    done >apt/sources.list
    apt=(-o "Dir::Etc::sourcelist=$place/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$place/apt/lists" -o "Dir::Cache=$place/apt/cache" -o APT::Sandbox::User=root)
    apt-get "${apt[@]}" update -q >/dev/null
    apt-get "${apt[@]}" source -q --download-only kubernetes
    rm -rf unpacked && dpkg-source -x kubernetes_*.dsc unpacked
    # The package's own copy of reflect2 walks maps as they were before Go 1.18, and crashes: Debian's
    # present one takes its place.
    apt-get "${apt[@]}" download -q golang-github-modern-go-reflect2-dev
    dpkg -x golang-github-modern-go-reflect2-dev_*.deb reflect2
    rm -rf unpacked/vendor/github.com/modern-go/reflect2
    mv reflect2/usr/share/gocode/src/github.com/modern-go/reflect2 unpacked/vendor/github.com/modern-go/
    mv unpacked src
fi

# The tree has its dependencies in it, and is older than modules that know their vendor directory by
# heart: built as a GOPATH.
export GOPATH="$place/gopath" GOCACHE="$place/cache" GO111MODULE=off GOPROXY=off GOFLAGS="-p=${JOBS:-2}" CGO_ENABLED=0
mkdir -p "$GOPATH/src/k8s.io" bin
ln -sfn "$place/src" "$GOPATH/src/k8s.io/kubernetes"
cd "$GOPATH/src/k8s.io/kubernetes"

# What the API says of its own types is made from them, and not in the package.
if [ ! -f pkg/generated/openapi/zz_generated.openapi.go ]; then
    "$go" build -o "$place/bin/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
    dirs=$(grep -rl '+k8s:openapi-gen=' --include='*.go' pkg cmd staging/src/k8s.io \
        | grep -v -e code-generator/ -e sample-apiserver/ -e /generated/ \
        | xargs -n1 dirname | sort -u | sed 's,^staging/src/,k8s.io/kubernetes/vendor/,; t; s,^,k8s.io/kubernetes/,' | paste -sd,)
    PATH="${go%/go}:$PATH" "$place/bin/openapi-gen" -i "$dirs" -p k8s.io/kubernetes/pkg/generated/openapi \
        -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt \
        -r "$place/violations" -o "$GOPATH/src"
fi

# As the package is named: 1.20.5+really1.20.2-1.1 is 1.20.2.
release=$(sed -nE '1s/.*\(([^)]*)\).*/\1/p' debian/changelog | sed -E 's/.*really//; s/-.*//')
for program in "${what[@]}"; do
    [ -x "$place/bin/$program" ] && continue
    echo "apiserver: building $program"
    flags="-s -w"
    for version in component-base/version client-go/pkg/version; do
        at=k8s.io/kubernetes/vendor/k8s.io/$version
        flags+=" -X $at.gitVersion=v$release -X $at.gitMajor=${release%%.*} -X $at.gitMinor=$(cut -d. -f2 <<<"$release")"
    done
    "$go" build -trimpath -ldflags "$flags" \
        -o "$place/bin/$program" "./cmd/$program"
done
echo "KUBE_APISERVER=$place/bin/kube-apiserver"
