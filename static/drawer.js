/** "What just happened": the frames themselves, as they are on the wire, for who wants to understand. */

import { element, line, oncePerFrame } from "./dom.js";
import { drawer as words } from "./words.js";

const FRAMES = 50;
/** Characters of a frame: a catch-up may be megabytes. */
const LENGTH = 1_000;
const TIME = { hour12: false, hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 };

export class Drawer {
  #frames = [];
  #root = element("drawer");
  #draw = oncePerFrame(() => this.#root.open && this.#drawFrames());

  constructor() {
    this.#root.addEventListener("toggle", () => this.#draw());
  }

  /** @param {"in" | "out"} direction @param {string} frame */
  trace = (direction, frame) => {
    const text = frame.length > LENGTH ? `${frame.slice(0, LENGTH)}…` : frame;
    this.#frames.push({ direction, text, length: frame.length, at: new Date() });
    if (this.#frames.length > FRAMES) this.#frames.shift();
    this.#draw();
  };

  #drawFrames() {
    const rows = this.#frames.map(({ direction, text, length, at }) => {
      const row = document.createElement("li");
      row.className = direction;
      const time = at.toLocaleTimeString("en", TIME);
      row.append(line("span", `${words.directions[direction]} · ${time} · ${words.size(length)}`, "details"), line("code", text));
      return row;
    });
    element("frames").replaceChildren(...rows.reverse());
  }
}
