/**
 * A client of Alien Alert for any app: one file, no dependencies, browsers and Node 22 alike.
 *
 * It keeps one socket open for as long as it is wanted: reconnects with back-off, asks for what
 * it missed by its cursor, drops what it has seen, and notices a connection that died silently.
 *
 *     const client = new AlienClient("wss://example.com/ws");
 *     client.on("alert", (event, { caughtUp }) => console.log(event.data, caughtUp));
 *     client.connect();
 *     await client.alert({ place: "Roswell" });
 */

const FIRST_WAIT = 1_000;
const LONGEST_WAIT = 30_000;
/** Longer than the server tries: after this only the connection can be at fault. */
const ANSWER_WAIT = 35_000;
/** More than a server's history holds, so that catch-up never shows an event twice. */
const SEEN_IDS = 5_000;

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
  #cursor;
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

  /** @param {string} [url] by default `/ws` of the page's own host */
  constructor(url = ownSocket()) {
    this.url = url;
    globalThis.addEventListener?.("online", () => this.#hurry());
    globalThis.addEventListener?.("offline", () => this.#drop("offline"));
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.#hurry());
  }

  /** Opens the connection and keeps it open until `close`. */
  connect() {
    this.#wanted = true;
    if (!this.#socket) this.#open();
  }

  close() {
    this.#wanted = false;
    this.#drop("closed");
  }

  /**
   * Calls `handler(message, {caughtUp})` for each message of a type, or for each change of
   * `state` when the type is `state`. Returns the function that ends it.
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
    if (globalThis.navigator?.onLine === false) return this.#become("offline");
    const url = new URL(this.url);
    if (this.#cursor) url.searchParams.set("since", this.#cursor);
    this.#become("connecting");
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ reason }) => socket === this.#socket && this.#lost(reason);
  }

  #receive(text) {
    this.#heard = Date.now();
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return;
    }
    switch (message?.type) {
      case "connected":
        this.greeting = message;
        this.#attempts = 0;
        this.#watch(message.pingInterval);
        break;
      case "refresh-store":
        for (const event of message.events ?? []) this.#hear(event, true);
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
    if (typeof message?.type === "string") this.#hear(message, false);
  }

  /** Passes a message on, unless it is an event that was passed on before. */
  #hear(message, caughtUp) {
    // The greeting's cursor is the server's place; ours is reached with the events up to it.
    if (message?.cursor && message.type !== "connected") this.#cursor = later(this.#cursor, message.cursor);
    const isEvent = message?.cursor && typeof message.id === "string";
    if (isEvent) {
      if (this.#seen.has(message.id)) return;
      this.#seen.add(message.id);
      if (this.#seen.size > SEEN_IDS) this.#seen.delete(this.#seen.values().next().value);
    }
    this.#tell(message?.type, message, { caughtUp });
  }

  #tell(type, ...args) {
    for (const handler of this.#handlers.get(type) ?? []) {
      try {
        handler(...args);
      } catch (error) {
        // One handler's fault is its own; it still shows in the console.
        queueMicrotask(() => {
          throw error;
        });
      }
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
    this.#drop("waiting");
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
    this.#become(globalThis.navigator?.onLine === false ? "offline" : "waiting");
  }

  /** Forgets the socket; who waits for an answer on it is told. */
  #drop(state) {
    const socket = this.#socket;
    this.#socket = undefined;
    clearTimeout(this.#timer);
    clearInterval(this.#watchdog);
    socket?.close();
    for (const id of [...this.#waiting.keys()]) {
      this.#answered(id).refuse("disconnected", "The connection was lost before the answer.");
    }
    if (state !== "waiting" && (this.#wanted || state === "closed")) this.#become(state);
  }

  /** The network is back, or somebody looks: no reason to wait any longer. */
  #hurry() {
    if (this.#wanted && !this.#socket) {
      this.#attempts = 0;
      this.#open();
    }
  }

  #become(state) {
    if (this.state === state && state !== "waiting") return;
    this.state = state;
    this.#tell("state", state);
  }
}

/** Cursors of one topic sort by length and then by text; of two topics, the newer one counts. */
function later(known, cursor) {
  const [topic, at] = cursor.split("-");
  const [knownTopic, knownAt] = known?.split("-") ?? [];
  const isEarlier = topic === knownTopic && (at.length - knownAt.length || (at < knownAt ? -1 : 1)) < 0;
  return isEarlier ? known : cursor;
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
