/**
 * A press that waits for a connection, and for how long.
 */

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { HELD_FOR, Held } from "../../static/held.js";

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
});

/** One that holds a press, and what it gave up. */
function holding() {
  const expired = [];
  const held = new Held((alarm) => expired.push(alarm.id));
  held.hold({ id: "one" }, Date.now());
  return { held, expired };
}

test("a press in time goes out, once", () => {
  const { held, expired } = holding();
  mock.timers.tick(HELD_FOR - 1);
  assert.equal(held.take().id, "one");
  assert.equal(held.take(), undefined);
  mock.timers.tick(HELD_FOR);
  assert.deepEqual(expired, []);
});

test("its time is over after two minutes, once", () => {
  const { held, expired } = holding();
  mock.timers.tick(120_000);
  assert.deepEqual(expired, ["one"]);
  assert.equal(held.take(), undefined);
  assert.deepEqual(expired, ["one"]);
});

test("a machine that slept is not believed its timers", () => {
  const { held, expired } = holding();
  const { now } = Date;
  Date.now = () => now() + HELD_FOR;
  try {
    assert.equal(held.take(), undefined);
  } finally {
    Date.now = now;
  }
  assert.deepEqual(expired, ["one"]);
});

test("the time counts from the press, not from a connection that broke later", () => {
  const { held, expired } = holding();
  const at = Date.now();
  mock.timers.tick(HELD_FOR / 2);
  held.hold({ id: "one" }, at);
  mock.timers.tick(HELD_FOR / 2 - 1);
  assert.deepEqual(expired, []);
  mock.timers.tick(1);
  assert.deepEqual(expired, ["one"]);
});

test("what was taken back is given up no more", () => {
  const { held, expired } = holding();
  held.drop();
  mock.timers.tick(HELD_FOR);
  assert.deepEqual([held.take(), expired], [undefined, []]);
});
