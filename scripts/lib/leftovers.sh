# shellcheck shell=bash
# Finds what a test run or a demo left behind: processes, files, network
# namespaces. Sourced. Call `leftovers_begin`, run, `leftovers_check` (1 when
# there is something, and says what), and `leftovers_end` to clean up.
#
# Two marks find processes without mistaking another user's QEMU for ours: a
# variable in the environment that children inherit, and a temporary folder of
# the run's own, whose name is in the arguments of every QEMU that was started
# with a cleared environment.

# Seconds that an ending process may take to be gone.
GODWIT_LEFTOVER_GRACE=${GODWIT_LEFTOVER_GRACE:-5}

leftovers_begin() {
    # Short: a unix socket's path may be 107 bytes long, and tests nest folders.
    _leftover_dir=$(mktemp -d /tmp/gw-XXXX)
    _leftover_folders=$(_godwit_folders)
    _leftover_mark=GODWIT_RUN=${_leftover_dir##*/}
    _leftover_netns=$(_godwit_netns)
    export TMPDIR=$_leftover_dir "${_leftover_mark?}"
}

leftovers_check() {
    local deadline=$((SECONDS + GODWIT_LEFTOVER_GRACE)) found
    while found=$(_leftovers) && [ -n "$found" ]; do
        if [ $SECONDS -ge $deadline ]; then
            echo 'left behind:' >&2
            echo "$found" >&2
            return 1
        fi
        sleep 0.2
    done
}

# Ends what was left, so that the next run starts clean. Only processes that
# carry this run's marks.
leftovers_end() {
    [ -n "${_leftover_dir:-}" ] || return 0
    local pid
    for pid in $(_leftover_pids); do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$_leftover_dir"
    _leftover_dir=''
}

_leftovers() {
    local pid name
    for pid in $(_leftover_pids); do
        echo "  process $pid: $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | cut -c1-160)"
    done
    find "$_leftover_dir" -mindepth 1 -maxdepth 2 -printf '  file %p\n' 2>/dev/null | head -n 20
    for name in $(_godwit_folders); do
        grep -qxF "$name" <<<"$_leftover_folders" || _in_use "$name" ||
            [ "$name" = "$_leftover_dir" ] || echo "  folder $name"
    done
    for name in $(_godwit_netns); do
        grep -qx "$name" <<<"$_leftover_netns" || echo "  network namespace $name"
    done
}

# Processes with a mark of this run, but for this shell and its children.
_leftover_pids() {
    local entry pid
    for entry in /proc/[0-9]*; do
        pid=${entry#/proc/}
        if [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ]; then continue; fi
        if grep -qz "^$_leftover_mark\$" "$entry/environ" 2>/dev/null ||
            grep -q "$_leftover_dir/" "$entry/cmdline" 2>/dev/null; then
            _is_ours "$pid" || echo "$pid"
        fi
    done
}

# Whether a process belongs to the machinery around the check: an ancestor or
# descendant of this shell (a `tee`, this very loop's `find`).
_is_ours() {
    local pid=$1 parent
    case " $(_ancestors $$) " in *" $pid "*) return 0 ;; esac
    parent=$pid
    while [ "${parent:-0}" -gt 1 ]; do
        [ "$parent" = $$ ] && return 0
        parent=$(awk '/^PPid:/ { print $2 }' "/proc/$parent/status" 2>/dev/null)
    done
    # It may have ended while we looked.
    ! [ -e "/proc/$pid" ]
}

_ancestors() {
    local pid=$1
    while [ "${pid:-0}" -gt 1 ]; do
        echo -n "$pid "
        pid=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status" 2>/dev/null)
    done
}

# Folders of test clusters, whoever made them.
_godwit_folders() { find /tmp -maxdepth 1 -type d -name 'gw-*' 2>/dev/null | sort; }

# Whether a process names the folder: then it is another run's, as ours have
# been looked for by their marks.
_in_use() {
    grep -qs -- "$1" /proc/[0-9]*/cmdline /proc/[0-9]*/environ
}

_godwit_netns() {
    command -v ip >/dev/null || return 0
    ip netns list 2>/dev/null | awk '$1 ~ /^(godwit|gw)-/ { print $1 }'
}
