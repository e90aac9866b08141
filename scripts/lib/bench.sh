# shellcheck shell=bash
# The run of a benchmark. Sourced, from the project's root, after setup.sh.
# shellcheck source=leftovers.sh
. scripts/lib/leftovers.sh

# bench PROGRAM ARGUMENTS: builds everything for release and runs one of the
# programs in tests/src/bin; fails when it leaves something behind.
bench() {
    local program=$1
    shift
    GODWIT_GUEST_DIR=$(scripts/guest-image)
    export GODWIT_GUEST_DIR
    cargo build --quiet --locked --release --workspace --bins >&2
    leftovers_begin
    trap leftovers_end EXIT
    "target/release/$program" "$@"
    leftovers_check
}
