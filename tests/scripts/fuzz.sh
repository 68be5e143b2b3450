#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS (60) each.
set -euo pipefail
cd "$(dirname "$0")/../../sbc-node/fuzz"
command -v cargo-fuzz >/dev/null || { echo "fuzz: cargo-fuzz is not installed: cargo install cargo-fuzz" >&2; exit 1; }
for target in $(cargo +nightly fuzz list); do
    cargo +nightly fuzz run "$target" -- -max_total_time="${FUZZ_SECONDS:-60}"
done
