/**
 * Ways to be told that are off until asked for: a sound, and the browser's notification while nobody
 * looks. Any number of tabs may be open, and each hears everything: one of them is enough to tell.
 */

import { element } from "./dom.js";
import { announce, notify as words } from "./words.js";

/** A screen reader hears of landings at most this often, and a sound is made no more often. */
const EVERY = 3_000;

/** Landings come by the dozen; the ear hears a summary. */
export class Announcer {
  #count = 0;
  #latest;

  /** At once: what changes rarely. */
  say = (text) => {
    element("announcer").textContent = text;
  };

  landing(place) {
    this.#latest = place;
    if (this.#count++ > 0) return;
    setTimeout(() => {
      this.say(announce.landings(this.#count, this.#latest));
      this.#count = 0;
    }, EVERY);
  }
}

/** A falling whistle, as in the films. */
export class Sound {
  #audio;
  #switch = new Switch("sound", () => this.#prepare());

  landing() {
    if (!this.#switch.on || !this.#prepare()) return;
    once("alien-alert sound", () => this.#whistle());
  }

  /** A browser lets a page sound after a gesture only; before the first one it stays silent. */
  #prepare() {
    this.#audio ??= new AudioContext();
    if (this.#audio.state === "suspended") this.#audio.resume();
    return true;
  }

  #whistle() {
    const { currentTime: now, destination } = this.#audio;
    const [voice, volume] = [this.#audio.createOscillator(), this.#audio.createGain()];
    voice.frequency.setValueAtTime(1400, now);
    voice.frequency.exponentialRampToValueAtTime(220, now + 1.2);
    volume.gain.setValueAtTime(0.12, now);
    volume.gain.exponentialRampToValueAtTime(0.001, now + 1.3);
    voice.connect(volume).connect(destination);
    voice.start(now);
    voice.stop(now + 1.3);
  }
}

/** The browser's own notification, while the page is hidden. */
export class Notifier {
  #switch = new Switch("notify", () => this.#permit());

  constructor() {
    element("notify").hidden = !("Notification" in globalThis);
  }

  landing({ id }, place) {
    if (!this.#switch.on || !document.hidden || Notification.permission !== "granted") return;
    try {
      // Tabs that tell of the same landing replace one another's.
      const shown = new Notification(announce.notification, { body: place, tag: id, icon: "/static/icon-192.png" });
      shown.onclick = () => {
        globalThis.focus();
        shown.close();
      };
    } catch {
      // Phones want it from a service worker, which would have to hear landings by itself.
    }
  }

  async #permit() {
    if ((await Notification.requestPermission()) === "granted") return true;
    element("message").textContent = words.denied;
    return false;
  }
}

/** A button that is on or off, and stays so over visits. */
class Switch {
  on = false;

  /** @param turningOn what must be so for it to be on */
  constructor(id, turningOn) {
    const button = element(id);
    const name = `alien-alert ${id}`;
    const show = (on) => {
      this.on = on;
      button.setAttribute("aria-pressed", String(on));
    };
    show(remembered(name) === "on");
    button.addEventListener("click", async () => {
      show(!this.on && (await turningOn()) === true);
      remember(name, this.on ? "on" : "off");
    });
  }
}

/** In one tab only, and not again for a while. */
function once(name, act) {
  // Locks are there in secure contexts only; on a local network each tab acts.
  if (!navigator.locks) return act();
  navigator.locks.request(name, { ifAvailable: true }, (lock) => {
    if (!lock) return undefined;
    act();
    return new Promise((free) => setTimeout(free, EVERY));
  });
}

/** A browser may forbid even to look. */
function remembered(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return undefined;
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // It lasts as long as the page.
  }
}
