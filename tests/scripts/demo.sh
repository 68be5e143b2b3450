#!/usr/bin/env bash
# The main job, visibly: an SBC between two networks carries a real call with real audio in both
# directions. Usage: demo.sh DIRECTORY-OF-THE-BINARIES
#
#   caller 10.1.0.10 ── 10.1.0.1 [sbc-node] 10.2.0.1 ── 10.2.0.10 callee
#
# Everything happens in network namespaces that are removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$(realpath "$1")
export PATH="$PATH:/usr/sbin:/sbin"

if [ "$(id -u)" != 0 ]; then
    if ! unshare -Urnm true 2>/dev/null; then
        echo "demo: not root, and this kernel gives no user namespaces: nothing was run" >&2
        exit 1
    fi
    exec unshare -Urnm sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"' sh "$0" "$bin"
fi

tag=demo$$
dir=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for ns in out sbc in; do ip netns del "$tag-$ns" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
on() { local ns=$1; shift; ip netns exec "$tag-$ns" "$@"; }
ctl() { on sbc "$bin/sbcctl" --socket "$dir/sbc.sock" "$@"; }
# until_true SECONDS COMMAND...: polls a condition.
until_true() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "demo: waited in vain for: $*" >&2; exit 1; }
        sleep 0.05
    done
}

say "Two networks and an SBC between them"
for ns in out sbc in; do ip netns add "$tag-$ns"; ip -n "$tag-$ns" link set lo up; done
ip link add to-sbc netns "$tag-out" type veth peer name to-out netns "$tag-sbc"
ip link add to-sbc netns "$tag-in" type veth peer name to-in netns "$tag-sbc"
ip -n "$tag-out" addr add 10.1.0.10/24 dev to-sbc
ip -n "$tag-sbc" addr add 10.1.0.1/24 dev to-out
ip -n "$tag-sbc" addr add 10.2.0.1/24 dev to-in
ip -n "$tag-in" addr add 10.2.0.10/24 dev to-sbc
for dev in out:to-sbc sbc:to-out sbc:to-in in:to-sbc; do ip -n "$tag-${dev%%:*}" link set "${dev##*:}" up; done
sed "s#@DIR@#$dir#g" deploy/examples/demo.toml >"$dir/sbc.toml"
cat "$dir/sbc.toml"

say "sbc-node starts"
on sbc "$bin/sbc-node" check "$dir/sbc.toml"
on sbc "$bin/sbc-node" run --config "$dir/sbc.toml" >"$dir/sbc.log" 2>&1 &
pids+=($!)
until_true 10 ctl status
ctl status

say "SIPp calls from 10.1.0.10 to 10.2.0.10: 5 calls with PCMA audio, echoed by the callee"
(cd "$dir" && sox -n -r 8000 -c 1 -t al tone.al synth 4 sine 440)
scenarios=$(realpath tests/scenarios)
(cd "$dir" && exec ip netns exec "$tag-in" sipp -sf "$scenarios/uas-answer.xml" -i 10.2.0.10 -mi 10.2.0.10 \
    -p 5060 -rtp_echo -m 5 -nostdin >callee.log 2>&1) &
callee=$!
pids+=("$callee")
until_true 10 sh -c "ip netns exec $tag-in ss -Hlnu sport = 5060 | grep -q ."
(cd "$dir" && exec ip netns exec "$tag-out" sipp -sf "$scenarios/uac-call-rtp.xml" -i 10.1.0.10 -mi 10.1.0.10 \
    -p 5060 -s 1234 -m 5 -r 5 -d 4000 -nostdin -trace_err -error_file caller.err 10.1.0.1:5060 >caller.log 2>&1) &
caller=$!
pids+=("$caller")
all_up() { [ "$(ctl --output json calls list | grep -o '"call_id"\|"id"' | wc -l)" -ge 5 ]; }
until_true 10 all_up
sleep 2

say "sbcctl calls list"
ctl calls list
say "sbcctl media list"
ctl media list

wait "$caller" || { echo "demo: the caller failed"; cat "$dir/caller.err" "$dir/sbc.log" 2>/dev/null; exit 1; }
wait "$callee" || { echo "demo: the callee failed"; exit 1; }
say "The calls are over: one CDR each"
until_true 10 sh -c "[ \$(wc -l <$dir/cdr.jsonl) = 5 ]"
head -1 "$dir/cdr.jsonl"
ctl stats | head -40
say "Done: 5 calls set up, audio both ways, hung up, nothing left: $(ctl --output json calls list | tr -d '\n ')"
