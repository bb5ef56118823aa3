/**
 * The client module's channels, messages to one connection, and tokens, on sockets in the test's hand.
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { beforeEach, mock, test } from "node:test";

import { AlienClient } from "../../static/client.js";
import { FakeSocket, FakeStorage, event, ids, sockets, valueOf } from "./fake.mjs";

const URL = "ws://vm.test/ws";

beforeEach(() => {
  sockets.length = 0;
  globalThis.WebSocket = FakeSocket;
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_700_000_000_000 });
});

/** A client that is connecting, and its socket. */
function open(options, channels = []) {
  const client = new AlienClient(URL, { storage: null, ...options });
  for (const channel of channels) client.subscribe(channel);
  client.connect();
  return { client, socket: sockets.at(-1) };
}

/** Lets the back-off pass; the socket of the next attempt. */
function reconnected(client) {
  mock.timers.tick(client.nextAttempt - Date.now());
  return sockets.at(-1);
}

const change = (number, more) => event(number, { type: "change", channel: "a", ...more });
const subscribed = (channel, since) => ({ type: "subscribe", channel, ...(since && { since }) });
const unsubscribed = (channel) => ({ type: "unsubscribe", channel });

/** A token that nobody signed, which is no matter here. */
function token(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "HS256" })}.${part(claims)}.c2ln`;
}

/** Ends in so many seconds, with a `sub` that needs both of base64url's own characters. */
const endsIn = (seconds, sub = "ann") => token({ sub, exp: Date.now() / 1000 + seconds, x: "~~~???ÿÿ" });

/** Lets answered promises go on. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

test("a channel is joined by a frame, kept over reconnects by the URL, and left when nobody wants it", () => {
  const { client, socket } = open();
  socket.greets({ cursor: "t-1" });
  const leave = client.subscribe("a");
  client.subscribe("a");
  assert.deepEqual(socket.sent, [subscribed("a")], "once, from its beginning");
  socket.refreshes("a", "t-2");
  socket.ends();
  const second = reconnected(client);
  assert.deepEqual([second.since, second.channels], ["t-2", "a"]);
  second.greets({ channels: ["a"] }).refreshes("a", "t-3");
  leave();
  leave();
  assert.deepEqual(second.sent, [], "another one wants it still");
  client.unsubscribe("a");
  client.unsubscribe("a");
  assert.deepEqual(second.sent, [unsubscribed("a")]);
  second.ends();
  assert.equal(reconnected(client).channels, null);
});

test("a user's own channel needs no place in the URL, which its name might not fit into", () => {
  const own = "user:cn=ann,dc=example";
  const { client, socket } = open({}, [own, "a"]);
  socket.greets({ channels: [own] }).refreshes(own, "t-1");
  socket.refreshes("a", "t-1");
  socket.ends();
  const second = reconnected(client);
  assert.equal(second.channels, "a");
  second.greets({ channels: [own, "a"] });
  assert.deepEqual(second.sent, [], "it is in both");
});

test("what was wanted before the connection is joined after the greeting", () => {
  const { socket } = open({}, ["a", "b"]);
  assert.equal(socket.channels, null, "a first visit has no place to name");
  socket.greets();
  assert.deepEqual(socket.sent, [subscribed("a"), subscribed("b")]);
});

test("an app's own events are heard by their names, once each, and kept", () => {
  const { client, socket } = open({}, ["a"]);
  const heard = [];
  client.on("change", ({ id, data }, { caughtUp }) => heard.push([id, data.name, caughtUp]));
  socket.greets();
  socket.refreshes("a", "t-1", [change(1, { data: { name: "A" } })]);
  socket.says(change(2, { data: { name: "B" } }));
  socket.says(change(2, { data: { name: "B" } }));
  assert.deepEqual(heard, [["e-00001", "A", true], ["e-00002", "B", false]]);
  assert.deepEqual(ids(valueOf(client.events)), ["e-00001", "e-00002"]);
});

test("an app's event called state is no change of the client's state", () => {
  const { client, socket } = open();
  socket.greets();
  const [states, all] = [[], []];
  client.on("state", (state) => states.push(state));
  client.on("*", ({ type, data }) => all.push([type, data.percent]));
  socket.says(change(1, { type: "state", data: { percent: 7 } }));
  assert.deepEqual([states, all], [[], [["state", 7]]]);
  assert.equal(valueOf(client.events).length, 1);
});

test("a connection lost before all its channels caught up moves no cursor", () => {
  const { client, socket } = open({}, ["a"]);
  socket.greets({ cursor: "t-1" });
  socket.refreshes("a", "t-2");
  socket.ends();
  const second = reconnected(client);
  // One by the token: the client never asked for it, and it is awaited all the same.
  second.greets({ channels: ["a", "user:ann"], cursor: "t-8" });
  second.refreshes("a", "t-8", [change(3)]);
  second.says(change(9));
  second.ends();
  const third = reconnected(client);
  assert.deepEqual([third.since, third.channels], ["t-2", "a"]);
  third.greets({ channels: ["a", "user:ann"], cursor: "t-10" });
  third.refreshes("a", "t-10");
  third.refreshes("user:ann", "t-10");
  third.ends();
  assert.equal(reconnected(client).since, "t-10");
});

test("a channel whose past never came is not taken as heard", () => {
  const { client, socket } = open();
  socket.greets({ cursor: "t-1" });
  client.subscribe("a");
  socket.says(event(5));
  socket.ends();
  const second = reconnected(client);
  assert.deepEqual([second.since, second.channels], ["t-5", null]);
  second.greets();
  assert.deepEqual(second.sent, [subscribed("a")]);
});

test("what changes between the URL and the greeting is made good", () => {
  const { client, socket } = open({}, ["a", "b"]);
  socket.greets();
  for (const channel of ["a", "b"]) socket.refreshes(channel, "t-4");
  socket.ends();
  const second = reconnected(client);
  client.unsubscribe("a");
  client.subscribe("c");
  // The server takes b no longer: asked once more, from its place, and refused again.
  second.greets({ channels: ["a"] });
  assert.deepEqual(second.sent, [unsubscribed("a"), subscribed("b", "t-4"), subscribed("c")]);
});

test("over a reload a channel goes on from its place, whenever it is wanted again", () => {
  const storage = new FakeStorage();
  const { client, socket } = open({ storage }, ["a", "b"]);
  socket.greets();
  for (const channel of ["a", "b"]) socket.refreshes(channel, "t-4", [change(channel === "a" ? 1 : 2)]);
  client.close();

  const next = open({ storage }, ["a"]);
  assert.deepEqual([next.socket.since, next.socket.channels], ["t-4", "a"]);
  next.socket.greets({ channels: ["a"], cursor: "t-5" });
  next.socket.refreshes("a", "t-9");
  next.client.subscribe("b");
  assert.deepEqual(next.socket.sent, [subscribed("b", "t-4")]);
  assert.deepEqual(ids(valueOf(next.client.events)), ["e-00001", "e-00002"]);
});

test("a broadcast to a channel and a message to one connection are confirmed as an alert is", async () => {
  const { client, socket } = open();
  socket.greets();
  const broadcast = client.broadcast([1], { channel: "a", id: "1" });
  const direct = client.direct("b@vm", { x: 1 }, { id: "2" });
  assert.deepEqual(socket.sent, [
    { type: "broadcast", id: "1", channel: "a", data: [1] },
    { type: "direct", id: "2", targetId: "b@vm", data: { x: 1 } },
  ]);
  socket.says({ type: "ack", id: "1", eventId: "1" });
  assert.equal((await broadcast).eventId, "1");
  socket.says({ type: "error", id: "2", code: "not_found", message: "gone" });
  await assert.rejects(direct, { code: "not_found", retry: false });
  const heard = [];
  client.on("direct", ({ data }) => heard.push(data));
  socket.says({ type: "direct", id: "3", senderId: "b@vm", data: 7, timestamp: 1 });
  assert.deepEqual([heard, valueOf(client.events)], [[7], []]);
});

test("a token goes into the handshake, and into nothing else", () => {
  const storage = new FakeStorage();
  const jwt = endsIn(3600);
  const { client, socket } = open({ token: jwt, storage });
  assert.deepEqual(socket.protocols, ["alien-alert", jwt]);
  socket.greets({ events: [event(1)] });
  client.close();
  assert.deepEqual([...storage.items.keys()], [`alien-alert ${URL} ann`]);
  const told = JSON.stringify([...storage.items, socket.url, socket.sent, client]);
  assert.ok(!told.includes(jwt));
  assert.equal(open().socket.protocols, undefined, "nor is there a subprotocol without one");
});

test("what one user heard is not shown to the next", async () => {
  const storage = new FakeStorage();
  let user = "ann";
  const ask = () => endsIn(3600, user);
  const first = open({ token: ask, storage }, ["a"]);
  await settled();
  sockets.at(-1).greets({ events: [event(1)], cursor: "t-1" }).refreshes("a", "t-1");
  sockets.at(-1).ends();
  user = "bob";
  reconnected(first.client);
  await settled();
  assert.deepEqual([sockets.at(-1).since, sockets.at(-1).channels], [null, null]);
  assert.deepEqual(valueOf(first.client.events), []);
  first.client.close();

  user = "ann";
  const again = open({ token: ask, storage });
  assert.deepEqual(valueOf(again.client.events), [], "whose they are is not known yet");
  await settled();
  assert.deepEqual(ids(valueOf(again.client.events)), ["e-00001"]);
  assert.equal(sockets.at(-1).since, "t-1");
});

test("the app is asked for a token before each connection, and a failure is a failed attempt", async () => {
  const answers = [() => "a.b.c", () => Promise.reject(new Error("no")), async () => "d.e.f"];
  const { client } = open({ token: () => answers.shift()() });
  client.connect();
  await settled();
  assert.equal(sockets.length, 1, "asked once, though wanted twice");
  sockets[0].greets().ends();
  reconnected(client);
  await settled();
  assert.deepEqual([client.state, sockets.length], ["waiting", 1]);
  reconnected(client);
  await settled();
  assert.deepEqual(sockets[1].protocols, ["alien-alert", "d.e.f"]);
});

test("an app that never answers is asked again, and a late answer is nobody's", async () => {
  let answer;
  const { client } = open({ token: () => new Promise((resolve) => (answer = resolve)) });
  mock.timers.tick(15_000);
  assert.equal(client.state, "waiting");
  answer("a.b.c");
  await settled();
  assert.equal(sockets.length, 0);
  reconnected(client);
  client.close();
  answer("a.b.c");
  await settled();
  assert.deepEqual([client.state, sockets.length], ["closed", 0]);
});

test("a fresh token takes over before the old one ends, unnoticed", async () => {
  const { client } = open({ token: async () => endsIn(80) }, ["a"]);
  await settled();
  const [first] = sockets;
  first.greets({ cursor: "t-1" });
  first.refreshes("a", "t-2");
  const states = [];
  client.on("state", (state) => states.push(state));
  mock.timers.tick(49_000);
  await settled();
  assert.equal(sockets.length, 1);
  mock.timers.tick(2_000);
  await settled();
  const second = sockets[1];
  assert.deepEqual([second.since, second.channels], ["t-2", "a"]);
  first.says(change(3));
  assert.equal(first.readyState, FakeSocket.OPEN, "until the new one is greeted");
  client.subscribe("b");
  first.refreshes("b", "t-3");
  second.greets({ channels: ["a"], cursor: "t-4" }).refreshes("a", "t-4", [change(3), change(4)]);
  assert.deepEqual(second.sent, [subscribed("b", "t-3")], "joined on the old one meanwhile");
  assert.notEqual(first.readyState, FakeSocket.OPEN);
  assert.deepEqual([states, ids(valueOf(client.events))], [[], ["e-00003", "e-00004"]]);
  client.close();
  mock.timers.tick(200_000);
  await settled();
  assert.equal(sockets.length, 2, "nothing goes on after the end");
});

test("what is asked while a fresh token takes over is answered where it was asked", async () => {
  const { client } = open({ token: async () => endsIn(80) });
  await settled();
  const [first] = sockets;
  first.greets({ cursor: "t-1" });
  mock.timers.tick(51_000);
  await settled();
  const [answered, lost] = [client.alert({}, { id: "1" }), client.alert({}, { id: "2" })];
  sockets[1].greets({ cursor: "t-1" });
  assert.equal(first.readyState, FakeSocket.OPEN);
  first.says({ type: "ack", id: "1", eventId: "1" });
  first.says(event(2));
  assert.equal((await answered).eventId, "1");
  assert.equal(first.readyState, FakeSocket.OPEN, "for the other");
  first.ends(1008, "token expired");
  await assert.rejects(lost, { code: "disconnected" });
  assert.deepEqual(valueOf(client.events), [], "events are the new one's");
  assert.equal(client.state, "connected");

  mock.timers.tick(51_000);
  await settled();
  const refused = client.alert({}, { id: "3" });
  sockets[2].greets({ cursor: "t-1" });
  sockets[1].says({ type: "error", id: "3", code: "rate_limited", message: "too fast" });
  await assert.rejects(refused, { code: "rate_limited" });
  assert.notEqual(sockets[1].readyState, FakeSocket.OPEN, "nothing more to answer");
});

test("a token that ends all the same is renewed by coming back", async () => {
  let fails = false;
  const { client } = open({ token: async () => (fails ? Promise.reject() : endsIn(2)) });
  await settled();
  sockets[0].greets();
  fails = true;
  mock.timers.tick(1_000);
  await settled();
  assert.deepEqual([client.state, sockets.length], ["connected", 1]);
  fails = false;
  sockets[0].ends(1008, "token expired");
  assert.ok(client.nextAttempt - Date.now() <= 1_000);
  reconnected(client);
  await settled();
  assert.equal(sockets.length, 2);
});

test("who is not allowed any longer does not knock at once", async () => {
  for (const [reason, options] of [["token expired", { token: endsIn(1) }], ["flooding", {}]]) {
    const { client, socket } = open(options);
    socket.greets();
    socket.ends(1008, reason);
    assert.ok(client.nextAttempt - Date.now() >= 15_000, reason);
    client.close();
  }
});

test("a clock that is wrong makes no storm of tokens", async () => {
  let asked = 0;
  open({ token: () => (asked++, endsIn(-600)) });
  await settled();
  sockets[0].greets();
  for (let minute = 0; minute < 5; minute++) {
    mock.timers.tick(25_000);
    await settled();
    sockets[0].says({ type: "pong" });
  }
  assert.equal(asked, 1);
});

test("a token for a hundred years does not end today", async () => {
  let asked = 0;
  open({ token: () => (asked++, endsIn(3_153_600_000)) });
  await settled();
  sockets[0].greets();
  mock.timers.tick(10_000);
  await settled();
  assert.equal(asked, 1);
});

test("the types name all that there is, and nothing else", async () => {
  const types = await readFile(new globalThis.URL("../../static/client.d.ts", import.meta.url), "utf8");
  const declared = /export class AlienClient \{(.*?)\n\}/s.exec(types)[1];
  const names = new Set([...declared.matchAll(/^  (?:readonly )?(\w+)[?<(:]/gm)].map(([, name]) => name));
  const { client } = open();
  const members = [...Object.getOwnPropertyNames(AlienClient.prototype), ...Object.keys(client)];
  assert.deepEqual([...names].sort(), members.sort());
});
