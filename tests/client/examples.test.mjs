/**
 * The examples, as their readers run them: real processes, and a client in the page's place.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { AlienClient } from "../../static/client.js";
import { start, until } from "./vm.mjs";

const API_KEY = "a-key-for-this-example";
const AUTH_SECRET = "a-secret-of-32-bytes-for-the-example";

/** Runs an example; the lines it prints, one after the other. */
function run(context, name, args, env) {
  const path = fileURLToPath(new URL(`../../examples/${name}`, import.meta.url));
  const example = spawn(process.execPath, ["--experimental-websocket", path, ...args], {
    env,
    stdio: ["ignore", "pipe", "inherit"],
  });
  context.after(() => example.kill("SIGKILL"));
  return createInterface({ input: example.stdout })[Symbol.asyncIterator]();
}

test("a job's progress and end reach its user, there or not", { timeout: 30_000 }, async (context) => {
  const relay = await start(context, { env: { API_KEY, AUTH_SECRET } });
  const env = { API_KEY, AUTH_SECRET, RELAY: `http://127.0.0.1:${relay.port}`, PORT: "0", STEP_MS: "5" };
  const backend = (await run(context, "jobs/server.mjs", [], env).next()).value;
  const text = async (path, options) => (await fetch(backend + path, options)).text();
  assert.match(await text("/"), /page\.js/);
  assert.match(await text("/client.js"), /class AlienClient/);
  assert.equal(await text("/relay"), env.RELAY);

  const page = () => {
    const client = new AlienClient(relay.url, { token: () => text("/token"), storage: null });
    context.after(() => client.close());
    client.connect();
    return client;
  };
  const first = page();
  await until(first.status, (state) => state === "connected");
  assert.deepEqual(first.greeting.channels, ["user:demo"]);
  const job = await text("/jobs", { method: "POST" });
  await until(first.events, (events) => events.at(-1)?.type === "done");
  const second = page();
  await until(second.events, (events) => events.at(-1)?.type === "done");
  for (const { events } of [first, second]) {
    let heard;
    events.subscribe((list) => (heard = list))();
    assert.equal(heard.length, 21);
    assert.ok(heard.every(({ data, channel }) => data.job === job && channel === "user:demo"));
  }
});

test("an application hears of its environment's changes", { timeout: 30_000 }, async (context) => {
  const relay = await start(context, { env: { API_KEY } });
  const lines = run(context, "config-notifier.mjs", ["42"], { RELAY: relay.url });
  const change = async (environment, name) => {
    const data = { environmentId: environment, name, value: "b", isSecret: name === "KEY" };
    const answer = await fetch(`http://127.0.0.1:${relay.port}/channels/environment:${environment}`, {
      method: "POST",
      headers: { authorization: `Bearer ${API_KEY}` },
      body: JSON.stringify({ type: "change", data }),
    });
    assert.equal(answer.status, 202);
  };
  for (const [environment, name] of [["43", "OTHER"], ["42", "API_URL"], ["42", "KEY"]]) await change(environment, name);
  assert.equal((await lines.next()).value, "environment:42 API_URL b");
  assert.equal((await lines.next()).value, "environment:42 KEY (a secret)");
});
