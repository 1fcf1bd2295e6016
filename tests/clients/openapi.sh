#!/usr/bin/env bash
# openapi.py with the tools it needs: the description is valid, and true of a live server.
. "$(dirname "$0")/lib.sh"

python_with openapi schemathesis==4.32.5 openapi-spec-validator==0.9.0
"$python" -m openapi_spec_validator "$repo/src/http/openapi.json"
shift
"$python" "$clients/openapi.py" "$bin" "$@"
ok "every answer is one that openapi.json describes"
