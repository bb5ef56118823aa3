/**
 * Fly's regions, for people: which city a code stands for. Source: `fly platform regions` and
 * https://fly.io/docs/reference/regions/, with the codes of former regions kept.
 */

const CITIES = {
  ams: "Amsterdam", arn: "Stockholm", atl: "Atlanta", bog: "Bogotá", bom: "Mumbai", bos: "Boston",
  cdg: "Paris", den: "Denver", dfw: "Dallas", ewr: "Secaucus", eze: "Buenos Aires", fra: "Frankfurt",
  gdl: "Guadalajara", gig: "Rio de Janeiro", gru: "São Paulo", hkg: "Hong Kong", iad: "Ashburn",
  jnb: "Johannesburg", lax: "Los Angeles", lhr: "London", mad: "Madrid", mia: "Miami", nrt: "Tokyo",
  ord: "Chicago", otp: "Bucharest", phx: "Phoenix", qro: "Querétaro", scl: "Santiago", sea: "Seattle",
  sin: "Singapore", sjc: "San Jose", syd: "Sydney", waw: "Warsaw", yul: "Montreal", yyz: "Toronto",
};

/** The city of a region, or what there is to say of a code that is none of Fly's. */
export function city(region) {
  return CITIES[region] ?? (region === "LOCAL_REGION" ? "this machine" : String(region));
}
