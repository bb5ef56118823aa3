/**
 * The red button: what becomes of a press, step by step, and what happens to one that can't go out.
 *
 * A press without a connection is held back and goes out by itself when there is one in time; a second
 * press takes it back. So does one whose connection broke before the answer: it keeps its id, so the server
 * counts it once, whatever became of it.
 */

import { element, oncePerFrame, setText } from "./dom.js";
import { randomId } from "./client.js";
import { Held } from "./held.js";
import * as words from "./words.js";

/** The way of a press; each is seen in its own light below the button. */
const STEPS = ["pressed", "sent", "confirmed", "heard"];
/** Presses remembered, to know an own landing by its id. */
const REMEMBERED = 100;

export class Button {
  #client;
  #form;
  #button = element("press");
  /** By the event's id: when it was pressed, by both of the page's clocks. */
  #pressed = new Map();
  /** The press that the page tells of. */
  #latest;
  /** What goes out with the next connection. */
  #held = new Held((alarm) => this.#giveUp(alarm));
  /** One that was not confirmed: pressing again sends the same event. */
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
  }

  /** Takes note of a landing: when it was pressed here, or nothing where it is not one's own. */
  hear({ id }) {
    const pressed = this.#pressed.get(id);
    this.#pressed.delete(id);
    if (pressed && this.#held.alarm?.id === id) {
      // It was out before the connection broke.
      this.#held.drop();
      this.#say("");
      this.#show("heard");
    }
    this.#reach("heard", id);
    return pressed;
  }

  #press() {
    if (this.#held.alarm) {
      this.#held.drop();
      this.#show("offline");
      return this.#say(words.takenBack);
    }
    const { data, problem } = this.#form.read();
    if (problem) return this.#say(problem);
    this.#say("");
    const same = this.#unconfirmed && JSON.stringify(this.#unconfirmed.data) === JSON.stringify(data);
    const id = same ? this.#unconfirmed.id : randomId();
    this.#unconfirmed = undefined;
    const alarm = { id, data, at: Date.now() };
    if (this.#client.state === "connected") this.#send(alarm);
    else this.#hold(alarm, words.heldBack);
  }

  #hold(alarm, why) {
    this.#held.hold(alarm, alarm.at);
    this.#show("held");
    this.#say(why);
  }

  /** Its time is over. One that went out and was not answered may have been heard. */
  #giveUp(alarm) {
    const wasSent = this.#pressed.delete(alarm.id);
    if (wasSent) this.#unconfirmed = alarm;
    this.#show("refused");
    this.#say(wasSent ? words.refusal({ code: "timeout" }) : words.tooLate);
  }

  async #send(alarm) {
    const { id, data } = alarm;
    this.#latest = { id, began: performance.now(), reached: 0, shown: 0, sockets: 0 };
    this.#pressed.set(id, { at: Date.now(), began: this.#latest.began });
    if (this.#pressed.size > REMEMBERED) this.#pressed.delete(this.#pressed.keys().next().value);
    setText(element("receipt"), "");
    for (const step of STEPS) this.#light(step, "");
    this.#show("pressed");
    this.#reach("pressed", id);
    try {
      const answer = this.#client.alert(data, { id });
      this.#reach("sent", id);
      await answer;
      this.#reach("confirmed", id);
      this.#form.sent(data);
    } catch (error) {
      this.#fail(error, alarm);
    }
  }

  #fail(error, alarm) {
    // The event itself came back: it is out.
    if (!this.#pressed.has(alarm.id)) return;
    const isLatest = this.#latest?.id === alarm.id;
    if (isLatest) this.#latest = undefined;
    if (isLatest && error.code === "disconnected") return this.#hold(alarm, words.heldAgain);
    this.#pressed.delete(alarm.id);
    if (error.retry) this.#unconfirmed = alarm;
    if (isLatest) this.#show("refused");
    this.#say(words.refusal(error));
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
      if (held) {
        this.#say("");
        this.#send(held);
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
