#!/usr/bin/env bash
# The main job, visibly: three nodes form one SBC between two networks; calls with audio are set up
# through it, the node that carries them is killed, and the calls go on.
# Usage: demo.sh DIRECTORY-OF-THE-BINARIES
#
#   caller 10.1.0.10 ─┬─ n1 n2 n3 ─┬─ 10.2.0.10 callee
#           10.1.0.100 (floating) 10.2.0.100
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
declare -A node
pids=()
cleanup() {
    for pid in "${pids[@]}" "${node[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for ns in out in n1 n2 n3 net; do ip netns del "$tag-$ns" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
on() { local ns=$1; shift; ip netns exec "$tag-$ns" "$@"; }
ctl() { local n=$1; shift; on "$n" "$bin/sbcctl" --socket "$dir/$n/sbc.sock" "$@"; }
# until_true SECONDS COMMAND...: polls a condition.
until_true() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "demo: waited in vain for: $*" >&2; tail -n 20 "$dir"/n*/log >&2; exit 1; }
        sleep 0.05
    done
}

say "Two networks, one channel network, three nodes between them"
for ns in out in n1 n2 n3 net; do ip netns add "$tag-$ns"; ip -n "$tag-$ns" link set lo up; done
for net in outside inside channel; do
    ip -n "$tag-net" link add "$net" type bridge
    ip -n "$tag-net" link set "$net" up
done
# plug NAMESPACE NETWORK ADDRESS: a cable from the namespace to the network's bridge.
plug() {
    ip link add "$2" netns "$tag-$1" type veth peer name "$1-$2" netns "$tag-net"
    ip -n "$tag-net" link set "$1-$2" master "$2" up
    ip -n "$tag-$1" addr add "$3" dev "$2"
    ip -n "$tag-$1" link set "$2" up
}
plug out outside 10.1.0.10/24
plug in inside 10.2.0.10/24
for n in 1 2 3; do
    plug "n$n" outside "10.1.0.1$n/24"
    plug "n$n" inside "10.2.0.1$n/24"
    plug "n$n" channel "10.3.0.1$n/24"
done

start_node() {
    local n=$1 join=$2
    mkdir -p "$dir/n$n"
    sed -e "s#@DIR@#$dir/n$n#g" -e "s#@N@#$n#g" -e "s#@JOIN@#$join#" tests/scripts/demo.toml >"$dir/n$n/sbc.toml"
    on "n$n" "$bin/sbc-node" check "$dir/n$n/sbc.toml"
    # exec, so that the pid is the node's own.
    (exec ip netns exec "$tag-n$n" "$bin/sbc-node" run --config "$dir/n$n/sbc.toml" >"$dir/n$n/log" 2>&1) &
    node[n$n]=$!
    until_true 20 ctl "n$n" status
}
say "n1 begins a cluster; n2 and n3 join with a single-use token each"
start_node 1 ""
for n in 2 3; do
    token=$(ctl n1 cluster token)
    start_node "$n" "join = { token = \"$token\", seeds = [\"10.3.0.11\"] }"
done
three_up() { [ "$(ctl n1 cluster status | grep -cE ' up +(leader|voter) ')" = 3 ]; }
until_true 30 three_up
held() { for n in n1 n2 n3; do [ -n "${node[$n]:-}" ] && ip -n "$tag-$n" -4 addr | grep 10.2.0.100/32 >/dev/null && echo "$n" && return; done; return 1; }
until_true 30 held
owner=$(held)
ctl n1 cluster status

say "SIPp calls 10.1.0.100: 5 calls with PCMA audio, echoed by the callee"
(cd "$dir" && sox -n -r 8000 -c 1 -t al tone.al synth 4 sine 440)
scenarios=$(realpath tests/scenarios)
(cd "$dir" && exec ip netns exec "$tag-in" sipp -sf "$scenarios/uas-answer.xml" -i 10.2.0.10 -mi 10.2.0.10 \
    -p 5060 -rtp_echo -m 5 -nostdin -skip_rlimit >callee.log 2>&1) &
callee=$!
pids+=("$callee")
until_true 10 sh -c "ip netns exec $tag-in ss -Hlnu sport = 5060 | grep -q ."
(cd "$dir" && exec ip netns exec "$tag-out" sipp -sf "$scenarios/uac-call-rtp.xml" -i 10.1.0.10 -mi 10.1.0.10 \
    -p 5060 -s 1234 -m 5 -r 5 -d 12000 -nostdin -skip_rlimit -trace_err -error_file caller.err 10.1.0.100:5060 >caller.log 2>&1) &
caller=$!
pids+=("$caller")
calls_at() { ctl "$1" status | grep -E "calls +$2\$" >/dev/null; }
until_true 10 calls_at "$owner" 5
sleep 2
ctl "$owner" calls list
ctl "$owner" media list

say "$owner carries them. It is killed (SIGKILL)."
kill -9 "${node[$owner]}"
died=$(date +%s%N)
unset "node[$owner]"
until_true 30 held
survivor=$(held)
until_true 30 calls_at "$survivor" 5
echo "$survivor has the addresses and the calls $((($(date +%s%N) - died) / 1000000)) ms later"
ctl "$survivor" cluster status
ctl "$survivor" calls list

wait "$caller" || { echo "demo: the caller failed"; cat "$dir/caller.err" 2>/dev/null; tail -n 30 "$dir"/n*/log; exit 1; }
wait "$callee" || { echo "demo: the callee failed"; exit 1; }
say "The callers hung up normally; one CDR for each call"
until_true 10 sh -c "[ \$(cat $dir/n*/cdr.jsonl | wc -l) = 5 ]"
head -n 1 "$dir/$survivor/cdr.jsonl"
until_true 10 calls_at "$survivor" 0
say "Done: 5 calls were set up, survived the death of their node, and ended by BYE"
