/** What every part of the page does with the document. All text goes in as text, never as markup. */

/** @returns {any} who asks knows what kind of element it is */
export const element = (id) => document.getElementById(id);

/** An element with text in it. */
export function line(tag, text, className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

/** Only when it changed: most of what ticks stays the same. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Text from people: its own direction, whatever the page's. */
export function foreign(tag, text, className) {
  const node = line(tag, text, className);
  node.dir = "auto";
  return node;
}

/** Makes of `draw` what may be called as often as one likes: it happens once, with the next frame. */
export function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** A second has twenty of these: of more changes of a text or a list the eye sees none. */
const PACE = 50;

const turns = [];

function takeTurn() {
  const turn = turns.shift();
  if (turns.length) requestAnimationFrame(takeTurn);
  turn();
}

/**
 * As `oncePerFrame`, for what may be asked for with each landing: at once, and then twenty times a second. Of
 * all who draw so one has its turn in each frame, and no frame has too much to do.
 */
export function paced(draw) {
  let asked = false;
  let drawn = -Infinity;
  const turn = () => {
    asked = false;
    drawn = performance.now();
    draw();
  };
  const queue = () => turns.push(turn) === 1 && requestAnimationFrame(takeTurn);
  return () => {
    if (asked) return;
    asked = true;
    const wait = drawn + PACE - performance.now();
    if (wait > 0) setTimeout(queue, wait);
    else queue();
  };
}
