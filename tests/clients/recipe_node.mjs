#!/usr/bin/env node
// tallyline in a Node test: start a server on a free port, post events, flush, query.
// Usage: node recipe_node.mjs path/to/tallyline
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, watch } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

async function start(binary) {
  const dir = mkdtempSync(join(tmpdir(), "tallyline-"));
  const watcher = watch(dir); // the port file is written atomically once the port responds
  const args = ["serve", "--listen", "127.0.0.1:0", "--port-file", join(dir, "port")];
  const server = spawn(binary, [...args, "--data-dir", join(dir, "data")], { stdio: "inherit" });
  const exited = once(server, "exit");
  const port = await Promise.race([
    new Promise((resolve) =>
      watcher.on("change", () => {
        try {
          const text = readFileSync(join(dir, "port"), "utf8").trim();
          if (text) resolve(Number(text));
        } catch {
          // does not exist yet
        }
      }),
    ),
    exited.then(([code]) => Promise.reject(new Error(`tallyline exited with ${code}`))),
  ]);
  watcher.close();
  const stop = async () => {
    server.kill("SIGTERM");
    const [code] = await exited;
    rmSync(dir, { recursive: true });
    return code;
  };
  return { url: `http://127.0.0.1:${port}`, stop };
}

const { url, stop } = await start(process.argv[2]);
try {
  const body = JSON.stringify([
    { userId: "user1", name: "add_revenue", value: 100 },
    { userId: "user1", name: "subtract_revenue", value: 50 },
  ]);
  const taken = await fetch(`${url}/liveEvent`, { method: "POST", body });
  assert.equal(taken.status, 202);
  const flushed = await fetch(`${url}/flush`, { method: "POST" }); // instead of a sleep
  assert.equal(flushed.status, 200);
  const user = await (await fetch(`${url}/userEvents/user1`)).json();
  assert.equal(user.revenue, 50);
  assert.equal(user.events, 2);
} finally {
  assert.equal(await stop(), 0);
}
console.log("ok: the Node recipe: user1 has 50 of 2 events");
