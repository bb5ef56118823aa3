/**
 * The red button: what becomes of a press, step by step, and what happens to one that can't go out.
 *
 * A press without a connection is held back and goes out by itself when there is one in time; a second
 * press takes it back. So does each one whose connection broke before the answer: it keeps its id, so the
 * server counts it once, whatever became of it. One that the server did not confirm may be heard all the
 * same, and is known by its id then.
 */

import { element, oncePerFrame, setText } from "./dom.js";
import { randomId } from "./client.js";
import { HELD_FOR, Held } from "./held.js";
import * as words from "./words.js";

/** The way of a press; each is seen in its own light below the button. */
const STEPS = ["pressed", "sent", "confirmed", "heard"];
/** Presses remembered, to know an own landing by its id. */
const REMEMBERED = 100;

/** @typedef {import("./held.js").Press & {began?: number, isOut?: boolean}} Press `began` is as `sentAt`, by
 *   the clock that nobody sets; it is out when it was confirmed or heard */

export class Button {
  #client;
  #form;
  #button = element("press");
  /** Those that were sent and not heard yet, by their ids. @type {Map<string, Press>} */
  #own = new Map();
  /** The press that the page tells of. */
  #latest;
  /** What goes out with the next connection. */
  #held = new Held((press) => this.#giveUp(press));
  /** One that was not confirmed, and until when pressing again sends the same event. */
  #unconfirmed;
  /** Each step is to be seen, however fast the next one is: for a frame at least. */
  #advance = oncePerFrame(() => {
    const latest = this.#latest;
    if (!latest || latest.shown >= latest.reached) return;
    this.#show(STEPS[++latest.shown]);
    this.#advance();
  });

  /** @param {{read(): {data?: object, problem?: string}, sent(data: object): void}} form what is told along */
  constructor(client, form) {
    this.#client = client;
    this.#form = form;
    this.#button.addEventListener("click", () => this.#press());
    client.on("state", () => this.#showConnection());
    client.on("receipt", (receipt) => this.#showReceipt(receipt));
    // From before the page was loaded anew.
    for (const press of this.#held.presses) this.#own.set(press.id, press);
    if (this.#held.presses.length) this.#showHeld();
  }

  /** Takes note of a landing: the press that it comes of, or nothing where it is not one's own. */
  hear({ id }) {
    const press = this.#own.get(id);
    if (!press) return undefined;
    this.#own.delete(id);
    this.#goneOut(press);
    const doubted = this.#unconfirmed?.press.id === id;
    if (doubted) this.#unconfirmed = undefined;
    const wasHeld = this.#held.drop(id);
    if ((doubted || wasHeld) && this.#held.presses.length === 0) {
      this.#say("");
      this.#show("heard");
    }
    this.#reach("heard", id);
    return press;
  }

  #press() {
    if (this.#held.presses.length) return this.#takeBack();
    const { data, problem } = this.#form.read();
    if (problem) return this.#say(problem);
    this.#say("");
    const press = this.#pressOf(data);
    if (this.#client.state === "connected") this.#send(press);
    else this.#hold(press);
  }

  /** A new one, or once more the one that was not confirmed. */
  #pressOf(data) {
    const at = Date.now();
    const { press: before, until } = this.#unconfirmed ?? {};
    this.#unconfirmed = undefined;
    const again = before && at < until && JSON.stringify(before.data) === JSON.stringify(data);
    return again ? { id: before.id, data, at, sentAt: before.sentAt } : { id: randomId(), data, at };
  }

  #takeBack() {
    const taken = this.#held.take();
    // Its time was over just now, and that was said.
    if (!taken.length) return;
    this.#show("offline");
    this.#say(taken.some(({ sentAt }) => sentAt) ? words.takenBackLate : words.takenBack);
  }

  #hold(press) {
    this.#held.hold(press);
    this.#showHeld();
  }

  #showHeld() {
    this.#show("held");
    this.#say(this.#held.presses.some(({ sentAt }) => sentAt) ? words.heldAgain : words.heldBack);
  }

  /** Its time is over. One that went out and was not answered may have been heard. */
  #giveUp(press) {
    if (press.sentAt) this.#doubt(press);
    // The last one tells.
    if (this.#held.presses.length) return;
    this.#show(press.sentAt ? "unconfirmed" : "refused");
    this.#say(press.sentAt ? words.refusal({ code: "timeout" }) : words.tooLate);
  }

  async #send(press) {
    const { id, data } = press;
    press.sentAt = Date.now();
    press.began = performance.now();
    this.#own.set(id, press);
    if (this.#own.size > REMEMBERED) this.#own.delete(this.#own.keys().next().value);
    this.#latest = { id, began: press.began, reached: 0, shown: 0, sockets: 0 };
    setText(element("receipt"), "");
    for (const step of STEPS) this.#light(step, "");
    this.#show("pressed");
    this.#reach("pressed", id);
    try {
      const answer = this.#client.alert(data, { id });
      this.#reach("sent", id);
      await answer;
      this.#reach("confirmed", id);
      this.#goneOut(press);
    } catch (error) {
      this.#fail(error, press);
    }
  }

  /** It is out for certain: what was told along is not told again. */
  #goneOut(press) {
    if (!press.isOut) this.#form.sent(press.data);
    press.isOut = true;
  }

  #fail(error, press) {
    // The event itself came back before its answer was lost.
    if (press.isOut) return;
    const isLatest = this.#latest?.id === press.id;
    if (isLatest) this.#latest = undefined;
    if (error.code === "disconnected") return this.#hold(press);
    if (error.retry) this.#doubt(press);
    else this.#own.delete(press.id);
    const unknown = error.code === "timeout" || error.code === "unavailable";
    if (isLatest) this.#show(unknown ? "unconfirmed" : "refused");
    this.#say(words.refusal(error));
  }

  #doubt(press) {
    this.#unconfirmed = { press, until: Date.now() + HELD_FOR };
  }

  /** Forwards only: the event itself may be faster than its confirmation. */
  #reach(step, id) {
    const latest = this.#latest;
    if (latest?.id !== id) return;
    this.#light(step, words.duration(performance.now() - latest.began));
    latest.reached = Math.max(latest.reached, STEPS.indexOf(step));
    this.#advance();
  }

  #light(step, time) {
    const light = document.querySelector(`#steps [data-step=${step}]`);
    light.classList.toggle("done", time !== "");
    setText(light.querySelector(".time"), time);
  }

  /** Receipts grow, and may overtake one another. */
  #showReceipt({ eventId, sockets, instances }) {
    if (eventId !== this.#latest?.id || !(sockets >= this.#latest.sockets)) return;
    this.#latest.sockets = sockets;
    setText(element("receipt"), words.receipt(sockets, instances));
  }

  #showConnection() {
    const state = this.#button.dataset.state;
    if (this.#client.state === "connected") {
      const held = this.#held.take();
      if (held.length) {
        this.#say("");
        for (const press of held) this.#send(press);
      } else if (state === "offline") this.#show("idle");
    } else if (!["held", "pressed", "sent"].includes(state)) this.#show("offline");
  }

  #show(state) {
    this.#button.dataset.state = state;
    setText(element("progress"), words.press[state]);
  }

  #say(text) {
    setText(element("message"), text);
  }
}
