/**
 * The user's page: no polling. What is told to the user moves the bars, wherever it was started.
 */

import { AlienClient } from "/client.js";

const relay = new URL("/ws", await text("/relay"));
relay.protocol = relay.protocol.replace("http", "ws");
const client = new AlienClient(relay, { token: () => text("/token") });

client.status.subscribe((state) => (document.getElementById("status").textContent = state));
// The list is whole at any time, after a reload as well: the last word on each job is the one that counts.
client.events.subscribe((events) => {
  for (const { type, data } of events) {
    if (type === "progress") show(data.job, data.percent, `${data.percent} %`);
    if (type === "done") show(data.job, 100, "done");
  }
});
client.connect();
document.getElementById("start").onclick = () => text("/jobs", { method: "POST" });

function show(job, percent, words) {
  const item = document.getElementById(job) ?? document.createElement("li");
  if (!item.id) {
    item.id = job;
    item.append(Object.assign(document.createElement("progress"), { max: 100 }), document.createElement("span"));
    document.getElementById("jobs").prepend(item);
  }
  item.firstChild.value = percent;
  item.lastChild.textContent = ` ${words}`;
}

async function text(url, options) {
  const answer = await fetch(url, options);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer.text();
}
