/**
 * A real VM, in a process of its own, and clients of it.
 */

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { AlienClient } from "../../static/client.js";

const BUILT = fileURLToPath(new URL("../../target/release/alien-alert", import.meta.url));

/** Starts a VM alone; its process and its port. */
export async function start(context, { port = 0, env: more } = {}) {
  const env = { HOST: "127.0.0.1", PORT: String(port), LOG_FORMAT: "json", ...more };
  const vm = spawn(process.env.ALIEN_ALERT_BIN ?? BUILT, { env, stdio: ["ignore", "ignore", "pipe"] });
  context.after(() => vm.kill("SIGKILL"));
  await new Promise((ready) => {
    createInterface({ input: vm.stderr }).on("line", (line) => {
      const { message } = JSON.parse(line);
      port = /^listening on .*:(\d+)$/.exec(message)?.[1] ?? port;
      if (message.startsWith("ready")) ready();
    });
  });
  return { vm, url: `ws://127.0.0.1:${port}/ws`, port };
}

/** A connected client. */
export async function connect(context, url, storage = null) {
  const client = new AlienClient(url, { storage });
  context.after(() => client.close());
  client.connect();
  await until(client.status, (state) => state === "connected");
  return client;
}

/** Waits for what a store must come to hold. */
export function until(store, holds) {
  return new Promise((resolve) => {
    const end = store.subscribe((value) => holds(value) && queueMicrotask(() => resolve(end())));
  });
}
