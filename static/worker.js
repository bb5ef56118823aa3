/**
 * The service worker: an honest page for when no VM can be reached, and what follows a click on a
 * notification. The app itself is never kept here: its parts must be of one version, and the server's answer
 * says which.
 */

/** The server puts the version of the page here: with another one this is another worker, and is installed anew. */
const CACHE = "alien-alert offline {version}";
const PAGE = "/static/offline.html";
const KEPT = [PAGE, "/static/offline.css", "/static/icon.svg"];

addEventListener("install", (event) => {
  // Past the browser's own cache: it may be of an older version.
  const fresh = KEPT.map((path) => new Request(path, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(fresh)).then(() => skipWaiting()));
});

addEventListener("activate", (event) => {
  const drop = (names) => Promise.all(names.filter((name) => name !== CACHE).map((name) => caches.delete(name)));
  // The browser asks the network for the page while this one wakes up.
  const preload = () => registration.navigationPreload?.enable();
  event.waitUntil(caches.keys().then(drop).then(preload));
});

addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.mode === "navigate") event.respondWith(load(event).catch(() => caches.match(PAGE)));
  // Of the page's own parts, those that the offline page needs.
  else if (KEPT.includes(new URL(request.url).pathname)) event.respondWith(fetch(request).catch(() => caches.match(request)));
});

// The page may be asleep, or gone.
addEventListener("notificationclick", (event) => {
  event.notification.close();
  const all = clients.matchAll({ type: "window", includeUncontrolled: true });
  event.waitUntil(all.then(([page]) => page?.focus() ?? clients.openWindow("/")));
});

async function load({ preloadResponse, request }) {
  return (await preloadResponse) ?? fetch(request);
}
