/**
 * Ways to be told beside what is seen: for a screen reader, and, off until asked for, by a sound and by the
 * browser's notification while nobody looks. Landings come by the dozen, so each tells of some together.
 * Any number of tabs may be open, and each hears everything: one of them is enough to tell.
 */

import { element, setText } from "./dom.js";
import { remember, remembered } from "./storage.js";
import { announce, notify as words } from "./words.js";

/** No way tells more often. */
const EVERY = 3_000;

/** Tells of a landing at once, and then of all that came meanwhile. */
class Summary {
  #tell;
  #count = 0;
  #latest;
  #resting = false;

  /** @param {(count: number, latest: any) => void} tell */
  constructor(tell) {
    this.#tell = tell;
  }

  add(landing) {
    this.#count++;
    this.#latest = landing;
    if (!this.#resting) this.#now();
  }

  #now() {
    this.#resting = true;
    setTimeout(() => {
      this.#resting = false;
      if (this.#count > 0) this.#now();
    }, EVERY);
    const count = this.#count;
    this.#count = 0;
    this.#tell(count, this.#latest);
  }
}

/** For the ear: what the eye sees change all the time, in few words. */
export class Announcer {
  #landings = new Summary((count, place) => this.say(announce.landings(count, place)));
  /** What became of presses is not lost among the others'. */
  #own = new Summary((count, place) => this.say(announce.own(count, place)));

  /** At once: what changes rarely. */
  say = (text) => {
    element("announcer").textContent = text;
  };

  landing(place, own) {
    (own ? this.#own : this.#landings).add(place);
  }
}

/** A falling whistle, as in the films. */
export class Sound {
  #audio;
  #switch = new Switch("sound", () => this.#prepare());

  constructor() {
    // A browser lets a page sound after a gesture only, and after a reload it wants another one.
    for (const gesture of ["click", "keydown"]) addEventListener(gesture, () => this.#switch.on && this.#prepare());
  }

  landing() {
    // A whistle that had to wait would come with all others at the first gesture, and keep other tabs silent.
    if (!this.#switch.on || this.#audio?.state !== "running") return;
    once("alien-alert sound", () => this.#whistle());
  }

  #prepare() {
    this.#audio ??= new AudioContext();
    if (this.#audio.state !== "running") this.#audio.resume();
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
  #say;
  #summary = new Summary((count, place) => this.#show(announce.notification(count, place)));
  #switch = new Switch("notify", () => this.#permit(), isPermitted);

  /** @param {(text: string) => void} say tells the ear of a refusal */
  constructor(say) {
    this.#say = say;
    element("notify").hidden = !("Notification" in globalThis);
  }

  landing(place) {
    if (this.#switch.on && document.hidden && isPermitted()) this.#summary.add(place);
  }

  #show({ title, body }) {
    // Somebody looks meanwhile.
    if (!document.hidden) return;
    // One at a time, whichever tab tells it; a later landing is news all the same.
    const options = { body, tag: "alien-alert", renotify: true, icon: "/static/icon-192.png" };
    try {
      const shown = new Notification(title, options);
      shown.onclick = () => {
        globalThis.focus();
        shown.close();
      };
    } catch {
      // Phones want it by the service worker, which hears of the click as well; where there is none, so be it.
      const worker = navigator.serviceWorker?.getRegistration();
      worker?.then((registration) => registration?.showNotification(title, options)).catch(() => {});
    }
  }

  async #permit() {
    const permitted = (await Notification.requestPermission()) === "granted";
    setText(element("notify"), permitted ? words.label : words.denied);
    if (!permitted) this.#say(words.denied);
    return permitted;
  }
}

/** It may be taken back at any time, in the browser's own settings. */
function isPermitted() {
  return globalThis.Notification?.permission === "granted";
}

/** A button that is on or off, and stays so over visits. */
class Switch {
  on = false;

  /**
   * @param {() => unknown} turningOn what must be true for it to be turned on
   * @param {() => boolean} staysOn and for it to be on at the next visit
   */
  constructor(id, turningOn, staysOn = () => true) {
    const button = element(id);
    const name = `alien-alert ${id}`;
    const show = (on) => {
      this.on = on;
      button.setAttribute("aria-pressed", String(on));
    };
    show(remembered("localStorage", name) === true && staysOn());
    button.addEventListener("click", async () => {
      show(!this.on && (await turningOn()) === true);
      remember("localStorage", name, this.on);
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
