#!/usr/bin/env bash
# The official CloudEvents SDKs (PyPI and npm) post to a live server in each content mode. Each event is
# posted twice, and must be counted exactly once.
# Needs python3, node, npm, curl.
. "$(dirname "$0")/lib.sh"

python_with cloudevents cloudevents==2.2.0
mkdir -p "$tools/npm"
cp "$clients/cloudevents_node.mjs" "$tools/npm/"
npm install --silent --no-audit --no-fund --prefix "$tools/npm" cloudevents@10.0.0

serve
"$python" "$clients/cloudevents_python.py" "$url"
node "$tools/npm/cloudevents_node.mjs" "$url"

post "$url/flush" '' >/dev/null
for sdk in python node; do
    user=$(curl -fsS "$url/userEvents/$sdk%20caf%C3%A9" | python3 -c '
import json, sys
user = json.load(sys.stdin, parse_float=str)
print(user["revenue"], user["events"])')
    # 10.5 structured + 0.000001 binary + (20 - 5) in a batch; each was posted twice.
    same "$sdk: revenue and events" "$user" "25.500001 4"
done
