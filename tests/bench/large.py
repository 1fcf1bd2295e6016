"""Applies 100 million lines and more, and measures what grows with them: time and memory of
`process`, the database, the start of a server, and `verify`.

    python3 tests/bench/large.py target/release/tallyline --lines 100000000

The segments are generated in the data directory, which needs about 63 bytes a line on its disk, and
are deleted afterwards. One run of each step.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request


def run(cmd, **options):
    """Runs CMD; returns its wall time, CPU time and peak resident memory in MiB."""
    began = time.monotonic()
    process = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, **options)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(cmd)} failed ({os.waitstatus_to_exitcode(status)})")
    cpu = usage.ru_utime + usage.ru_stime
    return time.monotonic() - began, cpu, usage.ru_maxrss / 1024


def generate(binary, data, lines, users, segments):
    """Writes the segments, as many at once as there are processors."""
    each = lines // segments
    waiting = list(range(1, segments + 1))
    running = []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            number = waiting.pop(0)
            out = open(f"{data}/events_{number:06}.jsonl", "wb")
            cmd = [binary, "generate", "--events", str(each), "--users", str(users), "--seed", str(number)]
            running.append(subprocess.Popen(cmd, stdout=out))
            out.close()
        if running.pop(0).wait():
            sys.exit("generate failed")
    return each * segments


def start(binary, data):
    """Starts a server; returns the seconds until its port answers, until it is ready, and its memory in MiB."""
    port_file = f"{data}/port"
    began = time.monotonic()
    server = subprocess.Popen([binary, "serve", "--data-dir", data, "--listen", "127.0.0.1:0", "--port-file", port_file],
                              stderr=subprocess.DEVNULL)
    answers = None
    try:
        while time.monotonic() < began + 600:
            try:
                with open(port_file) as file:
                    port = int(file.read())
                answers = answers or time.monotonic() - began
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                    break
            except (OSError, ValueError):
                time.sleep(0.005)
        else:
            sys.exit("the server is not ready after 600 s")
        ready = time.monotonic() - began
        with open(f"/proc/{server.pid}/status") as status:
            memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    finally:
        server.terminate()
        server.wait()
    return answers, ready, memory


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("binary")
    ap.add_argument("--lines", type=int, default=100_000_000)
    ap.add_argument("--users", type=int, default=1_000_000)
    ap.add_argument("--segments", type=int, default=100)
    ap.add_argument("--dir", help="directory of the data; default: the temporary directory")
    a = ap.parse_args()
    data = tempfile.mkdtemp(prefix="tallyline-large-", dir=a.dir)
    try:
        lines = generate(a.binary, data, a.lines, a.users, a.segments)
        size = sum(entry.stat().st_size for entry in os.scandir(data))
        print(f"{lines:,} lines, {a.users:,} users, {a.segments} segments, {size / 1e9:.1f} GB", flush=True)
        wall, cpu, memory = run([a.binary, "process", "--data-dir", data, "-q"])
        print(f"process: {wall:.1f} s, {wall / lines * 1e9:.0f} ns a line, {cpu:.1f} s of CPU, {memory:.0f} MiB", flush=True)
        print(f"database: {os.stat(f'{data}/revenue.db').st_size / 1e6:.0f} MB", flush=True)
        answers, ready, memory = start(a.binary, data)
        print(f"serve: port after {answers:.2f} s, ready after {ready:.2f} s, {memory:.0f} MiB", flush=True)
        wall, cpu, memory = run([a.binary, "verify", "--data-dir", data, "-q"])
        print(f"verify: {wall:.1f} s, {wall / lines * 1e9:.0f} ns a line, {cpu:.1f} s of CPU, {memory:.0f} MiB", flush=True)
    finally:
        shutil.rmtree(data)


if __name__ == "__main__":
    main()
