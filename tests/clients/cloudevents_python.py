"""Posts CloudEvents made by the official Python SDK, each twice. Usage: cloudevents_python.py URL"""

import json
import sys
import urllib.request

from cloudevents.core.bindings.http import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent


def event(id: str, name: str, value: float) -> CloudEvent:
    attributes = {
        "specversion": "1.0",
        "id": id,
        "source": "/sdk/python",
        "type": name,
        "subject": "python café",
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes=attributes, data={"value": value})


def post(url: str, headers: dict, body: bytes) -> dict:
    request = urllib.request.Request(f"{url}/liveEvent", data=body, headers=headers)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 202, answer.status
        return json.load(answer)


def main(url: str) -> None:
    json_format = JSONFormat()
    structured = to_structured(event("1", "add_revenue", 10.5), json_format)
    binary = to_binary(event("2", "add_revenue", 0.000001), json_format)
    # The SDK has no batches; by the specification a batch is an array of structured events.
    batch = [event("3", "add_revenue", 20), event("x" * 200, "subtract_revenue", 5)]
    batch = b"[" + b",".join(json_format.write(one) for one in batch) + b"]"
    for _ in range(2):
        assert post(url, structured.headers, structured.body)["accepted"] == 1
        assert post(url, binary.headers, binary.body)["accepted"] == 1
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        assert post(url, headers, batch)["accepted"] == 2
    print("ok: the Python SDK's structured, binary and batched events are taken")


main(sys.argv[1])
