# Sourced by the other scripts; `$1` is the binary. Provides a temporary directory, a live server on a
# free port of 127.0.0.1, and tools from PyPI or npm. Everything that was started is stopped at the end.
# shellcheck shell=bash
set -euo pipefail

clients=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$clients/../.." && pwd)
bin=$(realpath "${1:?usage: $0 path/to/tallyline}")
tmp=$(mktemp -d)
tools=${TALLYLINE_CLIENT_TOOLS:-$repo/target/clients} # venvs and node_modules, kept between runs
pids=()

cleanup() {
    local status=$?
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    if ((status != 0)); then
        tail -n 20 "$tmp"/*.log >&2 2>/dev/null || true
        echo "$(basename "$0"): FAILED" >&2
    fi
    rm -rf "$tmp"
    exit "$status"
}
trap cleanup EXIT

fail() {
    echo "$*" >&2
    exit 1
}

ok() { echo "ok: $*"; }

# until_true WHAT COMMAND...: tries until it succeeds, at most 30 seconds.
until_true() {
    local what=$1 deadline=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "waited 30 s for: $what"
        sleep 0.02
    done
}

# serve [FLAG...]: starts a server, waits until it responds; sets `port`, `url` and `server` (its pid).
serve() {
    rm -f "$tmp/port"
    "$bin" serve --listen 127.0.0.1:0 --port-file "$tmp/port" --data-dir "$tmp/data" \
        --flush-interval 100ms "$@" 2>>"$tmp/server.log" &
    server=$!
    pids+=("$server")
    until_true "the server's port file" test -s "$tmp/port"
    port=$(cat "$tmp/port")
    url=http://127.0.0.1:$port
}

# stop PID: stops a process that was started here and returns its exit code.
stop() {
    kill "$1"
    wait "$1"
}

# post URL BODY [CURL-FLAG...]
post() {
    local to=$1 body=$2
    shift 2
    curl --silent --show-error --fail-with-body --data-binary "$body" "$@" "$to"
}

# free_port: a port that is free at the moment, for programs that cannot choose one themselves.
free_port() {
    python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# python_with NAME PACKAGE...: sets `python` to an interpreter with these packages from PyPI.
python_with() {
    local venv=$tools/venv-$1
    shift
    python=$venv/bin/python
    [[ -x $python ]] || python3 -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

# Equal or fail: same WHAT GOT EXPECTED
same() {
    [[ $2 == "$3" ]] || fail "$1: got $2, expected $3"
    ok "$1: $2"
}
