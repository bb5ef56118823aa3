/**
 * The way of a landing: browser → VM → topic → this VM → this page, and the time that each leg took.
 *
 * The times come from four clocks. The page's own is set right by `clock`; the VMs' and the topic's are
 * held to agree within milliseconds, and where they do not, a stop is at the one before it or at the end:
 * so no leg is less than 0, and together they are the whole way.
 */

import { element, paced, setText } from "./dom.js";
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
  const told = [clock.at(pressedAt), timestamp, published, received, clock.at(heardAt)];
  const end = told.findLast(Number.isFinite);
  let before = -Infinity;
  const stops = told.map((stop) => {
    if (!Number.isFinite(stop)) return undefined;
    before = Math.max(before, Math.min(stop, end));
    return Math.round(before);
  });
  return stops.slice(1).map((stop, index) => {
    const leg = stop - stops[index];
    return Number.isNaN(leg) ? undefined : leg;
  });
}

let latest;
const draw = paced(() => {
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
