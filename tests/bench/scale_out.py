"""Measures nodes that share one PostgreSQL: server CPU a row, rows a second in all, p99 of a GET.

Starts its own PostgreSQL (Debian's postgresql-15) with its default settings, in a temporary directory on a free port. A row is
one user's total at one node. The CPU is that of all processes of PostgreSQL.
"""
import argparse
import contextlib
import glob
import http.client
import os
import pwd
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BIN = "/usr/lib/postgresql/15/bin"
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Postgres:
    """A server; runs as the user postgres if this script runs as root."""

    def __init__(self, settings):
        self.user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self.dir = tempfile.mkdtemp(prefix="tallyline-pg-")
        if self.user:
            os.chown(self.dir, self.user.pw_uid, self.user.pw_gid)
        self.port = free_port()
        data = f"{self.dir}/data"
        subprocess.run([f"{BIN}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"],
                       check=True, stdout=subprocess.DEVNULL, **self.as_user())
        args = [f"{BIN}/postgres", "-D", data, "-p", str(self.port), "-k", self.dir, "-h", "127.0.0.1"]
        for setting in ["max_connections=200", *settings]:
            args += ["-c", setting]
        self.process = subprocess.Popen(args, stderr=subprocess.DEVNULL, **self.as_user())
        while subprocess.run([f"{BIN}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            time.sleep(0.1)

    def as_user(self):
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": [], "cwd": "/"} if self.user else {}

    def url(self, database):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def sql(self, database, text):
        out = subprocess.run([f"{BIN}/psql", "-XAtqc", text, self.url(database)], capture_output=True, text=True)
        if out.returncode:
            sys.exit(out.stderr)
        return out.stdout.strip()

    def database(self, name):
        self.sql("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def rows(self, database):
        """Rows of user_total written so far."""
        self.sql(database, "SELECT pg_stat_force_next_flush()")
        return int(self.sql(database, "SELECT coalesce(sum(n_tup_ins + n_tup_upd), 0) FROM pg_stat_user_tables WHERE relname = 'user_total'"))

    def cpu(self):
        """CPU seconds of the server, of its processes, and of those that have ended."""
        def ticks(pid, fields):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as f:
                after = f.read().rpartition(")")[2].split()
                return sum(int(after[i]) for i in fields)
            return 0
        main = self.process.pid
        total = ticks(main, (11, 12, 13, 14))
        for stat in glob.glob("/proc/[0-9]*/stat"):
            pid = stat.split("/")[2]
            with contextlib.suppress(OSError), open(stat) as f:
                if f.read().rpartition(")")[2].split()[1] == str(main):
                    total += ticks(pid, (11, 12))
        return total / TICKS

    def stop(self):
        self.process.send_signal(2)
        self.process.wait()
        shutil.rmtree(self.dir)


def lines(count, users, seed, name="user"):
    """One event for each of `users` users in random order, repeated up to `count` events."""
    rng = random.Random(seed)
    out, order = [], list(range(users))
    while len(out) < count:
        rng.shuffle(order)
        out += [f'{{"userId":"{name}{u:07d}","name":"add_revenue","value":{rng.randrange(1000)}}}\n' for u in order]
    return "".join(out[:count]).encode()


class Node:
    def __init__(self, binary, directory, url, flush):
        port_file = f"{directory}.port"
        self.process = subprocess.Popen(
            [binary, "serve", "--data-dir", directory, "--database", url, "--listen", "127.0.0.1:0", "--port-file", port_file,
             "--flush-interval", flush, "-q"])
        while not os.path.exists(port_file):
            time.sleep(0.05)
        self.port = int(open(port_file).read())

    def post(self, body, path="/liveEvent"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", path, body)
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (200, 202):
            sys.exit(f"POST {path}: {answer.status}")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def serve_nodes(a, pg, count, users, seconds):
    """Nodes that each receive one event for each of `users` users a second, flushed once a second."""
    name = f"nodes{count}"
    url = pg.database(name)
    body = lines(users, users, 1)
    with tempfile.TemporaryDirectory() as d:
        nodes = [Node(a.binary, f"{d}/{i}", url, "1s") for i in range(count)]
        for node in nodes:
            node.post(body)
            node.post(b"", "/flush")
        rows, cpu, start = pg.rows(name), pg.cpu(), time.monotonic()
        end = start + seconds

        def feed(node):
            due = time.monotonic()
            while due < end:
                node.post(body)
                due += 1
                time.sleep(max(0, due - time.monotonic()))
            node.post(b"", "/flush?wait=60s")
        threads = [threading.Thread(target=feed, args=(node,)) for node in nodes]
        for thread in threads:
            thread.start()
        latencies = []
        while any(thread.is_alive() for thread in threads):
            latencies.append(get(random.choice(nodes).port, f"user{random.randrange(users):07d}"))
            time.sleep(0.01)
        wall = time.monotonic() - start
        rows, cpu = pg.rows(name) - rows, pg.cpu() - cpu
        for node in nodes:
            node.stop()
    latencies.sort()
    p99 = latencies[int(len(latencies) * 0.99)] * 1000
    report(f"{count} node{'s' * (count > 1)}, {users:,} users each second and node", rows, wall, cpu, f"GET p50 {statistics.median(latencies) * 1000:.1f} ms, p99 {p99:.1f} ms")


def get(port, user):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    start = time.monotonic()
    connection.request("GET", f"/userEvents/{user}")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        sys.exit(f"GET: {answer.status}")
    return time.monotonic() - start


def batch(a, pg, count, files, events, users, label):
    """`tallyline process` of `files` files by `count` nodes at once, into a table that has all their rows already."""
    name = f"batch{count}x{users}"
    url = pg.database(name)
    with tempfile.TemporaryDirectory() as d:
        def round_of(number):
            for node in range(count):
                os.makedirs(f"{d}/{node}", exist_ok=True)
                for file in range(files):
                    with open(f"{d}/{node}/events_{number}_{file}.jsonl", "wb") as f:
                        f.write(lines(events, users, number * 1000 + file))
            start = time.monotonic()
            running = [subprocess.Popen([a.binary, "process", "--data-dir", f"{d}/{node}", "--database", url, "-q"]) for node in range(count)]
            if any([process.wait() for process in running]):
                sys.exit("process failed")
            return time.monotonic() - start
        round_of(0)
        pg.sql(name, "VACUUM ANALYZE tallyline.user_total")
        rows, cpu = pg.rows(name), pg.cpu()
        wall = round_of(1)
        report(label, pg.rows(name) - rows, wall, pg.cpu() - cpu, "")


def report(label, rows, wall, cpu, more):
    print(f"{label}: {rows:,} rows in {wall:.1f} s = {rows / wall:,.0f} rows/s, {cpu / max(rows, 1) * 1e6:.1f} us of server CPU a row; {more}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("binary")
    ap.add_argument("--seconds", type=int, default=10)
    ap.add_argument("--users", type=int, default=1_000_000, help="users of the full table")
    ap.add_argument("--only", default="one,full,many", help="comma-separated: one, full, many")
    a = ap.parse_args()
    a.binary = os.path.abspath(a.binary)
    only = a.only.split(",")
    pg = Postgres(["shared_buffers=512MB", "max_wal_size=4GB"])
    try:
        if "one" in only:
            serve_nodes(a, pg, 1, 10_000, a.seconds)
        if "full" in only:
            batch(a, pg, 1, 1, a.users, a.users, f"1 node, one event of each of {a.users:,} users into a table that has them")
        if "many" in only:
            for count in (4, 16):
                batch(a, pg, count, 160 // count, 10_000, 10_000, f"{count} nodes at once, files of 10,000 users, the same ones")
                serve_nodes(a, pg, count, 10_000 * 4 // count, a.seconds)
    finally:
        pg.stop()


if __name__ == "__main__":
    main()
