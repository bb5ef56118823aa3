/** What the browser keeps for the page, where it does: it may forbid even to look, and it may be full. */

/** @param {"localStorage" | "sessionStorage"} where over visits, or over reloads of this tab alone */
export function remembered(where, name) {
  try {
    return JSON.parse(globalThis[where].getItem(name));
  } catch {
    return undefined;
  }
}

export function remember(where, name, value) {
  try {
    globalThis[where].setItem(name, JSON.stringify(value));
  } catch {
    // It lasts as long as the page.
  }
}
