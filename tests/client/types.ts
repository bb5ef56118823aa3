/**
 * An app's use of the client, for TypeScript's compiler to agree with, or to refuse where it must.
 */

import { AlienClient, NotConfirmed, randomId, type AppEvent, type State } from "../../static/client.js";

interface Change {
  environmentId: string;
  name: string;
  value: string;
}

const client = new AlienClient("wss://example.com/ws", {
  keep: 10,
  storage: null,
  token: async () => (await fetch("/token")).text(),
});
new AlienClient(undefined, { token: "a.b.c", storage: sessionStorage });
// @ts-expect-error: a token is no number
new AlienClient(undefined, { token: 7 });

client.connect();
const leave: () => void = client.subscribe("environment:42");
client.on<Change>("change", ({ data, channel, cursor }, { caughtUp }) => {
  const shown: [string, string | undefined, string, boolean] = [data.name, channel, cursor, caughtUp];
  console.log(shown);
});
client.on("alert", ({ data, senderId }) => console.log(data.place?.length, senderId));
client.on("alert", ({ timestamp, published, received }) => console.log(published - timestamp, received - published));
client.on("receipt", ({ eventId, instances, sockets }) => console.log(eventId, instances + sockets));
// @ts-expect-error: a landing has no such field
client.on("alert", ({ data }) => console.log(data.planet));
client.on("state", (state: State) => console.log(state));
client.on("refresh-store", ({ complete, missing }) => console.log(complete, missing?.to));
client.on("*", (message) => console.log(message.type));
const end = client.events.subscribe((events: AppEvent[]) => console.log(events.length));
client.status.subscribe((state) => console.log(state === "offline"));

try {
  await client.alert({ place: "Roswell" }, { id: randomId() });
  await client.broadcast([1], { channel: "a" });
  console.log((await client.direct("b@vm", { x: 1 })).eventId);
  // @ts-expect-error: a note is text
  await client.alert({ note: 7 });
} catch (error) {
  if (error instanceof NotConfirmed && error.retry) await client.alert({}, { id: error.id });
}
console.log((await client.ping()).time?.toFixed(0));
new AlienClient(undefined, { trace: (direction, frame) => console.log(direction === "in", frame.length) });
client.unsubscribe("environment:42");
leave();
end();
client.close();
