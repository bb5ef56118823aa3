/**
 * Makes what the page shows and nobody draws by hand: the world, and the icons of an installed page.
 *
 *     npm ci --prefix tools/artwork && npm run --prefix tools/artwork make
 *
 * The results are committed, so that neither a build nor a test needs this.
 */

import { readFile, writeFile } from "node:fs/promises";
import sharp from "sharp";
import { feature } from "topojson-client";
import { presimplify, simplify } from "topojson-simplify";

const STATIC = new URL("../../static/", import.meta.url);

/** Square degrees: a corner that makes less of a difference is left out. */
const SMALLEST = 0.2;
/** Steps to a degree: finer than the page's dots. */
const STEPS = 2;
/** The part of the world that people live in; static/map.js has the same. */
const [NORTH, SOUTH] = [84, -56];

await world();
await icon("icon-192.png", 192, 0);
await icon("icon-512.png", 512, 0);
// A system may cut it to any shape, down to a circle of 80 %.
await icon("icon-maskable.png", 512, 0.16);

/** Equirectangular: a place's longitude and latitude are its x and y, and a click is a place. */
async function world() {
  const source = new URL("node_modules/world-atlas/land-110m.json", import.meta.url);
  const atlas = simplify(presimplify(JSON.parse(await readFile(source, "utf8"))), SMALLEST);
  const polygons = feature(atlas, atlas.objects.land).features.flatMap(({ geometry }) =>
    geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates,
  );
  const path = polygons.flat().map(outline).join("");
  const box = `-${180 * STEPS} -${NORTH * STEPS} ${360 * STEPS} ${(NORTH - SOUTH) * STEPS}`;
  const svg = `<!-- Land, 1:110m, of Natural Earth (public domain), by world-atlas 2.0.2; made by tools/artwork. -->
<svg xmlns="http://www.w3.org/2000/svg" viewBox="${box}" preserveAspectRatio="none"><path d="${path}"/></svg>
`;
  await writeFile(new URL("world.svg", STATIC), svg);
}

/** A ring as whole steps, each from the one before; nothing for one that rounding leaves no area. */
function outline(ring) {
  if (ring.every(([, latitude]) => latitude < SOUTH)) return "";
  const points = unwound(ring).map((place) => place.map((degrees) => Math.round(degrees * STEPS)));
  const distinct = points.filter(([x, y], index) => index === 0 || x !== points[index - 1][0] || y !== points[index - 1][1]);
  if (distinct.length < 3) return "";
  const steps = distinct.slice(1).map(([x, y], index) => `${x - distinct[index][0]} ${y - distinct[index][1]}`);
  const shape = `l${steps.join(" ").replace(/ -/g, "-")}z`;
  // What goes over the edge comes in at the other one.
  const turns = [0, 1, -1].filter((turn) => distinct.some(([x]) => Math.abs(x + turn * 360 * STEPS) < 180 * STEPS));
  return turns.map((turn) => `M${distinct[0][0] + turn * 360 * STEPS} ${distinct[0][1]}${shape}`).join("");
}

/** As x and y, going on beyond the 180th meridian instead of jumping to the other edge. */
function unwound(ring) {
  let before = ring[0][0];
  return ring.slice(0, -1).map(([longitude, latitude]) => {
    before = longitude - Math.round((longitude - before) / 360) * 360;
    return [before, -latitude];
  });
}

/** The icon on the night sky, with a margin as a part of the whole. */
async function icon(name, size, margin) {
  const inner = Math.round(size * (1 - 2 * margin));
  const drawing = await sharp(new URL("icon.svg", STATIC).pathname, { density: (72 * inner) / 64 }).resize(inner, inner).toBuffer();
  await sharp({ create: { width: size, height: size, channels: 4, background: "#0b1026" } })
    .composite([{ input: drawing }])
    .png({ palette: true, colours: 32, effort: 10, compressionLevel: 9 })
    .toFile(new URL(name, STATIC).pathname);
}
