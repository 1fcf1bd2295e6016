#!/usr/bin/env bash
# Input that is not JSON Lines: the command in each message of `send` makes JSON Lines of it, and the
# commands for curl in the answers of the server work. Needs jq, curl, iconv; bzip2, xz and zstd are tried where
# installed.
. "$(dirname "$0")/lib.sh"
serve
cd "$tmp"

event='{"userId":"user1","name":"add_revenue","value":1.5}'
pretty=$'{\n  "userId": "user1",\n  "name": "add_revenue",\n  "value": 1.5\n}'

# total: the revenue of user1 after everything is applied.
total() {
    post "$url/flush" '' >/dev/null
    curl -fsS "$url/userEvents/user1" | jq -c '[.events, .revenue]'
}

# converts WHAT FILE: sends FILE, which fails; runs the command in the message, sends its output, and
# expects two more events.
events=0
converts() {
    local what=$1 file=$2 message command
    ! message=$("$bin" send "$file" --to "$url" 2>&1) || fail "$what was sent as it is"
    command=$(sed -n 's/.*convert it with `\(.*\)`, then use that file.*/\1/p' <<<"$message")
    [[ -n $command ]] || fail "$what: no command in: $message"
    rm -f NEW.jsonl*
    bash -e -c "$command" || fail "$what: $command"
    "$bin" send NEW.jsonl --to "$url" --quiet || fail "$what: $(cat NEW.jsonl)"
    events=$((events + 2))
    same "$what by $command" "$(total)" "[$events,$(jq -n "$events * 1.5")]"
}

printf 'userId,name,value\r\nuser1,add_revenue,1.5\r\nuser1,add_revenue,1.5\r\n' >'a b.csv'
converts CSV 'a b.csv'
printf 'user1;add_revenue;1.5\nuser1;add_revenue;1.5\n' >b.csv
converts 'CSV without a header' b.csv
printf 'value\tname\tuser_id\n1.5\tadd_revenue\tuser1\n1.5\tadd_revenue\tuser1\n' >c.tsv
converts 'tabs' c.tsv
printf '{"events":[%s,%s]}\n' "$event" "$event" >wrapped.json
converts 'a wrapped array' wrapped.json
printf '{"next": null, "my list": [%s, %s]}\n' "$event" "$event" >list.json
converts 'a wrapped array with a blank in its name' list.json
printf '%s%s' "$event" "$event" >joined.json
converts 'lost line ends' joined.json
printf '%s\n%s\n' "$pretty" "$pretty" >pretty.json
converts 'objects over several lines' pretty.json
for encoding in UTF-16 UTF-16LE UTF-16BE UTF-32; do
    printf '%s\n%s\n' "$event" "$event" | iconv -t "$encoding" >"$encoding.txt"
    converts "$encoding" "$encoding.txt"
done
for tool in bzip2 xz zstd; do
    command -v "$tool" >/dev/null || continue
    printf '%s\n%s\n' "$event" "$event" | "$tool" -c >"events.$tool"
    converts "$tool" "events.$tool"
done
printf '%s\n%s\n' "$event" "$event" >events.jsonl
tar -cf events.tar events.jsonl
converts 'a tar archive' events.tar

# The commands for curl in the answers of the server.
answer() { curl -sS "$@" "$url/liveEvent" | jq -r .detail; }
answer -d @events.jsonl | grep 'use `--data-binary @FILE`' >/dev/null || fail "curl -d: $(answer -d @events.jsonl)"
curl -fsS --data-binary @events.jsonl "$url/liveEvent" >/dev/null
events=$((events + 2))
command=$(answer --data-binary @wrapped.json | sed -n 's/.*with curl, `\(.*\)`.*/\1/p')
command=${command/FILE/wrapped.json}
bash -e -c "${command/URL/-fsS $url/liveEvent}" >/dev/null || fail "$command"
events=$((events + 2))
gzip -k events.jsonl
answer --data-binary @events.jsonl.gz | grep 'Content-Encoding: gzip' >/dev/null || fail "gzip"
curl -fsS -H 'Content-Encoding: gzip' --data-binary @events.jsonl.gz "$url/liveEvent" >/dev/null
events=$((events + 2))
same 'the commands for curl' "$(total)" "[$events,$(jq -n "$events * 1.5")]"
form=$(answer -d userId=user1 -d name=add_revenue -d value=1.5)
command=$(sed -n 's/.*form encoding.*`\(curl .*\)`.*/\1/p' <<<"$form")
[[ $command ]] || fail "form: $form"
bash -e -c "${command/URL/-fsS $url/liveEvent}" >/dev/null || fail "$command"
revenue=$(jq -n "$events * 1.5 + 100")
events=$((events + 1))
same 'the command for a form' "$(total)" "[$events,$revenue]"
