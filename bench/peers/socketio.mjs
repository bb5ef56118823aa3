// Socket.IO over its WebSocket transport alone.

import { createServer } from "node:http";
import { Server } from "socket.io";

import { alert, clientId, pong } from "./words.mjs";

const http = createServer();
const io = new Server(http, { transports: ["websocket"], serveClient: false });
io.on("connection", (socket) => {
  const id = clientId();
  socket.on("alert", ({ data }) => io.emit("alert", alert(id, data)));
  socket.on("ping", () => socket.emit("pong", pong()));
});
http.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () =>
  console.log(`listening on http://127.0.0.1:${http.address().port}`),
);
