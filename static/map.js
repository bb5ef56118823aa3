/**
 * The world: landings as ripples at their places, a line from the VM that took one to the VM that brought
 * it here, and the fleet as lights.
 *
 * The projection is equirectangular, the same as of world.svg: longitude and latitude are x and y, so a
 * click is a place. All that is on it is bounded, whatever comes: under a flood the newest landings are
 * marks, used again and again, and of the ripples and lines each is left to be seen. Those are elements
 * moved by transforms and opacity alone, which the browser animates beside the page's own work.
 */

import { line, paced, setText } from "./dom.js";
import { placeOfRegion } from "./regions.js";
import { duration, fleet as words } from "./words.js";

/** The part of the world that people live in; tools/artwork has the same. */
const NORTH = 84;
const SOUTH = -56;

const MARKS = 40;
/** Saucers with their waves, and lines: as many at a time, so a flood moves no more than that. */
const LIVE = 4;
const LINES = 3;
/** So long is each of them left to be seen (ms): what comes meanwhile to a map that is full is a mark only. */
const SEEN = 2_000;
const LIGHTS = 500;
/** From here on a light's name stands before it, or it would be cut off at the map's edge. */
const EAST = 0.9;
/** How long a light fades. */
const FADING = 4_000;

const SVG = "http://www.w3.org/2000/svg";

/** A place on the map, from its upper left corner, both from 0 to 1. */
export function positionOf({ lat, lon }) {
  const within = (value) => Math.min(1, Math.max(0, value));
  return { x: within((lon + 180) / 360), y: within((NORTH - lat) / (NORTH - SOUTH)) };
}

/** The place at a position, to a tenth of a degree: enough for a landing, and nobody's address. */
export function placeAt({ x, y }) {
  return rounded({ lat: NORTH - y * (NORTH - SOUTH), lon: x * 360 - 180 });
}

export function rounded({ lat, lon }) {
  // Without -0.
  const tenth = (degrees) => Math.round(degrees * 10) / 10 + 0;
  return { lat: tenth(lat), lon: tenth(lon) };
}

/** The place that an alert's `data` names, if it does; whatever else is there is none. */
export function placeGiven(data) {
  const { lat, lon } = data ?? {};
  const within = (degrees, most) => typeof degrees === "number" && Math.abs(degrees) <= most;
  return within(lat, 90) && within(lon, 180) ? { lat, lon } : undefined;
}

/** Where a landing was; where it does not say, its VM's region stands in. Nothing for an unknown one. */
export function placeOfLanding({ data, origin, regionCode }) {
  return placeGiven(data) ?? placeOfRegion(origin?.region ?? regionCode);
}

export class WorldMap {
  #root;
  #marks;
  #lines;
  #lights;
  #saucers;
  #label;
  #spot;
  /** How many landings there were; the next one takes the oldest one's mark. */
  #count = 0;
  /** What is in motion, oldest first, and since when. */
  #live = [];
  #ways = [];
  /** By the VM's id. */
  #lit = new Map();
  #vms = 0;
  #waiting = [];
  #draw = paced(() => this.#drawLandings());

  /** @param {(place: {lat: number, lon: number}) => void} pick hears of clicks */
  constructor(root, pick) {
    this.#root = root;
    const part = (name) => root.querySelector(`.${name}`);
    [this.#marks, this.#lines, this.#lights] = [part("marks"), part("lines"), part("lights")];
    [this.#saucers, this.#label, this.#spot] = [part("saucers"), part("way"), part("spot")];
    root.addEventListener("click", ({ clientX, clientY }) => {
      const { left, top, width, height } = root.getBoundingClientRect();
      pick(placeAt({ x: (clientX - left) / width, y: (clientY - top) / height }));
    });
  }

  /**
   * @param event an alert
   * @param {{live: boolean, own?: boolean, here?: string, took?: number}} how only one that comes just now
   *   makes waves; whether it was pressed here, the region of this page's VM, and the ms from VM to VM
   */
  showLanding(event, how) {
    this.#waiting.push({ event, how });
    if (this.#waiting.length > MARKS) this.#waiting.shift();
    this.#draw();
  }

  /**
   * @param {string} [own] the id of this page's VM
   * @param {number} [more] VMs that are not among these
   */
  showFleet(instances, own, more = 0) {
    const regions = new Map();
    const alive = new Set();
    for (const { instance, region, clients } of instances.slice(0, LIGHTS)) {
      const place = placeOfRegion(region);
      if (!place) continue;
      alive.add(instance);
      const neighbours = regions.get(region) ?? 0;
      regions.set(region, neighbours + 1);
      const light = this.#lightOf(instance, positionOf(place));
      // Twice the sockets, one step more.
      setStyle(light, "--size", (1 + Math.log2(1 + Math.max(0, Number(clients) || 0)) / 3).toFixed(2));
      setStyle(light, "--turn", `${neighbours * 137.5}deg`);
      setStyle(light, "--away", neighbours && Math.sqrt(neighbours).toFixed(2));
      // One's own machine needs no name, and neighbours have it already.
      setText(light, neighbours || region.length !== 3 ? "" : region);
      light.classList.toggle("here", instance === own);
    }
    for (const [instance, light] of this.#lit) if (!alive.has(instance)) this.#fade(instance, light);
    this.#vms = instances.length + more;
    this.#describe();
  }

  /** The place that was chosen for the next landing, or none. */
  showSpot(place) {
    this.#spot.hidden = !place;
    if (place) put(this.#spot, positionOf(place));
  }

  #lightOf(instance, position) {
    const known = this.#lit.get(instance);
    if (known) return known;
    const light = line("span", "", "light");
    light.dataset.instance = instance;
    put(light, position);
    light.classList.toggle("east", position.x > EAST);
    this.#lit.set(instance, light);
    this.#lights.append(light);
    return light;
  }

  #fade(instance, light) {
    this.#lit.delete(instance);
    light.classList.add("gone");
    setTimeout(() => light.remove(), FADING);
  }

  #drawLandings() {
    for (const { event, how } of this.#waiting) {
      const place = placeOfLanding(event);
      if (!place) continue;
      const position = positionOf(place);
      this.#mark(event.id, position);
      if (!how.live) continue;
      this.#enliven(event.id, position, how.own);
      this.#drawWay(event, how);
    }
    this.#waiting = [];
    this.#describe();
  }

  #mark(id, position) {
    const mark = this.#marks.children[this.#count++ % MARKS] ?? this.#marks.appendChild(line("span", "", "mark"));
    mark.dataset.id = id;
    put(mark, position);
  }

  /** One's own is waited for, and always shown. */
  #enliven(id, position, own) {
    if (!hasRoom(this.#live, LIVE, own)) return;
    const saucer = line("span", "", "mark live");
    saucer.dataset.id = id;
    put(saucer, position);
    this.#saucers.append(saucer);
    this.#live.push({ node: saucer, since: performance.now() });
  }

  /** An arc from the VM that took it to this page's; a loop where they are in one place. */
  #drawWay(event, { here, took }) {
    const origin = event.origin?.region ?? event.regionCode;
    const ends = [placeOfRegion(origin), placeOfRegion(here)];
    if (!ends[0] || !ends[1]) return;
    const [from, to] = ends.map(positionOf).map(({ x, y }) => ({ x: x * 360, y: y * (NORTH - SOUTH) }));
    const far = Math.hypot(to.x - from.x, to.y - from.y);
    const top = { x: (from.x + to.x) / 2, y: Math.max(-20, (from.y + to.y) / 2 - far * 0.35) };
    const middle = { x: top.x, y: far < 1 ? from.y - 23 : (from.y + 2 * top.y + to.y) / 4 };
    setText(this.#label, took === undefined ? "" : duration(took));
    put(this.#label, { x: middle.x / 360, y: Math.max(0.04, middle.y / (NORTH - SOUTH)) });

    if (!hasRoom(this.#ways, LINES)) return;
    const path = document.createElementNS(SVG, "path");
    const curve = far < 1 ? `c-16-24 16-24 0 0` : `Q${top.x} ${top.y} ${to.x} ${to.y}`;
    path.setAttribute("d", `M${from.x} ${from.y}${curve}`);
    path.dataset.from = origin;
    path.dataset.to = here;
    path.addEventListener("animationend", () => this.#endWay(path));
    this.#lines.append(path);
    this.#ways.push({ node: path, since: performance.now() });
  }

  /** The time is that of a line, and goes with the last one. */
  #endWay(path) {
    path.remove();
    if (this.#lines.childElementCount === 0) setText(this.#label, "");
  }

  #describe() {
    this.#root.setAttribute("aria-label", words.map(this.#vms, this.#marks.childElementCount));
  }
}

/** Whether one more can be shown: where there are as many as may be, the oldest goes if it was seen, or must. */
function hasRoom(shown, most, must = false) {
  if (shown.length < most) return true;
  if (!must && performance.now() - shown[0].since < SEEN) return false;
  shown.shift().node.remove();
  return true;
}

/** Of the map, whatever its size. A strict Content-Security-Policy allows it to scripts. */
function put(node, { x, y }) {
  node.style.left = `${(x * 100).toFixed(3)}%`;
  node.style.top = `${(y * 100).toFixed(3)}%`;
}

/** Only where it changed: most lights are as they were. */
function setStyle(node, name, value) {
  if (node.style.getPropertyValue(name) !== String(value)) node.style.setProperty(name, value);
}
