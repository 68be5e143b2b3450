#!/usr/bin/env bash
# Every benchmark, each printing its own table with its method. Usage: bench.sh DIRECTORY-OF-THE-BINARIES
# Peers (Kamailio, rtpengine) are measured in the same run where they are installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/scripts/deps.sh bench
export SBC_BIN
SBC_BIN=$(realpath "$1")
for bench in ${BENCHES:-sbc-core:message sbc-core:instructions sbc-core:transaction sbc-core:routing sbc-core:guard \
    sbc-core:registrar sbc-node:cdr media-anchor:relay media-anchor:kernel sbc-cluster:replication sbc-tests:signalling \
    sbc-tests:guard sbc-tests:siege sbc-tests:registrar sbc-tests:answers}; do
    echo
    echo "== $bench"
    cargo bench -q -p "${bench%%:*}" --bench "${bench##*:}"
done
