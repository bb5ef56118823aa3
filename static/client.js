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
 *     const leave = client.subscribe("environment:42");
 *     client.on("change", (event) => console.log(event.channel, event.data));
 *
 * Types are in client.d.ts. Its `token` goes into the handshake and nowhere else: neither into what is
 * stored nor into messages.
 *
 * There is one cursor, since a server's stream is one, whatever channels it is cut into. What a channel
 * held before counts as heard once its `refresh-store` is here. So the cursor stands still until all
 * that a new connection brings along is here, and only channels that are level with it go into the URL
 * beside it; any other is joined by a frame of its own, from its own place or from the beginning. A
 * connection lost half-way makes the server repeat itself, and loses nothing.
 *
 * Over a reload of the page it keeps its events, the ids it has seen and its cursor, as one item
 * of the tab's sessionStorage by the socket's URL and the token's user. They are written together, so whatever was
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

/** Before a token's end; of a shorter life the last half. */
const RENEW_BEFORE = 30_000;
/** A browser's timer can't wait for longer. */
const LONGEST_TIMER = 2 ** 31 - 1;
/** The close code for a socket that may not stay. */
const NOT_ALLOWED = 1008;
/** Beside it, the token is the second name of a subprotocol: a page can't set headers. */
const SUBPROTOCOL = "alien-alert";

/** Why a message was not confirmed. */
export class NotConfirmed extends Error {
  /**
   * @param {string} code the server's error code, or `disconnected`, `timeout` or `replaced`
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
  /** One with a fresh token, until it is greeted. @type {WebSocket | undefined} */
  #next;
  /** One whose token ends, until what was asked on it is answered. @type {WebSocket | undefined} */
  #last;
  /** While the app is asked for its token. */
  #asking;
  #token;
  #trace;
  #renewal;
  /** Channels wanted: by how many, and whether all up to the cursor is here. */
  #channels = new Map();
  /** Channels of this connection whose past is still to come. */
  #awaited = new Set();
  /** Where channels were before a reload. */
  #left = new Map();
  #storedAs;
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
  /** Events that this connection brought along. */
  #caughtUp = 0;
  #storage;
  #storing;
  #attempts = 0;
  #timer;
  #watchdog;
  #heard = 0;
  #wanted = false;
  /** Ends what listens to the page, which would keep a closed client in memory. @type {AbortController | undefined} */
  #listening;

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
   * @param {{keep?: number, storage?: Pick<Storage, "getItem" | "setItem"> | null,
   *   token?: string | (() => string | Promise<string>),
   *   trace?: (direction: "in" | "out", frame: string) => void}} [options] how many events to keep, and
   *   where over a reload: by default the tab's sessionStorage, if any; a JWT, or who is asked for a fresh
   *   one; who watches the frames as they are on the wire
   */
  constructor(url = ownSocket(), { keep = KEPT_EVENTS, storage = ownStorage(), token, trace } = {}) {
    this.url = url;
    this.#keep = keep;
    this.#storage = storage;
    this.#token = token;
    this.#trace = trace;
    // With a token yet to come, whose events to show is not known before it.
    if (typeof token !== "function") this.#restore(storedAs(url, token));
    [this.events, this.#showKept] = store([...this.#kept]);
    [this.status, this.#showState] = store(this.state);
  }

  /** Opens the connection and keeps it open until `close`. */
  connect() {
    if (!this.#wanted) this.#listen();
    this.#wanted = true;
    if (!this.#socket && !this.#asking) this.#open();
  }

  close() {
    this.#wanted = false;
    this.#listening?.abort();
    this.#drop();
    this.#become("closed");
    this.#store();
  }

  /**
   * Calls `handler(message, {caughtUp})` for each message of a type, or for each change of
   * `state` when the type is `state`, or for each message when it is `*`: an app's own event that is
   * called `state` is heard there. Returns the function that ends it.
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
   * Presses the red button. Resolves with the `ack` when the event is kept for certain. Where it has been
   * heard is told by `on("receipt", …)`, as it grows, with the event's id: an `id` given here is that.
   * @param {{place?: string, lat?: number, lon?: number, note?: string}} [data]
   * @param {{id?: string}} [options] the id of an earlier try, to send the same event again
   * @returns {Promise<{eventId: string}>}
   * @throws {NotConfirmed}
   */
  alert(data = {}, options) {
    return this.#request("alert", data, options);
  }

  /** Tells every other client, or every other one in `channel`. As `alert`. */
  broadcast(data, { channel, id } = {}) {
    return this.#request("broadcast", data, { channel, id });
  }

  /** Tells one connection, by its `clientId`. As `alert`. */
  direct(targetId, data, { id } = {}) {
    return this.#request("direct", data, { targetId, id });
  }

  /**
   * Asks the server for a sign of life. Resolves with its `pong`, whose `time` is the server's time in
   * ms since the epoch, where it tells it. As `alert`.
   * @returns {Promise<{time?: number}>}
   */
  ping() {
    return this.#request("ping");
  }

  /**
   * Joins a channel, over all connections, until each who subscribed has left. What it held before
   * comes first. Returns the function that leaves. A refusal is heard by `on("error", …)`.
   * @param {string} channel
   */
  subscribe(channel) {
    const wanted = this.#channels.get(channel) ?? { count: 0, level: false };
    this.#channels.set(channel, wanted);
    if (wanted.count++ === 0) this.#join(channel);
    let joined = true;
    return () => {
      if (joined) this.unsubscribe(channel);
      joined = false;
    };
  }

  unsubscribe(channel) {
    const wanted = this.#channels.get(channel);
    if (!wanted || --wanted.count > 0) return;
    this.#channels.delete(channel);
    this.#awaited.delete(channel);
    if (this.state === "connected") this.#say({ type: "unsubscribe", channel });
  }

  #join(channel) {
    // Before, the URL or the greeting's end takes care of it.
    if (this.state === "connected") this.#say({ type: "subscribe", channel, since: this.#left.get(channel) });
  }

  #say(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#send(message);
  }

  #send(message) {
    const frame = JSON.stringify(message);
    this.#socket.send(frame);
    if (this.#trace) call(this.#trace, "out", frame);
  }

  #request(type, data, { id = randomId(), ...more } = {}) {
    return new Promise((resolve, reject) => {
      const refuse = (code, message) => reject(new NotConfirmed(code, message, id));
      if (this.state !== "connected") return refuse("disconnected", "There is no connection.");
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        refuse("timeout", "The server did not answer.");
      }, ANSWER_WAIT);
      this.#answered(id)?.refuse("replaced", "It was sent again meanwhile.");
      this.#waiting.set(id, { resolve, refuse, timer, socket: this.#socket });
      this.#send({ type, id, ...more, data });
    });
  }

  /** What the browser tells of the network and the page, until `close`. */
  #listen() {
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    globalThis.addEventListener?.("online", () => this.#hurry(), { signal });
    // A dead socket would look open for long. If the browser is wrong, the next attempt tells.
    globalThis.addEventListener?.("offline", () => this.#lost(), { signal });
    globalThis.addEventListener?.("pagehide", () => this.#store(), { signal });
    // A phone may end a hidden page without a further word.
    const looked = () => (document.hidden ? this.#store() : this.#hurry());
    globalThis.document?.addEventListener("visibilitychange", looked, { signal });
  }

  #open() {
    clearTimeout(this.#timer);
    this.#become(isOffline() ? "offline" : "connecting");
    this.#timer = setTimeout(() => this.#lost(), CONNECT_WAIT);
    if (typeof this.#token === "function") this.#ask(() => this.#lost());
    else this.#socket = this.#dial(this.#token);
  }

  /** Asks the app for a token, and connects with it. */
  async #ask(otherwise) {
    const asking = (this.#asking = {});
    let socket;
    try {
      const token = await this.#token();
      if (asking !== this.#asking) return;
      // Another user: nothing of the one before may mix with theirs.
      if (this.#socket && storedAs(this.url, token) !== this.#storedAs) return this.#lost();
      socket = this.#dial(token);
    } catch {
      // The app's to tell of: what was thrown may hold the token.
    }
    if (asking !== this.#asking) return socket?.close();
    this.#asking = undefined;
    if (!socket) otherwise();
    else if (this.#socket) this.#next = socket;
    else this.#socket = socket;
  }

  #dial(token) {
    this.#restore(storedAs(this.url, token));
    const url = new URL(this.url);
    if (this.#cursor) url.searchParams.set("since", this.#cursor);
    for (const [channel, wanted] of this.#channels) {
      wanted.level ||= this.#left.has(channel) && this.#left.get(channel) === this.#cursor;
    }
    // Only a user's own can have a comma, and is joined without being named.
    const named = this.#level().filter((channel) => !channel.includes(","));
    if (named.length) url.searchParams.set("channels", named.join());
    const socket = token ? new WebSocket(url, [SUBPROTOCOL, token]) : new WebSocket(url);
    socket.onmessage = ({ data }) => {
      if (this.#trace) call(this.#trace, "in", data);
      if (socket === this.#next) this.#replace();
      if (socket === this.#socket) this.#receive(data, token, named);
      else if (socket === this.#last) this.#retire(parsed(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (socket === this.#socket) this.#lost(code, reason);
      else if (socket === this.#last) this.#disappoint(socket);
    };
    return socket;
  }

  /** The socket with the fresh token has been greeted: it takes over, and nobody has to notice. */
  #replace() {
    this.#last?.close();
    [this.#last, this.#socket, this.#next] = [this.#socket, this.#next, undefined];
    this.#retire();
  }

  /** What was asked on the socket before is answered there, and then it ends. */
  #retire(message) {
    this.#settle(message);
    if ([...this.#waiting.values()].some(({ socket }) => socket === this.#last)) return;
    this.#last?.close();
    this.#last = undefined;
  }

  /** Asks for the next token before this one ends; if that fails, its end is a loss like another. */
  #renewBefore(token) {
    clearTimeout(this.#renewal);
    const left = (claims(token).exp ?? NaN) * 1000 - Date.now();
    // Expired by this clock, though the server took it: the server's close tells when it is time.
    if (typeof this.#token !== "function" || !(left > 0)) return;
    const wait = Math.max(left - RENEW_BEFORE, left / 2);
    this.#renewal = setTimeout(() => this.#ask(() => {}), Math.min(wait, LONGEST_TIMER));
  }

  #receive(text, token, named) {
    this.#heard = Date.now();
    const message = parsed(text);
    let news = false;
    switch (message?.type) {
      case "connected":
        this.greeting = message;
        this.#attempts = 0;
        clearTimeout(this.#timer);
        this.#watch(message.pingInterval);
        this.#renewBefore(token);
        this.#enter(named, message.channels ?? []);
        break;
      case "refresh-store":
        this.#caughtUp += message.events?.length ?? 0;
        this.#seenLimit = Math.max(this.#seenLimit, 2 * this.#caughtUp);
        this.#awaited.delete(message.channel);
        for (const event of message.events ?? []) news = this.#hear(event, true) || news;
        if (news) this.#showKept([...this.#kept]);
        if (!message.channel) this.#greeted();
        else if (this.#channels.has(message.channel)) this.#channels.get(message.channel).level = true;
        break;
    }
    this.#settle(message);
    if (typeof message?.type === "string" && this.#hear(message, false)) this.#showKept([...this.#kept]);
  }

  /** What is wanted may have changed since the URL named its channels. */
  #enter(named, joined) {
    this.#caughtUp = 0;
    this.#awaited = new Set(joined);
    for (const channel of named) if (!this.#channels.has(channel)) this.#say({ type: "unsubscribe", channel });
    for (const [channel, wanted] of this.#channels) {
      if (!wanted.level || joined.includes(channel)) continue;
      wanted.level = false;
      this.#left.set(channel, this.#cursor);
    }
  }

  /** The new connection stands; what its URL could not name is joined now. */
  #greeted() {
    this.#become("connected");
    for (const [channel, wanted] of this.#channels) if (!wanted.level) this.#join(channel);
  }

  /** The channels whose past, up to the cursor, is here. */
  #level() {
    return [...this.#channels].filter(([, wanted]) => wanted.level).map(([channel]) => channel);
  }

  /** Passes a message on, unless it is an event that was passed on before; true for a new event. */
  #hear(message, caughtUp) {
    // The greeting's cursor is the server's place; ours is reached with the events up to it.
    if (message?.cursor && message.type !== "connected" && this.#awaited.size === 0) {
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
    if (message?.type !== "state") this.#tell(message?.type, message, { caughtUp });
    this.#tell("*", message, { caughtUp });
    return isEvent;
  }

  #tell(type, ...args) {
    for (const handler of this.#handlers.get(type) ?? []) call(handler, ...args);
  }

  /** Takes up where the page was before it was loaded anew, or where this user was. */
  #restore(storedAs) {
    if (storedAs === this.#storedAs) return;
    this.#store();
    const isFirst = !this.#storedAs;
    this.#storedAs = storedAs;
    [this.#cursor, this.#left, this.#seen, this.#kept] = [undefined, new Map(), new Set(), []];
    for (const wanted of this.#channels.values()) wanted.level = false;
    try {
      const { cursor, channels = [], seen, events } = JSON.parse(this.#storage.getItem(storedAs));
      this.#left = new Map(channels.map((channel) => [channel, cursor]));
      this.#seen = new Set(seen);
      this.#kept = events.slice(Math.max(0, events.length - this.#keep));
      this.#cursor = cursor;
    } catch {
      // Nothing is stored, or nothing can be: the server sends all that it has.
    }
    this.#seenLimit = Math.max(SEEN_IDS, this.#seen.size);
    if (!isFirst || this.#kept.length) this.#showKept?.([...this.#kept]);
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
    const place = `"cursor":${JSON.stringify(this.#cursor)},"channels":${JSON.stringify(this.#level())}`;
    const text = `{${place},"seen":${seen},"events":[${events}]}`;
    try {
      this.#storage.setItem(this.#storedAs, text);
    } catch {
      // Full or forbidden: what was stored before is older, and as whole.
    }
  }

  /** An answer goes to who waits for it. */
  #settle(message) {
    if (message?.type === "ack" || message?.type === "pong") this.#answered(message.id)?.resolve(message);
    if (message?.type === "error") this.#answered(message.id)?.refuse(message.code, message.message);
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
      if (Date.now() - this.#heard > 2 * interval) return this.#lost();
      this.#say({ type: "ping" });
    }, interval);
  }

  #lost(code, reason) {
    this.#drop();
    if (!this.#wanted) return this.#become("closed");
    // Not wanted any longer: it would be so again at once. An expired token is renewed by opening.
    const renewable = typeof this.#token === "function" && /token expired/.test(reason);
    if (code === NOT_ALLOWED && !renewable) this.#attempts = Math.max(this.#attempts, 5);
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
    const sockets = [this.#socket, this.#next, this.#last];
    this.#socket = this.#next = this.#last = this.#asking = undefined;
    clearTimeout(this.#timer);
    clearTimeout(this.#renewal);
    clearInterval(this.#watchdog);
    for (const socket of sockets) {
      socket?.close();
      this.#disappoint(socket);
    }
  }

  /** Who waits for an answer on it waits in vain. */
  #disappoint(socket) {
    for (const [id, waiting] of [...this.#waiting]) {
      if (waiting.socket !== socket) continue;
      this.#answered(id).refuse("disconnected", "The connection was lost before the answer.");
    }
  }

  /** The network is back, or somebody looks: no reason to wait any longer. */
  #hurry() {
    if (this.#wanted && !this.#socket && !this.#asking) {
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

/** What a server says; nothing where it is no JSON. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
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

/** Each user's own: one who signs in after another must not see the other's. */
function storedAs(url, token) {
  const place = new URL(url);
  const { sub } = claims(token ?? place.searchParams.get("token"));
  place.searchParams.delete("token");
  return `alien-alert ${place}${sub ? ` ${sub}` : ""}`;
}

/** What a token says of itself, unverified: that is the server's to do. */
function claims(token) {
  try {
    const part = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    return JSON.parse(atob(part)) ?? {};
  } catch {
    return {};
  }
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
