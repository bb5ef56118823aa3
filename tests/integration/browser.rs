//! The page, in a real Chromium.

use serde_json::json;

use crate::fleet::{REGIONS, fleet};
use crate::support::browser::{Driver, Page};
use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::until;
use crate::support::vm::Vm;

pub async fn open(driver: &Driver, vm: &Vm) -> Page {
    let page = driver.open(&format!("http://127.0.0.1:{}/", vm.port)).await;
    page.connected().await;
    page
}

/// No complaints, and no word to anyone but the VMs.
pub async fn assert_clean(page: &Page, vms: &[&Vm]) {
    assert_eq!(page.console_errors().await, Vec::<String>::new());
    let requests = page.requests().await;
    assert!(requests.len() >= 5, "{requests:?}");
    for url in requests {
        let own = vms.iter().any(|vm| url.split('/').nth(2) == Some(&format!("127.0.0.1:{}", vm.port)));
        assert!(own, "a request to another host: {url}");
    }
}

#[tokio::test]
async fn a_click_on_one_vm_s_page_shows_on_another_s_and_on_its_own() {
    let emulator = Emulator::start().await;
    let vms = fleet(&emulator).await;
    assert_eq!(emulator.subscriptions().await.len(), REGIONS.len());
    let (ams, sin) = (&vms[0], &vms[1]);
    let mut sockets = Vec::new();
    for vm in &vms {
        sockets.push(vm.connect().await);
    }
    let driver = Driver::start().await;
    let (here, there) = (open(&driver, ams).await, open(&driver, sin).await);
    assert_eq!(
        here.text("#connection").await,
        "● Connected to vm-ams in Amsterdam (ams)".trim_start_matches("● ")
    );
    until("quiet", async || there.text("#empty").await.contains("quiet").then_some(())).await;

    here.click(".where summary").await;
    here.type_into("#place", "Dam Square").await;
    here.click("#press").await;
    for page in [&here, &there] {
        page.wait_for("#landings li[data-region=ams]").await;
        assert_eq!(page.count("#landings li").await, 1);
        let text = page.text("#landings li").await;
        assert!(text.contains("Dam Square") && text.contains("Amsterdam (ams)"), "{text}");
        assert!(text.contains(" ms") && text.contains("s ago"), "{text}");
    }
    here.wait_for("#press[data-state=heard]").await;
    assert_eq!((here.count("#landings li.own").await, there.count("#landings li.own").await), (1, 0));

    there.click("#press").await;
    here.wait_for("#landings li[data-region=sin]").await;
    // A raw socket on each of the five hears each click once.
    for socket in &mut sockets {
        for region in ["ams", "sin"] {
            assert_eq!(socket.next().await["origin"]["region"], region);
        }
        assert!(socket.settle().await.is_empty());
    }
    assert!(here.text("#landings li:first-child").await.contains("Near Singapore"), "the newest comes first");
    here.wait_for("#fleet li[data-instance=vm-ams].here").await;
    here.wait_for("#fleet li[data-instance=vm-sin]").await;

    assert_clean(&here, &[ams]).await;
    assert_clean(&there, &[sin]).await;
    if std::env::var_os("PICTURES").is_some() {
        take_pictures(&here, &mut sockets).await;
    }
    here.close().await;
    there.close().await;
}

/// For the documentation: a busy evening, on all kinds of screens.
async fn take_pictures(page: &Page, senders: &mut [Client]) {
    let landings = [
        (1, json!({"place": "Marina Bay", "lat": 1.3, "lon": 103.9})),
        (
            2,
            json!({"place": "A field near Roswell", "lat": 33.4, "lon": -104.5, "note": "Three lights, then a hum"}),
        ),
        (3, json!({"place": "Uluru", "lat": -25.3, "lon": 131.0})),
        (4, json!({"place": "Nazca", "lat": -14.7, "lon": -75.1, "note": "They came back for the drawings"})),
        (1, json!({"place": "Giza", "lat": 30.0, "lon": 31.1})),
    ];
    for (sender, data) in landings {
        senders[sender].alert(data).await;
    }
    page.click("#press").await;
    until("receipts", async || page.text("#receipt").await.contains("5 VMs").then_some(())).await;
    until("all of them", async || (page.count("#landings li").await == 8).then_some(())).await;
    for scheme in ["dark", "light"] {
        for (screen, width, height) in [("phone", 390, 844), ("tablet", 820, 1180), ("desktop", 1280, 960)] {
            page.picture(&format!("page-{screen}-{scheme}.png"), width, height, scheme).await;
        }
    }
}

#[tokio::test]
async fn a_page_comes_back_when_its_vm_does_and_shows_what_it_missed() {
    let emulator = Emulator::start().await;
    let mut ams = Vm::on(&emulator, "ams").await;
    let sin = Vm::on(&emulator, "sin").await;
    let driver = Driver::start().await;
    let page = open(&driver, &ams).await;
    page.click("#press").await;
    page.wait_for("#landings li").await;

    let port = ams.port.to_string();
    ams.end("TERM").await;
    page.wait_for("#connection[data-state=waiting]").await;
    assert_eq!(page.count("#press[data-state=offline]").await, 1);
    page.click("#press").await;
    page.wait_for("#press[data-state=held]").await;
    let said = page.text("#message").await;
    assert!(said.contains("no connection") && said.contains("goes out by itself"), "{said}");
    page.click("#press").await;
    assert_eq!(page.text("#message").await, "Taken back: nothing was sent.");
    sin.connect().await.alert(json!({"place": "Meanwhile"})).await;

    let back = Vm::spawn_on(&emulator.host(), "ams", &[("PORT", &port)]).await;
    page.connected().await;
    until("what was missed", async || (page.count("#landings li").await == 2).then_some(())).await;
    let missed = page.text("#landings li:first-child").await;
    assert!(missed.contains("Meanwhile"), "{missed}");
    page.click("#press").await;
    until("the next landing", async || (page.count("#landings li").await == 3).then_some(())).await;
    assert_clean(&page, &[&back]).await;
    page.close().await;
}

#[tokio::test]
async fn a_browser_back_online_connects_at_once() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.set_offline(true).await;
    page.wait_for("#connection[data-state=offline]").await;
    assert_eq!(page.text("#fleet-title").await, "Watch posts as last heard");
    page.set_offline(false).await;
    page.connected().await;
    assert_eq!(page.text("#fleet-title").await, "Watch posts");
    page.click("#press").await;
    page.wait_for("#press[data-state=heard]").await;
    page.close().await;
}

#[tokio::test]
async fn a_client_of_the_common_kind_works() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    // Handlers by type, `{type, data}` out, and nothing known of this server.
    page.run(
        "window.heard = [];
         const make = () => {
           const listeners = new Map();
           const socket = new WebSocket(`ws://${location.host}/ws`);
           socket.onmessage = (event) => {
             const message = JSON.parse(event.data);
             (listeners.get(message.type) ?? []).forEach((handler) => handler(message));
           };
           return {
             on: (type, handler) => listeners.set(type, [...(listeners.get(type) ?? []), handler]),
             send: (type, data) => socket.send(JSON.stringify({ type, data })),
           };
         };
         const listener = make();
         listener.on('broadcast', (message) => window.heard.push(message));
         listener.on('connected', () => {
           const sender = make();
           sender.on('connected', ({ clientId }) => {
             window.sender = clientId;
             sender.send('broadcast', { text: 'hello' });
           });
         });",
    )
    .await;
    let heard = until("the broadcast", async || page.run("return window.heard").await.get(0).cloned()).await;
    assert_eq!(heard["data"], json!({"text": "hello"}));
    assert_eq!(heard["senderId"], page.run("return window.sender").await);
    assert!(heard["timestamp"].is_i64());
    page.close().await;
}
