#!/usr/bin/env python3
"""Uses the client that openapi_client.sh has generated, and compares edge values with the description.

Usage: openapi_client.py URL openapi.json, with the generated package `tallyline_client` on PYTHONPATH.
"""

import json
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from tallyline_client import Client
from tallyline_client.api.events import post_live_event
from tallyline_client.api.operations import history, list_rejected, list_segments, readiness, refused_requests, status
from tallyline_client.api.totals import flush, get_user, list_users
from tallyline_client.models import Event, ListUsersOrder, Name, Problem, Taken


def main(url: str, description: dict) -> None:
    client = Client(base_url=url)
    events = [Event(user_id="user1", name=Name.ADD_REVENUE, value=100), Event(user_id="user1", name=Name.SUBTRACT_REVENUE, value=50.25),
              Event(user_id="acme/eu", name=Name.ADD_REVENUE, value=999999999999.999999)]
    for event in events:
        taken = post_live_event.sync(client=client, body=event)
        assert taken.accepted == 1 and re.match(r"\d+-\d+", taken.position), taken
    # The generated function cannot send an array; the connection of the client can.
    answer = client.get_httpx_client().post("/liveEvent", json=[event.to_dict() for event in events])
    assert Taken.from_dict(answer.json()).accepted == 3, answer.text
    refused = post_live_event.sync(client=client, body=Event(user_id="user1", name=Name.ADD_REVENUE, value=-1))
    assert isinstance(refused, Problem) and refused.errors[0].code == "negative", refused

    flushed = flush.sync(client=client)
    assert flushed.applied == flushed.position, flushed
    user = get_user.sync("user1", client=client)
    assert (user.revenue, user.revenue_micros, user.events) == (99.5, "99500000", 4), user
    user = get_user.sync("acme/eu", client=client)
    assert user.revenue_micros == "2000000000000000000", user
    assert get_user.sync_detailed("nobody", client=client).status_code == 404

    page = list_users.sync(client=client, order=ListUsersOrder.VALUE_1, limit=1)
    assert [user.user_id for user in page.users] == ["acme/eu"] and page.next_, page
    page = list_users.sync(client=client, order=ListUsersOrder.VALUE_1, limit=1, cursor=page.next_)
    assert [user.user_id for user in page.users] == ["user1"] and page.next_ is None, page
    page = list_users.sync(client=client, prefix="acme/")
    assert [user.user_id for user in page.users] == ["acme/eu"], page

    figures = status.sync(client=client)
    assert (figures.users, figures.events, figures.revenue_micros) == (2, 6, "2000000000099500000"), figures
    assert figures.ready and readiness.sync_detailed(client=client).status_code == 200
    assert [entry.status for entry in refused_requests.sync(client=client).refused] == [422]
    assert list_rejected.sync(client=client).rejected == []
    assert list_segments.sync(client=client).segments[0].events == 6
    deadline = time.monotonic() + 30
    while not history.sync(client=client).at_ms:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    edges(url, description)


def edges(url: str, description: dict) -> None:
    """A value is rejected with 400 if and only if its schema does not allow it."""
    parameters = description["components"]["parameters"]
    cursor = json.loads(get(f"{url}/userEvents?limit=1")[1])["next"]
    for path, name, key, values in [
        ("/userEvents/user1", "wait", "wait", ["0", "0s", "5s", "60s", "61s", "60000ms", "60001ms", "1m", "2m", "5", "", "-1s"]),
        ("/flush", "wait", "flushWait", ["0", "10m", "11m", "600s", "601s", "600000ms", "600001ms", ""]),
        ("/userEvents", "cursor", "cursor", [cursor, "", "x", "u0", "u0.zz", cursor.replace("u", "r", 1)]),
        ("/userEvents", "limit", "limit", ["1", "1000", "0", "1001", "", "x"]),
        ("/userEvents", "order", "order", ["userId", "revenue", "-revenue", "", "name"]),
        ("/userEvents", "prefix", "prefix", ["", "user", "é"]),
    ]:
        schema = parameters[key]["schema"]
        for value in values:
            allowed = (re.search(schema["pattern"], value) is not None if "pattern" in schema
                       else value in schema["enum"] if "enum" in schema
                       else re.fullmatch(r"\d+", value) is not None and schema["minimum"] <= int(value) <= schema["maximum"] if schema["type"] == "integer"
                       else True)
            # A cursor belongs to one order, which a schema cannot say.
            if name == "cursor" and value.startswith("r"):
                allowed = False
            query = urllib.parse.urlencode({name: value})
            found, _ = get(f"{url}{path}?{query}", method="POST" if path == "/flush" else "GET")
            assert (found != 400) == allowed, f"{path}?{query} is answered with {found}; allowed by the description: {allowed}"


def get(url: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


if __name__ == "__main__":
    main(sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text()))
