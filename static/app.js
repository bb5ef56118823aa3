/**
 * The page: what the client hears goes to the parts that show it, each in a file of its own.
 *
 * Each tab has its own socket. A VM holds one for about a kilobyte, a tab that sleeps or crashes takes
 * nothing from the others, and each catches up by its own cursor; a shared one would need a leader.
 */

import { Announcer, Notifier, Sound } from "./attention.js";
import { Button } from "./button.js";
import { AlienClient } from "./client.js";
import { Clock } from "./clock.js";
import { element } from "./dom.js";
import { Drawer } from "./drawer.js";
import { Form } from "./form.js";
import { legsOf, showJourney } from "./journey.js";
import { Landings, nameOf, regionOf } from "./landings.js";
import { WorldMap } from "./map.js";
import { watchVitals } from "./vitals.js";
import * as words from "./words.js";

const drawer = new Drawer();
const client = new AlienClient(undefined, { trace: drawer.trace });
const clock = new Clock(client);
const announcer = new Announcer();
const sound = new Sound();
const notifier = new Notifier(announcer.say);
const landings = new Landings();
const map = new WorldMap(element("map"), (place) => form.choose(place));
const form = new Form((place) => map.showSpot(place));
const button = new Button(client, form);

watchVitals(client, announcer.say);
client.on("alert", hearLanding);
client.on("fleet", ({ instances, more }) => map.showFleet(instances, client.greeting?.instance, more));
client.on("refresh-store", sayMissing);
client.on("state", (state) => state === "connected" && landings.loaded());
client.events.subscribe((events) => landings.show(events));
client.events.subscribe(markLandings)();
client.connect();

// For its offline page only. Its address is below the page's, so the server allows it the whole.
globalThis.addEventListener("load", () => {
  navigator.serviceWorker?.register("/static/worker.js", { scope: "/" }).catch(() => {
    // A browser may forbid it; nothing else depends on it.
  });
});

/** Those from before the page was loaded anew; the map shows the newest. */
function markLandings(events) {
  for (const event of events) if (event.type === "alert") map.showLanding(event, { live: false });
}

/** What there is to do once; the list itself shows what the client keeps. */
function hearLanding(event, { caughtUp }) {
  const heardAt = Date.now();
  const press = button.hear(event);
  const own = press !== undefined;
  const [from, here] = [regionOf(event), client.greeting?.region];
  const place = nameOf(event);
  if (own || !caughtUp) announcer.landing(place, own);
  if (caughtUp) {
    landings.note(event.id, { own, caughtUp });
    return map.showLanding(event, { live: false });
  }
  const legs = legsOf(event, { pressedAt: press?.sentAt, heardAt }, clock);
  // Its own watch is the best there is; else from when its VM took it, by a clock as right as can be.
  const byVm = Math.max(0, (clock.at(heardAt) ?? heardAt) - event.timestamp);
  const took = press?.began === undefined ? byVm : performance.now() - press.began;
  landings.note(event.id, { own, caughtUp, took, path: words.landing.path(from, here, legs) });
  showJourney({ legs, from, to: here, took });
  const between = legs[1] === undefined || legs[2] === undefined ? undefined : legs[1] + legs[2];
  map.showLanding(event, { live: true, own, here, took: between });
  sound.landing();
  notifier.landing(place);
}

/** @param {import("./client.js").RefreshStore} refresh */
function sayMissing({ complete, reason, missing }) {
  if (complete === false && missing) element("missing").textContent = words.missing({ reason, missing });
}
