#!/usr/bin/env python3
"""A data directory as after years of use: hundreds of thousands of applied segments, millions of users.

    tests/bench/years.py make DIR [--segments 500000] [--users 10000000]
    tests/bench/years.py measure DIR BINARY [--no-process] [--max-disk SIZE]

`make` writes the files and rows of such a directory directly, which takes about a minute instead of
the days that a server would need. `tallyline verify` agrees with the result. Each segment has one
event and was sealed a minute after the previous one; events of further users were in segments that
retention has pruned.

`measure` starts BINARY on DIR several times and prints how long it takes until the port answers and
until everything is applied, what a scrape costs, what a page of users by revenue costs, and how much
memory and CPU time the idle server uses. Needs only Python. Not in CI: the figures depend on the
machine, so compare two binaries in one run.
"""

import argparse
import datetime
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIRECTORY = 0x5E3FA1C2
UUID = "5e3fa1c2-0b54-4a5e-9d4e-0d8f6b6a7c11"
BEGAN = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)
MICROS = 1_000_000


def label(number, token):
    """The 96 blanks that end the first line of a native segment."""
    bits = DIRECTORY << 64 | number << 32 | token
    return format(bits, "096b").replace("0", " ").replace("1", "\t")


def make(args):
    directory = pathlib.Path(args.dir)
    directory.mkdir(parents=True)
    (directory / "quarantine").mkdir()
    with open(directory / "directory.json", "w") as file:
        json.dump({"directory": UUID, "segment": args.segments + 2, "token": "00000001", "started": False}, file)
    # More users than segments: their events were in a pruned segment.
    pruned = max(args.users - args.segments, 0)
    rows = []
    for index in range(args.segments):
        number = index + 2 # number 1 is pruned
        token = zlib.crc32(str(number).encode())
        at = BEGAN + datetime.timedelta(minutes=index)
        stamp = at.strftime("%Y-%m-%dT%H-%M-%S.000Z")
        name = f"events-{stamp}-{number:06}-{DIRECTORY:08x}{token:08x}.jsonl"
        line = f'{{"userId":"user{index % args.users}","name":"add_revenue","value":1}}{label(number, token)}\n'
        month = directory / "applied" / at.strftime("%Y-%m")
        month.mkdir(parents=True, exist_ok=True)
        (month / name).write_bytes(line.encode())
        at_ms = int(at.timestamp() * 1000)
        rows.append((number, f"events-{number:06}", f"{DIRECTORY:08x}{token:08x}", name, len(line),
                     zlib.crc32(line.encode()), at_ms, at_ms, at_ms))
    database = sqlite3.connect(directory / "revenue.db")
    database.executescript((ROOT / "sql/schema.sql").read_text())
    database.execute("UPDATE directory SET uuid = ?", (UUID,))
    database.executemany(
        "INSERT INTO segment (key, name, tag, file_name, state, applied_bytes, checksum, lines, events, net_check,"
        f" created_at_ms, applied_at_ms, completed_at_ms) VALUES (?, ?, ?, ?, 'applied', ?, ?, 1, 1, {MICROS}, ?, ?, ?)", rows)
    database.execute("UPDATE applied_sum SET segments = ?1, native = ?1, lines = ?1, events = ?1", (args.segments,))
    database.execute("UPDATE pruned SET number = 1, segments = 1, lines = ?1, events = ?1, net_check = ?2, pruned_at_ms = 0",
                     (pruned, pruned * MICROS))
    events = args.segments + pruned
    database.execute("UPDATE overall SET users = ?, events = ?, revenue_micros = ?, updated_at_ms = 0",
                     (args.users, events, str(events * MICROS)))
    per_user, more = divmod(events, args.users)
    totals = ((f"user{user}", per_user + (user < more)) for user in sorted(range(args.users), key=str))
    database.executemany("INSERT INTO user_total VALUES (?, ?, ?, 0)",
                         ((user, events * MICROS, events) for user, events in totals))
    database.commit()
    database.close()


def fetch(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.read()


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit("timed out")
        time.sleep(0.002)


def is_ready(port):
    try:
        # The ledger is published once the rows and the directory have been read.
        status = json.loads(fetch(port, "/status"))
    except urllib.error.HTTPError:
        return False
    return status["ready"] and status["lines"] > 0


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid, field):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def measure(args):
    port_file = pathlib.Path(args.dir).resolve().parent / "years.port"
    for _ in range(args.rounds):
        command = [args.binary, "serve", "--data-dir", args.dir, "--listen", "127.0.0.1:0", "--port-file", port_file]
        began = time.monotonic()
        command += ["--no-process"] * args.no_process
        if args.max_disk:
            command += ["--max-disk", args.max_disk]
        server = subprocess.Popen(command, env={"PATH": os.environ["PATH"]},
                                  stderr=subprocess.DEVNULL)
        try:
            until(port_file.exists, 120)
            figures = {"port answers s": time.monotonic() - began}
            port = int(port_file.read_text())
            until(lambda: is_ready(port), 120)
            figures["ready s"] = time.monotonic() - began
            figures["CPU until ready s"] = cpu_seconds(server.pid)
            time.sleep(5)
            before = cpu_seconds(server.pid)
            time.sleep(10)
            figures["idle CPU %"] = (cpu_seconds(server.pid) - before) * 10
            for name, path in [("scrape ms", "/metrics"), ("status ms", "/status"), ("page ms", "/userEvents?order=-revenue"),
                               ("page by id ms", "/userEvents?order=userId")]:
                took = []
                for _ in range(5):
                    at = time.monotonic()
                    fetch(port, path)
                    took.append((time.monotonic() - at) * 1000)
                figures[name] = sorted(took)[2]
            figures["RSS MB"] = memory_mb(server.pid, "VmRSS")
            figures["peak MB"] = memory_mb(server.pid, "VmHWM")
            print(", ".join(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)
        finally:
            server.terminate()
            at = time.monotonic()
            server.wait()
            print(f"stopped after {time.monotonic() - at:.2f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make")
    command.add_argument("dir")
    command.add_argument("--segments", type=int, default=500_000)
    command.add_argument("--users", type=int, default=10_000_000)
    command.set_defaults(run=make)
    command = commands.add_parser("measure")
    command.add_argument("dir")
    command.add_argument("binary")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--no-process", action="store_true")
    command.add_argument("--max-disk")
    command.set_defaults(run=measure)
    args = parser.parse_args()
    args.run(args)


main()
