/**
 * The list of landings, newest first.
 *
 * All thousand are in the document, so the browser's search finds each, and fifty more a second are little
 * work: new rows are drawn twenty times a second, a bounded number at a time, and they stand in leaves, of
 * which the browser neither lays out nor paints those that are out of sight. So a new row moves its own
 * leaf's rows and a few leaves, not a thousand rows. Each leaf is some work with every frame: out of sight
 * they are joined to larger ones.
 */

import { element, foreign, line, paced, setText } from "./dom.js";
import { placeGiven } from "./map.js";
import { remember, remembered } from "./storage.js";
import * as words from "./words.js";

/** Rows of a leaf, and of one that others were joined to. */
const LEAF = 20;
const LARGE = 100;
/** So many are joined in a second: as many as a flood adds, and few enough for one frame. */
const JOINED = 3;
/** A row's height, about, in rem. */
const ROW = 5.5;
/** Leaves at the top that are always laid out. */
const FIRST = 2;
/** New rows at a time: enough that a catch-up shows at once, few enough that a slow phone goes on. */
const AT_A_TIME = 25;
/** More than the client keeps events. */
const REMEMBERED = 2_000;
/** Of these so many outlive a reload of the page: as many as the client keeps events. */
const STORED = 1_000;
const STORED_AS = "alien-alert heard";
/** Where the browser does not tell which leaves are in sight, all of them count as such. */
const TELLS_SIGHT = "ContentVisibilityAutoStateChangeEvent" in globalThis;
/** Regions to choose from: more than there are. */
const REGIONS = 200;

export class Landings {
  #list = element("landings");
  #empty = element("empty");
  #filter = element("region");
  /** What is on the list, by the event's id. */
  #rows = new Map();
  /** Leaves that are in sight, or may be. */
  #inSight = new Set();
  /** How landings were heard, by the event's id. */
  #how = new Map(heardBefore());
  #events = [];
  #regions = new Set();
  #loading = true;
  #draw = paced(() => this.#drawList());
  /** Leaves whose ages are to be shown anew, one at a time. */
  #aging = [];
  #tick = paced(() => {
    const leaf = this.#aging.pop();
    if (!leaf) return;
    this.#showAges(leaf);
    this.#tick();
  });

  constructor() {
    this.#filter.addEventListener("change", () => {
      this.#list.replaceChildren();
      this.#rows.clear();
      this.#inSight.clear();
      this.#draw();
    });
    this.#list.addEventListener("contentvisibilityautostatechange", (/** @type {any} */ { target, skipped }) => {
      if (skipped) return this.#inSight.delete(target);
      this.#inSight.add(target);
      this.#showAges(target);
    }, true);
    setInterval(() => {
      this.#joinLeaves();
      if (this.#aging.length > 0) return;
      this.#aging = [...this.#inSight];
      this.#tick();
    }, 1_000);
    // A page that is left is hidden first.
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) remember("sessionStorage", STORED_AS, [...this.#how].slice(-STORED));
    });
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
    this.#events = events;
    this.#draw();
  }

  /** What happened before is here: if nothing is on the list, nothing happened. */
  loaded() {
    this.#loading = false;
    this.#draw();
  }

  #drawList() {
    const region = this.#filter.value;
    const alerts = this.#events.filter(({ type }) => type === "alert");
    for (const event of alerts) this.#offer(regionOf(event));
    const wanted = region ? alerts.filter((event) => regionOf(event) === region) : alerts;
    const empty = this.#loading ? words.list.loading : region ? words.list.noneFrom(region) : words.list.empty;
    setText(this.#empty, empty);
    this.#empty.hidden = wanted.length > 0;
    const fresh = this.#addMissing(wanted);
    // One by one they are seen to come in; of more at once the eye could follow none.
    if (fresh.length === 1) fresh[0].classList.add("new");
    this.#dropOldest(wanted.length);
  }

  /** Those that are not on the list yet, a bounded number; the rows of what just happened. */
  #addMissing(wanted) {
    const fresh = [];
    let room = AT_A_TIME;
    let newer;
    for (let index = wanted.length - 1; index >= 0 && room > 0; index--) {
      const event = wanted[index];
      const known = this.#rows.get(event.id);
      newer = known ?? this.#add(event, newer);
      if (known) continue;
      room--;
      const how = this.#how.get(event.id);
      // It is news once, not again when a filter brings it back.
      if (how?.caughtUp === false && !how.shown) fresh.push(newer);
      if (how) how.shown = true;
    }
    if (room === 0) this.#draw();
    return fresh;
  }

  /** A row after the newer one, or at the top. */
  #add(event, newer) {
    const row = landing(event, this.#how.get(event.id));
    this.#rows.set(event.id, row);
    const leaf = newer?.parentElement ?? this.#list.firstElementChild;
    const full = !leaf || (leaf.childElementCount >= LEAF && (!newer || newer === leaf.lastElementChild));
    if (full) this.#addLeaf(row, newer && leaf);
    else if (newer) newer.after(row);
    else leaf.prepend(row);
    return row;
  }

  #addLeaf(row, before) {
    const leaf = document.createElement("ol");
    leaf.role = "presentation";
    leaf.append(row);
    if (before) before.after(leaf);
    else this.#list.prepend(leaf);
    this.#inSight.add(leaf);
    // Whether the first ones are in sight is no question, and to ask it is work.
    for (const rest of [...this.#list.children].slice(FIRST)) {
      if (rest.className) continue;
      rest.className = "rest";
      if (TELLS_SIGHT) this.#inSight.delete(rest);
    }
  }

  /** Whole ones, of which the browser has told by now that they are out of sight. */
  #joinLeaves() {
    let room = JOINED;
    for (const upper of [...this.#list.children].slice(FIRST)) {
      const lower = upper.nextElementSibling;
      if (!lower || room === 0) return;
      const rows = [...upper.children];
      const count = rows.length + lower.childElementCount;
      const inSight = this.#inSight.has(upper) || this.#inSight.has(lower);
      if (inSight || count > LARGE || lower.childElementCount < LEAF) continue;
      // They would come in once more.
      for (const row of rows) row.classList.remove("new");
      lower.prepend(...rows);
      lower.style.containIntrinsicSize = `${ROW * count}rem`;
      upper.remove();
      room--;
    }
  }

  #dropOldest(most) {
    while (this.#rows.size > most) {
      const leaf = this.#list.lastElementChild;
      const row = leaf.lastElementChild;
      this.#rows.delete(row.dataset.id);
      row.remove();
      if (leaf.childElementCount > 0) continue;
      this.#inSight.delete(leaf);
      leaf.remove();
    }
  }

  /** @param {any} leaf */
  #showAges(leaf) {
    for (const row of leaf.children) setText(row.querySelector(".age"), words.age(Number(row.dataset.at)));
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
}

/** From before the page was loaded anew. */
function heardBefore() {
  const stored = remembered("sessionStorage", STORED_AS);
  return Array.isArray(stored) ? stored : [];
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
  const row = document.createElement("li");
  row.role = "listitem";
  row.dataset.id = event.id;
  row.dataset.region = region;
  row.dataset.at = event.timestamp;
  row.append(foreign("strong", nameOf(event)));
  if (event.data?.note) row.append(foreign("p", event.data.note, "note"));
  const details = line("p", words.landing.from(region), "details");
  if (how?.took !== undefined) details.append(` ${words.landing.took(how.took, how.own)}`);
  if (how?.own) details.append(" ", line("span", words.landing.own, "yours"));
  if (how?.caughtUp) details.append(" ", line("span", words.landing.caughtUp, "caught-up"));
  details.append(" ", line("span", words.age(event.timestamp), "age"));
  row.append(details);
  if (how?.path) row.append(line("p", how.path, "path"));
  row.classList.toggle("own", how?.own === true);
  row.classList.toggle("tall", /\p{M}{3}/u.test(row.textContent));
  return row;
}
