// Posts CloudEvents made by the official JavaScript SDK, each twice. Usage: cloudevents_node.mjs URL
import assert from "node:assert/strict";
import { CloudEvent, HTTP } from "cloudevents";

const url = process.argv[2];

const event = (id, type, value) =>
  new CloudEvent({ id, source: "/sdk/node", type, subject: "node café", data: { value } });

async function post({ headers, body }) {
  const answer = await fetch(`${url}/liveEvent`, { method: "POST", headers, body });
  assert.equal(answer.status, 202, await answer.clone().text());
  return answer.json();
}

const structured = HTTP.structured(event("1", "add_revenue", 10.5));
const binary = HTTP.binary(event("2", "add_revenue", 0.000001));
// The SDK does not encode header values.
binary.headers["ce-subject"] = encodeURIComponent(binary.headers["ce-subject"]);
// The SDK parses batches but cannot create them; by the specification a batch is an array of structured events.
const batch = {
  headers: { "content-type": "application/cloudevents-batch+json" },
  body: JSON.stringify([
    event("3", "add_revenue", 20),
    event("x".repeat(200), "subtract_revenue", 5),
  ]),
};
for (const _ of [1, 2]) {
  assert.equal((await post(structured)).accepted, 1);
  assert.equal((await post(binary)).accepted, 1);
  assert.equal((await post(batch)).accepted, 2);
}
console.log("ok: the JavaScript SDK's structured, binary and batched events are taken");
