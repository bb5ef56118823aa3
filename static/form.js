/**
 * What may be told along with a landing: a name, a note, and a place on Earth, which is chosen by a click
 * on the map, by the browser where the person offers it, or by typing. All of it may be left empty.
 */

import { element, setText } from "./dom.js";
import { rounded } from "./map.js";
import { spot as words } from "./words.js";

const FIELDS = ["place", "note"];

export class Form {
  #showSpot;

  /** @param {(place?: {lat: number, lon: number}) => void} showSpot shows the chosen place on the map */
  constructor(showSpot) {
    this.#showSpot = showSpot;
    for (const id of ["lat", "lon"]) element(id).addEventListener("change", () => this.#typed());
    element("clear").addEventListener("click", () => this.choose());
    const locate = element("locate");
    locate.hidden = !navigator.geolocation;
    locate.addEventListener("click", () => this.#ask());
  }

  /** Takes a place for the next landing, or none. */
  choose(place) {
    const at = place && rounded(place);
    element("lat").value = at?.lat ?? "";
    element("lon").value = at?.lon ?? "";
    if (at) element("where").open = true;
    this.#show(at, at ? words.chosen(at) : words.none);
  }

  /** An alert's `data`, or what is wrong with what was typed. */
  read() {
    const data = {};
    for (const field of FIELDS) {
      const text = element(field).value.trim();
      if (text) data[field] = text;
    }
    const { place, problem } = this.#spot();
    return problem ? { problem } : { data: { ...data, ...place } };
  }

  /** It is out. What was chosen and typed meanwhile is for the next one. */
  sent(data) {
    for (const field of FIELDS) if (element(field).value.trim() === (data[field] ?? "")) element(field).value = "";
    const { place } = this.#spot();
    if (place && place.lat === data.lat && place.lon === data.lon) this.choose();
  }

  #spot() {
    const [lat, lon] = ["lat", "lon"].map(element);
    if (lat.validity.badInput || lon.validity.badInput) return { problem: words.outside };
    if (!lat.value && !lon.value) return {};
    if (!lat.value || !lon.value) return { problem: words.half };
    const place = rounded({ lat: lat.valueAsNumber, lon: lon.valueAsNumber });
    if (Math.abs(place.lat) > 90 || Math.abs(place.lon) > 180) return { problem: words.outside };
    return { place };
  }

  #typed() {
    const { place, problem } = this.#spot();
    if (place) this.choose(place);
    else this.#show(undefined, problem ?? words.none);
  }

  #ask() {
    setText(element("spot"), words.asking);
    navigator.geolocation.getCurrentPosition(
      ({ coords }) => this.choose({ lat: coords.latitude, lon: coords.longitude }),
      () => setText(element("spot"), words.denied),
      { maximumAge: 600_000, timeout: 15_000 },
    );
  }

  #show(place, text) {
    setText(element("spot"), text);
    element("clear").hidden = !place;
    this.#showSpot(place);
  }
}
