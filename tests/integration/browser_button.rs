//! The red button, in a real Chromium: what it shows of a press, whatever becomes of it.

use serde_json::{Value, json};

use crate::browser::open;
use crate::support::browser::{Driver, Page};
use crate::support::emulator::Emulator;
use crate::support::proxy::{Mode, Proxy};
use crate::support::until;
use crate::support::vm::Vm;

/// From here on, each state that the button shows is written down.
async fn watch_states(page: &Page) {
    page.run(
        "window.states = [];
         const button = document.querySelector('#press');
         new MutationObserver(() => states.push(button.dataset.state))
           .observe(button, { attributeFilter: ['data-state'] });",
    )
    .await;
}

async fn states(page: &Page) -> Value {
    page.run("return states").await
}

#[tokio::test]
async fn a_press_shows_each_step_and_who_heard_it() {
    let emulator = Emulator::start().await;
    let vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vms[0]).await;
    let _others = (vms[1].connect().await, vms[2].connect().await);
    assert_eq!(page.count("#press[data-state=idle]").await, 1);
    // It knows its VM's clock by then.
    page.click("#drawer summary").await;
    until("pongs", async || (page.text("#frames").await.matches("\"pong\"").count() >= 3).then_some(()))
        .await;
    watch_states(&page).await;
    page.click("#press").await;
    page.wait_for("#press[data-state=heard]").await;
    assert_eq!(states(&page).await, json!(["pressed", "sent", "confirmed", "heard"]));
    assert_eq!(page.text("#progress").await, "Heard around the world");
    for step in ["pressed", "sent", "confirmed", "heard"] {
        let light = page.text(&format!("#steps .done[data-step={step}]")).await;
        assert!(light.contains(" ms") || light.contains(" s"), "{light}");
    }
    let legs = page
        .run("return [...document.querySelectorAll('#journey .leg')].map((leg) => leg.textContent)")
        .await;
    let legs = legs.as_array().unwrap();
    assert!(legs.len() == 4 && legs.iter().all(|leg| leg.as_str().unwrap().ends_with('s')), "{legs:?}");
    let path = page.text("#landings li.own .path").await;
    assert!(path.starts_with("you → ") && path.matches(" → ").count() == 8, "{path}");
    until("receipts of all", async || {
        (page.text("#receipt").await == "Heard by 3 sockets on 3 VMs").then_some(())
    })
    .await;
    page.close().await;
}

#[tokio::test]
async fn what_is_pressed_while_offline_is_held_back_and_goes_out_once_or_is_taken_back() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.set_offline(true).await;
    page.wait_for("#connection[data-state=offline]").await;
    assert_eq!(page.text("#progress").await, "Waiting for the connection");

    page.click("#press").await;
    page.wait_for("#press[data-state=held]").await;
    let said = page.text("#message").await;
    assert!(said.contains("no connection") && said.contains("goes out by itself"), "{said}");
    page.click("#press").await;
    page.wait_for("#press[data-state=offline]").await;
    assert_eq!(page.text("#message").await, "Taken back: nothing was sent.");

    page.click("#press").await;
    page.set_offline(false).await;
    page.wait_for("#press[data-state=heard]").await;
    page.wait_for("#landings li.own").await;
    assert_eq!((page.count("#landings li").await, page.text("#message").await), (1, String::new()));
    page.close().await;
}

#[tokio::test]
async fn what_is_held_back_for_too_long_is_not_sent_and_that_is_said() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.set_offline(true).await;
    page.wait_for("#connection[data-state=offline]").await;
    page.click("#press").await;
    page.wait_for("#press[data-state=held]").await;
    let said = page.text("#message").await;
    assert!(said.contains("within 2 minutes"), "{said}");
    // As for a machine that slept: its clock goes on, its timers did not.
    page.run("const { now } = Date; Date.now = () => now() + 120_000").await;
    page.set_offline(false).await;
    page.wait_for("#press[data-state=refused]").await;
    assert_eq!(page.text("#progress").await, "Not sent");
    let said = page.text("#message").await;
    assert!(said.contains("no connection for 2 minutes"), "{said}");
    page.connected().await;
    page.click("#press").await;
    page.wait_for("#press[data-state=heard]").await;
    page.wait_for("#landings li.own").await;
    assert_eq!(page.count("#landings li").await, 1, "the one that was pressed with a connection");
    page.close().await;
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_answers_loses_no_press_and_doubles_none() {
    let vm = Vm::alone(&[]).await;
    let line = Proxy::to(vm.port).await;
    let driver = Driver::start().await;
    let page = driver.open(&format!("http://{}/", line.host())).await;
    page.connected().await;
    let press = "for (let press = 0; press < 3; press++) document.querySelector('#press').click()";
    let break_off = async || {
        line.set(Mode::BlackHole);
        page.run(press).await;
        page.wait_for("#press[data-state=sent]").await;
        line.set(Mode::Refuse);
        page.wait_for("#press[data-state=held]").await;
        let said = page.text("#message").await;
        assert!(said.contains("counts once"), "{said}");
    };
    break_off().await;
    line.set(Mode::Pass);
    page.wait_for("#press[data-state=heard]").await;
    until("all three", async || (page.count("#landings li.own").await == 3).then_some(())).await;
    assert_eq!((page.count("#landings li").await, page.text("#message").await), (3, String::new()));

    break_off().await;
    page.click("#press").await;
    page.wait_for("#press[data-state=offline]").await;
    let said = page.text("#message").await;
    assert!(said.contains("not be sent again") && said.contains("may have been heard"), "{said}");
    page.close().await;
}

#[tokio::test]
async fn what_is_held_back_outlives_a_reload_of_the_page() {
    let vm = Vm::alone(&[]).await;
    let line = Proxy::to(vm.port).await;
    let driver = Driver::start().await;
    let page = driver.open(&format!("http://{}/", line.host())).await;
    page.connected().await;
    page.run("return navigator.serviceWorker.ready.then(({ scope }) => scope)").await;
    line.set(Mode::Refuse);
    page.wait_for("#connection[data-state=waiting]").await;
    page.click("#press").await;
    page.wait_for("#press[data-state=held]").await;
    page.client.refresh().await.unwrap();
    assert_eq!(page.text("h1").await, "Nobody answers");
    line.set(Mode::Pass);
    page.click("a").await;
    page.wait_for("#press[data-state=heard]").await;
    page.wait_for("#landings li.own").await;
    assert_eq!((page.count("#landings li").await, page.text("#message").await), (1, String::new()));
    page.close().await;
}

/// A test's script between the page and its VM: `tamper` is asked about each frame, which goes on as what it
/// returns, or not at all; `deliver` gives the page a frame.
const BETWEEN: &str = "
    window.tamper = (message) => message;
    window.WebSocket = class extends WebSocket {
      set onmessage(handler) {
        window.deliver = (message) => handler({ data: JSON.stringify(message) });
        super.onmessage = ({ data }) => {
          const message = tamper(JSON.parse(data));
          if (message) deliver(message);
        };
      }
    };";

#[tokio::test]
async fn a_press_that_was_not_confirmed_and_is_heard_after_all_is_one_s_own_and_the_next_one_is_another() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.run_first(BETWEEN).await;
    page.reload().await;
    page.run(
        "window.late = [];
         tamper = (message) => {
           if (message.type === 'alert') return void late.push(message);
           if (message.type !== 'ack') return message;
           return { type: 'error', code: 'unavailable', message: '', id: message.id };
         }",
    )
    .await;
    page.click("#press").await;
    page.wait_for("#press[data-state=unconfirmed]").await;
    assert_eq!(page.text("#progress").await, "Not confirmed");
    until("the event", async || (page.run("return late.length").await == 1).then_some(())).await;
    page.run("tamper = (message) => message; late.forEach(deliver)").await;
    page.wait_for("#press[data-state=heard]").await;
    page.wait_for("#landings li.own").await;
    assert_eq!(page.text("#message").await, "");

    page.click("#press").await;
    until("another", async || (page.count("#landings li.own").await == 2).then_some(())).await;
    page.wait_for("#press[data-state=heard]").await;
    page.close().await;
}

#[tokio::test]
async fn what_was_heard_is_out_though_its_answer_was_lost() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.run_first(BETWEEN).await;
    page.reload().await;
    page.run("tamper = (message) => message.type === 'ack' ? undefined : message").await;
    page.click(".where summary").await;
    page.type_into("#place", "Once").await;
    page.click("#press").await;
    page.wait_for("#landings li.own").await;
    page.set_offline(true).await;
    page.wait_for("#press[data-state=offline]").await;
    assert_eq!(page.run("return document.querySelector('#place').value").await, "", "told once");
    page.set_offline(false).await;
    page.connected().await;
    assert_eq!((page.count("#landings li").await, page.text("#message").await), (1, String::new()));
    page.close().await;
}

#[tokio::test]
async fn a_refusal_says_why() {
    let vm = Vm::alone(&[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "8")]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.run("for (let press = 0; press < 9; press++) document.querySelector('#press').click()").await;
    page.wait_for("#press[data-state=refused]").await;
    assert_eq!(page.text("#progress").await, "Not sent");
    let said = page.text("#message").await;
    assert!(said.contains("a lot of landings"), "{said}");

    page.click(".where summary").await;
    page.type_into("#lat", "91").await;
    page.type_into("#lon", "0").await;
    page.click("#press").await;
    let said = page.text("#message").await;
    assert!(said.starts_with("Latitude is from -90 to 90"), "{said}");
    page.close().await;
}

#[tokio::test]
async fn a_place_is_chosen_on_the_map_or_told_by_the_browser_and_never_finer_than_a_tenth() {
    let vm = Vm::alone(&[]).await;
    let mut listener = vm.connect().await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.click(".where summary").await;
    page.click("#map").await;
    let said = page.text("#spot").await;
    assert!(said.contains("rounded to 0.1°"), "{said}");
    assert_eq!(page.count("#map .spot:not([hidden])").await, 1);
    page.click("#press").await;
    let data = listener.expect("alert").await["data"].take();
    // The middle of the map, as far as a pixel goes.
    let (lat, lon) = (data["lat"].as_f64().unwrap(), data["lon"].as_f64().unwrap());
    assert!((lat - 14.0).abs() < 0.6 && lon.abs() < 0.6, "{data}");
    assert_eq!(data["lat"].to_string().split('.').nth(1).map_or(0, str::len).max(1), 1, "{data}");
    // The next one is somewhere else.
    page.wait_for("#map .spot[hidden]").await;

    page.permit("geolocation", "granted").await;
    let here = json!({"latitude": 52.37312, "longitude": 4.89218, "accuracy": 1});
    page.cdp("Emulation.setGeolocationOverride", here).await;
    page.click("#locate").await;
    page.wait_for("#map .spot:not([hidden])").await;
    page.click("#press").await;
    assert_eq!(listener.expect("alert").await["data"], json!({"lat": 52.4, "lon": 4.9}));
    page.close().await;
}
