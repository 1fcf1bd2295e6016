"""Every copy recipe of data/docs/operations.md, many times beside a server under load with a rotation every 100 ms: each
restored copy must be exact, or `process` or `verify` must report what is wrong with it.

    python3 tests/bench/recipes.py target/release/tallyline --runs 50

Needs cp, tar, rsync and sqlite3 (a recipe whose program is missing is skipped; Litestream is tested if `--litestream`
names its binary, and an atomic snapshot if `--btrfs` names a directory on btrfs, as root). A copy is exact if its total is at least what was acknowledged before the recipe began and
at most what was sent before it ended, and `process` and `verify` exit 0. It is named if one of them fails. Everything else is wrong,
as is a total above what was sent. Exit code 1 if any copy was wrong, except for recipes that the documentation forbids."""
import argparse
import collections
import http.client
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

EVENT = b'{"userId": "u", "name": "add_revenue", "value": 1}\n'
SENDERS = 3
SNAPSHOT = "btrfs snapshot of all"
RUNS_EACH = 10  # runs of one server, so that the copies stay small


class Server:
    litestream = None

    def __init__(self, program, data):
        self.program = program
        self.data = data
        self.acknowledged = 0
        self.sent = 0
        self.lock = threading.Lock()
        self.start()

    def start(self):
        port_file = self.data + ".port"
        if os.path.exists(port_file):
            os.remove(port_file)
        command = [self.program, "serve", "--listen", "127.0.0.1:0", "--data-dir", self.data, "--port-file", port_file]
        command += ["--rotate-interval", "100ms", "--flush-interval", "50ms"]
        self.log = open(self.data + ".log", "ab")
        self.process = subprocess.Popen(command, stderr=self.log)
        deadline = time.monotonic() + 60
        while not os.path.exists(port_file):
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit(f"the server did not start; see {self.data}.log")
            time.sleep(0.02)
        self.port = int(open(port_file).read())
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.send) for _ in range(SENDERS)]
        for thread in self.threads:
            thread.start()

    def send(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stopping.is_set():
            with self.lock:
                self.sent += 1
            connection.request("POST", "/liveEvent", EVENT)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 202:
                sys.exit(f"POST: {answer.status}")
            with self.lock:
                self.acknowledged += 1
            time.sleep(0.002)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            sys.exit("the server did not stop cleanly")
        self.log.close()

    def end(self):
        self.stop()
        if self.litestream:
            self.litestream.terminate()
            self.litestream.wait(60)


def shell(script, **names):
    """Runs a script and ignores its exit code, since files may disappear during a copy."""
    environment = dict(os.environ, **names)
    subprocess.run(["sh", "-c", script], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def scripted(script):
    return lambda run, server, to: shell("mkdir \"$TO\"; cd \"$DATA\"; " + script, DATA=server.data, TO=to)


def stopped(run, server, to):
    server.stop()
    shutil.copytree(server.data, to)
    server.start()


def snapshot(run, server, to):
    """A snapshot of the subvolume that is the data directory: database and files of one moment."""
    shell("btrfs subvolume snapshot -r \"$DATA\" \"$DATA.snapshot\"", DATA=server.data)
    shell("cp -a \"$DATA.snapshot\" \"$TO\"; btrfs subvolume delete \"$DATA.snapshot\"", DATA=server.data, TO=to)


def backup(run, server, to):
    made = to + ".backup"
    for command in (["backup", made, "--data-dir", server.data], ["restore", made, "--data-dir", to]):
        subprocess.run([server.program, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    shutil.rmtree(made)


def backup_over_newer(run, server, to):
    """Restored over a copy that is newer than the backup."""
    made = to + ".backup"
    subprocess.run([server.program, "backup", made, "--data-dir", server.data], stdout=subprocess.DEVNULL, check=True)
    time.sleep(0.3)
    scripted(FILES + " | xargs -0 cp -a -t \"$TO\"")(run, server, to)
    restored = subprocess.run(
        [server.program, "restore", made, "--data-dir", to], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    run.refused = restored.returncode != 0
    shutil.rmtree(made)


FILES = "find . -mindepth 1 -maxdepth 1 ! -name 'revenue.db*' -print0"
RECIPES = {
    "cp -a, without the database": ("cp", scripted(FILES + " | xargs -0 cp -a -t \"$TO\"")),
    "tar, without the database": ("tar", scripted("tar -cf - --exclude='./revenue.db*' . | tar -xf - -C \"$TO\"")),
    "rsync -a once, without the database": ("rsync", scripted("rsync -a --exclude='revenue.db*' ./ \"$TO\"/")),
    "rsync -a twice, without the database": (
        "rsync",
        scripted("for pass in 1 2; do rsync -a --exclude='revenue.db*' ./ \"$TO\"/; done"),
    ),
    "VACUUM INTO, then tar": (
        "sqlite3",
        scripted(
            "sqlite3 revenue.db \".timeout 10000\" \"VACUUM INTO '$TO/revenue.db'\"; "
            "tar -cf - --exclude='./revenue.db*' . | tar -xf - -C \"$TO\""
        ),
    ),
    "tallyline backup, restore": ("cp", backup),
    "tallyline backup, restored over newer files": ("cp", backup_over_newer),
    "cp -a of a stopped directory": ("cp", stopped),
    "FORBIDDEN: cp -a of all, running": ("cp", scripted("cp -a . \"$TO\"/")),
    "FORBIDDEN: tar, then VACUUM INTO": (
        "sqlite3",
        scripted(
            "tar -cf - --exclude='./revenue.db*' . | tar -xf - -C \"$TO\"; "
            "sqlite3 revenue.db \".timeout 10000\" \"VACUUM INTO '$TO/revenue.db'\""
        ),
    ),
}


class Run:
    refused = False


def total(data):
    path = os.path.join(data, "revenue.db")
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        micros, events = connection.execute("SELECT sum(revenue_micros), sum(events) FROM user_total").fetchone()
        connection.close()
    except sqlite3.Error:
        return None
    return (events or 0) if micros == (events or 0) * 1_000_000 or micros is None else None


def judge(program, run, before, after, copy):
    def ran(command):
        return subprocess.run([program, command, "--data-dir", copy], capture_output=True, text=True, check=False)

    processed = ran("process")
    verified = ran("verify")
    found = total(copy)
    fine = processed.returncode == 0 and verified.returncode == 0
    if found is not None and found > after:
        return "wrong", f"{found} counted, {after} sent"
    if run.refused or not fine:
        return "named", (processed.stderr + processed.stdout + verified.stdout).strip()
    if found is not None and found >= before:
        return "exact", ""
    return "wrong", f"{found} counted, {before} acknowledged before"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("program")
    arguments.add_argument("--runs", type=int, default=50)
    arguments.add_argument("--only", help="recipes whose name contains this")
    arguments.add_argument("--litestream", help="the litestream binary: it replicates under load, and the files are copied afterwards")
    arguments.add_argument("--btrfs", help="a directory on btrfs, for atomic snapshots of a subvolume; needs root and the program btrfs")
    arguments.add_argument("--show", action="store_true", help="print what is reported about each copy that is not exact")
    arguments = arguments.parse_args()
    program = os.path.abspath(arguments.program)
    recipes = dict(RECIPES)
    if arguments.litestream:
        recipes["Litestream restore, then files"] = ("cp", litestream(os.path.abspath(arguments.litestream)))
    if arguments.btrfs:
        recipes[SNAPSHOT] = ("btrfs", snapshot)
    wrong = 0
    print(f"{'recipe':46} {'exact':>6} {'named':>6} {'wrong':>6}")
    for name, (needs, recipe) in recipes.items():
        if arguments.only and arguments.only not in name:
            continue
        if shutil.which(needs) is None:
            print(f"{name:46} skipped: {needs} is not installed")
            continue
        outcomes = collections.Counter()
        said = []
        for number in range(arguments.runs):
            if number % RUNS_EACH == 0:
                place = arguments.btrfs if name == SNAPSHOT else None
                scratch = tempfile.TemporaryDirectory(prefix="tallyline-recipes-", dir=place)
                data = os.path.join(scratch.name, "data")
                if place:
                    subprocess.run(["btrfs", "subvolume", "create", data], stdout=subprocess.DEVNULL, check=True)
                server = Server(program, data)
            time.sleep(random.random() / 5)
            run, copy = Run(), os.path.join(scratch.name, "copy")
            with server.lock:
                before = server.acknowledged
            recipe(run, server, copy)
            with server.lock:
                after = server.sent
            outcome, words = judge(program, run, before, after, copy)
            outcomes[outcome] += 1
            if outcome != "exact":
                said.append(f"  run {number}: {outcome}: {words}")
            if outcome == "wrong" and not name.startswith("FORBIDDEN"):
                wrong += 1
                kept = tempfile.mkdtemp(prefix="tallyline-wrong-")
                shutil.copytree(copy, os.path.join(kept, "copy"))
                said.append(f"  kept in {kept}")
            shutil.rmtree(copy, ignore_errors=True)
            if (number + 1) % RUNS_EACH == 0 or number + 1 == arguments.runs:
                server.end()
                if place:
                    subprocess.run(["btrfs", "subvolume", "delete", data], stdout=subprocess.DEVNULL, check=True)
                scratch.cleanup()
        print(f"{name:46} {outcomes['exact']:6} {outcomes['named']:6} {outcomes['wrong']:6}", flush=True)
        for line in said if arguments.show else [line for line in said if "wrong" in line]:
            print(line, flush=True)
    return 1 if wrong else 0


def litestream(binary):
    """Replicates to a directory under load, restores the database from there, then copies the files."""

    def recipe(run, server, to):
        os.mkdir(to)
        replica = server.data + ".replica"
        database = os.path.join(server.data, "revenue.db")
        url = "file://" + replica
        if server.litestream is None:
            server.litestream = subprocess.Popen(
                [binary, "replicate", database, url], stdout=subprocess.DEVNULL, stderr=open(server.data + ".litestream", "wb")
            )
            time.sleep(3)
        target = os.path.join(to, "revenue.db")
        restored = subprocess.run([binary, "restore", "-o", target, url], capture_output=True, text=True, check=False)
        if restored.returncode != 0:
            print("  litestream restore:", restored.stderr.strip()[-300:], flush=True)
        shell("cd \"$DATA\"; tar -cf - --exclude='./revenue.db*' --exclude='./.revenue.db-litestream' . | tar -xf - -C \"$TO\"", DATA=server.data, TO=to)

    return recipe


if __name__ == "__main__":
    sys.exit(main())
