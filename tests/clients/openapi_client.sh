#!/usr/bin/env bash
# A client that openapi-python-client makes from the API description works against a live server.
. "$(dirname "$0")/lib.sh"

python_with openapi-client openapi-python-client==0.29.1 ruff==0.17.6
PATH=$(dirname "$python"):$PATH "$(dirname "$python")/openapi-python-client" generate \
    --path "$repo/src/http/openapi.json" --config "$repo/data/deploy/openapi-python-client.yml" \
    --output-path "$tmp/client" \
    --meta none >"$tmp/generate.log" 2>&1
# Without the media types that it does not know, and without anything else.
left_out=$(grep -A 2 '^WARNING' "$tmp/generate.log" | grep -c '^Unsupported content type')
same "left out by the generator" "$(grep -c '^WARNING' "$tmp/generate.log")" "$left_out"
serve
mv "$tmp/client" "$tmp/tallyline_client"
PYTHONPATH=$tmp "$python" "$clients/openapi_client.py" "$url" "$repo/src/http/openapi.json"
stop "$server"
ok "a generated client sends events and reads every kind of total"
