/**
 * All that the page says while it runs, in English. What stands on it from the beginning is in
 * index.html, so that the first paint has it; what is in both is held to be the same by a test. Who
 * translates also wants the cities in regions.js, offline.html and manifest.webmanifest.
 */

import { cityOf } from "./regions.js";

/** Numbers and times are written as in the page's language. */
export const locale = document.documentElement.lang;
const numbers = new Intl.NumberFormat(locale);

export const number = (value) => numbers.format(value);

const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** What is not known. */
export const UNKNOWN = "—";

/** The city of a region; a VM that was told none is somebody's own. */
export const city = (region) => (region === "LOCAL_REGION" ? "this machine" : cityOf(region));

export const connection = {
  connecting: "Connecting…",
  connected: ({ instance, region }) => `Connected to ${short(instance)} in ${city(region)} (${region})`,
  waiting: (seconds) => `Connection lost. Next attempt in ${seconds} s`,
  offline: "Your device is offline. Connecting as soon as it is back",
};

/** The button's states. */
export const press = {
  offline: "Waiting for the connection",
  idle: "Ready",
  held: "Held back",
  pressed: "Pressed…",
  sent: "Sent…",
  confirmed: "On its way to everyone",
  heard: "Heard around the world",
  refused: "Not sent",
  unconfirmed: "Not confirmed",
};

export const heldBack =
  "Held back: there is no connection. It goes out by itself if there is one within 2 minutes. Press again to take it back.";
export const heldAgain =
  "The connection broke before the answer. What was pressed goes out again by itself within 2 minutes, and counts once. Press again to take it back.";
export const takenBack = "Taken back: nothing was sent.";
export const takenBackLate = "Taken back: it will not be sent again. It may have been heard.";
export const tooLate =
  "Not sent: there was no connection for 2 minutes, and a landing is news only while it is fresh. Press again if it still is.";

/**
 * Why the alarm was refused, by the error's code.
 * @param {{code: string, message?: string}} error
 */
export function refusal({ code, message }) {
  const why = {
    timeout: "No answer came. Press again: it counts once.",
    unavailable: "The alarm could not be passed on just now. Press again in a moment.",
    rate_limited: "That was a lot of landings. Wait a second and press again.",
    forbidden: "You may not raise the alarm here.",
    invalid_field: `The server can't take what was typed: ${message}`,
  };
  return Object.hasOwn(why, code) ? why[code] : `Refused: ${message}`;
}

export const receipt = (sockets, instances) => `Heard by ${plural(sockets, "socket")} on ${plural(instances, "VM")}`;

export const spot = {
  chosen: (place) => `${coordinates(place)}, rounded to 0.1° (about 11 km)`,
  none: "Click the map, or leave it: then it is near your VM.",
  half: "Latitude and longitude belong together: give both, or none.",
  outside: "Latitude is from -90 to 90, longitude from -180 to 180.",
  asking: "Asking your browser…",
  denied: "Your browser did not tell where you are.",
};

export const landing = {
  near: (region) => `Near ${city(region)}`,
  at: (place) => `At ${coordinates(place)}`,
  from: (region) => `seen from ${city(region)} (${region})`,
  took: (ms, own) => `in ${own ? "" : "~"}${duration(ms)}`,
  own: "yours",
  caughtUp: "caught up",
  /** From stop to stop, with the times that are known. */
  path: (from, to, legs) => {
    const [up, topic, down, here] = legs;
    const leg = (ms) => (ms === undefined ? " → " : ` → ${duration(ms)} → `);
    return `${up === undefined ? "" : `you${leg(up)}`}${from}${leg(topic)}topic${leg(down)}${to}${leg(here)}page`;
  },
};

export const list = {
  loading: "Listening for what happened before…",
  empty: "No landings yet. The sky is quiet.",
  noneFrom: (region) => `None from ${city(region)} yet.`,
  region: (region) => `${city(region)} (${region})`,
};

export const journey = {
  vm: (region) => `VM ${region}`,
  total: (ms) => `${duration(ms)} in all`,
};

export const fleet = {
  clients: (count) => plural(count, "socket"),
  roundTrip: (ms) => `topic and back in ${duration(ms)}`,
  here: "yours",
  map: (vms, landings) => `World map with ${plural(vms, "VM")} and ${plural(landings, "landing")}`,
};

export const announce = {
  landings: (count, place) => (count === 1 ? `Landing: ${place}` : `${number(count)} landings, the latest: ${place}`),
  own: (count, place) => `${press.heard}: ${count === 1 ? place : announce.landings(count, place)}`,
  notification: (count, place) => ({
    title: count === 1 ? "Alien landing!" : plural(count, "alien landing") + "!",
    body: count === 1 ? place : `The latest: ${place}`,
  }),
};

export const drawer = {
  size: (length) => plural(length, "character"),
  directions: { in: "in", out: "out" },
};

export const notify = {
  label: "Notify me",
  denied: "Blocked by the browser",
};

export function missing({ reason, missing: range }) {
  const why = {
    too_old: "that is too long ago.",
    too_many: "there were too many since.",
    gap: "the line to the topic was broken. They are shown as soon as they are found.",
  }[reason];
  const when = range.from ? `from ${moment(range.from)} to ${moment(range.to)}` : `before ${moment(range.to)}`;
  return `Landings ${when} may be missing here: ${why ?? "nobody knows them any longer."}`;
}

export function age(timestamp) {
  const seconds = Math.max(0, Math.round((Date.now() - timestamp) / 1000));
  if (!Number.isFinite(seconds)) return UNKNOWN;
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  return "days ago";
}

export function duration(ms) {
  if (!Number.isFinite(ms)) return UNKNOWN;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : "over a minute";
}

export function coordinates({ lat, lon }) {
  return `${Math.abs(lat).toFixed(1)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(1)}° ${lon < 0 ? "W" : "E"}`;
}

export function moment(timestamp) {
  return new Date(timestamp).toLocaleString(locale, { dateStyle: "medium", timeStyle: "medium" });
}

/** A VM's id may be a long UUID: its beginning tells it apart. */
export function short(instance) {
  return instance.length > 14 ? `${instance.slice(0, 8)}…` : instance;
}
