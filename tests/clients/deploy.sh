#!/usr/bin/env bash
# Tests of the files in data/deploy: unit; alerts, dashboard and scrape example with a real Prometheus;
# backup and restore; the GitHub Actions job. (nginx and Caddy: proxies.sh. The Dockerfile is not
# built: that needs a container engine.) Needs systemd-analyze, strace, prometheus, promtool, sqlite3, curl, jq, python3.
. "$(dirname "$0")/lib.sh"
deploy=$repo/data/deploy

check_unit() {
    sed "s#/usr/local/bin/tallyline#$bin#" "$deploy/tallyline.service" >"$tmp/tallyline.service"
    systemd-analyze verify "$tmp/tallyline.service" 2>"$tmp/unit.log" || fail "$(cat "$tmp/unit.log")"
    ! grep tallyline.service "$tmp/unit.log" || fail "the unit has warnings"
    systemd-analyze security --offline=true --threshold=20 "$tmp/tallyline.service" >/dev/null
    ok "the unit is valid; its exposure is at most 2.0 of 10"

    # Without systemd, the system calls that its filters allow are compared with those of a server.
    strace -f -o "$tmp/calls" "$bin" serve --listen 127.0.0.1:0 --port-file "$tmp/port" \
        --data-dir "$tmp/data" --rotate-interval 50ms 2>"$tmp/strace.log" &
    until_true "the server's port file" test -s "$tmp/port"
    url=http://127.0.0.1:$(cat "$tmp/port")
    post "$url/liveEvent" '{"userId":"user1","name":"add_revenue","value":1}' >/dev/null
    post "$url/flush" '' >/dev/null
    # A request with two lengths: the server closes the connection.
    ! curl -fsS "$url/flush" -d x -H 'Content-Length: 1' -H 'Content-Length: 2' 2>/dev/null
    "$bin" query --data-dir "$tmp/data" --top 1 >/dev/null
    pkill -TERM -P $!
    wait $!
    python3 - "$deploy/tallyline.service" "$tmp/calls" <<'EOF'
import pathlib, re, subprocess, sys
unit, calls = (pathlib.Path(path).read_text() for path in sys.argv[1:])

def names(name):
    if not name.startswith("@"):
        return {name}
    output = subprocess.check_output(["systemd-analyze", "syscall-filter", name], text=True)
    return set().union(*(names(part) for part in re.findall(r"^    (@?\w[\w-]*)$", output, re.M)))

allowed = set()
for inverted, filters in re.findall("^SystemCallFilter=(~?)(.*)$", unit, re.M):
    part = set().union(*map(names, filters.split()))
    allowed = allowed - part if inverted else allowed | part
called = set(re.findall(r"^\d+ +([a-z]\w+)\(", calls, re.M)) - {"fchown"}  # SQLite's, of root only
assert {"epoll_wait", "pwrite64", "fdatasync"} <= called, called
assert called <= allowed, f"the filter of the unit does not allow {called - allowed}"
families = re.search("^RestrictAddressFamilies=(.*)$", unit, re.M)[1].split()
opened = set(re.findall(r"\bsocket\((\w+)", calls))
assert opened <= set(families), f"the unit does not allow {opened - set(families)}"
EOF
    ok "the unit allows every system call of a server"

    # The server sends READY=1 once the port responds, and STOPPING=1 after SIGTERM; this script listens
    # in place of systemd.
    python3 - "$bin" "$tmp" <<'EOF'
import os, pathlib, signal, socket, subprocess, sys, urllib.request
binary, tmp = sys.argv[1:]
path, port = f"{tmp}/notify", pathlib.Path(tmp, "notify-port")
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(path)
listener.settimeout(30)
server = subprocess.Popen(
    [binary, "serve", "--listen", "127.0.0.1:0", "--port-file", port, "--data-dir", f"{tmp}/notify-data"],
    env=dict(os.environ, NOTIFY_SOCKET=path), stderr=subprocess.DEVNULL)
try:
    assert listener.recv(64) == b"READY=1"
    urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().strip()}/healthz").close()
    server.send_signal(signal.SIGTERM)
    assert listener.recv(64) == b"STOPPING=1"
    assert server.wait(30) == 0
finally:
    server.kill()
EOF
    ok "systemd receives READY=1 once the port responds, and STOPPING=1"
}

check_prometheus() {
    serve
    cp "$deploy/alerts.yml" "$clients/alerts_test.yml" "$tmp/"
    (cd "$tmp" && promtool test rules alerts_test.yml) >"$tmp/promtool.log" 2>&1 || fail "alert rules"
    ok "each alert fires when it should, and does not when it should not"

    sed "s/127.0.0.1:8000/127.0.0.1:$port/; s/15s/1s/" "$deploy/prometheus.yml" >"$tmp/prometheus.yml"
    local prometheus_port
    prometheus_port=$(free_port)
    prometheus --config.file="$tmp/prometheus.yml" --storage.tsdb.path="$tmp/tsdb" \
        --web.listen-address="127.0.0.1:$prometheus_port" >"$tmp/prometheus.log" 2>&1 &
    pids+=($!)
    prometheus=http://127.0.0.1:$prometheus_port
    until_true "Prometheus" curl -fsS "$prometheus/-/ready"

    # A panel without data queries a metric that does not exist.
    jq -e '.uid == "tallyline" and (.panels | length > 9) and
           ([.panels[].id] | length == (unique | length))' "$deploy/grafana.json" >/dev/null
    local query
    while read -r query; do
        query=${query//\$__rate_interval/10s}
        query=${query//\$instance/.*}
        until_true "data for $query" has_data "$query"
    done < <(jq -r '.panels[].targets[].expr' "$deploy/grafana.json")
    ok "every query of the dashboard returns data"
    # The disk of the test machine may be full.
    same "alerts that fire on a healthy server" "$(curl -fsS "$prometheus/api/v1/alerts" |
        jq -c '[.data.alerts[].labels.alertname] - ["TallylineDiskFull"]')" '[]'
    stop "$server"
}

has_data() {
    post "$url/liveEvent" '{"userId":"user1","name":"add_revenue","value":1}' >/dev/null
    curl -fsS "$prometheus/api/v1/query" --data-urlencode "query=$1" |
        jq -e '.data.result | length > 0' >/dev/null
}

# Without the time of the last change: that is when an event was applied, and differs after a restore.
totals() {
    "$bin" query --data-dir "$1" --top 1000 --json | jq -c '[.users, .events, .revenue],
        (.top | map([.userId, .revenue, .events]) | sort)[]'
}

check_backup() {
    local before after
    rm -rf "$tmp/data"
    serve --rotate-interval 50ms
    "$bin" generate --events 20000 --users 100 --seed 7 >"$tmp/events.jsonl"
    head -n 10000 "$tmp/events.jsonl" | "$bin" send - --to "$url" --quiet
    # Under load, so that files are sealed and archived during the copy.
    tail -n +10001 "$tmp/events.jsonl" | "$bin" send - --to "$url" --quiet --batch 50 &
    "$bin" backup "$tmp/backup" --data-dir "$tmp/data" --verify --quiet
    wait $!
    post "$url/flush" '' >/dev/null
    ! "$bin" restore "$tmp/backup" --data-dir "$tmp/data" 2>/dev/null || fail "restored while a server runs"
    ok "restore rejects the directory of a running server"
    stop "$server"
    before=$(totals "$tmp/data")

    # Only the database is lost: it is restored, and the newer files are applied.
    echo garbage >"$tmp/data/revenue.db"
    "$bin" restore "$tmp/backup" --data-dir "$tmp/data" --quiet
    "$bin" process --data-dir "$tmp/data" --quiet >/dev/null
    after=$(totals "$tmp/data")
    [[ $before == "$after" ]] || fail "the totals differ after the database was restored"
    "$bin" verify --data-dir "$tmp/data" --quiet >/dev/null
    ok "a lost database, restored: the same totals, and verify agrees"

    # The whole machine is lost: the backup contains at least the events posted before it was made.
    "$bin" restore "$tmp/backup" --data-dir "$tmp/other" --quiet
    "$bin" process --data-dir "$tmp/other" --quiet >/dev/null
    "$bin" verify --data-dir "$tmp/other" --quiet >/dev/null
    local events
    events=$(sqlite3 "$tmp/other/revenue.db" 'SELECT sum(events) FROM user_total')
    ((events >= 10000)) || fail "only $events events in the backup"
    ok "a lost machine, restored: $events events, verify agrees"
}

check_actions() {
    python_with deploy PyYAML==6.0.2
    mkdir "$tmp/bin" "$tmp/runner"
    ln -s "$bin" "$tmp/bin/tallyline"
    PATH=$tmp/bin:$PATH RUNNER_TEMP=$tmp/runner "$python" - "$deploy/github-actions.yml" <<'EOF'
import os, signal, subprocess, sys, yaml
env = dict(os.environ, GITHUB_ENV=os.environ["RUNNER_TEMP"] + "/env")
steps = yaml.safe_load(open(sys.argv[1]))["jobs"]["test"]["steps"]
group = None
try:
    for step in steps:
        if "run" in step and not step["run"].startswith("cargo install"):
            # A process group of its own, so that the server started in it can be stopped as the runner does.
            child = subprocess.Popen(["bash", "-e", "-c", step["run"]], env=env, process_group=0,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            group = group or child.pid
            assert child.wait(60) == 0, step["run"]
            with open(env["GITHUB_ENV"]) as exported:
                env.update(line.strip().split("=", 1) for line in exported)
finally:
    if group:
        os.killpg(group, signal.SIGTERM)
EOF
    # The server is not a child of this shell; its lock is released when it has exited.
    flock -w 30 "$tmp/runner/tallyline/serve.lock" true
    ok "the GitHub Actions job runs"
}

# All parts, or those named after the binary.
shift
(($# > 0)) || set -- unit prometheus backup actions
for part in "$@"; do "check_$part"; done
