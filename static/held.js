/**
 * Presses that wait for a connection, and how long they may: a landing is news for minutes, so one that
 * could not go out by then is not sent, and who pressed is told. A reload of the page does not lose them.
 */

import { remember, remembered } from "./storage.js";

export const HELD_FOR = 120_000;
/** More than anybody means to press; beyond it the oldest is given up. */
export const MOST = 100;
const STORED_AS = "alien-alert held";

/** @typedef {{id: string, data: object, at: number, sentAt?: number}} Press `at` is when it was pressed, and
 *   `sentAt` when it was sent last, if ever, both in ms since the epoch */

export class Held {
  #expired;
  /** By their ids, in the order in which they came. @type {Map<string, Press>} */
  #presses = new Map();
  #timer;

  /** @param {(press: Press) => void} expired hears of one whose time is over, or that was one too many */
  constructor(expired) {
    this.#expired = expired;
    const before = remembered("sessionStorage", STORED_AS);
    if (Array.isArray(before)) for (const press of before) this.#restore(press);
    this.#changed();
  }

  get presses() {
    return [...this.#presses.values()];
  }

  /** @param {Press} press */
  hold(press) {
    this.#presses.set(press.id, press);
    const [oldest] = this.#presses.values();
    if (this.#presses.size > MOST) this.#giveUp([oldest]);
    this.#changed();
  }

  /** Takes out all those to be sent whose time is not over: a machine that slept ran no timer. */
  take() {
    this.#expire();
    const { presses } = this;
    this.#presses.clear();
    this.#changed();
    return presses;
  }

  /** Holds one no longer, and says whether it did. */
  drop(id) {
    const held = this.#presses.delete(id);
    if (held) this.#changed();
    return held;
  }

  /** Of the page before: its watch was another one. */
  #restore({ id, data, at, sentAt }) {
    this.#presses.set(id, { id, data, at, sentAt });
  }

  #expire() {
    this.#giveUp(this.presses.filter(({ at }) => Date.now() >= at + HELD_FOR));
    this.#changed();
  }

  #giveUp(presses) {
    for (const { id } of presses) this.#presses.delete(id);
    for (const press of presses) this.#expired(press);
  }

  #changed() {
    clearTimeout(this.#timer);
    remember("sessionStorage", STORED_AS, this.presses);
    if (this.#presses.size === 0) return;
    const first = Math.min(...this.presses.map(({ at }) => at));
    this.#timer = setTimeout(() => this.#expire(), Math.max(0, first + HELD_FOR - Date.now()));
  }
}
