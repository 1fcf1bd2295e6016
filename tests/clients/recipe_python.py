#!/usr/bin/env python3
"""tallyline in a Python test: start a server on a free port, post events, flush, query.

Usage: recipe_python.py path/to/tallyline    (standard library only)
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request


@contextlib.contextmanager
def tallyline(binary: str):
    with tempfile.TemporaryDirectory() as tmp:
        port = pathlib.Path(tmp, "port")
        command = [binary, "serve", "--listen", "127.0.0.1:0", "--port-file", port]
        server = subprocess.Popen([*command, "--data-dir", pathlib.Path(tmp, "data")])
        try:
            deadline = time.monotonic() + 10
            while not port.exists():  # written whole, once the port answers
                assert server.poll() is None and time.monotonic() < deadline, "it did not start"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{port.read_text().strip()}"
        finally:
            server.terminate()
            code = server.wait(timeout=10)
        assert code == 0, code


def call(url: str, body: bytes | None = None) -> dict:
    with urllib.request.urlopen(url, data=body) as answer:
        return json.load(answer)


def test_totals(url: str) -> None:
    events = [
        {"userId": "user1", "name": "add_revenue", "value": 100},
        {"userId": "user1", "name": "subtract_revenue", "value": 50},
    ]
    assert call(f"{url}/liveEvent", json.dumps(events).encode())["accepted"] == 2
    call(f"{url}/flush", b"")  # instead of a sleep
    user = call(f"{url}/userEvents/user1")
    assert (user["revenue"], user["events"]) == (50, 2), user


if __name__ == "__main__":
    with tallyline(sys.argv[1]) as url:
        test_totals(url)
    print("ok: the Python recipe: user1 has 50 of 2 events")
