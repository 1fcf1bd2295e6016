#!/usr/bin/env bash
# Runs the commands of the README and of the pages that it links to, as shown and in their order, each
# page in its own directory. A command with an output must print it, the others must succeed. Only the
# port differs, and the length of long runs. Then the completions are tried in a shell, and the manual
# page is rendered. Needs cargo, curl, jq, sqlite3, mandoc, and nginx and wrk for the benchmarks.
. "$(dirname "$0")/lib.sh"

mkdir "$tmp/bin"
ln -s "$bin" "$tmp/bin/tallyline"
PATH=$tmp/bin:$PATH:/usr/sbin
export TALLYLINE_LISTEN=127.0.0.1:0 TALLYLINE_PORT_FILE=$tmp/port
server=

running() {
    [[ -z $server ]] || return 0
    rm -f "$tmp/port"
    eval "${1:-tallyline serve &}" 2>>"$tmp/server.log"
    server=$!
    pids+=("$server")
    until_true "the server's port file" test -s "$tmp/port"
    port=$(cat "$tmp/port")
    url=http://127.0.0.1:$port
    export TALLYLINE_TO=$url
}

stopped() {
    [[ -n $server ]] || return 0
    stop "$server"
    server=
}

# lines PAGE KIND: the lines of a page's code blocks of this kind.
lines() { awk -v kind='```'"$2" '/^```/ { on = $0 == kind; if (on) print ""; next } on' "$repo/$1"; }
no_times() { sed -E 's/20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z/TIME/g; s/127\.0\.0\.1:[0-9]+/ADDRESS/g; s/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/UUID/g'; }

check_shown() {
    local page=$1 command= expected= line count=0
    answers() {
        [[ -n $command ]] || return 0
        [[ $command != curl* ]] || running
        local got
        got=$(bash -c "${command//localhost:8000/127.0.0.1:$port}" 2>>"$tmp/stderr.log" | no_times)
        [[ $got == "$(no_times <<<"${expected%$'\n'}")" ]] || fail "$page: $command: got $got, shown $expected"
        count=$((count + 1))
        command= expected=
    }
    port=
    while IFS= read -r line; do
        case $line in
        '$ '*) answers && command=${line#'$ '} ;;
        '') answers ;;
        *) expected+=$line$'\n' ;;
        esac
    done < <(lines "$page" console)
    answers
    stopped
    ok "$count commands print what $page shows"
    shown=$((shown + count))
}

# Ctrl-C once it serves.
demo() {
    bash -c "exec ${1/cargo run --release --/tallyline}" >"$tmp/demo.log" 2>&1 &
    local serving=$!
    pids+=("$serving")
    until_true "the demo serves" grep -q '^  .* query ' "$tmp/demo.log"
    # What it proposes works as it is typed.
    local proposed
    while read -r proposed; do
        bash -e -c "$proposed" >"$tmp/proposed.log" 2>&1 || fail "$proposed: $(cat "$tmp/proposed.log")"
    done < <(sed -n 's/^  //p' "$tmp/demo.log")
    grep -q 'user1 *150 ' "$tmp/proposed.log" || fail "$(cat "$tmp/proposed.log")"
    kill -INT "$serving"
    wait "$serving"
}

# It does not end by itself; after it has sent the lines appended to the file, Ctrl-C ends it with 0.
follow() {
    local before
    before=$(curl -fsS "$url/status" | jq .accepted)
    more() { (($(curl -fsS "$url/status" | jq .accepted) > before)); }
    bash -c "exec $1" >>"$tmp/run.log" &
    pids+=($!)
    echo '{"userId": "late", "name": "add_revenue", "value": 1}' >>events.jsonl
    until_true "a followed file is sent" more
    kill -INT $!
    wait $!
}

# As shown, from the root of the repository, but with this binary and for a short time.
bench() {
    local command
    command=$(sed -E "s# target/release/tallyline# $bin#; s/--minutes [0-9]+/--minutes 0.1/
        s/--seconds [0-9]+/--seconds 3 --only burst/; /ingest/s/\$/ --seconds 1 --rounds 1/
        s/--segments [0-9]+/--segments 1000 --users 2000/; s# DIR # $tmp/years #g; /years/s/\$/ --rounds 1/" <<<"$1")
    (cd "$repo" && unset TALLYLINE_LISTEN TALLYLINE_PORT_FILE TALLYLINE_TO && bash -c "$command") &>>"$tmp/run.log" ||
        fail "$command"
}

check_run() {
    local page=$1 line count=0 totals=
    cp "$repo/data/sample.jsonl" events.jsonl
    tallyline generate --seed 2 >events_1700000000000.jsonl
    while IFS= read -r line; do
        line=$(sed -E 's/ +#.*//' <<<"$line")
        case $line in
        # Run by .ci/run itself or by datasette.sh, or they need a release build and minutes.
        '' | 'cargo test' | 'cargo test '* | 'bash .ci/run' | 'datasette '* | 'cargo bench' | *'/catchup.py '* | *'/scale_out.py '* | *'/large.py '*) continue ;;
        'cargo install --locked --path .')
            # With the existing build, to another directory.
            (cd "$repo" && bash -c "$line --debug --offline --root '$tmp/root' --target-dir target") &>>"$tmp/run.log"
            "$tmp/root/bin/tallyline" --version >/dev/null
            ;;
        'python3 tests/bench/'*) bench "$line" ;;
        *'-- demo') demo "$line" ;;
        'tallyline serve &') running "$line" ;;
        'tallyline serve '*' &')
            eval "$line" 2>>"$tmp/server.log"
            pids+=($!)
            until_true "the port" test -s port
            stop $!
            ;;
        *' --follow') follow "$line" ;;
        *' send '*)
            running
            bash -c "$line" >>"$tmp/run.log"
            post "$url/flush" '' >/dev/null
            ;;
        'tallyline backup '*)
            running
            bash -c "$line" >>"$tmp/run.log"
            stopped
            totals=$(tallyline query --csv | cut -d, -f1-3)
            ;;
        'tallyline restore '*)
            bash -c "$line" >>"$tmp/run.log"
            tallyline process --data-dir restored --quiet
            same "totals after the restore" "$(tallyline query --csv --data-dir restored | cut -d, -f1-3)" "$totals" >/dev/null
            tallyline verify --data-dir restored --quiet
            ;;
        'tallyline torture '*) bash -c "${line/--rounds 20/--rounds 2}" >>"$tmp/run.log" ;; # tests/torture.rs has more
        'tallyline process'* | 'tallyline completions'* | 'tallyline man'*)
            stopped
            bash -c "$line" >>"$tmp/run.log"
            ;;
        'tallyline '*) bash -c "$line" >>"$tmp/run.log" ;;
        *) fail "$page: this script cannot run: $line" ;;
        esac
        count=$((count + 1))
    done < <(lines "$page" sh)
    stopped
    ok "$count more commands of $page succeed"
    run=$((run + count))
}

# Checks the two files that the commands of operations.md create.
check_files() {
    # shellcheck disable=SC1091
    source ./tallyline.bash
    completes() {
        COMP_WORDS=(tallyline "$@") COMP_CWORD=$# COMPREPLY=()
        _tallyline tallyline "${!#}" "${COMP_WORDS[$#-1]}"
        echo "${COMPREPLY[*]}"
    }
    same "tallyline s<Tab>" "$(completes s)" "serve send"
    same "tallyline serve --rot<Tab>" "$(completes serve --rot)" "--rotate-interval --rotate-size"
    same "tallyline --log-format <Tab>" "$(completes --log-format '')" "text json"
    mandoc -Tlint -Werror tallyline.1 || fail "the manual page has errors"
    mandoc -Tutf8 tallyline.1 | sed 's/.\x08//g' >"$tmp/manual"
    grep -q '^ *tallyline serve --config tallyline.toml --check  ' "$tmp/manual" || fail "no examples in the manual page"
    ! grep -q EXTRA "$tmp/manual" || fail "a section EXTRA"
    ok "the manual page renders"
}

shown=0 run=0
for page in README.md "$repo"/data/docs/*.md data/deploy/README.md tests/README.md tests/bench/README.md; do
    page=${page#"$repo/"}
    for part in shown run; do
        mkdir -p "$tmp/$part/$page"
        cd "$tmp/$part/$page"
        "check_$part" "$page"
    done
done
((shown >= 15 && run >= 25)) || fail "only $shown and $run commands"
cd "$tmp/run/data/docs/operations.md"
check_files
