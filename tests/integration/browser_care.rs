//! The page for everybody, in a real Chromium: by keyboard alone, for screen readers, in dark and light,
//! within its budgets, and honest where no VM can be reached.

use serde_json::{Value, json};

use crate::browser::open;
use crate::support::browser::{Driver, Page};
use crate::support::client::Client;
use crate::support::devtools::Devtools;
use crate::support::http::get_with;
use crate::support::until;
use crate::support::vm::Vm;

/// All of the page as it is sent, in bytes.
const BUDGET: u64 = 60_000;
/// Browsers that see the page for the first time.
const COLD: usize = 5;
/// Milliseconds that the first paint may come after that of a line of text. On two cores with five times as much
/// to do as they can, it was 284.
const COLD_PAINT: f64 = 300.0;
/// As WebDriver has them.
const TAB: &str = "\u{E004}";
const BACK: &str = "\u{E008}\u{E004}";
const ENTER: &str = "\u{E007}";
const SPACE: &str = " ";
const DOWN: &str = "\u{E015}";

/// Makes axe-core known to the page.
async fn load_axe(page: &Page) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/node_modules/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(file).expect("axe-core is needed: npm ci --prefix tests/client");
    page.run(&axe).await;
}

/// The rules of axe-core that the page breaks, and where.
async fn violations(page: &Page) -> Value {
    page.run(
        "return axe.run(document).then(({ violations }) =>
           violations.map(({ id, nodes }) => [id, ...nodes.map(({ html, failureSummary }) => html + failureSummary)]))",
    )
    .await
}

/// What of the page's text has too little contrast, or one that can't be told. axe looks at plain colours
/// only, so each colour of the sky is taken in turn, and of the button's the brightest; nor does it look at
/// what stands across others, or is scrolled away. The letters on the map belong to the picture: all of them
/// are told elsewhere.
async fn pale(page: &Page) -> Value {
    page.run(
        "return (async () => {
           const root = document.documentElement;
           const skies = getComputedStyle(root).getPropertyValue('--sky').match(/#\\w+/g);
           const plain = [['#press', 'background: var(--red-bright)'], ['.leg', 'position: static'], ['#drawer .scroll', 'max-height: none']];
           const style = (text) => plain.forEach(([which, rule]) => document.querySelectorAll(which).forEach((node) => (node.style = text(rule))));
           style((rule) => rule);
           const pale = [];
           for (const sky of skies) {
             root.style = `background: ${sky}; --star: #0000`;
             const { violations, incomplete } = await axe.run({ exclude: '#map' }, { runOnly: 'color-contrast' });
             const nodes = [...violations, ...incomplete].flatMap(({ nodes }) => nodes);
             pale.push(...nodes.map(({ html, any }) => [sky, html, any.map(({ message }) => message)]));
           }
           style(() => '');
           root.style = '';
           return skies.length > 1 ? pale : 'no skies';
         })()",
    )
    .await
}

#[tokio::test]
async fn axe_finds_nothing_to_complain_of() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.click(".where summary").await;
    page.click("#drawer summary").await;
    page.click("#map").await;
    page.type_into("#place", "Roswell").await;
    page.type_into("#note", "Three lights, then a hum").await;
    page.click("#press").await;
    page.wait_for("#landings li.own").await;
    page.set_offline(true).await;
    page.wait_for("#connection[data-state=offline]").await;
    vm.connect().await.alert(json!({"place": "Elsewhere"})).await;
    page.set_offline(false).await;
    page.wait_for("#landings li .caught-up").await;
    load_axe(&page).await;
    for scheme in ["dark", "light"] {
        for (width, height) in [(320, 568), (1280, 900)] {
            page.set_media(scheme, "reduce").await;
            page.set_size(width, height).await;
            assert_eq!(page.run("return document.getAnimations().length").await, 0, "nothing moves");
            assert_eq!(violations(&page).await, json!([]), "{scheme}, {width} px");
            assert_eq!(pale(&page).await, json!([]), "contrast, {scheme}, {width} px");
        }
    }
    page.close().await;
}

/// Goes on with the tabulator, or back, until the focus is on `id`.
async fn tab_to(page: &Page, tab: &str, id: &str) {
    for _ in 0..20 {
        page.keys(tab).await;
        if page.focus().await == id {
            return;
        }
    }
    panic!("no way to {id} by keyboard");
}

#[tokio::test]
async fn the_keyboard_is_enough_for_all_of_it() {
    let vm = Vm::alone(&[("FLY_REGION", "ams")]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    // The first three, and nothing before them.
    for id in ["sound", "notify", "press"] {
        page.keys(TAB).await;
        assert_eq!(page.focus().await, id);
        let outline = page.run("return getComputedStyle(document.activeElement).outlineStyle").await;
        assert_eq!(outline, "solid", "the focus is seen");
    }
    page.keys(ENTER).await;
    page.wait_for("#press[data-state=heard]").await;

    tab_to(&page, TAB, "summary").await;
    page.keys(ENTER).await;
    for (id, text) in [("place", "By keyboard"), ("note", "No mouse"), ("lat", "33.44"), ("lon", "-104.52")] {
        tab_to(&page, TAB, id).await;
        page.keys(text).await;
    }
    tab_to(&page, TAB, "locate").await;
    assert!(page.text("#spot").await.starts_with("33.4° N, 104.5° W"), "{}", page.text("#spot").await);
    tab_to(&page, BACK, "press").await;
    page.keys(SPACE).await;
    until("the second", async || (page.count("#landings li.own").await == 2).then_some(())).await;
    // What is not drawn yet has no text for the driver.
    until("its words", async || {
        let text = page.text("#landings li:first-child").await;
        (text.contains("By keyboard") && text.contains("No mouse")).then_some(())
    })
    .await;

    tab_to(&page, TAB, "region").await;
    page.keys(DOWN).await;
    until("the region", async || {
        (page.run("return document.querySelector('#region').value").await == "ams").then_some(())
    })
    .await;
    // The lists scroll by keyboard too, so the focus goes there.
    for list in ["landings", "fleet"] {
        page.keys(TAB).await;
        let inside = format!("return document.activeElement.querySelector('#{list}') !== null");
        assert_eq!(page.run(&inside).await, true, "{list}");
    }
    page.keys(TAB).await;
    assert_eq!(page.run("return document.activeElement.parentElement.id").await, "drawer");
    page.keys(ENTER).await;
    page.wait_for("#frames li.out").await;
    page.wait_for("#frames li.in").await;
    let frames = page.text("#frames").await;
    assert!(frames.contains("\"type\":\"alert\"") && frames.contains("\"type\":\"ack\""), "{frames}");
    page.close().await;
}

#[tokio::test]
async fn the_budgets_are_kept() {
    let vm = Vm::alone(&[]).await;
    let mut sender = vm.connect().await;
    for number in 0..20 {
        sender.alert(json!({"place": format!("Field {number}")})).await;
    }
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    until("history", async || (page.count("#landings li").await == 20).then_some(())).await;
    page.wait_for("#fleet li").await;
    let shift = "const observer = new PerformanceObserver(() => {});
        observer.observe({ type: 'layout-shift', buffered: true });
        return observer.takeRecords().map(({ value, sources }) => [value, sources.map(({ node }) => node?.id || node?.nodeName)])";
    assert_eq!(page.run(shift).await, json!([]), "nothing moves while the page comes together");

    let blocking = page
        .run(
            "return performance.getEntriesByType('resource')
               .filter(({ renderBlockingStatus }) => renderBlockingStatus === 'blocking')
               .map(({ name }) => new URL(name).pathname)",
        )
        .await;
    let events = page.network().await;
    let named = |method: &'static str| events.iter().filter(move |event| event["method"] == method);
    let own: Vec<&Value> =
        named("Network.requestWillBeSent").map(|event| &event["params"]["requestId"]).collect();
    let requests = own.len();
    let bytes: f64 = named("Network.loadingFinished")
        .filter(|event| own.contains(&&event["params"]["requestId"]))
        .filter_map(|event| event["params"]["encodedDataLength"].as_f64())
        .sum();
    page.close().await;
    // In a browser of its own each time, which knows nothing of the page; how long that browser and this
    // machine take for a line of text is not the page's.
    let paint = async |path: &str| {
        let page = driver.open(&format!("http://127.0.0.1:{}{path}", vm.port)).await;
        let first = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null";
        let paint = until("first paint", async || page.run(first).await.as_f64()).await;
        page.close().await;
        paint
    };
    let (mut paints, mut texts) = (Vec::new(), Vec::new());
    for _ in 0..COLD {
        texts.push(paint("/health").await);
        paints.push(paint("/").await);
    }
    paints.sort_by(f64::total_cmp);
    texts.sort_by(f64::total_cmp);
    println!(
        "the page: {requests} requests, {bytes} bytes with their headers, first paint after {paints:.0?} ms, of \
         a line of text after {texts:.0?} ms"
    );
    assert!(requests <= 25, "{requests} requests");
    assert!(bytes <= BUDGET as f64, "{bytes} bytes");
    assert_eq!(blocking, json!(["/static/style.css"]), "the first paint waits for nothing else");
    assert!(paints[COLD / 2] - texts[COLD / 2] <= COLD_PAINT, "{paints:?} {texts:?}");

    // And what is sent later or on some devices only: icons, worker, offline page.
    let mut all = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/static")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = if name == "index.html" { "/".into() } else { format!("/static/{name}") };
        let answer = get_with(vm.port, &path, &[("accept-encoding", "gzip")]).await;
        assert_eq!(answer.status, 200, "{path}");
        all += answer.body.len() as u64;
    }
    println!("all files: {all} bytes compressed");
    assert!(all <= BUDGET, "{all} bytes");
}

/// Two files have English text, and what both have must not drift apart.
#[tokio::test]
async fn the_page_says_from_the_start_what_it_says_later() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    let differing = page.run(
        "return Promise.all([import('/static/words.js'), fetch('/').then((answer) => answer.text())])
           .then(([words, html]) => {
             const first = new DOMParser().parseFromString(html, 'text/html');
             const said = {
               '#connection': words.connection.connecting,
               '#progress': words.press[first.querySelector('#press').dataset.state],
               '#empty': words.list.loading,
               '#spot': words.spot.none,
               '#notify': words.notify.label,
               '.leg': words.UNKNOWN,
             };
             return Object.entries(said)
               .map(([where, text]) => [where, text, first.querySelector(where).textContent])
               .filter(([, text, shown]) => text !== shown);
           })",
    );
    assert_eq!(differing.await, json!([]));
    page.close().await;
}

/// Counts what the page tells instead of telling it, and hides the page where a test wants it.
pub const TOLD: &str = "
    window.told = [];
    window.whistles = 0;
    window.phone = false;
    window.Notification = class {
      static permission = window.Notification.permission;
      static requestPermission = async () => Notification.permission;
      constructor(title, { body, tag }) {
        if (phone) throw new TypeError('use the worker');
        told.push([title, body, tag]);
      }
    };
    ServiceWorkerRegistration.prototype.showNotification = async (title, { body, tag }) => told.push([title, body, tag]);
    const voice = { connect: () => voice, start: () => whistles++, stop() {}, setValueAtTime() {}, exponentialRampToValueAtTime() {} };
    voice.frequency = voice.gain = voice;
    window.AudioContext = class {
      state = 'suspended';
      createOscillator = () => voice;
      createGain = () => voice;
      resume() {
        if (navigator.userActivation.isActive) this.state = 'running';
      }
    };
    window.hide = (hidden) => Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });";

/// A landing at `place`, when the page has heard it: it is told of before the list is drawn.
async fn land(page: &Page, sender: &mut Client, place: &str) {
    let id = sender.alert(json!({"place": place})).await;
    page.wait_for(&format!("#landings li[data-id=\"{id}\"]")).await;
}

#[tokio::test]
async fn notifications_are_off_until_asked_for_and_many_landings_are_one() {
    let vm = Vm::alone(&[]).await;
    let mut sender = vm.connect().await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.permit("notifications", "granted").await;
    page.run_first(TOLD).await;
    page.reload().await;
    page.run("hide(true)").await;
    land(&page, &mut sender, "Not asked for").await;
    page.click("#notify").await;
    page.wait_for("#notify[aria-pressed=true]").await;
    for number in 0..10 {
        land(&page, &mut sender, &format!("Field {number}")).await;
    }
    let told = until("the summary", async || {
        let told = page.run("return told").await;
        told.as_array().unwrap().last()?[1].as_str()?.ends_with("Field 9").then_some(told)
    })
    .await;
    assert_eq!(told[0], json!(["Alien landing!", "Field 0", "alien-alert"]), "the first one at once");
    let told = told.as_array().unwrap();
    assert!(told.len() < 5, "no more often than every three seconds: {told:?}");
    assert!(told.iter().all(|one| one[2] == "alien-alert"), "one takes the other's place: {told:?}");

    page.run("hide(false)").await;
    land(&page, &mut sender, "Seen").await;
    assert_eq!(page.run("return told.length").await, told.len());

    // It is remembered; a phone wants it by the worker.
    page.run("return navigator.serviceWorker.ready.then(({ scope }) => scope)").await;
    page.reload().await;
    assert_eq!(page.count("#notify[aria-pressed=true]").await, 1);
    page.run("phone = true; hide(true)").await;
    land(&page, &mut sender, "On a phone").await;
    until("the worker", async || (page.run("return told[0]?.[1]").await == "On a phone").then_some(())).await;

    // What the browser no longer allows is not said to be on, nor turned on.
    page.permit("notifications", "denied").await;
    page.reload().await;
    assert_eq!(page.count("#notify[aria-pressed=false]").await, 1);
    page.click("#notify").await;
    until("why", async || (page.text("#notify").await == "Blocked by the browser").then_some(())).await;
    assert_eq!(page.count("#notify[aria-pressed=false]").await, 1);
    page.close().await;
}

/// What follows a click is asked of the real worker, with a notification of its own. A browser without a screen
/// has no hand that clicks, and lets nobody else bring a page to the front: what is asked of it is told instead.
#[tokio::test]
async fn a_click_on_a_notification_leads_to_the_page() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.permit("notifications", "granted").await;
    page.run("return navigator.serviceWorker.ready.then(({ scope }) => scope)").await;
    let mut worker = Devtools::attach(&page, "service_worker").await;
    let click = "(async () => {
        const asked = [];
        WindowClient.prototype.focus = async function () { asked.push(['focus', new URL(this.url).pathname]); };
        Clients.prototype.openWindow = async (path) => { asked.push(['open', path]); };
        await registration.showNotification('Alien landing!', { tag: 'alien-alert' });
        const [notification] = await registration.getNotifications();
        const event = new NotificationEvent('notificationclick', { notification });
        const work = [];
        event.waitUntil = (promise) => work.push(promise);
        dispatchEvent(event);
        await Promise.all(work);
        // What comes later is too late: the browser may have ended the worker.
        const told = [...asked];
        return [told, (await registration.getNotifications()).length];
    })()";
    assert_eq!(worker.evaluate(click).await, json!([[["focus", "/"]], 0]), "the page comes to the front");
    page.client.goto("about:blank").await.unwrap();
    assert_eq!(worker.evaluate(click).await, json!([[["open", "/"]], 0]), "it is gone, and opened anew");
    page.close().await;
}

#[tokio::test]
async fn sound_is_off_until_asked_for_and_waits_for_no_gesture() {
    let vm = Vm::alone(&[]).await;
    let mut sender = vm.connect().await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.run_first(TOLD).await;
    page.reload().await;
    land(&page, &mut sender, "Not asked for").await;
    assert_eq!(page.run("return whistles").await, 0);
    page.click("#sound").await;
    page.wait_for("#sound[aria-pressed=true]").await;
    land(&page, &mut sender, "Asked for").await;
    until("a whistle", async || (page.run("return whistles").await == 1).then_some(())).await;

    // After a reload the browser wants a gesture again. What came before it is not heard with it.
    page.reload().await;
    assert_eq!(page.count("#sound[aria-pressed=true]").await, 1);
    land(&page, &mut sender, "Before").await;
    page.click("h1").await;
    // Had a whistle been asked for, its lock would be given before this one.
    page.run("return navigator.locks.request('after it', () => 0)").await;
    assert_eq!(page.run("return whistles").await, 0);
    // It may still be another tab's turn, or this one's of before.
    until("a whistle again", async || {
        land(&page, &mut sender, "After").await;
        (page.run("return whistles").await == 1).then_some(())
    })
    .await;
    page.click("#sound").await;
    page.wait_for("#sound[aria-pressed=false]").await;
    page.close().await;
}

#[tokio::test]
async fn a_screen_reader_hears_a_summary() {
    let vm = Vm::alone(&[]).await;
    let mut sender = vm.connect().await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.run(
        "window.said = [];
         for (const region of document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log]')) {
           new MutationObserver(() => region.textContent && said.push(region.textContent))
             .observe(region, { childList: true, characterData: true, subtree: true });
         }",
    )
    .await;
    for number in 0..10 {
        sender.alert(json!({"place": format!("Field {number}")})).await;
    }
    let last = |said: &Value| said.as_array().unwrap().last().and_then(Value::as_str).map(str::to_owned);
    until("the summary", async || last(&page.run("return said").await).filter(|said| said.ends_with("9")))
        .await;
    let said = page.run("return said.splice(0)").await;
    let count = said.as_array().unwrap().len();
    assert!(count < 5 && said[0] == "Landing: Field 0", "{said}");
    assert!(last(&said).is_some_and(|said| said.contains("landings, the latest: Field 9")), "{said}");

    // Of a press what became of it, once, whatever the eye sees of its steps.
    page.click("#press").await;
    until("a receipt", async || page.text("#receipt").await.starts_with("Heard by 2 sockets").then_some(()))
        .await;
    let heard = until("what became of it", async || last(&page.run("return said").await)).await;
    assert!(heard.starts_with("Heard around the world: "), "{heard}");
    assert_eq!(page.run("return said.length").await, 1);
    page.close().await;
}

#[tokio::test]
async fn where_no_vm_answers_the_page_says_so_and_nothing_stale() {
    let mut vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.run("return navigator.serviceWorker.ready.then(({ scope }) => scope)").await;
    let manifest = page.cdp("Page.getAppManifest", json!({})).await;
    assert_eq!(manifest["errors"], json!([]), "{manifest}");
    let port = vm.port.to_string();
    vm.end("TERM").await;
    page.client.refresh().await.unwrap();
    assert_eq!(page.text("h1").await, "Nobody answers");
    let styled = "return getComputedStyle(document.querySelector('main')).textAlign";
    assert_eq!(page.run(styled).await, "center", "with its style and its picture");
    assert_eq!(page.run("return document.querySelector('img').naturalWidth > 0").await, true);
    let kept = page.run("return caches.keys().then((names) => Promise.all(names.map(async (name) => (await (await caches.open(name)).keys()).map(({ url }) => new URL(url).pathname))))");
    assert_eq!(kept.await, json!([["/static/offline.html", "/static/offline.css", "/static/icon.svg"]]));

    let _back = Vm::spawn("back", &[("PORT", &port)]).await;
    page.click("a").await;
    page.connected().await;
    page.close().await;
}
