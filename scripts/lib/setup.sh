# shellcheck shell=bash
# Installs what Godwit's scripts need, and nothing that is already there.
#
# Source it, then call `godwit_setup GROUP...`:
#   build   a C toolchain for crates with C code, cargo itself is expected
#   guest   QEMU and what scripts/guest-image unpacks packages with
#   test    cargo-nextest, and programs that tests and the demo call
#   lint    cargo-deny, shellcheck
#   htools  Ganeti's hbal, for a comparison
# Prints one line for each thing that it installs, else nothing. System packages
# come from apt (through sudo when not root); cargo tools go where `cargo
# install` puts them. Logs and package lists stay in .cache.

GODWIT_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
GODWIT_SETUP_DIR=$GODWIT_ROOT/.cache/setup
# A login shell has these; a script started by cron or CI may not.
case :$PATH: in
    *:"${CARGO_HOME:-$HOME/.cargo}/bin":*) ;;
    *) PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin ;;
esac
case :$PATH: in
    *:/usr/sbin:*) ;;
    *) PATH=$PATH:/usr/sbin:/sbin ;;
esac
export PATH

godwit_setup() {
    local group missing=()
    mkdir -p "$GODWIT_SETUP_DIR"
    for group in "$@"; do
        case $group in
            build)
                _want gcc gcc
                _want g++ g++
                _want make make
                # For the build of etcd-client.
                _want protoc protobuf-compiler
                _want_file /usr/include/google/protobuf/descriptor.proto libprotobuf-dev
                _want git git
                _want_file /usr/include/stdio.h libc6-dev
                _want_file /etc/ssl/certs/ca-certificates.crt ca-certificates
                ;;
            guest)
                _want gzip gzip
                _want xz xz-utils
                _want zstd zstd
                _want flock util-linux
                # What scripts/old-qemu trusts Debian's archive by.
                compgen -G '/usr/share/keyrings/debian-archive-keyring.*' >/dev/null ||
                    missing+=(debian-archive-keyring)
                ;;
            test)
                _want nft nftables
                _want ip iproute2
                _want curl curl
                _want jq jq
                ;;
            lint) _want shellcheck shellcheck ;;
            htools) missing+=(ganeti-htools) ;;
            *) _setup_die "no setup group $group" ;;
        esac
    done
    [ ${#missing[@]} -eq 0 ] || _apt_install "${missing[@]}"
    _setup_cargo
    for group in "$@"; do
        case $group in
            guest) _setup_qemu ;;
            test) _setup_cargo_tool cargo-nextest cargo-nextest ;;
            lint) _setup_cargo_tool cargo-deny cargo-deny ;;
        esac
    done
}

# --- helpers; `missing` is godwit_setup's -------------------------------------

_setup_die() {
    echo "setup: $*" >&2
    exit 1
}

_want() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
_want_file() { [ -e "$1" ] || missing+=("$2"); }

# Sets `_godwit_root` to what makes a command run as root, or says what a
# person has to install. Once, before any output is redirected.
_need_root() {
    [ -z "${_godwit_root+set}" ] || return 0
    command -v apt-get >/dev/null ||
        _setup_die "not Debian or Ubuntu (no apt-get); install by hand: $*"
    if [ "$(id -u)" = 0 ]; then
        _godwit_root=()
    elif ! command -v sudo >/dev/null; then
        _setup_die "you are not root and there is no sudo; install as root: $*"
    elif sudo -n true 2>/dev/null || [ -t 0 ]; then
        _godwit_root=(sudo)
        sudo -n true 2>/dev/null || sudo -p "setup: to install $*, sudo asks for %p's password: " true
    else
        _setup_die "sudo wants a password and there is no terminal; install as root: $*"
    fi
}

_apt_update() {
    _need_root "$@"
    [ -z "${_godwit_apt_updated:-}" ] || return 0
    "${_godwit_root[@]}" apt-get -qq update >"$GODWIT_SETUP_DIR/apt-update.log" 2>&1 ||
        _setup_die "apt-get update failed, see $GODWIT_SETUP_DIR/apt-update.log"
    _godwit_apt_updated=1
}

# _apt_install [-OPTION...] PACKAGE...
_apt_install() {
    local options=()
    while [[ $1 = -* ]]; do
        options+=("$1" "$2")
        shift 2
    done
    _apt_update "$@"
    echo "setup: installing $*"
    "${_godwit_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "${options[@]}" "$@" \
        >"$GODWIT_SETUP_DIR/apt-install.log" 2>&1 ||
        _setup_die "apt-get install $* failed, see $GODWIT_SETUP_DIR/apt-install.log"
}

_setup_cargo() {
    command -v cargo >/dev/null ||
        _setup_die 'cargo is missing; Godwit needs Rust 1.88 or later (rustup.rs)'
    local version
    version=$(cargo --version | grep -oE '1\.[0-9]+' | head -n1)
    [ "${version#1.}" -ge 88 ] ||
        _setup_die "cargo $version is too old; Godwit needs Rust 1.88 or later"
}

_setup_cargo_tool() {
    command -v "$1" >/dev/null && return
    local log=$GODWIT_SETUP_DIR/$2.log
    echo "setup: building $2 (some minutes, once)"
    cargo install --locked "$2" >"$log" 2>&1 ||
        _setup_die "cargo install $2 failed, see $log"
}

# --- QEMU ---------------------------------------------------------------------

_setup_qemu() {
    local packages=()
    command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86)
    command -v qemu-img >/dev/null || packages+=(qemu-utils)
    [ ${#packages[@]} -gt 0 ] || return 0
    _apt_update "${packages[@]}"
    if _apt_can "${packages[@]}"; then
        _apt_install "${packages[@]}"
    else
        _qemu_from_backports "${packages[@]}"
    fi
}

# Whether apt can install these beside what is there, removing nothing.
_apt_can() {
    local plan
    plan=$(apt-get -s install --no-install-recommends "$@" 2>/dev/null) || return 1
    ! grep -q '^Remv ' <<<"$plan"
}

# A machine with QEMU's tools from backports cannot take the stable emulator.
# The suite is added for this one call only: the system's own sources stay as
# they are.
_qemu_from_backports() {
    local codename suite suites site
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    suite=$codename-backports
    [ -n "$codename" ] || _setup_die "apt cannot install $*; install QEMU 7.2 or later by hand"
    # apt's own format variables, not the shell's.
    # shellcheck disable=SC2016
    suites=$(apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages')
    if grep -q "^$suite " <<<"$suites"; then
        _apt_install -t "$suite" "$@"
        return
    fi
    local lists=$GODWIT_SETUP_DIR/backports
    site=$(awk -v codename="$codename" '$1 == codename && !n++ { print $2 }' <<<"$suites")
    [ -n "$site" ] || _setup_die "apt cannot install $*; install QEMU 7.2 or later by hand"
    mkdir -p "$lists/partial" "$lists/parts"
    cp /etc/apt/sources.list.d/* "$lists/parts/" 2>/dev/null || true
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $suite main" \
        >"$lists/parts/$suite.list"
    local with=(-o "Dir::Etc::SourceParts=$lists/parts" -o "Dir::State::Lists=$lists")
    "${_godwit_root[@]}" apt-get -qq "${with[@]}" update >"$GODWIT_SETUP_DIR/apt-update.log" 2>&1 ||
        _setup_die "apt-get update failed, see $GODWIT_SETUP_DIR/apt-update.log"
    _apt_install "${with[@]}" -t "$suite" "$@"
}
