#!/usr/bin/env bash
# Runs the tests and closes with one summary line: "N passed, N failed, N skipped".
# Usage: test.sh [e2e]     e2e: only the end-to-end tests.
#
# End-to-end tests make network namespaces. As root they do so directly; an ordinary user gets a
# user namespace of its own where the kernel allows it. What could not run is named at the end, and
# counts as a failure in CI, except where only a tool from npm, PyPI or a container runtime is missing.
set -uo pipefail
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"
cd "$(dirname "$0")/../.."

log=$(mktemp); skips=$(mktemp)
trap 'rm -f "$log" "$skips"' EXIT
export SBC_TEST_SKIPS="$skips"

inner=()
if [ "$(id -u)" != 0 ]; then
    if unshare -Urnm true 2>/dev/null; then
        inner=(unshare -Urnm --keep-caps sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"' sh)
    else
        echo "end to end: not root and no user namespaces" >>"$skips"
        export SBC_TEST_NO_NETNS=1
    fi
fi

status=0
run() {
    echo "== $*"
    "$@" 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" = 0 ] || status=1
}

cargo build --workspace --all-targets || exit 1
if [ "${1:-}" != e2e ]; then
    run cargo test --workspace --exclude sbc-tests --no-fail-fast
    run cargo test -p sbc-tests --test tidy --no-fail-fast
    run "${inner[@]}" cargo test -p sbc-tests --test deploy --no-fail-fast -- --test-threads=1
fi
run "${inner[@]}" cargo test -p sbc-tests --test e2e --no-fail-fast -- --test-threads=2

passed=$(awk '/^test result:/ {n += $4} END {print n + 0}' "$log")
failed=$(awk '/^test result:/ {n += $6} END {print n + 0}' "$log")
skipped=$(wc -l <"$skips")
grep -E '^test .* FAILED$' "$log" | sort -u
sed 's/^/skipped: /' "$skips"
if grep -qv '^tool: ' "$skips" && [ "${CI:-}" = true ]; then
    echo "in CI only what lacks a tool of another registry may be skipped"
    status=1
fi
[ "$failed" = 0 ] || status=1
[ "$passed" -gt 0 ] || status=1
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
