"""Starts tallyline servers from Python. The program itself is the command `tallyline`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
import urllib.error
import urllib.parse
import urllib.request
from decimal import Decimal
from pathlib import Path

__all__ = ["Server", "find_program"]

START_WITHIN = STOP_WITHIN = REQUEST_WITHIN = 60  # seconds

# Requests to this machine bypass the proxy of HTTP_PROXY.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find_program() -> str:
    """The path of the program: of this installation, else of the PATH."""
    for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
        if os.access(path := os.path.join(sysconfig.get_path("scripts", scheme), "tallyline"), os.X_OK):
            return path
    if path := shutil.which("tallyline"):
        return path
    raise FileNotFoundError("cannot find the program tallyline; install it with `pip install tallyline`")


class Server:
    """A server on a free port of 127.0.0.1. It runs until `stop`, or to the end of a `with` block."""

    def __init__(self, data_dir: str | os.PathLike[str], program: str | None = None, flags: tuple[str, ...] = ()):
        self.data_dir = Path(data_dir)
        self._log = self.data_dir.with_name(self.data_dir.name + ".log")
        port_file = self.data_dir.with_name(self.data_dir.name + ".port")
        port_file.unlink(missing_ok=True)
        command = [program or find_program(), "serve", "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        command += ["--data-dir", str(self.data_dir), *flags]
        # The settings of a production server do not apply to a test.
        env = {name: value for name, value in os.environ.items() if not name.startswith("TALLYLINE_")}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=log)
        try:
            self.url = f"http://127.0.0.1:{self._port(port_file)}"
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _port(self, port_file: Path) -> int:
        """The port, which the server writes once it answers requests."""
        deadline = time.monotonic() + START_WITHIN
        while not port_file.exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"tallyline exited with code {self._process.returncode}: {self.log()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"tallyline was not ready within {START_WITHIN} s: {self.log()}")
            time.sleep(0.005)
        return int(port_file.read_text())

    def log(self) -> str:
        """What the server has written to stderr."""
        return self._log.read_text(errors="replace")

    def post(self, *events: dict | str | bytes) -> None:
        """Posts events, in one request. They are durable when it returns, or none of them was stored."""
        lines = (json.dumps(event) if isinstance(event, dict) else event for event in events)
        body = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
        self._ask("POST", "/liveEvent", body)

    def revenue(self, user: str) -> Decimal:
        """The exact total of a user, with every acknowledged event; 0 for a user without events."""
        self._ask("POST", "/flush")
        try:
            answer = self._ask("GET", "/userEvents/" + urllib.parse.quote(user, safe=""))
        except KeyError:
            return Decimal(0)
        return json.loads(answer, parse_int=Decimal, parse_float=Decimal)["revenue"]

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        request = urllib.request.Request(self.url + path, data=body if method == "POST" else None, method=method)
        try:
            with _http.open(request, timeout=REQUEST_WITHIN) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            kind = {404: KeyError, 400: ValueError, 413: ValueError, 422: ValueError}.get(error.code, RuntimeError)
            raise kind(f"{method} {path} answered {error.code}: {text}") from None

    def stop(self) -> None:
        """Stops the server: it applies what it accepted and exits. Raises if it does not exit with 0."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            code = self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"tallyline did not stop within {STOP_WITHIN} s: {self.log()}") from None
        if code != 0:
            raise RuntimeError(f"tallyline exited with code {code}: {self.log()}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
