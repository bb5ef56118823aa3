/** "What just happened": the frames themselves, as they are on the wire, for who wants to understand. */

import { element, line, paced } from "./dom.js";
import { locale, drawer as words } from "./words.js";

const FRAMES = 50;
/** Characters of a frame: a catch-up may be megabytes. */
const LENGTH = 1_000;
const time = new Intl.DateTimeFormat(locale, {
  hour12: false,
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
});

export class Drawer {
  #frames = [];
  #root = element("drawer");
  #draw = paced(() => this.#drawFrames());

  constructor() {
    this.#root.addEventListener("toggle", () => this.#root.open && this.#draw());
  }

  /** @param {"in" | "out"} direction @param {string} frame */
  trace = (direction, frame) => {
    const text = frame.length > LENGTH ? `${frame.slice(0, LENGTH)}…` : frame;
    this.#frames.push({ direction, text, length: frame.length, at: new Date(), shown: false });
    if (this.#frames.length > FRAMES) this.#frames.shift();
    if (this.#root.open) this.#draw();
  };

  /** Those that came since it was drawn last. */
  #drawFrames() {
    const rows = element("frames");
    const fresh = this.#frames.filter(({ shown }) => !shown);
    for (const frame of fresh) frame.shown = true;
    rows.prepend(...fresh.reverse().map(row));
    while (rows.childElementCount > FRAMES) rows.lastElementChild.remove();
  }
}

function row({ direction, text, length, at }) {
  const item = document.createElement("li");
  item.className = direction;
  const facts = `${words.directions[direction]} · ${time.format(at)} · ${words.size(length)}`;
  item.append(line("span", facts, "details"), line("code", text));
  return item;
}
