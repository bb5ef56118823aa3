/** How it is doing: the connection, the VM at its other end, and all the VMs there are. */

import { element, line, setText } from "./dom.js";
import * as words from "./words.js";

/** Rows in the list: a fleet may be larger, and the map shows more of it. */
const ROWS = 100;

/** @param {(text: string) => void} say tells the ear of a change */
export function watchVitals(client, say) {
  const show = () => showConnection(client, say);
  client.on("state", show);
  // The count-down to the next attempt.
  setInterval(show, 500);
  client.on("fleet", ({ instances, more }) => showFleet(instances, client.greeting?.instance, more));
}

function showConnection({ state, greeting, nextAttempt }, say) {
  const seconds = Math.max(0, Math.ceil((nextAttempt - Date.now()) / 1000));
  const text = {
    closed: words.connection.connecting,
    connecting: words.connection.connecting,
    connected: greeting && words.connection.connected(greeting),
    waiting: words.connection.waiting(seconds),
    offline: words.connection.offline,
  }[state];
  const connection = element("connection");
  // It ticks for the eye only; the ear hears of changes.
  if (connection.dataset.state !== state) {
    connection.dataset.state = state;
    say(text);
  }
  setText(connection, text);
  setText(element("vm"), state === "connected" ? words.short(greeting.instance) : words.UNKNOWN);
  setText(element("vm-region"), state === "connected" ? words.city(greeting.region) : words.UNKNOWN);
  if (state !== "connected") setText(element("round-trip"), words.UNKNOWN);
  // What others tell of themselves stays, and says that it is old.
  element("stale").hidden = state === "connected" || !greeting;
}

function showFleet(instances, own, more = 0) {
  const ours = instances.find(({ instance }) => instance === own);
  setText(element("round-trip"), words.duration(ours?.roundTripMs ?? undefined));
  const sockets = instances.reduce((sum, { clients }) => sum + clients, 0);
  // Those of VMs that are only counted are not told.
  setText(element("sockets"), words.number(sockets) + (more ? "+" : ""));
  setText(element("vms"), words.number(instances.length + more));
  // Rows are used again: most of a fleet is as it was.
  const rows = element("fleet");
  const shown = instances.slice(0, ROWS);
  while (rows.childElementCount > shown.length) rows.lastElementChild.remove();
  shown.forEach((vm, index) => fill(rows.children[index] ?? rows.appendChild(row()), vm, vm.instance === own));
}

function row() {
  const item = document.createElement("li");
  item.append(line("strong", ""), line("span", "", "details"));
  return item;
}

function fill(item, { instance, region, clients, roundTripMs }, here) {
  item.dataset.instance = instance;
  item.classList.toggle("here", here);
  const facts = [
    `${words.short(instance)} (${region})`,
    words.fleet.clients(clients),
    roundTripMs != null && words.fleet.roundTrip(roundTripMs),
    here && words.fleet.here,
  ];
  setText(item.firstChild, words.city(region));
  setText(item.lastChild, facts.filter(Boolean).join(" · "));
}
