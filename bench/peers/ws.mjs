// Node and the package `ws`, with the loop over all clients of its own documents.

import { WebSocketServer } from "ws";

import { alert, clientId, pong } from "./words.mjs";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096 });
server.on("connection", (socket) => {
  const id = clientId();
  socket.on("error", () => {});
  socket.on("message", (text) => {
    const { type, data } = JSON.parse(text);
    if (type === "alert") {
      const event = Buffer.from(JSON.stringify(alert(id, data)));
      for (const client of server.clients) client.send(event, { binary: false });
    } else if (type === "ping") socket.send(JSON.stringify(pong()));
  });
});
server.on("listening", () => console.log(`listening on http://127.0.0.1:${server.address().port}`));
