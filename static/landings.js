/**
 * The list of landings, newest first.
 *
 * It keeps up with fifty a second and a thousand of them: whatever came is drawn once a frame, a frame draws
 * a bounded number of new ones, and the document holds as many as were scrolled to. What is out of sight is
 * neither laid out nor counted older.
 */

import { element, foreign, line, oncePerFrame, setText } from "./dom.js";
import { placeGiven } from "./map.js";
import * as words from "./words.js";

/** On the list at first, and more each time that its end comes near: each one at the top moves all below. */
const PAGE = 75;
/** New ones a frame: many enough that a catch-up shows at once, few enough that a slow phone goes on. */
const PER_FRAME = 50;
/** More than the client keeps events. */
const REMEMBERED = 2_000;
/** That many a second are seen to come in; of more, the eye could follow none. */
const NEWS = 5;
/** Regions to choose from: more than there are. */
const REGIONS = 200;

export class Landings {
  #list = element("landings");
  #empty = element("empty");
  #filter = element("region");
  /** What is on the list, by the event's id. */
  #items = new Map();
  /** How landings were heard, by the event's id; those from before a reload have none. */
  #how = new Map();
  #events = [];
  #regions = new Set();
  #loading = true;
  #most = PAGE;
  /** Seen to come in, in this second. */
  #news = 0;
  #draw = oncePerFrame(() => this.#drawList());

  constructor() {
    this.#filter.addEventListener("change", () => this.#draw());
    this.#list.addEventListener("contentvisibilityautostatechange", ({ target, skipped }) => {
      const item = this.#items.get(target.dataset.id);
      if (!item) return;
      item.inSight = !skipped;
      if (item.inSight) showAge(item);
    }, true);
    this.#list.parentElement.addEventListener("scroll", ({ target }) => this.#scrolled(target));
    setInterval(() => this.#tick(), 1_000);
    this.#draw();
  }

  /**
   * Takes note of how a landing was heard, before `show` has it.
   * @param {{own: boolean, caughtUp: boolean, took?: number, path?: string}} how
   */
  note(id, how) {
    this.#how.set(id, how);
    if (this.#how.size > REMEMBERED) this.#how.delete(this.#how.keys().next().value);
  }

  /** @param events all that there are, oldest first */
  show(events) {
    const alerts = events.filter(({ type }) => type === "alert");
    // One came to a full list, or any number to one that fills.
    const fresh = alerts.length === this.#events.length ? alerts.slice(-PER_FRAME) : alerts;
    for (const event of fresh) this.#offer(regionOf(event));
    this.#events = alerts;
    this.#draw();
  }

  /** What happened before is here: if nothing is on the list, nothing happened. */
  loaded() {
    this.#loading = false;
    this.#draw();
  }

  #drawList() {
    const region = this.#filter.value;
    const all = region ? this.#events.filter((event) => regionOf(event) === region) : this.#events;
    const wanted = all.slice(-this.#most).reverse();
    const empty = this.#loading ? words.list.loading : region ? words.list.noneFrom(region) : words.list.empty;
    setText(this.#empty, empty);
    this.#empty.hidden = wanted.length > 0;
    let room = PER_FRAME;
    let next = this.#list.firstElementChild;
    for (const event of wanted) {
      let item = this.#items.get(event.id);
      if (!item && room-- === 0) return this.#draw();
      item ??= this.#add(event);
      if (item.node === next) next = next.nextElementSibling;
      else this.#list.insertBefore(item.node, next);
    }
    while (this.#list.childElementCount > wanted.length) {
      const last = this.#list.lastElementChild;
      this.#items.delete(last.dataset.id);
      last.remove();
    }
  }

  #add(event) {
    const how = this.#how.get(event.id);
    const node = landing(event, how);
    // It is news once, not again when a filter brings it back.
    if (how?.caughtUp === false && !how.shown && this.#news++ < NEWS) node.classList.add("new");
    if (how) how.shown = true;
    const age = line("span", "", "age");
    node.querySelector(".details").append(age);
    const item = { node, age, timestamp: event.timestamp, inSight: true };
    showAge(item);
    this.#items.set(event.id, item);
    return item;
  }

  #scrolled({ scrollTop, scrollHeight, clientHeight }) {
    if (scrollTop === 0) this.#most = PAGE;
    else if (scrollHeight - scrollTop < 2 * clientHeight && this.#list.childElementCount === this.#most) this.#most += PAGE;
    this.#draw();
  }

  /** One more region to choose, by the city's name. */
  #offer(region) {
    if (this.#regions.has(region) || this.#regions.size === REGIONS) return;
    this.#regions.add(region);
    const option = line("option", words.list.region(region));
    option.value = region;
    const after = [...this.#filter.options].slice(1).find(({ text }) => text > option.text);
    this.#filter.add(option, after ?? null);
  }

  #tick() {
    this.#news = 0;
    for (const item of this.#items.values()) if (item.inSight) showAge(item);
  }
}

export function regionOf(event) {
  return String(event.origin?.region ?? event.regionCode);
}

/** What to call the place of a landing. */
export function nameOf(event) {
  if (event.data?.place) return String(event.data.place);
  const place = placeGiven(event.data);
  return place ? words.landing.at(place) : words.landing.near(regionOf(event));
}

function landing(event, how) {
  const region = regionOf(event);
  const node = document.createElement("li");
  node.dataset.id = event.id;
  node.dataset.region = region;
  node.append(foreign("strong", nameOf(event)));
  if (event.data?.note) node.append(foreign("p", event.data.note, "note"));
  const details = line("p", "", "details");
  const facts = [
    [words.landing.from(region), "from"],
    how?.took !== undefined && [words.landing.took(how.took, how.own), "took"],
    how?.own && [words.landing.own, "yours"],
    how?.caughtUp && [words.landing.caughtUp, "caught-up"],
  ];
  for (const fact of facts) if (fact) details.append(line("span", ...fact), " ");
  node.append(details);
  if (how?.path) node.append(line("p", how.path, "path"));
  node.classList.toggle("own", how?.own === true);
  return node;
}

function showAge({ age, timestamp }) {
  setText(age, words.age(timestamp));
}
