/**
 * An app's backend in little, without dependencies: serves its page, signs its user's token, and does
 * a job that takes long. How far it is, it tells the relay, which tells the user's pages: all of them,
 * on any VM, and on the next visit if there is none just now. See README.md beside.
 */

import { createHmac, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

const { RELAY = "http://localhost:8080", API_KEY, AUTH_SECRET, PORT = 3000, STEP_MS = 200 } = process.env;
if (!API_KEY || !AUTH_SECRET) throw new Error("API_KEY and AUTH_SECRET: expected the relay's own");

/** In a real app: whoever is signed in. */
const USER = "demo";

/** An HS256 JWT that says who the user is, for ten minutes. The client asks for the next in time. */
function token() {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + 600;
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: USER, exp })}`;
  return `${signed}.${createHmac("sha256", AUTH_SECRET).update(signed).digest("base64url")}`;
}

async function tell(type, data) {
  const answer = await fetch(`${RELAY}/channels/user:${USER}`, {
    method: "POST",
    headers: { authorization: `Bearer ${API_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ type, data }),
  });
  if (!answer.ok) console.error(`${answer.status} ${await answer.text()}`);
}

async function work(job) {
  for (let percent = 0; percent < 100; percent += 5) {
    await tell("progress", { job, percent });
    await sleep(Number(STEP_MS));
  }
  await tell("done", { job });
}

const files = { "/": ["index.html", "text/html"], "/page.js": ["page.js", "text/javascript"] };
const server = createServer(async ({ method, url }, answer) => {
  const send = (status, type, body) => answer.writeHead(status, { "content-type": `${type}; charset=utf-8` }).end(body);
  try {
    if (url === "/token") return send(200, "text/plain", token());
    if (url === "/relay") return send(200, "text/plain", RELAY);
    if (method === "POST" && url === "/jobs") {
      const job = randomUUID();
      work(job).catch((error) => console.error(error.message));
      return send(202, "text/plain", job);
    }
    // The relay's own module, so that it fits the relay; from here, since a page imports from its host.
    if (url === "/client.js") return send(200, "text/javascript", await (await fetch(`${RELAY}/static/client.js`)).text());
    if (!files[url]) return send(404, "text/plain", "no such page");
    const [name, type] = files[url];
    send(200, type, await readFile(new URL(name, import.meta.url)));
  } catch (error) {
    send(502, "text/plain", error.message);
  }
});
server.listen(Number(PORT), "127.0.0.1", () => console.log(`http://localhost:${server.address().port}`));
