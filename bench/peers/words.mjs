// What the peers written in JavaScript say: the same as `src/words.rs`.

const INSTANCE = "9080e6f3a12345";
const REGION = "ams";

export const clientId = () => `${crypto.randomUUID().replaceAll("-", "")}@${INSTANCE}`;

const cursor = (now) => `579c96c2-${(now * 1000).toString(16)}`;

export function pong() {
  const now = Date.now();
  return { type: "pong", time: now, cursor: cursor(now) };
}

export function alert(senderId, data) {
  const now = Date.now();
  return {
    type: "alert",
    id: crypto.randomUUID(),
    senderId,
    data,
    timestamp: now,
    origin: { instance: INSTANCE, region: REGION },
    cursor: cursor(now),
    message: "ALIEN_LANDING",
    regionCode: REGION,
    published: now,
    received: now,
  };
}
