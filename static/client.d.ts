/**
 * Types of client.js, which tells what each thing does.
 */

/** A store by Svelte's contract: calls `watcher` at once and at each change, until the end. */
export interface Readable<T> {
  subscribe(watcher: (value: T) => void): () => void;
}

export type State = "closed" | "connecting" | "connected" | "waiting" | "offline";

export type ErrorCode =
  | "invalid_json"
  | "unknown_type"
  | "invalid_field"
  | "too_large"
  | "rate_limited"
  | "forbidden"
  | "not_found"
  | "unavailable";

export interface Landing {
  place?: string;
  lat?: number;
  lon?: number;
  note?: string;
}

export interface Origin {
  instance: string;
  region: string;
}

/** What is kept by the server for a while, and by the client in `events`. */
export interface AppEvent<Type extends string = string, Data = any> {
  type: Type;
  id: string;
  data: Data;
  /** When its VM took it, in ms since the epoch. */
  timestamp: number;
  cursor: string;
  channel?: string;
}

interface Sent {
  senderId: string;
  origin: Origin;
  regionCode: string;
}

export type Alert = AppEvent<"alert", Landing> &
  Sent & {
    message: "ALIEN_LANDING";
    /** When the topic took it, in ms since the epoch by the topic's clock. */
    published: number;
    /** When it came to this client's VM, in ms since the epoch by its clock. */
    received: number;
  };
export type Broadcast<Data = any> = AppEvent<"broadcast", Data> & Sent;

export interface Direct<Data = any> {
  type: "direct";
  id: string;
  /** Not there where an app's backend sent it. */
  senderId?: string;
  data: Data;
  timestamp: number;
}

export interface Connected {
  type: "connected";
  clientId: string;
  message: "CONNECTED";
  instance: string;
  region: string;
  regionCode: string;
  channels: string[];
  pingInterval: number;
  cursor: string;
}

export interface RefreshStore {
  type: "refresh-store";
  events: AppEvent[];
  /** Nothing since the cursor is missing. */
  complete: boolean;
  reason?: "too_old" | "too_many" | "gap";
  /** In ms since the epoch; without `from` nobody knows since when. */
  missing?: { from?: number; to: number };
  cursor: string;
  channel?: string;
}

export interface Fleet {
  type: "fleet";
  instances: {
    instance: string;
    region: string;
    clients: number;
    roundTripMs: number | null;
    lastSeen: number;
  }[];
  /** VMs that are alive and not in `instances`: in a fleet of more than a thousand. */
  more?: number;
}

export interface Ack {
  type: "ack";
  id?: string;
  eventId: string;
}

/** Where an alert that this connection sent has been heard so far; again when it grows. */
export interface Receipt {
  type: "receipt";
  /** The alert's: the id that it was sent with. */
  eventId: string;
  /** VMs that have confirmed it: in a fleet of more than twenty, about twenty by chance. */
  instances: number;
  /** Their sockets that it went to, the sender's too. */
  sockets: number;
}

export interface Pong {
  type: "pong";
  id?: string;
  /** The VM's clock, in ms since the epoch; an older VM does not tell it. */
  time?: number;
  cursor?: string;
}

export interface ServerError {
  type: "error";
  code: ErrorCode;
  message: string;
  id?: string;
  retryAfterMs?: number;
}

/** What `on` hears, by the name it is asked for. */
export interface Messages {
  alert: Alert;
  broadcast: Broadcast;
  direct: Direct;
  connected: Connected;
  "refresh-store": RefreshStore;
  fleet: Fleet;
  ack: Ack;
  receipt: Receipt;
  pong: Pong;
  error: ServerError;
}

/** Why a message was not confirmed. */
export class NotConfirmed extends Error {
  constructor(code: ErrorCode | "disconnected" | "timeout" | "replaced", message: string, id: string);
  readonly code: ErrorCode | "disconnected" | "timeout" | "replaced";
  /** Sent again with this id, it is the same event. */
  readonly id: string;
  /** Whether sending it again, with the same id, can help. */
  readonly retry: boolean;
}

export interface Options {
  /** How many events to keep. */
  keep?: number;
  /** Where to keep them over a reload; null: nowhere. */
  storage?: Pick<Storage, "getItem" | "setItem"> | null;
  /** A JWT, or who is asked for a fresh one: before each connection, and before the last one ends. */
  token?: string | (() => string | Promise<string>);
  /** Called with each frame as it is on the wire. A token is in none. */
  trace?: (direction: "in" | "out", frame: string) => void;
}

export class AlienClient {
  constructor(url?: string | URL, options?: Options);

  readonly url: string | URL;
  readonly state: State;
  /** When the next attempt is, in ms since the epoch, while `state` is `waiting`. */
  readonly nextAttempt: number;
  readonly greeting?: Connected;
  /** The newest events, oldest first. */
  readonly events: Readable<AppEvent[]>;
  readonly status: Readable<State>;

  connect(): void;
  close(): void;

  on(type: "state", handler: (state: State) => void): () => void;
  on(type: "*", handler: (message: any, info: { caughtUp: boolean }) => void): () => void;
  on<Type extends keyof Messages>(
    type: Type,
    handler: (message: Messages[Type], info: { caughtUp: boolean }) => void,
  ): () => void;
  /** An app's own events. */
  on<Data = any>(
    type: string,
    handler: (event: AppEvent<string, Data>, info: { caughtUp: boolean }) => void,
  ): () => void;

  alert(data?: Landing, options?: { id?: string }): Promise<Ack>;
  broadcast(data: unknown, options?: { channel?: string; id?: string }): Promise<Ack>;
  direct(targetId: string, data: unknown, options?: { id?: string }): Promise<Ack>;
  /** Asks for a sign of life. */
  ping(): Promise<Pong>;

  /** Joins a channel until the function returned is called. */
  subscribe(channel: string): () => void;
  unsubscribe(channel: string): void;
}

/** An id for an event that nobody else uses. */
export function randomId(): string;
