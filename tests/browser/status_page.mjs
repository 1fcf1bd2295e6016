// Tests the status page in a real browser: `node status_page.mjs TALLYLINE [DIR FOR SCREENSHOTS]`.
//
// Starts the given binary and Debian's PostgreSQL 15 in temporary directories, on free ports, and drives Debian's
// Chromium (or the one in the environment variable CHROMIUM). Waits for conditions with a deadline and does
// not sleep. Prints a line per check; exits with 0, or with 1 and the differences.
// Run `npm ci` in this directory first. The screenshot readme.png is kept as
// src/http/page/screenshot.png.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { chromium } from "playwright-core";

const PATIENCE_MS = 60_000; // on a loaded machine; nothing waits this long when it works
const [binary, shots] = process.argv.slice(2);
if (!binary) {
  console.error("usage: node status_page.mjs TALLYLINE [DIR FOR SCREENSHOTS]");
  process.exit(2);
}
const scratch = mkdtempSync(join(tmpdir(), "tallyline-page-"));

async function until(what, condition) {
  const deadline = Date.now() + PATIENCE_MS;
  let seen;
  for (;;) {
    seen = await condition();
    if (seen) return seen;
    if (Date.now() > deadline) throw new assert.AssertionError({ message: `waited in vain: ${what}; last seen: ${JSON.stringify(seen)}` });
    await pause(25); // between two looks
  }
}

const started = new Set(); // processes that a failed check leaves behind

// ---- the server -------------------------------------------------------------------------------

class Server {
  static async start(name, flags = [], port = 0) {
    const server = new Server();
    server.data = join(scratch, name);
    const portFile = join(scratch, `${name}.port`);
    rmSync(portFile, { force: true });
    server.log = "";
    server.process = spawn(resolve(binary), ["serve", "--data-dir", server.data, "--listen", `127.0.0.1:${port}`, "--port-file", portFile, ...flags]);
    started.add(server.process);
    server.process.stderr.on("data", (text) => { server.log += text; });
    server.ended = once(server.process, "exit");
    server.port = await until("the port file", () => {
      assert.equal(server.process.exitCode, null, `the server ended at start:\n${server.log}`);
      return existsSync(portFile) && Number(readFileSync(portFile, "utf8"));
    });
    server.url = `http://127.0.0.1:${server.port}`;
    return server;
  }

  // A server listens before it has a number in a shared database. Once it is ready it has one.
  async ready() {
    await until("the server is ready", async () => (await fetch(`${this.url}/readyz`)).ok);
    return this;
  }

  async stop(signal = "SIGTERM") {
    this.process.kill(signal);
    await this.ended;
  }

  // Creates a file in the data directory atomically, as another program would.
  place(name, content) {
    const part = join(scratch, `${name}.part`);
    writeFileSync(part, content);
    renameSync(part, join(this.data, name));
  }

  async post(events, headers = {}) {
    const response = await fetch(`${this.url}/liveEvent`, { method: "POST", body: events.map((event) => JSON.stringify(event)).join("\n"), headers });
    return response.status;
  }
}

// A PostgreSQL server without passwords. It refuses to run as root.
class Postgres {
  static async start() {
    const postgres = new Postgres();
    const dir = mkdtempSync(join(tmpdir(), "tallyline-pg-"));
    postgres.dir = dir;
    const owner = {};
    if (process.getuid() === 0) {
      const id = (flag) => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
      Object.assign(owner, { uid: id("-u"), gid: id("-g") });
      chownSync(dir, owner.uid, owner.gid);
    }
    const options = { ...owner, cwd: "/", env: { PATH: process.env.PATH, LC_ALL: "C.UTF-8" } };
    const bin = (name) => `/usr/lib/postgresql/15/bin/${name}`;
    execFileSync(bin("initdb"), ["-D", join(dir, "data"), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"], { ...options, stdio: "ignore" });
    const free = createServer().listen(0, "127.0.0.1");
    await once(free, "listening");
    const { port } = free.address();
    free.close();
    postgres.process = spawn(bin("postgres"), ["-D", join(dir, "data"), "-p", String(port), "-k", dir, "-h", "127.0.0.1", "-c", "fsync=off"], { ...options, stdio: "ignore" });
    started.add(postgres.process);
    postgres.ended = once(postgres.process, "exit");
    const psql = (sql) => execFileSync(bin("psql"), ["-X", "-q", "-h", "127.0.0.1", "-p", String(port), "-U", "postgres", "-c", sql, postgres.database ?? "postgres"], { ...options, stdio: "pipe" });
    await until("PostgreSQL", () => { try { psql("CREATE DATABASE tally"); return true; } catch { return false; } });
    postgres.database = "tally";
    postgres.run = psql;
    postgres.url = `postgres://postgres@127.0.0.1:${port}/tally`;
    return postgres;
  }

  async stop() {
    this.process.kill("SIGINT");
    await this.ended;
    rmSync(this.dir, { recursive: true, force: true });
  }
}

// Sends batches until the returned function is called.
function load(server, { batch = 50, every = 20, users = 400 } = {}) {
  let going = true;
  let sent = 0;
  const random = () => (Math.imul((sent += 1), 2654435761) >>> 8) / 2 ** 24; // the same in each run
  const names = ["northwind", "acme/eu", "café", "globex", "initech", "umbrella", "stark", "wayne", "wonka", "hooli", "piedpiper", "vandelay"];
  const user = () => { const n = Math.floor(users * random() ** 2.2); return n < names.length ? names[n] : `user${n}`; };
  const done = (async () => {
    for (let round = 0; going; round += 1) {
      const size = Math.max(1, Math.round(batch * (1 + 0.45 * Math.sin(round / 400) + 0.15 * Math.sin(round / 90) + 0.12 * random())));
      const events = Array.from({ length: size }, () => ({ userId: user(), name: random() < 0.8 ? "add_revenue" : "subtract_revenue", value: Math.round(random() * 20000) / 100 }));
      // Some are sent again, as by a client that got no response.
      if (round % 9 === 0) events.push({ userId: "acme/eu", name: "add_revenue", value: 12.5, id: `inv-${Math.floor(round / 18)}` });
      if (round % 40 === 5) events[0].value = -1;
      await server.post(events, server.headers).catch(() => {});
      await pause(every);
    }
  })();
  return async () => { going = false; await done; };
}

// ---- the browser ------------------------------------------------------------------------------

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

// Opens a tab in a new profile; records console messages and requests.
async function open(server, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const tab = { page, complaints: [], requests: [], failed: new Set() };
  page.on("pageerror", (error) => tab.complaints.push(String(error)));
  page.on("console", (message) => {
    // Messages of failed requests are ignored here: `failed` has their status.
    if (["error", "warning"].includes(message.type()) && !message.text().startsWith("Failed to load resource")) tab.complaints.push(message.text());
  });
  page.on("request", (request) => tab.requests.push(request.url()));
  page.on("response", (response) => { if (response.status() >= 400) tab.failed.add(response.status()); });
  tab.text = (selector) => page.locator(selector).innerText();
  tab.number = async (selector) => Number((await tab.text(selector)).replace(/[^\d.]/g, "") || Number.NaN);
  tab.seen = (selector) => page.locator(selector).isVisible();
  tab.close = async (allowed = []) => {
    assert.deepEqual(tab.complaints, [], "the console has no messages");
    assert.deepEqual([...tab.failed].filter((status) => !allowed.includes(status)), [], "no request failed");
    const others = tab.requests.filter((url) => !url.startsWith(`${server.url}/`) && !url.startsWith("data:"));
    assert.deepEqual(others, [], "there is no request to another origin");
    await context.close();
  };
  await page.goto(`${server.url}/`);
  return tab;
}

async function setHidden(page, hidden) {
  await page.evaluate((value) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => value });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
}

// The basic rules of an accessibility checker. Returns violations.
const accessibility = () => {
  const found = [];
  const shown = (element) => element.checkVisibility({ visibilityProperty: true });
  for (const input of document.querySelectorAll("input, select, textarea")) if (!input.labels?.length) found.push(`no label: #${input.id}`);
  for (const button of document.querySelectorAll("button, a")) if (shown(button) && !button.textContent.trim() && !button.ariaLabel) found.push(`no name: ${button.outerHTML.slice(0, 80)}`);
  for (const named of document.querySelectorAll("[role=img], [role=slider]")) if (!named.ariaLabel) found.push(`no name: #${named.id}`);
  for (const section of document.querySelectorAll("section")) if (!document.getElementById(section.getAttribute("aria-labelledby"))) found.push(`no name: section #${section.id}`);
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption?.textContent) found.push(`no caption: #${table.id}`);
    if ([...table.querySelectorAll("th")].some((th) => th.scope !== "col")) found.push(`no scope: #${table.id}`);
  }
  for (const svg of document.querySelectorAll("svg")) if (svg.getAttribute("aria-hidden") !== "true") found.push("a picture is read out");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`id twice: ${id}`);
  for (const selector of ["html[lang]", "title", "header", "main", "footer"]) if (document.querySelectorAll(selector).length !== 1) found.push(`not one ${selector}`);
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  const levels = [...document.querySelectorAll("h1, h2, h3")].filter(shown).map((heading) => Number(heading.tagName[1]));
  levels.forEach((level, index) => { if (index && level > levels[index - 1] + 1) found.push("a heading level is skipped"); });
  for (const [name, value] of [...document.querySelectorAll("[aria-describedby]")].map((e) => [e.id, e.getAttribute("aria-describedby")])) if (!document.getElementById(value)) found.push(`described by nothing: ${name}`);

  // Contrast of all text, by the formula of WCAG 2.
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = channels(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !shown(element) || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(channels(element.ownerSVGElement ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${node.textContent.trim().slice(0, 30)}`);
  }
  return found;
};

// Elements that extend into the padding of their card, beyond it, or out of their cell.
const spills = () => [...document.querySelectorAll(".card")].flatMap((card) => {
  const { right } = card.getBoundingClientRect();
  return [...card.querySelectorAll("*")]
    .filter((element) => element.checkVisibility() && !element.closest("svg, .unseen, thead, .cut, .tip"))
    .filter((element) => element.getBoundingClientRect().right > right - 12 || (element.tagName === "TD" && element.scrollWidth > element.clientWidth + 1))
    .map((element) => `${element.tagName} ${element.className}: ${element.textContent.slice(0, 30)}`);
});

// ---- the checks -------------------------------------------------------------------------------

const checks = [];
const check = (name, run) => checks.push({ name, run });
const foreign = (name) => [
  { userId: name, name: "add_revenue", value: 7 },
  { userId: name, name: "add_revenue", value: -1, note: "<img src=x onerror=alert(1)>" },
].map((event) => JSON.stringify(event)).join("\n") + '\n{"userId": "half a li\n';

check("a new server shows how to begin; the first event replaces this by figures", async () => {
  const server = await Server.start("first");
  const tab = await open(server);
  await until("ready", async () => (await tab.text("#pill")) === "Ready");
  assert.ok(await tab.seen("#first"));
  assert.ok((await tab.text("#curl")).includes(`${server.url}/liveEvent`));
  assert.ok((await tab.text("#rejected-empty")).startsWith("None"));
  assert.equal(await server.post([{ userId: "user1", name: "add_revenue", value: 9007199254.740993 }]), 202);
  await until("the event is applied", async () => (await tab.number("#n-applied")) === 1);
  assert.equal(await tab.seen("#first"), false);
  await until("the user is on show", async () => (await tab.text("#users")).includes("9,007,199,254.740993"));
  await tab.close();
  await server.stop();
});

check("figures and plots follow the events, and the ledger balances", async () => {
  const server = await Server.start("live", ["--rotate-interval", "2s", "--flush-interval", "200ms"]);
  const stop = load(server);
  const tab = await open(server);
  const first = await until("events are applied", () => tab.number("#n-applied"));
  await until("more events are applied", async () => (await tab.number("#n-applied")) > first);
  await until("the rates are shown", async () => (await tab.number("#rate-accepted")) > 0 && (await tab.number("#rate-applied")) > 0);
  const points = () => tab.page.locator("#rate-plot path.line.accepted").evaluate((path) => path.getAttribute("d").split("L").length);
  const before = await until("the plot has points", async () => (await tab.page.locator("#rate-plot path.line.accepted").count()) && points());
  await until("the plot grows", async () => (await points()) > before);
  await until("the verdict", async () => (await tab.text("#verdict")) === "balances");
  assert.match(await tab.page.locator("#files-bars").getAttribute("aria-label"), /^Lines in the files [\d,]+: applied [\d,]+, duplicates \d+/);
  await until("a segment is applied", async () => (await tab.text("#segments")).includes("applied"));
  await until("the segments", async () => (await tab.text("#segments")).includes("active"));
  await until("refused events are counted", async () => (await tab.number("#n-refused")) > 0);
  await until("duplicates are counted", async () => (await tab.number("#n-duplicates")) > 0);
  assert.match(await tab.page.title(), /^[\d,.]+\/s · tallyline$/);

  await tab.page.locator("#rate-plot").focus();
  await tab.page.keyboard.press("End");
  const now = await tab.page.locator("#rate-plot").getAttribute("aria-valuetext");
  assert.match(now, /accepted [\d,.]+K?, applied [\d,.]+K?$/);
  await tab.page.keyboard.press("Home");
  assert.match(await tab.page.locator("#rate-plot").getAttribute("aria-valuetext"), /^\d+ seconds ago: accepted/);
  assert.ok(await tab.seen("#rate-plot .tip"));
  await stop();
  await tab.close();
  await server.stop();
});

check("the first screen has the totals, the readiness, and plots that begin before the page", async () => {
  const server = await Server.start("first-screen", ["--flush-interval", "100ms"]);
  await server.post([{ userId: "a", name: "add_revenue", value: 1000000000000 }, { userId: "b", name: "subtract_revenue", value: 0.000001 }, { userId: "a", name: "add_revenue", value: 1 }]);
  await until("history", async () => (await (await fetch(`${server.url}/history`)).json()).atMs.length >= 4);
  for (const [width, height] of [[1400, 1000], [390, 844]]) {
    const tab = await open(server, { viewport: { width, height } });
    await until("the totals", async () => (await tab.text("#total-events")) === "3");
    assert.equal(await tab.text("#total-revenue"), "1,000,000,000,000.999999", "every digit");
    assert.equal(await tab.text("#total-users"), "2");
    await until("the readiness", async () => (await tab.text("#readiness")) === "Ready");
    const below = [];
    for (const id of ["total-revenue", "total-users", "total-events", "readiness", "rate-plot", "lag-now"]) {
      const box = await tab.page.locator(`#${id}`).boundingBox();
      if (box.y + box.height > height) below.push(id);
    }
    assert.deepEqual(below, [], `below the first screen of ${width} x ${height}`);
    // The rates are shown at once, from the history.
    await until("the rates", async () => !Number.isNaN(await tab.number("#rate-accepted")));
    // The history is drawn at once: more samples than the page can have taken itself.
    await until("the history", async () => {
      await tab.page.locator("#rate-plot").focus();
      await tab.page.keyboard.press("Home");
      return /^([2-9]|\d\d+) seconds ago: accepted/.test(await tab.page.locator("#rate-plot").getAttribute("aria-valuetext"));
    });
    await tab.close();
  }
  await server.stop();
});

check("lines that are pending never have a lag of 0", async () => {
  const server = await Server.start("lag");
  const tab = await open(server);
  await until("ready", async () => (await tab.text("#pill")) === "Ready");
  const status = await (await fetch(`${server.url}/status`)).json();
  let shown = { ...status, lines: 200, pending: 200, lagSeconds: 0 };
  await tab.page.route("**/status", (route) => route.fulfill({ json: shown }));
  await until("pending lines", async () => (await tab.text("#lag-note")) === "200 lines pending");
  assert.doesNotMatch(await tab.text("#lag-now"), /^0(\.0)? s/);
  await until("a lag not measured yet", async () => (await tab.text("#lag-now")) === "< 0.1 s");
  shown = { ...shown, lagSeconds: 3.21 };
  await until("a longer lag", async () => (await tab.text("#lag-now")) === "3.2 s");
  shown = { ...shown, pending: 0, applied: 200, lagSeconds: 0 };
  await until("none", async () => (await tab.text("#lag-now")) === "0 s" && (await tab.text("#lag-note")) === "nothing is pending");
  await tab.close();
  await server.stop();
});

check("events that are being written are in the ledger, and lost ones put it off", async () => {
  const server = await Server.start("writing");
  const tab = await open(server);
  await until("ready", async () => (await tab.text("#pill")) === "Ready");
  const status = await (await fetch(`${server.url}/status`)).json();
  let shown = { ...status, received: 300, accepted: 90, refused: 7 };
  await tab.page.route("**/status", (route) => route.fulfill({ json: shown }));
  await until("events in progress", async () => (await tab.seen("#n-writing")) && (await tab.number("#n-writing")) === 203);
  assert.equal(await tab.text("#verdict"), "balances");
  await tab.page.evaluate(() => { const now = performance.now.bind(performance); performance.now = () => now() + 61_000; });
  await until("an event that is never answered", async () => (await tab.text("#verdict")) === "off by 203");
  assert.equal(await tab.seen("#n-writing"), false);
  shown = { ...status, received: 301, accepted: 294, refused: 7 };
  await until("all answered", async () => (await tab.text("#verdict")) === "balances");
  shown = { ...status, received: 302, accepted: 301, refused: 7 };
  await until("more answered than received", async () => (await tab.text("#verdict")) === "off by 6");
  await tab.close();
  await server.stop();
});

check("an error of the server is not shown as a lost connection", async () => {
  const server = await Server.start("error");
  const tab = await open(server);
  await until("ready", async () => (await tab.text("#pill")) === "Ready");
  await tab.page.route("**/status", (route) => route.fulfill({ status: 500, contentType: "application/problem+json", body: JSON.stringify({ title: "Internal Server Error", status: 500, detail: "a defect" }) }));
  await until("the error", async () => (await tab.seen("#gone")) && (await tab.text("#pill")) === "Error");
  assert.equal(await tab.text("#gone-title"), "The server responded with 500");
  assert.match(await tab.text("#gone"), /a defect/);
  assert.match(await tab.page.locator("#readiness-why").innerText(), /responded with an error/);
  await tab.close([500]);
  await server.stop();
});

check("refused requests are shown with their first error", async () => {
  const server = await Server.start("refused");
  const tab = await open(server);
  await until("none", async () => (await tab.text("#refused-empty")).includes("Every request was accepted"));
  for (let round = 0; round < 2; round += 1) assert.equal(await server.post([{ userId: "<img src=x onerror=alert(1)>", name: "add_revenue", value: -1 }]), 422);
  await until("the reason", async () => (await tab.seen("#refused")) && (await tab.text("#refused")).includes("2 requests"));
  const words = await tab.text("#refused");
  assert.match(words, /negative/);
  assert.match(words, /\/value, line 1/);
  assert.match(words, /422/);
  assert.equal(await tab.page.locator("#refused img").count(), 0);
  await tab.close();
  await server.stop();
});

check("a rejected line is shown with its reason, as text", async () => {
  const server = await Server.start("rejected", ["--flush-interval", "100ms"]);
  await server.post([{ userId: "user1", name: "add_revenue", value: 1 }]);
  const tab = await open(server);
  await until("the figures", async () => (await tab.number("#n-applied")) === 1);
  server.place("events_x.jsonl", foreign("elsewhere"));
  await until("the rejected lines", async () => (await tab.seen("#rejected")) && (await tab.page.locator("#rejected tbody tr").count()) === 2);
  const words = await tab.text("#rejected");
  assert.ok(words.includes("events_x.jsonl"), words);
  assert.ok(words.includes("<img src=x onerror=alert(1)>"), words);
  assert.match(words, /negative/);
  assert.equal(await tab.page.locator("#rejected img").count(), 0);
  await until("the count", async () => (await tab.number("#n-rejected")) === 2);
  await until("the verdict", async () => (await tab.text("#verdict")) === "balances");
  await until("the file is listed", async () => (await tab.text("#segments")).includes("events_x.jsonl"));
  await tab.close();
  await server.stop();
});

check("a user can be found by keyboard and by mouse", async () => {
  const server = await Server.start("look-up", ["--flush-interval", "100ms"]);
  const odd = "a/b c?d#é%2F\u202e<b>";
  await server.post([{ userId: "user1", name: "add_revenue", value: 100 }, { userId: "user1", name: "subtract_revenue", value: 50 }, { userId: odd, name: "add_revenue", value: 0.000001 }]);
  const tab = await open(server);
  await until("the figures", async () => (await tab.number("#n-applied")) === 3);
  const ask = async (id) => {
    await tab.page.locator("#who").fill(id);
    await tab.page.keyboard.press("Enter");
  };
  await ask("user1");
  await until("user1", async () => (await tab.seen("#found")) && (await tab.text("#found")).includes("50.00"));
  assert.match(await tab.text("#announcement"), /^user1: revenue 50.00, 2 events$/);
  await server.post([{ userId: "user1", name: "add_revenue", value: 25 }]);
  await until("it follows", async () => (await tab.text("#found")).includes("75.00"));
  await ask(odd);
  await until("an odd id", async () => (await tab.text("#found")).includes("0.000001"));
  assert.ok((await tab.text("#found")).includes("⟨U+202E⟩<b>"));
  await tab.page.locator("#users button", { hasText: "user1" }).click();
  await until("by mouse", async () => (await tab.text("#found")).includes("75.00"));
  await ask("nobody");
  await until("nobody", async () => (await tab.text("#found")).includes("No event of this user"));
  await ask("..");
  await until("an id no browser can ask for", async () => (await tab.text("#found")).includes("command line"));
  await tab.close([404]);
  await server.stop();
});

check("a token is requested, kept for the tab, and forgotten", async () => {
  const tokens = join(scratch, "tokens");
  writeFileSync(tokens, "correct-horse\n", { mode: 0o600 });
  const server = await Server.start("token", ["--token-file", tokens]);
  server.headers = { Authorization: "Bearer correct-horse" };
  assert.equal(await server.post([{ userId: "user1", name: "add_revenue", value: 1 }], server.headers), 202);
  const tab = await open(server);
  await until("the form", () => tab.seen("#locked"));
  assert.equal(await tab.seen("#board"), false);
  assert.equal(await tab.text("#pill"), "Token needed");
  assert.deepEqual(await tab.page.evaluate(accessibility), []);
  await tab.page.emulateMedia({ colorScheme: "dark" });
  assert.deepEqual(await tab.page.evaluate(accessibility), [], "in the dark");
  assert.equal(await tab.page.evaluate(() => document.activeElement.id), "token");
  await tab.page.keyboard.type("wrong");
  await tab.page.keyboard.press("Enter");
  await until("a wrong one", async () => (await tab.seen("#token-trouble")) && (await tab.text("#token-trouble")).includes("did not accept"));
  await tab.page.locator("#token").fill("correct-horse");
  await tab.page.keyboard.press("Enter");
  await until("the figures", async () => (await tab.seen("#board")) && (await tab.number("#n-applied")) === 1);
  assert.equal(await tab.seen("#locked"), false);
  await until("the panels", async () => (await tab.text("#users")).includes("user1"));
  assert.ok(!tab.requests.some((url) => url.includes("correct-horse")), "a token is never in an address");
  await tab.page.reload();
  await until("still known", async () => (await tab.seen("#board")) && (await tab.number("#n-applied")) === 1);
  await tab.page.locator("#forget").click();
  await until("the form again", () => tab.seen("#locked"));
  assert.equal(await tab.page.evaluate(() => sessionStorage.length), 0);
  await tab.close([401]);
  await server.stop();
});

check("the page reports a server that does not respond, and continues when it does", async () => {
  let server = await Server.start("gone", ["--flush-interval", "100ms"]);
  await server.post([{ userId: "user1", name: "add_revenue", value: 1 }]);
  const tab = await open(server);
  await until("the figures", async () => (await tab.number("#n-applied")) === 1);
  await server.stop();
  await until("disconnected", async () => (await tab.seen("#gone")) && (await tab.text("#gone-title")).startsWith("No response"));
  assert.equal(await tab.text("#pill"), "Disconnected");
  assert.equal(await tab.text("#readiness"), "Unknown");
  assert.match(await tab.text("#gone"), /No response from the server[^]*figures below are from \d\d:\d\d:\d\d/);
  assert.equal(await tab.page.title(), "Disconnected · tallyline");
  assert.ok(await tab.seen("#again"));
  server = await Server.start("gone", ["--flush-interval", "100ms"], server.port);
  await tab.page.locator("#again").evaluate((button) => button.click()); // gone already if the page was quicker
  await until("connected again", async () => (await tab.text("#pill")) === "Ready");
  assert.equal(await tab.seen("#gone"), false);
  await server.post([{ userId: "user1", name: "add_revenue", value: 1 }]);
  await until("and it follows", async () => (await tab.number("#n-applied")) === 2);
  await tab.close([503]); // while it stops
  await server.stop();
});

check("the reasons of a server that is not ready are shown", async () => {
  const server = await Server.start("unready", ["--flush-interval", "100ms"]);
  await server.post([{ userId: "user1", name: "add_revenue", value: 1 }]);
  const tab = await open(server);
  await until("ready", async () => (await tab.text("#pill")) === "Ready");
  renameSync(join(server.data, "events.jsonl"), join(scratch, "moved-away.jsonl")); // as another program could do
  await until("not ready", async () => (await tab.text("#pill")) === "Not ready");
  assert.match(await tab.text("#reasons"), /events\.jsonl/);
  await tab.close();
  await server.stop("SIGKILL");
});

check("a hidden or paused page sends no requests", async () => {
  const server = await Server.start("hidden");
  const context = await browser.newContext();
  const page = await context.newPage();
  let asked = 0;
  page.on("request", () => { asked += 1; });
  await page.clock.install();
  await page.goto(`${server.url}/`);
  const pill = () => page.locator("#pill").innerText();
  await until("ready", async () => (await pill()) === "Ready");
  await setHidden(page, true);
  await page.waitForLoadState("networkidle");
  let before = asked;
  await page.clock.runFor(120_000);
  assert.equal(asked, before, "nothing is asked while hidden");
  await setHidden(page, false);
  await until("it asks at once when seen", () => asked > before);
  await page.locator("#pause").click();
  await page.waitForLoadState("networkidle");
  before = asked;
  await page.clock.runFor(120_000);
  assert.equal(asked, before, "nothing is asked while paused");
  assert.equal(await pill(), "Paused");
  await page.locator("#pause").click();
  await until("it goes on", async () => (await pill()) === "Ready");
  await context.close();
  await server.stop();
});

check("figures of any size fit", async () => {
  const server = await Server.start("size");
  const tab = await open(server);
  await until("ready", async () => (await tab.text("#pill")) === "Ready");
  await tab.page.route("**/status", (route) => route.fulfill({ json: {
    users: 9e9, events: 9e15, revenueMicros: `-${"9".repeat(30)}`, updatedAt: null, received: 9e15, accepted: 9e15, refused: 0, lines: 9e15, applied: 9e15 - 5e12 - 3, duplicates: 0, rejected: 1, pending: 5e12, corrupt: 1, lagSeconds: 90061, ready: false, reasons: ["x".repeat(400)] } }));
  await tab.page.route("**/segments?*", (route) => route.fulfill({ json: { segments: [
    { name: "events-000002", file: "events.jsonl", state: "active", bytes: 1023.9 * 2 ** 20, appliedBytes: 1013.5 * 2 ** 20, events: 99999999, rejected: 99999999, duplicates: 99999999, sealedAt: null, completedAt: null, reason: null },
    { name: `events_${"long".repeat(50)}.jsonl`, file: `applied/2026-11/events_${"long".repeat(50)}.jsonl`, state: "corrupt", bytes: null, appliedBytes: 812, events: 0, rejected: 0, duplicates: 0, sealedAt: null, completedAt: null, reason: "812 bytes were applied under another content" },
  ] } }));
  await until("large figures", async () => (await tab.number("#n-lines")) === 9e15);
  await until("large segments", async () => (await tab.text("#segments")).includes("99,999,999") && (await tab.text("#segments")).includes("another content"));
  assert.equal(await tab.text("#verdict"), "off by 1", "and a ledger that does not balance says by how much");
  for (const width of [320, 768, 1280]) {
    await tab.page.setViewportSize({ width, height: 700 });
    assert.deepEqual(await tab.page.evaluate(spills), [], `on a screen of ${width} px`);
    assert.ok((await tab.page.evaluate(() => document.documentElement.scrollWidth)) <= width);
  }
  assert.deepEqual(await tab.page.evaluate(accessibility), []);
  await tab.close();
  await server.stop();
});

check("labels, contrast, focus, phone width, in light and dark", async () => {
  const server = await Server.start("looks", ["--rotate-interval", "2s", "--flush-interval", "200ms"]);
  const stop = load(server, { every: 100 });
  server.place("events_x.jsonl", foreign("x".repeat(256)));
  for (const colorScheme of ["light", "dark"]) {
    const tab = await open(server, { colorScheme, reducedMotion: "reduce" });
    await until("all panels", async () => (await tab.seen("#users")) && (await tab.seen("#segments")) && (await tab.seen("#rejected")));
    await tab.page.locator("#users button").first().click();
    await until("the look-up", () => tab.seen("#found"));
    assert.deepEqual(await tab.page.evaluate(accessibility), [], colorScheme);
    assert.equal(await tab.page.locator(".part").first().evaluate((part) => getComputedStyle(part).transitionDuration), "0s", "motion is reduced");
    await tab.page.locator("#pause").focus();
    const met = [];
    for (let step = 0; step < 9; step += 1) {
      await tab.page.keyboard.press("Tab");
      met.push(await tab.page.evaluate(() => [document.activeElement.id || document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]));
    }
    assert.ok(met.every(([, outline]) => outline === "solid"), `focus is seen: ${JSON.stringify(met)}`);
    for (const id of ["rate-plot", "lag-plot", "who"]) assert.ok(met.some(([name]) => name === id), `${id} is reached by Tab: ${JSON.stringify(met)}`);
    for (const width of [320, 375, 768, 1280]) {
      await tab.page.setViewportSize({ width, height: 700 });
      const scroll = await tab.page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(scroll <= width, `${scroll} px wide on a screen of ${width}`);
      assert.deepEqual(await tab.page.evaluate(spills), [], `on a screen of ${width} px`);
    }
    await tab.close();
  }
  await stop();
  await server.stop();
});

check("with a shared database the totals are of all nodes, which are listed, and the rest is of this node", async () => {
  const postgres = await Postgres.start();
  const flags = ["--database", postgres.url, "--flush-interval", "100ms"];
  // Each has its number before the next one starts: the query divides by zero, or has no table, until then.
  const registered = (count) => until(`${count} nodes`, () => { try { postgres.run(`SELECT 1 / (count(*) / ${count}) FROM tallyline.node`); return true; } catch { return false; } });
  const a = await (await Server.start("node-a", flags)).ready();
  await registered(1);
  const b = await (await Server.start("node-b", flags)).ready();
  await registered(2);
  const gone = await (await Server.start("node-c", flags)).ready();
  await registered(3);
  await gone.post([{ userId: "x", name: "add_revenue", value: 0.5 }]);
  await gone.stop();
  postgres.run("UPDATE tallyline.node SET name = 'edge-with-a-rather-long-host-name.example.com' WHERE node = 3");
  postgres.run("UPDATE tallyline.node_status SET seen_at_ms = seen_at_ms - 600000, pending_lines = 12345 WHERE node = 3");
  await a.post([{ userId: "x", name: "add_revenue", value: 1 }, { userId: "y", name: "add_revenue", value: 2 }]);
  await b.post([{ userId: "x", name: "add_revenue", value: 4 }]);
  const tab = await open(a);
  await until("the totals of all nodes", async () => (await tab.text("#total-revenue")) === "7.50" && (await tab.text("#total-events")) === "4" && (await tab.text("#total-users")) === "2");
  assert.equal(await tab.number("#n-applied"), 2, "the ledger is of this node");
  assert.ok((await tab.page.locator("section:has(#ledger-title)").innerText()).includes("of this node"));
  const rows = await until("three nodes", async () => {
    const rows = await tab.page.locator("#nodes tbody tr").allInnerTexts();
    return rows.length === 3 && rows;
  });
  assert.ok(rows[0].includes("node 1 · this node") && rows[0].includes("ready"), rows[0]);
  assert.ok(rows[1].includes("node 3") && rows[1].includes("not reporting") && rows[1].includes("10 min ago") && rows[1].includes("unknown") && rows[1].includes("12,345"), rows[1]);
  assert.ok(rows[2].includes("node 2") && rows[2].includes("4.00"), rows[2]);
  await b.post([{ userId: "z", name: "add_revenue", value: 10 }]);
  await until("an event at another node changes the totals and the users", async () => (await tab.text("#total-revenue")) === "17.50" && (await tab.text("#total-users")) === "3" && (await tab.text("#users")).includes("10.00"));
  for (const width of [320, 390, 768, 1280]) {
    await tab.page.setViewportSize({ width, height: 800 });
    const scroll = await tab.page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(scroll <= width, `${scroll} px wide on a screen of ${width}`);
    assert.deepEqual(await tab.page.evaluate(spills), [], `on a screen of ${width} px`);
  }
  assert.deepEqual(await tab.page.evaluate(accessibility), []);
  await postgres.stop();
  await until("an outage is reported", async () => (await tab.text("#nodes-trouble")).startsWith("Not up to date") && (await tab.text("#pill")) === "Not ready");
  assert.equal(await tab.text("#total-revenue"), "17.50", "the last totals stay");
  await tab.close([503]);
  await a.stop("SIGKILL");
  await b.stop("SIGKILL");
});

check("the security policy allows only this page", async () => {
  const server = await Server.start("policy");
  const response = await fetch(`${server.url}/`);
  const policy = response.headers.get("content-security-policy");
  assert.match(policy, /^default-src 'none'; script-src 'sha256-/);
  assert.ok(!policy.includes("unsafe"), policy);
  const tab = await open(server);
  await until("it runs under it", async () => (await tab.text("#pill")) === "Ready");
  await tab.close();
  await server.stop();
});

// Screenshots of the first screen, and of the whole page, in each state. The busy server has run for a while
// before the pages are opened.
async function screenshots() {
  mkdirSync(shots, { recursive: true });
  const sizes = { desktop: { viewport: { width: 1400, height: 1000 } }, phone: { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 } };
  const each = async (state, server, ready, after = async () => {}) => {
    for (const [size, options] of Object.entries(sizes)) {
      for (const colorScheme of ["light", "dark"]) {
        const tab = await open(server, { ...options, colorScheme });
        await until(`${state}: the page`, () => ready(tab));
        await after(tab);
        await tab.page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
        const name = join(shots, `${state}-${size}-${colorScheme}`);
        await tab.page.screenshot({ path: `${name}.png` });
        await tab.page.screenshot({ path: `${name}-whole.png`, fullPage: true });
        await tab.page.context().close();
      }
    }
  };
  const shown = async (tab) => (await tab.text("#pill")) === "Ready" && (await tab.page.locator("#rate-plot .line").count()) > 0;
  const empty = await Server.start("empty-shot");
  await each("empty", empty, shown);
  await empty.stop();
  const postgres = await Postgres.start();
  const nodes = [];
  for (const name of ["shot-a", "shot-b", "shot-c"]) nodes.push(await (await Server.start(name, ["--database", postgres.url])).ready());
  const loads = nodes.map((node) => load(node, { batch: 20, every: 200 }));
  await until("nodes have events", async () => (await (await fetch(`${nodes[0].url}/nodes`)).json()).nodes.every((node) => node.applied > 200));
  await loads.pop()();
  await nodes.pop().stop();
  postgres.run("UPDATE tallyline.node_status SET seen_at_ms = seen_at_ms - 600000, pending_lines = 12345 WHERE node = 3");
  await each("nodes", nodes[0], async (tab) => (await shown(tab)) && (await tab.page.locator("#nodes tbody tr").count()) === 3);
  for (const stop of loads) await stop();
  for (const node of nodes) await node.stop();
  await postgres.stop();
  const server = await Server.start("busy", ["--rotate-interval", "20s"]);
  server.place("events_1700000000000.jsonl", foreign("elsewhere"));
  const stop = load(server, { batch: 160, every: 15 });
  const seconds = Number(process.env.SHOT_SECONDS ?? 120);
  await pause(seconds * 1000); // so that the history has data
  await each("busy", server, async (tab) => (await shown(tab)) && (await tab.seen("#rejected")) && (await tab.seen("#refused")), async (tab) => {
    await tab.page.locator("#who").fill("acme/eu");
    await tab.page.keyboard.press("Enter");
    await until("the look-up", () => tab.seen("#found"));
    await pause(4000); // so that the page has figures of its own
  });
  renameSync(join(shots, "busy-desktop-light.png"), join(shots, "readme.png"));
  await stop();
  renameSync(join(server.data, "events.jsonl"), join(scratch, "moved-away-shot.jsonl"));
  await each("unready", server, async (tab) => (await tab.text("#pill")) === "Not ready" && (await tab.seen("#reasons")));
  const error = (tab) => tab.page.route("**/status", (route) => route.fulfill({ status: 500, contentType: "application/problem+json", body: JSON.stringify({ title: "Internal Server Error", status: 500, detail: "internal error, a defect in the server; see its log for details" }) }));
  await each("error", server, async (tab) => { await error(tab); return tab.seen("#gone"); });
  const gone = (tab) => tab.page.route("**/status", (route) => route.abort());
  await each("gone", server, async (tab) => { if ((await tab.text("#pill")) === "Not ready") await gone(tab); return tab.seen("#gone"); });
  await server.stop("SIGKILL");
}

let failed = 0;
const only = process.env.ONLY;
for (const { name, run } of checks.filter((one) => !only || one.name.includes(only))) {
  try {
    await run();
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
}
if (shots && !failed) await screenshots();
await browser.close();
for (const one of started) one.kill("SIGKILL");
rmSync(scratch, { recursive: true, force: true });
console.log(failed ? `${failed} of ${checks.length} failed` : `all ${checks.length} passed`);
process.exit(failed ? 1 : 0);
