#!/usr/bin/env python3
"""A live server conforms to the API description: schemathesis sends valid and invalid requests, and
every response must be one that the description contains.

Usage: openapi.py path/to/tallyline [more flags of `schemathesis run`]
Needs schemathesis (PyPI); openapi.sh provides it. The same file serves as schemathesis' hooks.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

# Rules that JSON Schema cannot express are not checked; parameters that would slow down the checks are fixed.
CONFIG = """
[checks]
# 503 and 507 are valid responses (a position that is never reached); 500 is not.
not_a_server_error.expected-statuses = ["2xx", "4xx", "503", "507"]

[[operations]]
# The schema counts characters and reads floats, the server counts bytes and digits.
include-name = "POST /liveEvent"
checks.positive_data_acceptance.enabled = false

[[operations]]
# A cursor is part of the previous page, a position part of an earlier response of a node that shares the database:
# others are rejected.
include-path-regex = "^/(userEvents|rejected)"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-path-regex = "."
parameters = { "query.wait" = "5ms" }
"""


def main() -> int:
    binary = str(pathlib.Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        config, port, token = tmp / "schemathesis.toml", tmp / "port", tmp / "tokens"
        config.write_text(CONFIG)
        token.write_text("openapi-test-token\n")
        serve = [binary, "serve", "--listen", "127.0.0.1:0", "--port-file", port]
        serve += ["--data-dir", tmp / "data", "--token-file", token, "--flush-interval", "50ms"]
        with open(tmp / "server.log", "w+") as log, subprocess.Popen(serve, stderr=log) as server:
            try:
                deadline = time.monotonic() + 30
                while not (port.exists() and port.read_text().strip()):
                    if server.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        sys.exit("the server did not start:\n" + log.read())
                    time.sleep(0.02)
                url = f"http://127.0.0.1:{port.read_text().strip()}"
                tool = pathlib.Path(sys.executable).with_name("schemathesis")
                command = [tool, "--config-file", config, "run", f"{url}/openapi.json", "--url", url]
                command += ["-H", "Authorization: Bearer openapi-test-token", "--no-color"]
                command += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "20"]
                # The same cases each time, so that a failure means a change; `--seed N` selects others.
                command += sys.argv[2:] if "--seed" in sys.argv else ["--seed", "1", *sys.argv[2:]]
                env = dict(os.environ, SCHEMATHESIS_HOOKS="openapi")
                here = pathlib.Path(__file__).parent
                code = subprocess.run(command, env=dict(env, PYTHONPATH=str(here)), cwd=tmp).returncode
            finally:
                server.terminate()
        if server.returncode != 0:
            print(f"the server exited with {server.returncode}", file=sys.stderr)
        return code or server.returncode


def hooks() -> None:
    import schemathesis

    @schemathesis.serializer("application/x-ndjson", "application/cloudevents+json",
                             "application/cloudevents-batch+json")
    def as_is(ctx, value):
        import json

        return value.encode() if isinstance(value, str) else json.dumps(value).encode()

    @schemathesis.hook
    def map_headers(ctx, headers):
        """ce- headers make a request binary CloudEvents: not beside any other body."""
        return {k: v for k, v in (headers or {}).items() if not k.lower().startswith("ce-")}


if __name__ == "__main__":
    sys.exit(main())
if "SCHEMATHESIS_HOOKS" in os.environ:
    hooks()
