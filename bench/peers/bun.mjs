// Bun's own server, which is uWebSockets inside: topics, as its documents advise for a broadcast.

import { alert, clientId, pong } from "./words.mjs";

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    if (server.upgrade(request, { data: { id: clientId() } })) return;
    return new Response("a WebSocket is expected", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    open(socket) {
      socket.subscribe("all");
    },
    message(socket, text) {
      const { type, data } = JSON.parse(text);
      if (type === "alert") server.publish("all", JSON.stringify(alert(socket.data.id, data)));
      else if (type === "ping") socket.send(JSON.stringify(pong()));
    },
  },
});
console.log(`listening on http://127.0.0.1:${server.port}`);
