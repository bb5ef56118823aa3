/**
 * Fly's regions, for people: which city a code stands for, and where that is. Source: `fly platform
 * regions` and https://fly.io/docs/reference/regions/, with the codes of former regions kept; the places
 * are the cities', to a tenth of a degree.
 *
 * A VM that was told no region is somebody's own machine, which words.js has a name for. It stands at
 * Roswell, New Mexico, where landings began: on the map it needs a place, and there is none to know.
 */

/** City, latitude, longitude. */
const REGIONS = {
  ams: ["Amsterdam", 52.4, 4.9],
  arn: ["Stockholm", 59.3, 18.1],
  atl: ["Atlanta", 33.7, -84.4],
  bog: ["Bogotá", 4.7, -74.1],
  bom: ["Mumbai", 19.1, 72.9],
  bos: ["Boston", 42.4, -71.1],
  cdg: ["Paris", 48.9, 2.4],
  den: ["Denver", 39.7, -105],
  dfw: ["Dallas", 32.8, -96.8],
  ewr: ["Secaucus", 40.8, -74.1],
  eze: ["Buenos Aires", -34.6, -58.4],
  fra: ["Frankfurt", 50.1, 8.7],
  gdl: ["Guadalajara", 20.7, -103.3],
  gig: ["Rio de Janeiro", -22.9, -43.2],
  gru: ["São Paulo", -23.6, -46.6],
  hkg: ["Hong Kong", 22.3, 114.2],
  iad: ["Ashburn", 39, -77.5],
  jnb: ["Johannesburg", -26.2, 28],
  lax: ["Los Angeles", 34.1, -118.2],
  lhr: ["London", 51.5, -0.1],
  mad: ["Madrid", 40.4, -3.7],
  mia: ["Miami", 25.8, -80.2],
  nrt: ["Tokyo", 35.7, 139.7],
  ord: ["Chicago", 41.9, -87.6],
  otp: ["Bucharest", 44.4, 26.1],
  phx: ["Phoenix", 33.4, -112.1],
  qro: ["Querétaro", 20.6, -100.4],
  scl: ["Santiago", -33.4, -70.7],
  sea: ["Seattle", 47.6, -122.3],
  sin: ["Singapore", 1.4, 103.8],
  sjc: ["San Jose", 37.3, -121.9],
  syd: ["Sydney", -33.9, 151.2],
  waw: ["Warsaw", 52.2, 21],
  yul: ["Montreal", 45.5, -73.6],
  yyz: ["Toronto", 43.7, -79.4],
  LOCAL_REGION: [undefined, 33.4, -104.5],
};

/** Only its own: a code may be any word, `constructor` too. */
const known = (region) => (Object.hasOwn(REGIONS, region) ? REGIONS[region] : undefined);

/** The city of a region, or what there is to say of a code that is none of Fly's. */
export function cityOf(region) {
  return known(region)?.[0] ?? String(region);
}

/** Where it is on Earth, as `{lat, lon}`; nothing for a code that is none of Fly's. */
export function placeOfRegion(region) {
  const found = known(region);
  return found && { lat: found[1], lon: found[2] };
}
