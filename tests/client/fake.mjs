/**
 * A socket and a storage in the test's hand, for what a real server does not do on demand.
 */

/** Every socket opened, in order. */
export const sockets = [];

export class FakeSocket {
  static OPEN = 1;
  readyState = FakeSocket.OPEN;
  sent = [];

  constructor(url, protocols) {
    this.url = new URL(url);
    this.protocols = protocols;
    sockets.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  /** The server says something. */
  says(message) {
    this.onmessage({ data: JSON.stringify(message) });
  }

  /** The server closes. */
  ends(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  get since() {
    return this.url.searchParams.get("since");
  }

  get channels() {
    return this.url.searchParams.get("channels");
  }

  /** Greets as a server does; the channels' own past is the test's to send. */
  greets({ events = [], cursor = "t-0", channels = [], ...rest } = {}) {
    this.says({ type: "connected", clientId: "me", pingInterval: 30_000, cursor: "greeting", channels });
    this.says({ type: "refresh-store", events, complete: true, cursor, ...rest });
    return this;
  }

  /** A channel's past. */
  refreshes(channel, cursor, events = []) {
    this.says({ type: "refresh-store", channel, events, complete: true, cursor });
  }
}

export class FakeStorage {
  items = new Map();

  getItem(key) {
    return this.items.get(key) ?? null;
  }

  setItem(key, text) {
    this.items.set(key, text);
  }
}

/** An event with the number in its id, cursor and time. */
export function event(number, more = {}) {
  const id = `e-${String(number).padStart(5, "0")}`;
  return { type: "alert", id, timestamp: 1_000_000 + number, cursor: `t-${number}`, data: {}, ...more };
}

export const events = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => event(from + index));

export const ids = (list) => list.map(({ id }) => id);

/** What a store holds now. */
export function valueOf(store) {
  let now;
  store.subscribe((value) => (now = value))();
  return now;
}
