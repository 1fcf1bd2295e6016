"""Mixed load on one server for a long time, with a rotation every second and retention on: memory, threads, descriptors
and disk usage must stay constant, and every acknowledged event must count once.

    python3 tests/bench/soak.py target/release/tallyline --minutes 60

Standard library only. Prints a table, then compares per-user totals with its own sums and runs `tallyline verify`."""
import argparse
import collections
import gzip
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

KEPT = 120  # seconds that applied files and ids are kept
USERS = 1000


class Load:
    """Threads that each send at a fixed rate; acknowledged amounts are summed per user."""

    def __init__(self, port):
        self.port = port
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.totals = collections.Counter()
        self.events = collections.Counter()
        self.failures = []
        self.answers = collections.Counter()

    def acknowledged(self, events):
        with self.lock:
            for user, value in events:
                self.totals[user] += value
                self.events[user] += 1

    def ask(self, connection, method, path, body=None, headers=None, expect=(200, 202)):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        read = answer.read()
        with self.lock:
            self.answers[answer.status] += 1
        if answer.status not in expect:
            raise RuntimeError(f"{method} {path}: {answer.status} {read[:300]}")
        return read

    def paced(self, every, work):
        """Calls `work` every `every` seconds on a connection of its own; a failed connection is opened again."""

        def run():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            due = time.monotonic()
            while not self.stop.is_set():
                try:
                    work(connection)
                except Exception as why:  # any failure is reported at the end
                    self.failures.append(f"{work.__name__}: {why!r}")
                    connection.close()
                due += every
                self.stop.wait(max(0.0, due - time.monotonic()))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


def line(user, value, ident=None):
    event = {"userId": user, "name": "add_revenue" if value >= 0 else "subtract_revenue", "value": abs(value)}
    if ident:
        event["id"] = ident
    return json.dumps(event)


def workloads(load, seed):
    draw = random.Random(seed)
    serial = iter(range(1 << 62))

    def events(count):
        return [(f"user{draw.randrange(USERS)}", draw.randrange(-50, 1000)) for _ in range(count)]

    def single(connection):
        made = events(1)
        load.ask(connection, "POST", "/liveEvent", line(*made[0]))
        load.acknowledged(made)

    def applied(connection):
        made = events(1)
        load.ask(connection, "POST", "/liveEvent?ack=applied", line(*made[0]))
        load.acknowledged(made)

    def batch(connection):
        made = events(500)
        load.ask(connection, "POST", "/liveEvent", "\n".join(line(*event) for event in made))
        load.acknowledged(made)

    def squeezed_with_ids_twice(connection):
        made = events(100)
        body = gzip.compress("\n".join(line(*event, f"soak-{next(serial)}") for event in made).encode())
        for _ in range(2):
            load.ask(connection, "POST", "/liveEvent", body, {"Content-Encoding": "gzip"})
        load.acknowledged(made)

    def half_bad(connection):
        made = events(10)
        body = "\n".join(line(*event) + "\nnot an event" for event in made)
        load.ask(connection, "POST", "/liveEvent?invalid=skip", body)
        load.acknowledged(made)

    def refused(connection):
        load.ask(connection, "POST", "/liveEvent", '{"userId": "", "value": -1}', expect=(422,))

    def looked_up(connection):
        load.ask(connection, "GET", f"/userEvents/user{draw.randrange(USERS)}", expect=(200, 404))
        load.ask(connection, "GET", "/userEvents?order=-revenue&limit=20")
        load.ask(connection, "GET", "/metrics")

    def dropped(_):
        with socket.create_connection(("127.0.0.1", load.port), timeout=10) as raw:
            raw.sendall(b"POST /liveEvent HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")

    every = {single: 0.005, applied: 0.2, batch: 0.1, squeezed_with_ids_twice: 0.25, half_bad: 0.5, refused: 0.5, looked_up: 0.1, dropped: 0.2}
    return [load.paced(pace, work) for work, pace in every.items()]


def disk(data):
    """Bytes and number of all files under `data`."""
    size = files = 0
    for folder, _, names in os.walk(data):
        for name in names:
            try:
                size += os.stat(os.path.join(folder, name)).st_blocks * 512
                files += 1
            except FileNotFoundError:
                pass  # renamed or pruned between the two calls
    return size, files


def sample(pid, data, port):
    status = dict(row.split(":", 1) for row in open(f"/proc/{pid}/status") if ":" in row)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/status")
    ledger = json.loads(connection.getresponse().read())
    connection.close()
    size, files = disk(data)
    return {
        "RSS MiB": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "disk MiB": round(size / 2**20, 1),
        "database MiB": round(os.stat(f"{data}/revenue.db").st_size / 2**20, 2),
        "files": files,
        "lag s": round(ledger["lagSeconds"], 2),
        "lines": ledger["lines"],
        "ready": ledger["ready"],
    }


def proven(binary, data, load):
    """Compares per-user totals with the sums of the load, then runs `verify`; returns None or the difference."""
    database = sqlite3.connect(f"file:{data}/revenue.db?mode=ro", uri=True)
    counted = {user: (micros, events) for user, micros, events in database.execute("SELECT user_id, revenue_micros, events FROM user_total")}
    sent = {user: (load.totals[user] * 10**6, load.events[user]) for user in load.events}
    database.close()
    if counted != sent:
        differ = [user for user in counted.keys() | sent.keys() if counted.get(user) != sent.get(user)]
        return f"{len(differ)} users differ, such as {differ[0]}: counted {counted.get(differ[0])}, acknowledged {sent.get(differ[0])}"
    verify = subprocess.run([binary, "verify", "--data-dir", data], capture_output=True, text=True)
    print(verify.stdout.strip(), verify.stderr.strip(), sep="\n")
    return None if verify.returncode == 0 else f"verify exits {verify.returncode}"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("binary")
    ap.add_argument("--minutes", type=float, default=60)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data, port_file = f"{scratch}/data", f"{scratch}/port"
        server = subprocess.Popen(
            [a.binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", data, "--port-file", port_file, "--rotate-interval", "1s",
             "--retention", f"{KEPT}s", "--dedup-window", f"{KEPT}s"],
            stdout=subprocess.DEVNULL, stderr=open(f"{scratch}/log", "w"))
        while not os.path.exists(port_file):
            if server.poll() is not None:
                sys.exit(open(f"{scratch}/log").read())
            time.sleep(0.02)
        load = Load(int(open(port_file).read()))
        threads = workloads(load, a.seed)
        begin, head = time.monotonic(), None
        every = max(1.0, a.minutes * 60 / 60)
        while time.monotonic() < begin + a.minutes * 60:
            time.sleep(every)
            row = {"min": round((time.monotonic() - begin) / 60, 1), **sample(server.pid, data, load.port)}
            if head is None:
                head = row
                print(" ".join(f"{name:>12}" for name in row))
            print(" ".join(f"{value!s:>12}" for value in row.values()), flush=True)
        load.stop.set()
        for thread in threads:
            thread.join()
        connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=120)
        connection.request("POST", "/flush")
        flushed = connection.getresponse()
        print("flush:", flushed.status, flushed.read().decode())
        server.send_signal(signal.SIGTERM)
        print("exit code:", server.wait(60), "| answers:", dict(load.answers), "| acknowledged, ids once:", sum(load.events.values()))
        wrong = proven(a.binary, data, load)
        for failure, times in collections.Counter(load.failures).most_common(10):
            print(f"{times} x {failure}")
        sys.exit(wrong or ("some requests failed" if load.failures else 0))


if __name__ == "__main__":
    main()
