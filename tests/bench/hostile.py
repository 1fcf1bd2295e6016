#!/usr/bin/env python3
"""Hostile clients for minutes: resources stay bounded and other clients are served. One row for each
kind of attack.

    python3 tests/bench/hostile.py target/release/tallyline --seconds 240

For each row, a new server with its own directory is attacked in waves for that long. Meanwhile a
polite client, in a process of its own, posts events with ids, half of them on new connections,
repeats each until it is acknowledged, and measures response times. After the attack, the totals of
the server are compared with what was acknowledged.

A row is `ok` if the mean memory of the last minute is within 10 % (and 2 MiB) of that of the second
minute (of the last and the second third if the run is shorter than three minutes), /readyz answers
200, /status balances, and each event of the polite client is counted once. There are ten samples a
second; the mean is used because a median jumps with the requests in flight. `ok` says nothing about
speed: on a busy machine the latencies are meaningless.
"""

import argparse
import concurrent.futures
import gzip
import http.client
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import resource
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HOST = "127.0.0.1"
EVENT = '{"userId":"hostile","name":"add_revenue","value":1}\n'
POST = "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\n"


def connect(port, timeout=20.0):
    conn = socket.create_connection((HOST, port), timeout)
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return conn


def post(body, more=""):
    return f"{POST}{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def answers(conn, count):
    """Reads `count` responses and returns their statuses. Raises if the server closes before that."""
    data, found = b"", []
    while len(found) < count:
        head = re.match(rb"HTTP/1\.1 (\d+).*?\r\n\r\n", data, re.S)
        if head:
            length = re.search(rb"(?i)content-length: (\d+)", head.group(0))
            end = head.end() + (int(length.group(1)) if length else 0)
            if len(data) >= end:
                found.append(int(head.group(1)))
                data = data[end:]
                continue
        more = conn.recv(65536)
        if not more:
            raise ConnectionError(f"ended after {len(found)} of {count} answers")
        data += more
    return found


def said(conn, seconds=5.0):
    """All bytes until the server closes the connection, or until the time is over."""
    conn.settimeout(seconds)
    data = b""
    try:
        while more := conn.recv(65536):
            data += more
    except OSError:
        pass
    return data


# The attacks. Each is a generator: one `next` is one wave. Network errors are expected; an
# AssertionError is a fault of the server and fails the row.


def burst(port):
    """64, 128, 250 connections at once, one post each, all kept open until the last response."""
    for count in itertools.cycle((64, 128, 250)):
        conns = [connect(port) for _ in range(count)]
        for conn in conns:
            conn.sendall(post(EVENT))
        for place, conn in enumerate(conns):
            try:
                assert answers(conn, 1) == [202], "rejected"
            except TimeoutError:
                raise AssertionError(f"{place} of {count} were answered") from None
        for conn in conns:
            conn.close()
        yield


def absurd_length(port):
    """A Content-Length far over the limit."""
    while True:
        for length in [33_554_433, 10**8, 10**9, 10**14, 2**63, 2**64 - 1]:
            with connect(port) as conn:
                conn.sendall(f"{POST}Content-Length: {length}\r\n\r\nxxx".encode())
                try:
                    assert answers(conn, 1) == [413], length
                except TimeoutError:
                    raise AssertionError(f"{length}: no answer") from None
        yield


def chunked_over_the_limit(port):
    """Chunks that add up to 40 MiB."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while True:
        with connect(port) as conn:
            try:
                conn.sendall(POST.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
                for _ in range(640):
                    conn.sendall(chunk)
                answer = said(conn)
                assert not answer or b" 413 " in answer, answer[:60]
            except OSError:
                pass  # cut off
        yield


HALF_HEAD = (POST + "Content-Le").encode()
HALF_BODY = (POST + "Content-Length: 5000\r\n\r\n{").encode()
HALF_CHUNK = (POST + "Transfer-Encoding: chunked\r\n\r\n1000\r\n{").encode()
HALF_SIZE = (POST + "Transfer-Encoding: chunked\r\n\r\n0").encode()


def held(port, starts, feed=b"", count=200):
    """Holds `count` connections with such a beginning, sends a little on each every second, and opens
    new ones for those that the server closes."""
    kinds = itertools.cycle(starts)
    conns = []
    while True:
        while len(conns) < count:
            conn = connect(port)
            conn.sendall(next(kinds))
            conns.append(conn)
        time.sleep(1)
        # `select` supports no descriptor above 1023.
        poll, by_fd = select.poll(), {conn.fileno(): conn for conn in conns}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        ended = {by_fd[fd] for fd, _ in poll.poll(0)}
        for conn in conns:
            try:
                conn.sendall(feed)
            except OSError:
                ended.add(conn)
        for conn in ended:
            conn.close()
        conns = [conn for conn in conns if conn not in ended]
        yield


def stalled_heads(port):
    """200 connections that send half a head and wait."""
    return held(port, [HALF_HEAD])


def stalled_bodies(port):
    """200 that send half a body and wait."""
    return held(port, [HALF_BODY, HALF_CHUNK])


def half_heads(port):
    """4,000 connections that send half a head and wait."""
    return held(port, [HALF_HEAD], count=4000)


def slow_uploads(port):
    """400 uploads that stall, and time out together."""
    while True:
        conns = [connect(port) for _ in range(400)]
        for conn in conns:
            conn.sendall(HALF_BODY)
        for conn in conns:
            answer = said(conn, 60)
            assert answer.startswith(b"HTTP/1.1 408"), answer[:60]
            conn.close()
        yield


def crowd(port):
    """10,000 connections from one script, all open before the first response, a POST on each."""
    whole = post(EVENT)
    while True:
        conns = [connect(port, 60) for _ in range(10_000)]
        for conn in conns:
            conn.sendall(whole)
        for conn in conns:
            status = answers(conn, 1)
            assert status in ([202], [503]), status
        for conn in conns:
            conn.close()
        yield


def trickled(port):
    """200 that send heads, bodies and chunk sizes, a byte a second."""
    return held(port, [HALF_HEAD, HALF_BODY, HALF_CHUNK, HALF_SIZE], b"0")


def push(conns, block, seconds):
    """Sends `block` on each connection repeatedly, as far as the server reads it; closes those that it closes, and the others after `seconds`."""
    until = time.monotonic() + seconds
    while conns and time.monotonic() < until:
        for conn in select.select([], conns, [], 1)[1]:
            try:
                conn.send(block, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:
                conn.close()
                conns.remove(conn)
    for conn in conns:
        conn.close()


def endless(port):
    """Endless heads and chunk sizes, as fast as possible."""
    block = b"0" * 65536
    while True:
        conns = []
        for start in (HALF_HEAD + b": ", HALF_SIZE):
            conn = connect(port)
            conn.sendall(start)
            conns.append(conn)
        push(conns, block, 20)
        yield


def never_reads(port):
    """16 connections that request a large page repeatedly and read nothing."""
    page = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
    while True:
        conns = [connect(port) for _ in range(16)]
        push(conns, page, 8)
        yield


def comes_and_goes(port):
    """16 connections at a time that send as many requests as sockets hold, and close at once."""
    pages = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    while True:
        conns = [connect(port) for _ in range(16)]
        for conn in conns:
            conn.setblocking(False)
            try:
                while conn.send(pages):
                    pass
            except OSError:
                pass  # full, or cut off
        for conn in conns:
            conn.close()
        yield


def framing(port):
    """Ambiguous heads, each with a request hidden in its body."""
    hidden = post(EVENT.replace("hostile", "smuggled")).decode()
    heads = [
        f"Content-Length: 0\r\nContent-Length: {len(hidden)}",
        f"Content-Length: +{len(hidden)}",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Content-Length: 0\r\nX: a\x01b",
    ]
    while True:
        for head in heads:
            with connect(port) as conn:
                conn.sendall(f"{POST}{head}\r\n\r\n0\r\n\r\n{hidden}".encode())
                conn.shutdown(socket.SHUT_WR)
                answer = said(conn)
                assert answer.startswith(b"HTTP/1.1 4"), f"{head}: {answer[:60]}"
                assert answer.count(b"HTTP/1.1 ") == 1, f"{head}: {answer}"
        yield


def http_2_lines(port):
    """50 connections that speak HTTP/2.0, once, and stay."""
    conns = [connect(port) for _ in range(50)]
    for place, conn in enumerate(conns):
        line = ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/2.0\r\nHost: localhost\r\n\r\n")
        conn.sendall(line[place % 2].encode())
    while True:
        time.sleep(1)
        yield


def pipelined(port):
    """100 mixed requests in one piece on each of 4 connections."""
    ask = "{} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    kinds = [
        (post(EVENT), 202),
        (ask.format("GET /healthz").encode(), 200),
        (post("nonsense"), 400),
        (ask.format("GET /nowhere").encode(), 404),
        (ask.format("DELETE /liveEvent").encode(), 405),
        (ask.format("GET /userEvents/unknown").encode(), 404),
        (post(EVENT.strip() + " " * 2000), 202),
        (ask.format("OPTIONS /flush").encode(), 204),
        (post(EVENT), 202),
        (ask.format("GET /status").encode(), 200),
    ]
    wire = b"".join(kind[0] for kind in kinds) * 10
    while True:
        conns = [connect(port) for _ in range(4)]
        for conn in conns:
            conn.sendall(wire)
        for conn in conns:
            assert answers(conn, 100) == [kind[1] for kind in kinds] * 10, "out of order"
            conn.close()
        yield


def out_of_descriptors(port):
    """150 connections at once while the server may open 64 descriptors."""
    while True:
        conns = []
        for _ in range(150):
            try:
                conns.append(connect(port, 1))
                conns[-1].sendall(HALF_HEAD)
            except OSError:
                pass
        time.sleep(1)
        for conn in conns:
            conn.close()
        time.sleep(1)
        yield


def panics(port):
    """A handler that panics; debug builds have such a path, others answer 404."""
    while True:
        for _ in range(20):
            with connect(port) as conn:
                conn.sendall(b"GET /panic HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert answers(conn, 1)[0] in (500, 404)
        yield


def opened_and_dropped(port):
    """Thousands of connections, dropped after nothing, a little, or nearly all of a request."""
    whole = post(EVENT)
    for place in itertools.count():
        conn = connect(port)
        conn.sendall((b"", whole[:20], whole[:-5], whole)[place % 4])
        conn.close()
        if place % 500 == 499:
            yield


def gzip_bombs(port):
    """64 MiB of spaces, 64 KiB on the wire, four at a time."""
    bomb = gzip.compress(b" " * (64 << 20), 9)
    head = f"{POST}Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    while True:
        conns = [connect(port) for _ in range(4)]
        for conn in conns:
            conn.sendall(head + bomb)
        for conn in conns:
            assert answers(conn, 1) == [413]
            conn.close()
        yield


ATTACKS = [
    burst, absurd_length, chunked_over_the_limit, stalled_heads, stalled_bodies, trickled, endless,
    never_reads, comes_and_goes, framing, http_2_lines, pipelined, out_of_descriptors, panics, opened_and_dropped,
    gzip_bombs, half_heads, slow_uploads, crowd,
]


def attack_until(attack, port, deadline, rate, report):
    """Runs in a process of its own, with at most `rate` waves a second; reports the number of waves and the
    errors."""
    waves, wrong, network = 0, None, 0
    began = time.monotonic()
    while wrong is None and time.monotonic() < deadline:
        try:
            for _ in attack(port):
                waves += 1
                if time.monotonic() >= deadline:
                    break
                time.sleep(max(0, min(began + waves / rate, deadline) - time.monotonic()))
        except AssertionError as error:
            wrong = str(error) or "an answer other than expected"
        except OSError:
            network += 1
            time.sleep(0.1)
    report.send((waves, network, wrong))


def polite_until(port, deadline, fresh, report):
    """Posts an event each 10 ms until the deadline; every other one on a connection of its own
    where `fresh`. Reports the number of acknowledged events and the seconds that each took."""
    took, kept = [], None
    for place in itertools.count():
        if time.monotonic() >= deadline:
            break
        body = json.dumps({"userId": "polite", "name": "add_revenue", "value": 1, "id": f"p{place}"})
        began = time.monotonic()
        while True:
            new = fresh and place % 2
            conn = None if new else kept
            try:
                conn = conn or http.client.HTTPConnection(HOST, port, timeout=30)
                conn.request("POST", "/liveEvent", body)
                answer = conn.getresponse()
                answer.read()
                if new:
                    conn.close()
                else:
                    kept = conn
                if answer.status == 202:
                    break
            except (OSError, http.client.HTTPException):
                if conn is kept:
                    kept = None
                if conn:
                    conn.close()
            time.sleep(0.01)  # and the same event again
        took.append(time.monotonic() - began)
        time.sleep(0.01)
    report.send(took)


def sample(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    number = lambda name: int(re.search(rf"{name}:\s+(\d+)", status).group(1))
    return time.monotonic(), number("VmRSS") / 1024, number("Threads"), len(os.listdir(f"/proc/{pid}/fd"))


def ask(port, method, path):
    conn = http.client.HTTPConnection(HOST, port, timeout=60)
    conn.request(method, path)
    answer = conn.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text.startswith(b"{") else {}


def start(binary, directory, descriptors):
    port_file = pathlib.Path(directory, "port")
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    server = subprocess.Popen(
        [binary, "serve", "--data-dir", f"{directory}/data", "--listen", f"{HOST}:0",
         "--port-file", port_file],
        stderr=open(f"{directory}/log", "wb"), preexec_fn=limit if descriptors else None)
    while not port_file.exists():
        assert server.poll() is None, pathlib.Path(directory, "log").read_text()
        time.sleep(0.01)
    return server, int(port_file.read_text())


def in_process(work, *args):
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=work, args=(*args, there), daemon=True)
    process.start()
    return here


def final(port, acknowledged):
    """Errors after the attack; waits a little for connections to end."""
    wrong = []
    for _ in range(100):
        ready, why = ask(port, "GET", "/readyz")
        if ready == 200:
            break
        time.sleep(0.1)
    else:
        wrong.append(f"/readyz {ready}: {why.get('reasons')}")
    flushed, _ = ask(port, "POST", "/flush")
    counted = ask(port, "GET", "/userEvents/polite")[1].get("events", 0)
    status = ask(port, "GET", "/status")[1]
    parts = ("applied", "duplicates", "rejected", "pending", "corrupt")
    if flushed != 200:
        wrong.append(f"/flush {flushed}")
    if counted != acknowledged:
        wrong.append(f"{acknowledged} acknowledged, {counted} counted")
    if status["received"] != status["accepted"] + status["refused"]:
        wrong.append("the counters of requests do not balance")
    if status["lines"] != sum(status[part] for part in parts) or status["pending"]:
        wrong.append("the ledger does not balance")
    if ask(port, "GET", "/userEvents/smuggled")[0] != 404:
        wrong.append("an event was smuggled in")
    return wrong, ready


def row(binary, attack, seconds, rate):
    tight = attack is out_of_descriptors
    with tempfile.TemporaryDirectory(prefix="tallyline-hostile-") as directory:
        server, port = start(binary, directory, 64 if tight else None)
        try:
            began = time.monotonic()
            deadline = began + seconds
            attacker = in_process(attack_until, attack, port, deadline, rate)
            polite = in_process(polite_until, port, deadline, not tight)
            samples = []
            while time.monotonic() < deadline:
                assert server.poll() is None, f"the server exited: {server.returncode}"
                samples.append(sample(server.pid))
                time.sleep(0.1)
            took = sorted(polite.recv())
            waves, network, fault = attacker.recv()
            wrong, ready = final(port, len(took))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
    minute = min(60, seconds / 3)
    mid = statistics.fmean(rss for at, rss, _, _ in samples if minute <= at - began < 2 * minute)
    end = statistics.fmean(rss for at, rss, _, _ in samples if at >= deadline - minute)
    if end > mid * 1.1 and end > mid + 2:
        wrong.append("memory grows")
    if fault:
        wrong.append(fault)
    p50, p99 = (took[int(len(took) * part)] * 1000 for part in (0.5, 0.99))
    return (f"{attack.__name__:24}{waves:6}{max(s[2] for s in samples):8}{max(s[3] for s in samples):6}"
            f"{mid:8.1f}{end:8.1f}{(end / mid - 1) * 100:+7.1f}{p50:7.1f}{p99:7.1f}{took[-1] * 1000:8.0f}"
            f"{ready:7}{len(took):8}  {'; '.join(wrong) or 'ok'}"), not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=float, default=240, help="of each row; default 240")
    parser.add_argument("--waves-per-second", type=float, default=float("inf"),
                        help="at most; to compare binaries under the same attack; default as many as are answered")
    parser.add_argument("--at-once", type=int, default=1, help="rows that run at the same time; default 1, for meaningful latencies")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows; default all")
    args = parser.parse_args()
    attacks = [attack for attack in ATTACKS if not args.only or attack.__name__ in args.only]
    print(f"{'attack':24}{'waves':>6}{'threads':>8}{'fds':>6}{'MiB mid':>8}{'MiB end':>8}{'%':>7}"
          f"{'p50 ms':>7}{'p99 ms':>7}{'max ms':>8}{'readyz':>7}{'acked':>8}  counted once, balanced", flush=True)
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        calm = True
        rows = [pool.submit(row, args.binary, attack, args.seconds, args.waves_per_second) for attack in attacks]
        for done in rows:
            text, good = done.result()
            calm &= good
            print(text, flush=True)
    sys.exit(0 if calm else 1)


if __name__ == "__main__":
    main()
