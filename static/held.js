/**
 * A press that waits for a connection, and how long it may: a landing is news for minutes, so one that
 * could not go out by then is not sent, and who pressed is told.
 */

export const HELD_FOR = 120_000;

export class Held {
  #expired;
  #until;
  #timer;
  /** What waits, if anything. */
  alarm;

  /** @param {(alarm: object) => void} expired hears of one whose time is over */
  constructor(expired) {
    this.#expired = expired;
  }

  /** @param {number} at when it was pressed, in ms since the epoch */
  hold(alarm, at) {
    this.drop();
    this.alarm = alarm;
    this.#until = at + HELD_FOR;
    this.#timer = setTimeout(() => this.#expire(), Math.max(0, this.#until - Date.now()));
  }

  /** Takes it out to be sent, if its time is not over: a machine that slept ran no timer. */
  take() {
    if (this.alarm && Date.now() >= this.#until) this.#expire();
    const { alarm } = this;
    this.drop();
    return alarm;
  }

  drop() {
    clearTimeout(this.#timer);
    this.alarm = undefined;
  }

  #expire() {
    const { alarm } = this;
    this.drop();
    this.#expired(alarm);
  }
}
