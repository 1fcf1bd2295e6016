"""Tests of the package, to be run where it is installed; tests/clients/packages.sh does."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from decimal import Decimal

import pytest

from tallyline import Server, find_program


def event(user, value, name="add_revenue"):
    return {"userId": user, "name": name, "value": value}


@pytest.mark.parametrize("value", [100, 7])
def test_each_test_has_a_server_of_its_own(tallyline, value):
    # Fails if two tests share a data directory: the second one would see the first one's event.
    assert tallyline.revenue("user1") == 0
    tallyline.post(event("user1", value))
    assert tallyline.revenue("user1") == value


def test_amounts_are_exact(tallyline):
    # Fails if an amount is converted to floating point, or a name is not encoded in a path.
    tallyline.post('{"userId":"a/b é","name":"add_revenue","value":9007199254.000001}')
    tallyline.post(event("a/b é", 0.1), event("a/b é", 50, "subtract_revenue"))
    assert tallyline.revenue("a/b é") == Decimal("9007199204.100001")


def test_refused_events_raise_with_the_reason(tallyline):
    # Fails if a refused event is ignored.
    with pytest.raises(ValueError, match="negative"):
        tallyline.post(event("user1", 1), event("user1", -1))
    assert tallyline.revenue("user1") == 0


def test_the_program_under_test_posts_to_the_url(tallyline):
    # Fails if the URL or the data directory is not the server's.
    body = json.dumps(event("user1", 3)).encode()
    with urllib.request.urlopen(tallyline.url + "/liveEvent", data=body) as answer:
        assert answer.status == 202
    assert b'"user1"' in (tallyline.data_dir / "events.jsonl").read_bytes()


def test_the_server_ends_with_its_block(tmp_path):
    # Fails if a server outlives its test.
    with Server(tmp_path / "data") as server:
        server.post(event("user1", 1))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url + "/healthz", timeout=60)


def test_a_server_that_cannot_start_raises_with_its_log(tmp_path):
    # Fails if the fixture waits in vain, or hides the reason.
    with pytest.raises(RuntimeError, match="--rotate-interval"):
        Server(tmp_path / "data", flags=("--rotate-interval", "1ms"))


def test_settings_of_the_environment_do_not_apply(monkeypatch, tmp_path):
    # Fails if a test's server inherits the settings of another one.
    monkeypatch.setenv("TALLYLINE_NO_PROCESS", "true")
    with Server(tmp_path / "data") as server:
        server.post(event("user1", 1))
        assert server.revenue("user1") == 1


def test_python_m_tallyline_is_the_program():
    # Fails if another program of that name is found.
    shown = [subprocess.check_output(command, text=True) for command in
             ([find_program(), "--version"], [sys.executable, "-m", "tallyline", "--version"])]
    assert shown[0] == shown[1] and shown[0].startswith("tallyline ")
