/**
 * The VM's clock, as seen from here: phones and laptops are seconds off, and the legs of a landing's way
 * are milliseconds. A ping is answered with the VM's time, which was right half a round trip ago.
 */

const PINGS = 3;
const AGAIN_AFTER = 60_000;

export class Clock {
  #client;
  /** The VM's time less the page's; unknown until an answer came, and of an older VM always. */
  #offset;

  constructor(client) {
    this.#client = client;
    client.on("state", (state) => {
      this.#offset = undefined;
      if (state === "connected") this.#measure();
    });
    setInterval(() => !document.hidden && this.#measure(), AGAIN_AFTER);
  }

  /** What the VM's clock showed when the page's showed `moment` (ms since the epoch). */
  at(moment) {
    return moment === undefined || this.#offset === undefined ? undefined : moment + this.#offset;
  }

  /** The fastest round trip tells best: it was the least time under way. */
  async #measure() {
    const { greeting } = this.#client;
    let fastest = Infinity;
    let offset;
    try {
      for (let number = 0; number < PINGS; number++) {
        const sent = Date.now();
        const { time } = await this.#client.ping();
        const roundTrip = Date.now() - sent;
        if (!Number.isFinite(time) || roundTrip >= fastest) continue;
        fastest = roundTrip;
        offset = time - (sent + roundTrip / 2);
      }
    } catch {
      // The connection ended; the next one is measured anew.
    }
    if (greeting === this.#client.greeting && offset !== undefined) this.#offset = offset;
  }
}
