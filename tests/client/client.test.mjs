/**
 * The client module by itself: what it keeps, drops, sends and waits for.
 */

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { beforeEach, mock, test } from "node:test";

import { AlienClient } from "../../static/client.js";
import { FakeSocket, FakeStorage, event, events, ids, sockets, valueOf } from "./fake.mjs";

const URL = "ws://vm.test/ws";

beforeEach(() => {
  sockets.length = 0;
  globalThis.WebSocket = FakeSocket;
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
});

/** A client that is connecting, and its socket. */
function open(options) {
  const client = new AlienClient(URL, options);
  client.connect();
  return [client, sockets.at(-1)];
}

/** The same, greeted, with what its `alert` handler hears. */
function connected(options, greeting) {
  const [client, socket] = open(options);
  const heard = [];
  client.on("alert", ({ id }, { caughtUp }) => heard.push(caughtUp ? `${id} late` : id));
  socket.greets(greeting);
  return { client, socket, heard };
}

/** Lets the back-off pass; the socket of the next attempt. */
function reconnected(client) {
  mock.timers.tick(client.nextAttempt - Date.now());
  return sockets.at(-1);
}

test("the first connection names no cursor, the next the last one heard", () => {
  const { client, socket } = connected({}, { cursor: "t-7" });
  assert.equal(socket.since, null);
  socket.ends();
  const second = reconnected(client);
  assert.equal(second.since, "t-7", "not the greeting's: that is the server's place");
  second.greets({ events: [event(8)], cursor: "t-9" });
  second.says(event(12));
  second.says({ type: "pong", cursor: "t-13" });
  second.ends();
  assert.equal(reconnected(client).since, "t-13");
});

test("a connection lost before it caught up moves no cursor", () => {
  const { client, socket } = connected({}, { cursor: "t-7" });
  socket.ends();
  const second = reconnected(client);
  second.says({ type: "connected", clientId: "me", pingInterval: 30_000, cursor: "t-99" });
  second.ends();
  assert.equal(reconnected(client).since, "t-7");
});

test("each event is passed on once, live or caught up", () => {
  const { client, socket, heard } = connected({}, { events: events(1, 2), cursor: "t-2" });
  socket.says(event(3));
  socket.says(event(3));
  socket.ends();
  reconnected(client).greets({ events: events(1, 4), cursor: "t-4" });
  sockets.at(-1).says(event(4));
  assert.deepEqual(heard, ["e-00001 late", "e-00002 late", "e-00003", "e-00004 late"]);
  assert.deepEqual(ids(valueOf(client.events)), ids(events(1, 4)));
});

test("what is no event is passed on each time", () => {
  const { client, socket } = connected();
  const heard = [];
  for (const type of ["pong", "fleet"]) client.on(type, (message) => heard.push(message.type));
  for (const type of ["pong", "pong", "fleet", "fleet"]) socket.says({ type, id: "1", cursor: "t-1" });
  assert.deepEqual(heard, ["pong", "pong", "fleet", "fleet"]);
  assert.deepEqual(valueOf(client.events), []);
});

test("the ids seen are bounded, and cover whatever a server sends at once", () => {
  const all = events(1, 12_000);
  const { client, socket, heard } = connected({}, { events: all });
  assert.equal(heard.length, 12_000);
  socket.ends();
  reconnected(client).greets({ events: all });
  assert.equal(heard.length, 12_000, "a full refresh again shows nothing twice");
  for (const one of events(12_001, 36_001)) sockets.at(-1).says(one);
  sockets.at(-1).says(event(1));
  assert.equal(heard.at(-1), "e-00001", "forgotten after twice as many");
});

test("events is a store by Svelte's contract", () => {
  const { client, socket } = connected({}, { events: events(1, 2) });
  const [first, second] = [[], []];
  const { subscribe } = client.events;
  const end = subscribe((list) => first.push(list));
  subscribe((list) => second.push(list));
  assert.deepEqual(first.map(ids), [ids(events(1, 2))], "called at once");
  socket.says(event(3));
  assert.deepEqual(ids(first[1]), ids(events(1, 3)));
  assert.notEqual(first[0], first[1], "an array of its own for each change");
  assert.equal(first[0].length, 2);
  end();
  end();
  socket.says(event(4));
  assert.deepEqual([first.length, second.length], [2, 3]);
});

test("one function may subscribe twice and end once", () => {
  const { client, socket } = connected();
  let calls = 0;
  const watcher = () => calls++;
  const end = client.events.subscribe(watcher);
  client.events.subscribe(watcher);
  end();
  calls = 0;
  socket.says(event(1));
  assert.equal(calls, 1);
});

test("a refresh is one change, and one without news is none", () => {
  const [client, socket] = open();
  let changes = -1;
  client.events.subscribe(() => changes++);
  socket.greets({ events: events(1, 1_000) });
  assert.equal(changes, 1);
  socket.ends();
  reconnected(client).greets({ events: events(1, 1_000) });
  sockets.at(-1).says(event(1_000));
  sockets.at(-1).says({ type: "fleet", instances: [] });
  assert.equal(changes, 1);
});

test("late ones take their place, and those of one moment have one order everywhere", () => {
  const same = ["c", "a", "b"].map((id) => event(5, { id }));
  const { client, socket } = connected({}, { events: [event(4), event(9)] });
  for (const one of [...same, event(1), event(10)]) socket.says(one);
  assert.deepEqual(ids(valueOf(client.events)), ["e-00001", "e-00004", "a", "b", "c", "e-00009", "e-00010"]);
});

test("the newest are kept, as many as the app wants", () => {
  const { client, socket, heard } = connected({ keep: 3 }, { events: events(2, 5) });
  assert.deepEqual(ids(valueOf(client.events)), ids(events(3, 5)));
  socket.says(event(1));
  assert.deepEqual(ids(valueOf(client.events)), ids(events(3, 5)), "older than all that is kept");
  assert.equal(heard.at(-1), "e-00001", "and told none the less");
  assert.equal(valueOf(connected({}, { events: events(1, 1_500) }).client.events).length, 1_000);
  assert.deepEqual(valueOf(connected({ keep: 0 }, { events: events(1, 2) }).client.events), []);
});

test("status tells the state to who watches", () => {
  const client = new AlienClient(URL);
  const told = [];
  client.status.subscribe((state) => told.push(state));
  client.connect();
  sockets.at(-1).greets();
  sockets.at(-1).ends();
  client.close();
  assert.deepEqual(told, ["closed", "connecting", "connected", "waiting", "closed"]);
});

test("a watcher that throws does not keep the others from hearing", () => {
  const { client, socket, heard } = connected();
  const later = mock.method(globalThis, "queueMicrotask", () => {});
  let armed = false;
  client.events.subscribe(() => {
    if (armed) throw new Error("an app's fault");
  });
  armed = true;
  let watched;
  client.events.subscribe((list) => (watched = list.length));
  socket.says(event(1));
  assert.deepEqual([watched, heard.length, later.mock.callCount()], [1, 1, 1]);
  later.mock.restore();
});

test("after a reload the list is the same and what was missed, and handlers hear only that", () => {
  const storage = new FakeStorage();
  const before = connected({ storage }, { events: events(1, 3), cursor: "t-3" });
  before.socket.says(event(4));
  before.client.close();

  const after = new AlienClient(URL, { storage });
  assert.deepEqual(valueOf(after.events), valueOf(before.client.events), "at once, before any connection");
  const { client, socket, heard } = connected({ storage }, { events: events(3, 6), cursor: "t-6" });
  assert.equal(socket.since, "t-4");
  assert.deepEqual(heard, ["e-00005 late", "e-00006 late"]);
  assert.deepEqual(ids(valueOf(client.events)), ids(events(1, 6)));
});

test("ids outlive a reload longer than events do", () => {
  const storage = new FakeStorage();
  connected({ storage, keep: 2 }, { events: events(1, 100) }).client.close();
  const { heard } = connected({ storage, keep: 2 }, { events: events(1, 101) });
  assert.deepEqual(heard, ["e-00101 late"]);
});

test("a page that ends without a word comes back to what was stored last, which is whole", () => {
  const storage = new FakeStorage();
  const { socket } = connected({ storage }, { events: events(1, 2), cursor: "t-2" });
  mock.timers.tick(5_000);
  socket.says(event(3));
  const { client, socket: second } = connected({ storage }, { events: events(1, 3), cursor: "t-3" });
  assert.equal(second.since, "t-2");
  assert.deepEqual(ids(valueOf(client.events)), ids(events(1, 3)));
});

test("storing goes by the time, not by the event", () => {
  const storage = new FakeStorage();
  const writes = mock.method(storage, "setItem");
  const { client, socket } = connected({ storage });
  for (const one of events(1, 300)) {
    socket.says(one);
    mock.timers.tick(20);
  }
  mock.timers.tick(60_000);
  assert.equal(writes.mock.callCount(), 2, "6 s at 50 a second, and the rest");
  client.close();
  assert.equal(writes.mock.callCount(), 2, "nothing new to store");
});

test("a page stores when it is left or hidden", () => {
  for (const [target, type, hidden] of [["window", "pagehide", false], ["document", "visibilitychange", true]]) {
    const storage = new FakeStorage();
    const targets = { window: new EventTarget(), document: Object.assign(new EventTarget(), { hidden }) };
    globalThis.addEventListener = targets.window.addEventListener.bind(targets.window);
    globalThis.document = targets.document;
    connected({ storage }, { events: [event(1)] });
    assert.equal(storage.items.size, 0);
    targets[target].dispatchEvent(new Event(type));
    assert.equal(storage.items.size, 1, type);
    delete globalThis.document;
    delete globalThis.addEventListener;
  }
});

test("a closed client no longer listens to the page, and one that is opened again does", () => {
  const targets = { window: new EventTarget(), document: Object.assign(new EventTarget(), { hidden: false }) };
  globalThis.addEventListener = targets.window.addEventListener.bind(targets.window);
  globalThis.document = targets.document;
  const types = { window: ["online", "offline", "pagehide"], document: ["visibilitychange"] };
  const listeners = () =>
    Object.entries(types).flatMap(([name, all]) => all.map((type) => getEventListeners(targets[name], type).length));
  try {
    const { client } = connected();
    client.connect();
    assert.deepEqual(listeners(), [1, 1, 1, 1]);
    client.close();
    assert.deepEqual(listeners(), [0, 0, 0, 0]);
    client.connect();
    assert.deepEqual(listeners(), [1, 1, 1, 1]);
    client.close();
  } finally {
    delete globalThis.document;
    delete globalThis.addEventListener;
  }
});

test("what is stored is bounded: the oldest events go, their ids stay", () => {
  const storage = new FakeStorage();
  const long = events(1, 1_000).map((one) => ({ ...one, data: { note: "ü".repeat(2_000) } }));
  connected({ storage }, { events: long, cursor: "t-1000" }).client.close();
  const [text] = storage.items.values();
  assert(text.length <= 1_000_050, `${text.length}`);
  const { client, heard } = connected({ storage }, { events: long });
  const kept = ids(valueOf(client.events));
  assert(kept.length > 400 && kept.length < 500, `${kept.length}`);
  assert.deepEqual(kept, ids(long).slice(-kept.length));
  assert.deepEqual(heard, []);
});

test("each URL has its own", () => {
  const storage = new FakeStorage();
  connected({ storage }, { events: [event(1)] }).client.close();
  const other = new AlienClient("ws://other.test/ws", { storage });
  assert.deepEqual(valueOf(other.events), []);
});

test("a storage that throws, that is full, or that holds nonsense changes nothing else", () => {
  const refuse = () => {
    throw new Error("forbidden");
  };
  const holds = (text) => ({ getItem: () => text, setItem: refuse });
  const nonsense = ["", "null", "7", "{", "[]", '{"cursor":"t-9"}', '{"cursor":"t-9","seen":1,"events":[{}]}'];
  for (const storage of [{ getItem: refuse, setItem: refuse }, null, ...nonsense.map(holds)]) {
    const { client, socket, heard } = connected({ storage }, { events: [event(1)] });
    assert.equal(socket.since, null);
    mock.timers.tick(5_000);
    client.close();
    assert.deepEqual([ids(valueOf(client.events)), heard], [["e-00001"], ["e-00001 late"]]);
  }
});

test("a browser that forbids even to look for its storage is no hindrance", () => {
  const descriptor = Object.getOwnPropertyDescriptor(globalThis, "sessionStorage");
  const get = () => {
    throw new DOMException("denied", "SecurityError");
  };
  Object.defineProperty(globalThis, "sessionStorage", { get, configurable: true });
  assert.equal(connected({}, { events: [event(1)] }).heard.length, 1);
  delete globalThis.sessionStorage;
  if (descriptor) Object.defineProperty(globalThis, "sessionStorage", descriptor);
});

test("a hole named on a living connection is passed on and changes nothing else", () => {
  const { client, socket } = connected({}, { events: [event(1)], cursor: "t-1" });
  const [told, states] = [[], []];
  client.on("refresh-store", (message) => told.push(message));
  client.on("state", (state) => states.push(state));
  const gap = { type: "refresh-store", events: [], complete: false, reason: "gap", missing: { from: 1, to: 2 } };
  socket.says({ ...gap, cursor: "t-3" });
  assert.deepEqual([told, states], [[{ ...gap, cursor: "t-3" }], []]);
  assert.deepEqual(ids(valueOf(client.events)), ["e-00001"]);
  socket.says(event(2));
  assert.deepEqual(ids(valueOf(client.events)), ["e-00001", "e-00002"], "found later, and in its place");
});

test("an incomplete refresh brings its events and says what is missing", () => {
  const [client, socket] = open();
  const told = [];
  client.on("refresh-store", ({ reason, missing }) => told.push([reason, missing]));
  socket.greets({ events: events(5, 6), complete: false, reason: "too_many", missing: { to: 5 } });
  assert.deepEqual(told, [["too_many", { to: 5 }]]);
  assert.deepEqual(ids(valueOf(client.events)), ids(events(5, 6)));
  assert.equal(client.state, "connected");
});

test("a full or restarting server says when to come back, and the cursor comes along", () => {
  for (const [code, wait] of [[1013, 700], [1012, 4_321]]) {
    const { client, socket } = connected({}, { events: [event(1)], cursor: "t-1" });
    socket.says(event(2));
    const opened = sockets.length;
    socket.ends(code, `retry in ${wait} ms`);
    assert.equal(client.state, "waiting");
    mock.timers.tick(wait - 1);
    assert.equal(sockets.length, opened);
    mock.timers.tick(1);
    assert.equal(sockets.length, opened + 1);
    assert.equal(sockets.at(-1).since, "t-2");
  }
});

test("a server's word has a limit too", () => {
  const { client, socket } = connected();
  socket.ends(1013, "retry in 99999999 ms");
  assert.equal(client.nextAttempt - Date.now(), 60_000);
});

test("waits double up to 30 s with jitter, and begin anew after a greeting", () => {
  const { client } = connected();
  const waits = () => {
    sockets.at(-1).ends();
    const wait = client.nextAttempt - Date.now();
    reconnected(client);
    return wait;
  };
  for (const random of [0, 0.999, 0.5]) {
    mock.method(Math, "random", () => random);
    const full = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000];
    assert.deepEqual(full.map(waits), full.map((most) => most * (0.5 + random / 2)));
    sockets.at(-1).greets();
    Math.random.mock.restore();
  }
});

test("a browser that believes itself offline tries all the same", () => {
  const navigator = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: { onLine: false }, configurable: true });
  try {
    const [client, socket] = open();
    assert.equal(client.state, "offline");
    socket.ends();
    assert.equal(client.state, "offline");
    reconnected(client).greets();
    assert.equal(client.state, "connected");
  } finally {
    if (navigator) Object.defineProperty(globalThis, "navigator", navigator);
    else delete globalThis.navigator;
  }
});

test("a connection that is never greeted is given up", () => {
  const [client, socket] = open();
  mock.timers.tick(15_000);
  assert.equal(client.state, "waiting");
  assert.equal(socket.readyState, 3);
  reconnected(client).greets();
  mock.timers.tick(15_000);
  assert.equal(client.state, "connected");
});

test("a connection that went silent is given up, and its cursor kept", () => {
  const { client, socket } = connected({}, { cursor: "t-5" });
  mock.timers.tick(30_000);
  assert.deepEqual(socket.sent, [{ type: "ping" }]);
  mock.timers.tick(60_000);
  assert.equal(client.state, "waiting");
  assert.equal(socket.readyState, 3);
  socket.says(event(9));
  assert.deepEqual(valueOf(client.events), [], "an old socket's words no longer count");
  assert.equal(reconnected(client).since, "t-5");
});

test("1,000 kept cost little at 50 events a second", (context) => {
  const storage = new FakeStorage();
  const { client, socket } = connected({ storage }, { events: events(1, 1_000) });
  client.events.subscribe(() => {});
  const frames = events(1_001, 4_000).map((one) => JSON.stringify(one));
  const begun = performance.now();
  for (const data of frames) {
    socket.onmessage({ data });
    mock.timers.tick(20);
  }
  const each = (performance.now() - begun) / frames.length;
  context.diagnostic(`${(1_000 * each).toFixed(0)} µs an event, storing included`);
  assert(each < 0.5, `${each} ms an event, of the 20 that there are`);
});

test("a ping is answered with the server's time, or not at all where the connection ends", async () => {
  const { client, socket } = connected();
  const pong = client.ping();
  const { id } = socket.sent.at(-1);
  assert.deepEqual(socket.sent.at(-1), { type: "ping", id });
  socket.says({ type: "pong" });
  socket.says({ type: "pong", id, time: 7 });
  assert.equal((await pong).time, 7);
  const lost = client.ping();
  socket.ends();
  await assert.rejects(lost, { code: "disconnected" });
});

test("who traces sees each frame as it is on the wire", () => {
  const frames = [];
  const { client, socket } = connected({ trace: (...frame) => frames.push(frame) });
  client.alert({ place: "Roswell" }, { id: "mine" });
  socket.onmessage({ data: "no JSON" });
  assert.deepEqual(frames.slice(2), [
    ["out", '{"type":"alert","id":"mine","data":{"place":"Roswell"}}'],
    ["in", "no JSON"],
  ]);
  assert.equal(frames[0][1], JSON.stringify({ type: "connected", clientId: "me", pingInterval: 30_000, cursor: "greeting", channels: [] }));
  assert.equal(socket.sent.length, 1);
});
