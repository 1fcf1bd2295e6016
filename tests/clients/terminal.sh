#!/usr/bin/env bash
# Output that appears only on a terminal: progress with rate and time left, colours. The terminal is
# created by Debian's `script`. Needs util-linux's script (bsdutils), python3.
. "$(dirname "$0")/lib.sh"

serve
"$bin" generate --events 6000 >"$tmp/events.jsonl"
send="$bin send $tmp/events.jsonl --to $url --rate 3000"
# on_terminal COMMAND: writes its terminal output to a file, with a line for each carriage return.
on_terminal() { TERM=xterm COLUMNS=100 script -qec "$1" /dev/null </dev/null | tr '\r' '\n' >"$tmp/terminal"; }

on_terminal "$send"
grep -qE '[0-9]+% .*[0-9,]+ events.*, [0-9,]+/s.*, [0-9]+s left' "$tmp/terminal" || fail "no progress: $(cat -v "$tmp/terminal")"
grep '[^[:space:]]' "$tmp/terminal" | tail -n 1 | grep '^OK: 6,000 lines acknowledged, none refused' >/dev/null || fail "$(cat -v "$tmp/terminal")"
ok "send shows percent, rate and time left, and ends in OK"
on_terminal "cat $tmp/events.jsonl | $bin send - --to $url --rate 3000"
grep -qE '[0-9,]+ events.*, [0-9,]+/s' "$tmp/terminal" || fail "no progress: $(cat -v "$tmp/terminal")"
ok "send of stdin shows a count and a rate"
on_terminal "$send --quiet --again"
same "bytes of --quiet on a terminal" "$(wc -c <"$tmp/terminal")" 0
$send --again >"$tmp/out" 2>"$tmp/err"
same "bytes of progress in a file" "$(wc -c <"$tmp/err")" 0

escape=$'\e['
on_terminal "! $bin brew; ! $bin serve --listen nowhere; $bin --help"
grep -qF "$escape" "$tmp/terminal" || fail "no colours on a terminal"
on_terminal "export NO_COLOR=1; ! $bin brew; ! $bin serve --listen nowhere; $bin --help"
! grep -qF "$escape" "$tmp/terminal" || fail "colours in spite of NO_COLOR"
! grep -qF "$escape" "$tmp/server.log" || fail "colours in a log file"
! { "$bin" brew || "$bin" --help; } 2>&1 | grep -F "$escape" >/dev/null || fail "colours in a pipe"
ok "colours on a terminal only, and not with NO_COLOR"

# A closed terminal ends a server that was started in it, orderly; `kill -HUP` does not.
python3 - "$bin" "$tmp" <<'EOF'
import os, pathlib, pty, signal, sys, time
binary, tmp = sys.argv[1:]
port = pathlib.Path(tmp, "pty-port")
server, terminal = pty.fork()
if server == 0:
    os.execv(binary, [binary, "serve", "--listen", "127.0.0.1:0", "--port-file", str(port),
                      "--data-dir", f"{tmp}/pty-data"])
deadline = time.monotonic() + 30
def read_until(text):
    seen = b""
    while text not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 4096)
read_until(b"serving")
os.kill(server, signal.SIGHUP)
read_until(b"SIGHUP: no token file")
os.close(terminal)
pid, status = os.waitpid(server, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
EOF
ok "a server ends in order when its terminal is closed, and not by SIGHUP alone"

# The log of a server, on a terminal.
log() { on_terminal "$1 timeout -s INT 1 $bin serve --listen 127.0.0.1:0 --data-dir $tmp/other; true"; }
log ''
grep -qF "$escape" "$tmp/terminal" || fail "a log without colours on a terminal"
log 'NO_COLOR=1'
grep -q 'INFO serving' "$tmp/terminal" && ! grep -qF "$escape" "$tmp/terminal" || fail "$(cat -v "$tmp/terminal")"
ok "the same for the server's log"
stop "$server"
