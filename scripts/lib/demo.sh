# shellcheck shell=bash
# The parts of scripts/demo. Sourced. Uses its `dir` (the demo's own folder) and
# `bin` (where the programs are).

demo_pids=()
demo_failed=''

say() { printf '\n== %s\n' "$*"; }

godwit() { "$bin/godwit" "$@"; }

# Shows a command as a person would type it, and runs it.
run() {
    printf '\n$ %s\n' "${*//$dir/DIR}"
    "$@"
}

fail() {
    echo "demo: $*" >&2
    demo_failed=1
    local log
    for log in "$dir"/*.log; do
        echo "--- ${log##*/}, its end" >&2
        tail -n 15 "$log" >&2
    done
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt "$deadline" ] || fail "waited in vain until $what"
        sleep 0.05
    done
}

start_coordinator() {
    "$bin/godwit-coordinator" run --state-dir "$dir/coordinator" \
        --listen 127.0.0.1:0 --api "127.0.0.1:${GODWIT_DEMO_PORT:-0}" \
        2>"$dir/coordinator.log" &
    demo_pids+=($!)
    wait_for 20 'the coordinator is ready' api_answers
}

api_answers() {
    [ -s "$dir/coordinator/endpoints.json" ] && godwit cluster status >/dev/null 2>&1
}

# start_node NAME [relayed]: with `relayed`, peers reach it through a relay that
# the demo can cut.
start_node() {
    local name=$1 address=() token
    if [ "${2:-}" = relayed ]; then
        start_relay
        address=(--address "$relay_address")
    fi
    token=$(godwit node token -o json | jq -r .token)
    "$bin/godwit-node" join "$token" --state-dir "$dir/$name" --name "$name" \
        "${address[@]}" 2>>"$dir/$name.log" || fail "$name cannot join"
    # A session of its own, as under a service manager: a Ctrl-C here is not its.
    setsid "$bin/godwit-node" run --state-dir "$dir/$name" --run-dir "$dir/r-$name" \
        --listen 127.0.0.1:0 "${address[@]}" 2>>"$dir/$name.log" &
    demo_pids+=($!)
    wait_for 20 "$name is up" node_up "$name"
    if [ "${2:-}" = relayed ]; then
        relay_do "aim $(jq -r .cluster "$dir/$name/endpoints.json")"
    fi
}

node_up() {
    [ "$(godwit node show "$1" -o json 2>/dev/null | jq -r .health)" = up ]
}

start_relay() {
    mkfifo "$dir/relay.in"
    "$bin/godwit-relay" <"$dir/relay.in" >"$dir/relay.out" 2>"$dir/relay.log" &
    demo_pids+=($!)
    exec 9>"$dir/relay.in"
    wait_for 10 'the relay listens' test -s "$dir/relay.out"
    relay_address=$(head -n1 "$dir/relay.out")
}

relay_do() { echo "$1" >&9; }

# Keeps reading the guest's serial console, wherever the guest is.
follow_console() {
    setsid "$bin/godwit" vm console "$1" </dev/null >"$dir/console.out" 2>"$dir/console.log" &
    demo_pids+=($!)
}

last_count() {
    grep -aoE '^count [0-9]+' "$dir/console.out" | tail -n1 | cut -d' ' -f2 | grep . || echo 0
}

counted() { [ "$(last_count)" -ge "$1" ]; }

last_migration() { godwit migration list -o json | jq "sort_by(.created) | last"; }

in_phase() { [ "$(last_migration | jq -r .phase)" = "$1" ]; }

show_blackout() {
    last_migration | jq -r '"    blackout: \(.blackout) ms until the target confirmed it, \(.progress.iteration) passes"'
}

show_why() {
    last_migration | jq -r '"    why: \(.failure.problem.message)", "    guest confirmed running on its source after \(.failure.recovered_in) ms from the notice"'
}

# Every number once, in order, and every page as it was written.
check_console() {
    local counts bad
    counts=$(tr -d '\r' <"$dir/console.out" | grep -aoE '^count [0-9]+ ' | cut -d' ' -f2)
    bad=$(grep -acE 'BADPAGE|BADTABLE' "$dir/console.out" || true)
    awk 'NR > 1 && $1 != last + 1 { print "    " last " is followed by " $1; bad = 1 }
         { if (NR == 1) first = $1; last = $1 }
         END { print "    counted from " first " to " last " without a gap or a repetition"; exit bad }' \
        <<<"$counts" || fail 'the count is broken'
    [ "$bad" = 0 ] || fail 'a memory page is not what was written'
    tr -d '\r' <"$dir/console.out" | grep -aE '^count ' | tail -n1 | sed 's/^/    /'
}

# Ends what the demo started: the guest through the cluster, then the daemons,
# then whatever QEMU is left of this demo's own folder.
demo_cleanup() {
    local status=$? pid
    set +e
    if [ -d "$dir" ]; then
        timeout 20 "$bin/godwit" vm stop counter >/dev/null 2>&1
        exec 9>&-
        for pid in "${demo_pids[@]}"; do kill "$pid" 2>/dev/null; done
        for pid in "${demo_pids[@]}"; do wait "$pid" 2>/dev/null; done
        for pid in $(pgrep -f -- "$dir/" 2>/dev/null); do
            [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null
        done
        rm -rf "$dir"
    fi
    [ -z "$demo_failed" ] || status=1
    exit $status
}
