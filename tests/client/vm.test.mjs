/**
 * The client module against a real VM, over real sockets.
 */

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { test } from "node:test";

import { AlienClient } from "../../static/client.js";
import { FakeStorage, ids, valueOf } from "./fake.mjs";
import { connect, start, until } from "./vm.mjs";

test("a page that is loaded anew has its list and what was sent meanwhile", { timeout: 30_000 }, async (context) => {
  const { url } = await start(context);
  const sender = await connect(context, url);
  const storage = new FakeStorage();
  const before = await connect(context, url, storage);
  for (const place of ["one", "two"]) await sender.alert({ place });
  await until(before.events, ({ length }) => length === 2);
  before.close();
  await sender.alert({ place: "meanwhile" });

  const after = new AlienClient(url, { storage });
  context.after(() => after.close());
  const told = [];
  after.on("alert", ({ data }, { caughtUp }) => told.push([data.place, caughtUp]));
  after.on("refresh-store", ({ complete }) => told.push(complete));
  after.connect();
  await until(after.status, (state) => state === "connected");
  await sender.alert({ place: "live" });
  // A confirmation may come before the event itself.
  for (const { events } of [sender, after]) await until(events, ({ length }) => length === 4);
  assert.deepEqual(told, [["meanwhile", true], true, ["live", false]]);
  assert.deepEqual(ids(valueOf(after.events)), ids(valueOf(sender.events)));
});

test("who presses the button hears where it was heard, and nobody else does", { timeout: 30_000 }, async (context) => {
  const { url } = await start(context);
  const [sender, other] = [await connect(context, url), await connect(context, url)];
  const others = [];
  other.on("receipt", (message) => others.push(message));
  const receipt = new Promise((resolve) => sender.on("receipt", resolve));
  const { eventId } = await sender.alert({ place: "Roswell" }, { id: "mine" });
  assert.deepEqual(await receipt, { type: "receipt", eventId, instances: 1, sockets: 2 });
  // It would have come before this.
  await other.direct(other.greeting.clientId, "last");
  assert.deepEqual(others, []);
  const { timestamp, published, received } = valueOf(sender.events)[0];
  assert.ok(timestamp <= published && published <= received, `${timestamp} ${published} ${received}`);
});

test("a client comes back when its VM does, and hears on", { timeout: 30_000 }, async (context) => {
  const { vm, url, port } = await start(context);
  const client = await connect(context, url);
  await client.alert({ place: "before" });
  vm.kill("SIGTERM");
  await until(client.status, (state) => state === "waiting");
  await once(vm, "exit");
  await start(context, { port });
  await until(client.status, (state) => state === "connected");
  await client.alert({ place: "after" });
  await until(client.events, ({ length }) => length === 2);
  assert.deepEqual(valueOf(client.events).map(({ data }) => data.place), ["before", "after"]);
});

test("a channel is heard over a lost connection, a late join and a reload", { timeout: 30_000 }, async (context) => {
  const { url } = await start(context);
  const sender = await connect(context, url);
  const say = (data) => sender.broadcast(data, { channel: "news" });
  const texts = (client) => valueOf(client.events).map(({ data }) => data);
  const storage = new FakeStorage();
  await say("before");
  const member = await connect(context, url, storage);
  member.subscribe("news");
  await until(member.events, ({ length }) => length === 1);
  await say("live");
  await until(member.events, ({ length }) => length === 2);
  const outsider = await connect(context, url);
  member.close();
  await say("away");
  member.connect();
  await until(member.events, ({ length }) => length === 3);
  member.close();
  await say("reload");

  const again = new AlienClient(url, { storage });
  context.after(() => again.close());
  const told = [];
  again.on("broadcast", ({ data }) => told.push(data));
  again.on("refresh-store", ({ channel = "all", complete }) => told.push([channel, complete]));
  const leave = again.subscribe("news");
  again.connect();
  await until(again.events, ({ length }) => length === 4);
  assert.deepEqual(told, [["all", true], "reload", ["news", true]]);
  assert.deepEqual(texts(again), ["before", "live", "away", "reload"]);
  leave();
  await say("left");
  // For all, and after it on the same socket.
  await sender.alert({ place: "last" });
  await until(again.events, ({ length }) => length === 5);
  await until(outsider.events, ({ length }) => length === 1);
  assert.deepEqual(valueOf(again.events).at(-1).type, "alert");
});

test("tokens are renewed before they end, and nobody notices", { timeout: 30_000 }, async (context) => {
  const AUTH_SECRET = "a secret for the tests of tokens, of 32 bytes";
  const { url } = await start(context, { env: { AUTH_SECRET } });
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const token = () => {
    const exp = Math.floor(Date.now() / 1000) + 3;
    const signed = `${part({ alg: "HS256" })}.${part({ sub: "ann", exp, channels: ["news"] })}`;
    return `${signed}.${createHmac("sha256", AUTH_SECRET).update(signed).digest("base64url")}`;
  };
  const client = new AlienClient(url, { token, storage: null });
  context.after(() => client.close());
  client.subscribe("news");
  client.connect();
  await until(client.status, (state) => state === "connected");
  const [states, connections] = [[], []];
  client.on("state", (state) => states.push(state));
  await new Promise((resolve) => {
    client.on("connected", ({ clientId, channels }) => {
      connections.push([clientId, channels.sort()]);
      if (connections.length === 3) resolve();
    });
  });
  assert.equal(new Set(connections.map(([clientId]) => clientId)).size, 3);
  assert.deepEqual(connections[2][1], ["news", "user:ann"]);
  await client.alert({ place: "after" });
  assert.deepEqual(states, []);
});
