/**
 * The page: shows what the client hears, and sends what the person presses.
 *
 * Everything that came from elsewhere goes into the document as text, never as markup.
 */

import { AlienClient, randomId } from "./client.js";
import { city } from "./regions.js";

/** All that the page says, in one place. */
const TEXT = {
  connecting: "Connecting…",
  connected: ({ instance, region }) => `Connected to ${short(instance)} in ${city(region)} (${region})`,
  waiting: (seconds) => `Connection lost. Next attempt in ${seconds} s`,
  offline: "Your device is offline. Connecting as soon as it is back",
  press: {
    idle: "Ready",
    sending: "Sent…",
    confirmed: "On its way to everyone",
    heard: "Heard around the world",
    refused: "Not sent",
    offline: "Waiting for the connection",
  },
  heldBack: "Nothing was sent: there is no connection yet. Press again when it is back.",
  refused: {
    disconnected: "The connection broke before the answer. Press again once connected: it counts once.",
    timeout: "No answer came. Press again: it counts once.",
    unavailable: "The alarm could not be passed on just now. Press again in a moment.",
    rate_limited: "That was a lot of landings. Wait a second and press again.",
  },
  otherwise: (why) => `Refused: ${why}`,
  near: (region) => `Near ${city(region)}`,
  from: (region) => `seen from ${city(region)} (${region})`,
  own: "yours",
  caughtUp: "while you were away",
  took: (ms, own) => `in ${own ? "" : "~"}${ms} ms`,
  clients: (count) => (count === 1 ? "1 page" : `${count} pages`),
  roundTrip: (ms) => `topic and back in ${ms} ms`,
  here: "yours",
  announce: (count, place) => (count === 1 ? `Landing: ${place}` : `${count} landings, the latest: ${place}`),
  missing: (reason, range) => {
    const why = {
      too_old: "that is too long ago.",
      too_many: "there were too many since.",
      gap: "the line to the topic was broken. They are shown as soon as they are found.",
    }[reason];
    return `Landings ${range} may be missing here: ${why ?? "nobody knows them any longer."}`;
  },
  range: ({ from, to }) => (from ? `from ${moment(from)} to ${moment(to)}` : `before ${moment(to)}`),
};

/** Landings kept on the page. */
const SHOWN = 200;
/** A screen reader hears of landings at most this often. */
const ANNOUNCE_EVERY = 3_000;

const element = (id) => document.getElementById(id);
const button = element("press");
const client = new AlienClient();

/** The presses under way, by the event's id: when they were made. */
const pressed = new Map();
/** The last one that was not confirmed: pressing again sends the same event. */
let unconfirmed;
/** How the landings that come just now were heard, by the event's id. */
const heard = new Map();
let unannounced = [];

client.on("state", showConnection);
client.on("alert", hearLanding);
client.events.subscribe(showLandings);
client.on("fleet", showFleet);
client.on("refresh-store", sayMissing);
button.addEventListener("click", press);
setInterval(showConnection, 500);
setInterval(showAges, 1_000);
client.connect();

async function press() {
  if (client.state !== "connected") return say(TEXT.heldBack);
  say("");
  const data = {};
  for (const field of ["place", "note"]) {
    const text = element(field).value.trim();
    if (text) data[field] = text;
  }
  const same = unconfirmed && JSON.stringify(unconfirmed.data) === JSON.stringify(data);
  const id = same ? unconfirmed.id : randomId();
  unconfirmed = undefined;
  pressed.set(id, performance.now());
  showPress("sending");
  try {
    await client.alert(data, { id });
    // The event itself may have been faster than its confirmation.
    if (pressed.has(id)) showPress("confirmed");
    // What was typed meanwhile is for the next one.
    for (const field of ["place", "note"]) if (element(field).value.trim() === (data[field] ?? "")) element(field).value = "";
  } catch (error) {
    pressed.delete(id);
    if (error.retry) unconfirmed = { id, data };
    showPress("refused");
    say(TEXT.refused[error.code] ?? TEXT.otherwise(error.message));
  }
}

function showPress(state) {
  button.dataset.state = state;
  element("progress").textContent = TEXT.press[state];
}

function showConnection() {
  const { state, greeting, nextAttempt } = client;
  const seconds = Math.max(0, Math.ceil((nextAttempt - Date.now()) / 1000));
  const text = {
    closed: TEXT.connecting,
    connecting: TEXT.connecting,
    connected: greeting && TEXT.connected(greeting),
    waiting: TEXT.waiting(seconds),
    offline: TEXT.offline,
  }[state];
  const connection = element("connection");
  // The count-down ticks for the eye only; the ear hears of changes.
  if (connection.dataset.state !== state) element("announcer").textContent = text;
  setText(connection, text);
  connection.dataset.state = state;
  const connected = state === "connected";
  button.setAttribute("aria-disabled", String(!connected));
  if (connected && button.dataset.state === "offline") showPress("idle");
  if (!connected && ["idle", "confirmed", "heard"].includes(button.dataset.state)) showPress("offline");
}

/** What there is to do once; the list itself shows what the client keeps. */
function hearLanding(event, { caughtUp }) {
  const began = pressed.get(event.id);
  const own = pressed.delete(event.id);
  const took = Math.round(own ? performance.now() - began : Math.max(0, Date.now() - event.timestamp));
  heard.set(event.id, { own, caughtUp, took });
  if (own) showPress("heard");
  if (!caughtUp) {
    flash();
    announce(placeOf(event));
  }
}

/** Newest first. Who is on the list already stays as it is. */
function showLandings(events) {
  const list = element("landings");
  const shown = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const newest = events.filter(({ type }) => type === "alert").slice(-SHOWN);
  let next = list.firstElementChild;
  for (const event of newest.reverse()) {
    const item = shown.get(event.id) ?? landing(event, heard.get(event.id));
    if (item === next) next = next.nextElementSibling;
    else list.insertBefore(item, next);
  }
  while (list.children.length > newest.length) list.lastElementChild.remove();
  heard.clear();
  showAges();
  element("empty").hidden = newest.length > 0;
}

/** One from before a reload comes without how it was heard. */
function landing(event, how) {
  const region = regionOf(event);
  const item = document.createElement("li");
  item.dataset.id = event.id;
  item.dataset.region = region;
  item.append(line("strong", placeOf(event)));
  if (event.data?.note) item.append(line("p", event.data.note, "note"));

  const age = line("span", "", "age");
  age.dataset.since = event.timestamp;
  const details = line("p", "", "details");
  const facts = [
    TEXT.from(region),
    how && (how.caughtUp ? TEXT.caughtUp : TEXT.took(how.took, how.own)),
    how?.own && TEXT.own,
  ];
  details.append(facts.filter(Boolean).join(" · "), " · ", age);
  item.append(details);
  item.classList.toggle("own", how?.own === true);
  item.classList.toggle("new", how?.caughtUp === false);
  return item;
}

function regionOf(event) {
  return event.origin?.region ?? event.regionCode;
}

function placeOf(event) {
  return event.data?.place || TEXT.near(regionOf(event));
}

function sayMissing({ complete, reason, missing }) {
  if (complete === false && missing) say(TEXT.missing(reason, TEXT.range(missing)));
}

function showFleet({ instances }) {
  const items = instances.map(({ instance, region, clients, roundTripMs }) => {
    const item = document.createElement("li");
    item.dataset.instance = instance;
    const here = instance === client.greeting?.instance;
    item.classList.toggle("here", here);
    const facts = [
      `${short(instance)} (${region})`,
      TEXT.clients(clients),
      roundTripMs != null && TEXT.roundTrip(roundTripMs),
      here && TEXT.here,
    ];
    item.append(line("strong", city(region)), line("span", facts.filter(Boolean).join(" · "), "details"));
    return item;
  });
  element("fleet").replaceChildren(...items);
}

function showAges() {
  for (const age of document.querySelectorAll("#landings .age")) setText(age, ageOf(Number(age.dataset.since)));
}

function ageOf(timestamp) {
  const seconds = Math.max(0, Math.round((Date.now() - timestamp) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return `${Math.floor(seconds / 3600)} h ago`;
}

function moment(timestamp) {
  return new Date(timestamp).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}

/** Landings may come by the dozen; a screen reader hears a summary. */
function announce(place) {
  unannounced.push(place);
  if (unannounced.length > 1) return;
  setTimeout(() => {
    element("announcer").textContent = TEXT.announce(unannounced.length, unannounced.at(-1));
    unannounced = [];
  }, ANNOUNCE_EVERY);
}

function flash() {
  document.body.classList.remove("flash");
  // Reading the layout makes the animation start anew.
  void document.body.offsetWidth;
  document.body.classList.add("flash");
}

function say(text) {
  element("message").textContent = text;
}

function line(tag, text, className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

/** Only when it changed: most of what ticks stays the same. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A VM's id may be a long UUID: its beginning tells it apart. */
function short(instance) {
  return instance.length > 14 ? `${instance.slice(0, 8)}…` : instance;
}
