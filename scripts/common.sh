# shellcheck shell=bash
# Functions that several scripts share. Each script sources this file from the top of the checkout.

checkout=$PWD

say() { printf '%s\n' "$*" >&2; }
# die REASON...: ends the script, which is named first.
die() { say "${0##*/}: $*"; exit 1; }

# quietly COMMAND...: its output is shown only if it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    ((status == 0)) || cat "$log" >&2
    rm -f "$log"
    return "$status"
}

# is_there PROGRAM@VERSION: whether .tools/bin has the program, as a link whose target exists, or built from this
# version. Before the program's name there may be the path of its package.
is_there() {
    local name=${1##*/}
    name=${name%@*}
    [ -x ".tools/bin/$name" ] && { [ -L ".tools/bin/$name" ] || [ "$(cat ".tools/built/$name" 2>/dev/null)" = "$1" ]; }
}

# with_go FOLDER ARGUMENT...: runs the Go toolchain that pip has installed. It keeps all its files in FOLDER, an
# absolute path, and uses no HOME.
with_go() {
    local folder=$1 go
    shift
    go=$(echo "$checkout"/.venv/lib/python3*/site-packages/go/bin/go)
    GOPATH=$folder/path GOCACHE=$folder/cache GOTOOLCHAIN=local GOTELEMETRY=off \
        GOFLAGS='-buildvcs=false -trimpath -modcacherw' CGO_ENABLED=0 "$go" "$@"
}

# find_version X.Y: the path of such a Python, in PATH, by pyenv or by uv; none is installed.
find_version() {
    local python candidates=()
    candidates+=("$(command -v "python$1" || true)")
    mapfile -t -O 1 candidates < <(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1.*/bin/python" | sort -rV)
    ! command -v uv >/dev/null || candidates+=("$(uv python find --no-python-downloads "$1" 2>/dev/null || true)")
    for python in "${candidates[@]}"; do
        # One of pyenv's shims is there for versions that it would not run, too.
        if [ -n "$python" ] && is_version "$python" "$1"; then echo "$python" && return; fi
    done
    return 1
}

is_version() { [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$2" ]; }
