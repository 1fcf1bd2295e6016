#!/usr/bin/env bash
# openapi.py with the tools that it needs: the description is valid, and a live server conforms to it.
. "$(dirname "$0")/lib.sh"

python_with openapi schemathesis==4.32.5 openapi-spec-validator==0.9.0
"$python" -m openapi_spec_validator "$repo/src/http/openapi.json"
shift
"$python" "$clients/openapi.py" "$bin" "$@"
ok "every response is described in openapi.json"
