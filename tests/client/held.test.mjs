/**
 * Presses that wait for a connection, and for how long.
 */

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { HELD_FOR, Held, MOST } from "../../static/held.js";
import { FakeStorage } from "./fake.mjs";

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  // Each test is a tab of its own.
  Object.defineProperty(globalThis, "sessionStorage", { value: new FakeStorage(), configurable: true });
});

const press = (id, more) => ({ id, data: {}, at: Date.now(), ...more });
const ids = (presses) => presses.map(({ id }) => id);

/** One that holds some presses, and what it gave up. */
function holding(...names) {
  const expired = [];
  const held = new Held(({ id }) => expired.push(id));
  for (const id of names) held.hold(press(id));
  return { held, expired };
}

test("presses in time go out, each once, in the order in which they were made", () => {
  const { held, expired } = holding("one", "two");
  mock.timers.tick(HELD_FOR - 1);
  assert.deepEqual(ids(held.take()), ["one", "two"]);
  assert.deepEqual(held.take(), []);
  mock.timers.tick(HELD_FOR);
  assert.deepEqual(expired, []);
});

test("its time is over after two minutes, once", () => {
  const { held, expired } = holding("one");
  mock.timers.tick(120_000);
  assert.deepEqual(expired, ["one"]);
  assert.deepEqual(held.take(), []);
  assert.deepEqual(expired, ["one"]);
});

test("each has its own time", () => {
  const { held, expired } = holding("one");
  mock.timers.tick(HELD_FOR / 2);
  held.hold(press("two"));
  mock.timers.tick(HELD_FOR / 2);
  assert.deepEqual([expired, ids(held.presses)], [["one"], ["two"]]);
  mock.timers.tick(HELD_FOR / 2);
  assert.deepEqual([expired, held.presses], [["one", "two"], []]);
});

test("a machine that slept is not believed its timers", () => {
  const { held, expired } = holding("one", "two");
  const { now } = Date;
  Date.now = () => now() + HELD_FOR;
  try {
    assert.deepEqual(held.take(), []);
  } finally {
    Date.now = now;
  }
  assert.deepEqual(expired, ["one", "two"]);
});

test("the time counts from the press, not from a connection that broke later", () => {
  const { held, expired } = holding("one");
  const { at } = held.presses[0];
  mock.timers.tick(HELD_FOR / 2);
  held.hold(press("one", { at, sentAt: Date.now() }));
  mock.timers.tick(HELD_FOR / 2 - 1);
  assert.deepEqual(expired, []);
  mock.timers.tick(1);
  assert.deepEqual(expired, ["one"]);
});

test("what was heard meanwhile is given up no more", () => {
  const { held, expired } = holding("one", "two");
  assert.deepEqual([held.drop("one"), held.drop("one")], [true, false]);
  mock.timers.tick(HELD_FOR);
  assert.deepEqual(expired, ["two"]);
});

test("of too many the oldest are given up", () => {
  const { held, expired } = holding();
  for (let number = 0; number < MOST + 2; number++) held.hold(press(number));
  assert.deepEqual([expired, held.presses.length], [[0, 1], MOST]);
});

test("a reload of the page loses none, and prolongs none", () => {
  holding("one", "two").held.drop("one");
  mock.timers.tick(HELD_FOR - 1);
  const { held, expired } = holding();
  assert.deepEqual(ids(held.presses), ["two"]);
  mock.timers.tick(1);
  assert.deepEqual(expired, ["two"]);
  assert.deepEqual(holding().held.presses, []);
});

test("a storage that holds nonsense, or none, is no hindrance", () => {
  for (const text of ["", "null", "7", "{", "{}"]) {
    sessionStorage.getItem = () => text;
    assert.deepEqual(ids(holding("one").held.take()), ["one"], text);
  }
  delete globalThis.sessionStorage;
  assert.deepEqual(ids(holding("one").held.take()), ["one"]);
});
