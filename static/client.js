/**
 * A client of Alien Alert for any app: one file, no dependencies, browsers and Node 22 alike.
 *
 * It keeps one socket open for as long as it is wanted: reconnects with back-off, asks for what
 * it missed by its cursor, drops what it has seen, and notices a connection that died silently.
 *
 *     const client = new AlienClient("wss://example.com/ws");
 *     client.events.subscribe((events) => console.log(events.length));
 *     client.on("alert", (event, { caughtUp }) => console.log(event.data, caughtUp));
 *     client.connect();
 *     await client.alert({ place: "Roswell" });
 *
 * Over a reload of the page it keeps its events, the ids it has seen and its cursor, as one item
 * of the tab's sessionStorage by the socket's URL. They are written together, so whatever was
 * written last is whole in itself: an older one only means that the server sends more again. Each
 * tab has its own, since tabs hear at different times. Asking the server anew for everything would
 * need no storage, but it knows the window of its history only, and not what this page has shown.
 */

const FIRST_WAIT = 1_000;
const LONGEST_WAIT = 30_000;
/** A connection that is not greeted within this leads nowhere. */
const CONNECT_WAIT = 15_000;
/** Longer than the server tries: after this only the connection can be at fault. */
const ANSWER_WAIT = 35_000;
/** More than a server's history holds, so that catch-up never shows an event twice. */
const SEEN_IDS = 5_000;
/** Events kept, where the app does not say how many. */
const KEPT_EVENTS = 1_000;
/** Characters stored: a browser gives a site 2.5 million, and the app may want some too. */
const STORED_LENGTH = 1_000_000;
/** A page that is left stores at once; this is for one that ends without a word. */
const STORE_EVERY = 5_000;

/** Why a message was not confirmed. */
export class NotConfirmed extends Error {
  /**
   * @param {string} code the server's error code, or `disconnected` or `timeout`
   * @param {string} message
   * @param {string} id send it again with this id and it is the same event: never shown twice
   */
  constructor(code, message, id) {
    super(message);
    this.name = "NotConfirmed";
    this.code = code;
    this.id = id;
    /** Whether sending it again, with the same id, can help. */
    this.retry = ["disconnected", "timeout", "unavailable", "rate_limited"].includes(code);
  }
}

export class AlienClient {
  /** @type {WebSocket | undefined} */
  #socket;
  #handlers = new Map();
  #waiting = new Map();
  #seen = new Set();
  #seenLimit = SEEN_IDS;
  /** The newest events, by their time. */
  #kept = [];
  #keep;
  #showKept;
  #showState;
  /** The server's place in the stream after the last thing it sent; its text means nothing here. */
  #cursor;
  #storage;
  #storing;
  #attempts = 0;
  #timer;
  #watchdog;
  #heard = 0;
  #wanted = false;

  /** @type {"closed" | "connecting" | "connected" | "waiting" | "offline"} */
  state = "closed";
  /** When the next attempt is, in ms since the epoch, while `state` is `waiting`. */
  nextAttempt = 0;
  /** The server's greeting of this connection: `clientId`, `instance`, `region`, … */
  greeting;

  /** The newest events, oldest first. @type {Readable<any[]>} */
  events;
  /** `state`, for who wants to watch it. @type {Readable<AlienClient["state"]>} */
  status;

  /**
   * @param {string} [url] by default `/ws` of the page's own host
   * @param {{keep?: number, storage?: Pick<Storage, "getItem" | "setItem"> | null}} [options] how
   *   many events to keep, and where over a reload: by default the tab's sessionStorage, if any
   */
  constructor(url = ownSocket(), { keep = KEPT_EVENTS, storage = ownStorage() } = {}) {
    this.url = url;
    this.#keep = keep;
    this.#storage = storage;
    this.#restore();
    [this.events, this.#showKept] = store([...this.#kept]);
    [this.status, this.#showState] = store(this.state);
    globalThis.addEventListener?.("online", () => this.#hurry());
    // A dead socket would look open for long. If the browser is wrong, the next attempt tells.
    globalThis.addEventListener?.("offline", () => this.#wanted && this.#lost(""));
    globalThis.addEventListener?.("pagehide", () => this.#store());
    // A phone may end a hidden page without a further word.
    const looked = () => (document.hidden ? this.#store() : this.#hurry());
    globalThis.document?.addEventListener("visibilitychange", looked);
  }

  /** Opens the connection and keeps it open until `close`. */
  connect() {
    this.#wanted = true;
    if (!this.#socket) this.#open();
  }

  close() {
    this.#wanted = false;
    this.#drop();
    this.#become("closed");
    this.#store();
  }

  /**
   * Calls `handler(message, {caughtUp})` for each message of a type, or for each change of
   * `state` when the type is `state`. Returns the function that ends it.
   *
   * An event comes here once, before `events` has it; one from before a reload is in `events` only.
   * @param {string} type
   * @param {(message: any, info: {caughtUp: boolean}) => void} handler
   */
  on(type, handler) {
    if (!this.#handlers.has(type)) this.#handlers.set(type, new Set());
    this.#handlers.get(type).add(handler);
    return () => this.#handlers.get(type).delete(handler);
  }

  /**
   * Presses the red button. Resolves with the `ack` when the event is kept for certain.
   * @param {{place?: string, lat?: number, lon?: number, note?: string}} [data]
   * @param {{id?: string}} [options] the id of an earlier try, to send the same event again
   * @returns {Promise<{eventId: string}>}
   * @throws {NotConfirmed}
   */
  alert(data = {}, options) {
    return this.#request("alert", data, options);
  }

  /** Tells every other client. As `alert`. */
  broadcast(data, options) {
    return this.#request("broadcast", data, options);
  }

  #request(type, data, { id = randomId() } = {}) {
    return new Promise((resolve, reject) => {
      const refuse = (code, message) => reject(new NotConfirmed(code, message, id));
      if (this.state !== "connected") return refuse("disconnected", "There is no connection.");
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        refuse("timeout", "The server did not answer.");
      }, ANSWER_WAIT);
      this.#answered(id)?.refuse("replaced", "It was sent again meanwhile.");
      this.#waiting.set(id, { resolve, refuse, timer });
      this.#socket.send(JSON.stringify({ type, id, data }));
    });
  }

  #open() {
    clearTimeout(this.#timer);
    const url = new URL(this.url);
    if (this.#cursor) url.searchParams.set("since", this.#cursor);
    this.#become(isOffline() ? "offline" : "connecting");
    const socket = new WebSocket(url);
    this.#timer = setTimeout(() => this.#lost(""), CONNECT_WAIT);
    this.#socket = socket;
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ reason }) => socket === this.#socket && this.#lost(reason);
  }

  #receive(text) {
    this.#heard = Date.now();
    let message;
    let news = false;
    try {
      message = JSON.parse(text);
    } catch {
      return;
    }
    switch (message?.type) {
      case "connected":
        this.greeting = message;
        this.#attempts = 0;
        clearTimeout(this.#timer);
        this.#watch(message.pingInterval);
        break;
      case "refresh-store":
        this.#seenLimit = Math.max(this.#seenLimit, 2 * (message.events?.length ?? 0));
        for (const event of message.events ?? []) news = this.#hear(event, true) || news;
        if (news) this.#showKept([...this.#kept]);
        // Connected only now: what is sent from here on comes after what was missed.
        this.#become("connected");
        break;
      case "ack":
        this.#answered(message.id)?.resolve(message);
        break;
      case "error":
        this.#answered(message.id)?.refuse(message.code, message.message);
        break;
    }
    if (typeof message?.type === "string" && this.#hear(message, false)) this.#showKept([...this.#kept]);
  }

  /** Passes a message on, unless it is an event that was passed on before; true for a new event. */
  #hear(message, caughtUp) {
    // The greeting's cursor is the server's place; ours is reached with the events up to it.
    if (message?.cursor && message.type !== "connected") {
      this.#cursor = message.cursor;
      if (this.#storage) this.#storing ??= setTimeout(() => this.#store(), STORE_EVERY);
    }
    const isEvent = message?.cursor && typeof message.id === "string" && message.timestamp > 0;
    if (isEvent) {
      if (this.#seen.has(message.id)) return false;
      this.#seen.add(message.id);
      if (this.#seen.size > this.#seenLimit) this.#seen.delete(this.#seen.values().next().value);
      // Nearly always at the end: events are late by moments only.
      const before = this.#kept.findLastIndex((other) => isBefore(other, message));
      this.#kept.splice(before + 1, 0, message);
      if (this.#kept.length > this.#keep) this.#kept.shift();
    }
    this.#tell(message?.type, message, { caughtUp });
    return isEvent;
  }

  #tell(type, ...args) {
    for (const handler of this.#handlers.get(type) ?? []) call(handler, ...args);
  }

  /** Takes up where the page was before it was loaded anew. */
  #restore() {
    try {
      const { cursor, seen, events } = JSON.parse(this.#storage.getItem(storedAs(this.url)));
      this.#seen = new Set(seen);
      this.#seenLimit = Math.max(SEEN_IDS, this.#seen.size);
      this.#kept = events.slice(Math.max(0, events.length - this.#keep));
      this.#cursor = cursor;
    } catch {
      // Nothing is stored, or nothing can be: the server sends all that it has.
    }
  }

  /** Stores what has changed, without the oldest events where all would be too much. */
  #store() {
    if (!this.#storing) return;
    clearTimeout(this.#storing);
    this.#storing = undefined;
    const seen = JSON.stringify([...this.#seen]);
    let room = STORED_LENGTH - seen.length;
    const events = [];
    for (const event of [...this.#kept].reverse()) {
      const text = JSON.stringify(event);
      room -= text.length + 1;
      if (room < 0) break;
      events.unshift(text);
    }
    const text = `{"cursor":${JSON.stringify(this.#cursor)},"seen":${seen},"events":[${events}]}`;
    try {
      this.#storage.setItem(storedAs(this.url), text);
    } catch {
      // Full or forbidden: what was stored before is older, and as whole.
    }
  }

  #answered(id) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    return waiting;
  }

  /** A laptop that slept, or a network that changed, leaves a socket that looks open. */
  #watch(interval = 30_000) {
    clearInterval(this.#watchdog);
    this.#watchdog = setInterval(() => {
      if (Date.now() - this.#heard > 2 * interval) return this.#lost("");
      if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send('{"type":"ping"}');
    }, interval);
  }

  #lost(reason) {
    this.#drop();
    if (!this.#wanted) return this.#become("closed");
    // A server that closes many sockets tells each its own time to come back.
    const told = /retry in (\d+) ms/.exec(reason)?.[1];
    const doubled = Math.min(FIRST_WAIT * 2 ** this.#attempts++, LONGEST_WAIT);
    const wait = told ? Math.min(Number(told), 2 * LONGEST_WAIT) : doubled * (0.5 + Math.random() / 2);
    this.#wait(wait);
  }

  #wait(wait) {
    this.nextAttempt = Date.now() + wait;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#open(), wait);
    this.#become(isOffline() ? "offline" : "waiting");
  }

  /** Forgets the socket; who waits for an answer on it is told. */
  #drop() {
    const socket = this.#socket;
    this.#socket = undefined;
    clearTimeout(this.#timer);
    clearInterval(this.#watchdog);
    socket?.close();
    for (const id of [...this.#waiting.keys()]) {
      this.#answered(id).refuse("disconnected", "The connection was lost before the answer.");
    }
  }

  /** The network is back, or somebody looks: no reason to wait any longer. */
  #hurry() {
    if (this.#wanted && !this.#socket) {
      this.#attempts = 0;
      this.#open();
    }
  }

  #become(state) {
    // Each wait is news: it has a time of its own.
    if (this.state === state && state !== "waiting" && state !== "offline") return;
    this.state = state;
    this.#showState(state);
    this.#tell("state", state);
  }
}

/**
 * @template T
 * @typedef {{subscribe(watcher: (value: T) => void): () => void}} Readable a store by Svelte's
 *   contract: calls `watcher` at once and at each change, until the function returned is called
 */

/** Makes a store, and the function that changes it. */
function store(value) {
  const watchers = new Set();
  const subscribe = (watcher) => {
    // A function may watch twice, and each end is one's own.
    const own = (value) => watcher(value);
    watchers.add(own);
    own(value);
    return () => watchers.delete(own);
  };
  const change = (changed) => {
    value = changed;
    for (const watcher of watchers) call(watcher, value);
  };
  return [{ subscribe }, change];
}

/** One handler's fault is its own; it still shows in the console. */
function call(handler, ...args) {
  try {
    handler(...args);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/** What the browser thinks; it may be wrong, on a machine without a network that talks to itself. */
function isOffline() {
  return globalThis.navigator?.onLine === false;
}

/** The same order on every page, whatever came first. */
function isBefore(one, other) {
  return (one.timestamp - other.timestamp || (one.id < other.id ? -1 : 1)) < 0;
}

function storedAs(url) {
  return `alien-alert ${url}`;
}

/** A browser may forbid even to look. */
function ownStorage() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}

function ownSocket() {
  const { protocol, host } = globalThis.location;
  return `${protocol === "https:" ? "wss:" : "ws:"}//${host}/ws`;
}

/** An id for an event that nobody else uses. */
export function randomId() {
  // randomUUID is there in secure contexts only, and a page on a local network is none.
  if (globalThis.crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
