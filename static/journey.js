/**
 * The way of a landing: browser → VM → topic → this VM → this page, and the time that each leg took.
 *
 * The times come from four clocks. The page's own is set right by `clock`; the VMs' and the topic's are
 * held to agree within milliseconds, and where they do not, a leg is 0 rather than less.
 */

import { element, oncePerFrame, setText } from "./dom.js";
import { duration, journey as words } from "./words.js";

/**
 * Four times in ms, each undefined where nobody knows it: only who pressed knows the first, and an older
 * VM tells none of the rest.
 *
 * @param event an alert as it came
 * @param {{pressedAt?: number, heardAt: number}} page moments by the page's clock
 * @param {import("./clock.js").Clock} clock
 */
export function legsOf({ timestamp, published, received }, { pressedAt, heardAt }, clock) {
  return [
    between(clock.at(pressedAt), timestamp),
    between(timestamp, published),
    between(published, received),
    between(received, clock.at(heardAt)),
  ];
}

let latest;
const draw = oncePerFrame(() => {
  const { legs, from, to, took } = latest;
  setText(element("journey-from"), words.vm(from));
  setText(element("journey-to"), words.vm(to));
  const shown = element("journey").querySelectorAll(".leg");
  legs.forEach((leg, index) => setText(shown[index], duration(leg)));
  setText(element("journey-total"), words.total(took));
});

/** Shows the way of the landing that came last: its legs, the regions of both VMs, and the ms in all. */
export function showJourney(way) {
  latest = way;
  draw();
}

function between(from, to) {
  return Number.isFinite(from) && Number.isFinite(to) ? Math.max(0, Math.round(to - from)) : undefined;
}
