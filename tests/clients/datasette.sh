#!/usr/bin/env bash
# Datasette with data/deploy/datasette.yml on the database of a running server: every table and column
# that the file describes exists, amounts and times are readable, and new events appear.
# Needs curl, jq, python3.
. "$(dirname "$0")/lib.sh"

python_with datasette datasette==0.65.5
serve
"$bin" send "$repo/data/sample.jsonl" --to "$url" --state "$tmp/state" --quiet
post "$url/flush" '' >/dev/null
printf '%s\n' 'no event' '{"userId":"x","name":"add_revenue","value":-1}' >"$tmp/data/events_bad.jsonl"
rejected() { [[ $(curl -fsS "$url/status" | jq .rejected) == 2 ]]; }
until_true "two rejected lines" rejected

# The command that the documentation shows, with another port.
command=$(grep -m 1 '^datasette data/revenue.db ' "$repo/data/docs/format.md")
datasette_port=$(free_port)
ln -s "$repo/data/deploy" "$tmp/data/deploy"
(cd "$tmp" && PATH=$tools/venv-datasette/bin:$PATH exec $command --port "$datasette_port") >"$tmp/datasette.log" 2>&1 &
pids+=($!)
front=http://127.0.0.1:$datasette_port
until_true "Datasette" curl -fsS "$front/-/versions.json"
rows() { curl -fsS "$front/revenue/$1.json?_shape=array" | jq -c "$2"; }

curl -fsS "$front/revenue.json" | jq -S '[(.tables[] | {(.name): .columns}), (.views[] | {(.name): null})] | add' >"$tmp/shown"
curl -fsS "$front/-/metadata.json" | jq -c '.databases.revenue.tables | to_entries[] | [.key, (.value.columns // {} | keys)]' >"$tmp/described"
while read -r described; do
    table=$(jq -r '.[0]' <<<"$described")
    columns=$(curl -fsS "$front/revenue/$table.json?_size=1" | jq -c '.columns') || fail "no table $table"
    [[ $(jq -c --argjson columns "$columns" '.[1] - $columns' <<<"$described") == '[]' ]] ||
        fail "$table does not have all columns of $described: $columns"
done <"$tmp/described"
same "tables and views, each with a description" "$(jq -c keys "$tmp/shown")" \
    "$(jq -sc 'map(.[0]) | sort' "$tmp/described")"

same "the largest first, with a readable amount" "$(rows user_revenue '.[0] | [.user_id, .revenue, .events, .revenue_micros]')" \
    '["metered",1000.000003,3,1000000003]'
[[ $(rows user_revenue '.[0].updated_at') =~ ^\"20..-..-..T..:..:..\....Z\"$ ]] || fail "the time is not readable"
same "the ledger" "$(rows ledger '.[0]')" '{"lines":14,"applied":11,"duplicates":1,"rejected":2,"corrupt":0}'
same "the files, newest first" "$(rows segment_progress 'map([.name, .rejected])')" \
    '[["events_bad.jsonl",2],["events-000001",0]]'
same "rejected lines by reason" "$(rows reasons 'map([.code, .lines]) | sort')" '[["negative",1],["not_json",1]]'
same "the users that changed last" "$(rows lately length)" 6
page=$(curl -fsS "$front/revenue/user_total")
[[ $page == *"One row for every user with a counted event"* ]] || fail "the comment of the table is not shown"
ok "the schema's comments are shown"

post "$url/liveEvent?ack=applied" '{"userId":"user1","name":"add_revenue","value":0.5}' >/dev/null
same "a new event of the running server appears" \
    "$(curl -fsS "$front/revenue/user_revenue.json?_shape=array&user_id=user1" | jq -c '.[0].revenue')" 50.5
stop "$server"
