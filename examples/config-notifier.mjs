/**
 * An application that hears of changes of its environment's configuration, and of those that it missed
 * while it was away for less than the relay's history:
 *
 *     node --experimental-websocket examples/config-notifier.mjs 42
 *     curl -H "Authorization: Bearer $API_KEY" localhost:8080/channels/environment:42 \
 *       -d '{"type":"change","data":{"environmentId":"42","name":"API_URL","value":"https://b","isSecret":false}}'
 */

import { AlienClient } from "../static/client.js";

const { RELAY = "ws://localhost:8080/ws", TOKEN: token } = process.env;
const client = new AlienClient(RELAY, { token });
client.subscribe(`environment:${process.argv[2] ?? "42"}`);
client.on("change", ({ channel, data }) => {
  console.log(channel, data.name, data.isSecret ? "(a secret)" : data.value);
});
client.on("error", ({ message }) => console.error(message));
client.connect();
