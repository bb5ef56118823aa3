//! The world and the list, in a real Chromium and among real VMs: everything at its place.

use serde_json::json;

use crate::browser::{assert_clean, open};
use crate::support::browser::{Driver, Page};
use crate::support::emulator::Emulator;
use crate::support::until;
use crate::support::vm::Vm;

/// Half a pixel of the map is less.
const CLOSE: f64 = 0.3;

/// Where a thing stands on the map, as latitude and longitude: from what is seen, not from what is meant.
async fn place_of(page: &Page, selector: &str) -> (f64, f64) {
    let script = format!(
        "const map = document.querySelector('#map').getBoundingClientRect();
         const thing = document.querySelector('{selector}').getBoundingClientRect();
         return [84 - (thing.top - map.top) / map.height * 140, (thing.left - map.left) / map.width * 360 - 180]"
    );
    let place = page.run(&script).await;
    (place[0].as_f64().unwrap(), place[1].as_f64().unwrap())
}

async fn assert_at(page: &Page, selector: &str, lat: f64, lon: f64) {
    let place = place_of(page, selector).await;
    assert!((place.0 - lat).abs() < CLOSE && (place.1 - lon).abs() < CLOSE, "{selector}: {place:?}");
    let seen = format!("return getComputedStyle(document.querySelector('{selector}'), '::before').content");
    assert_eq!(page.run(&seen).await, "\"\"", "{selector} is seen");
}

async fn size_of(page: &Page, instance: &str) -> f64 {
    let script = format!(
        "return document.querySelector('.light[data-instance={instance}]').style.getPropertyValue('--size')"
    );
    page.run(&script).await.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn landings_and_vms_are_at_their_places_and_lights_come_and_go_with_their_vms() {
    let emulator = Emulator::start().await;
    let beacons = [("BEACON_INTERVAL", "1")];
    let mut vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &beacons).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vms[0]).await;
    for (instance, lat, lon) in [("vm-ams", 52.4, 4.9), ("vm-sin", 1.4, 103.8), ("vm-lax", 34.1, -118.2)] {
        let light = format!(".light[data-instance={instance}]");
        page.wait_for(&light).await;
        assert_at(&page, &light, lat, lon).await;
    }
    assert_eq!(page.count(".light.here[data-instance=vm-ams]").await, 1);

    let mut sin = vms[1].connect().await;
    let roswell = sin.alert(json!({"place": "Roswell", "lat": 33.4, "lon": -104.5})).await;
    let mark = format!(".mark.live[data-id=\"{roswell}\"]");
    page.wait_for(&mark).await;
    assert_at(&page, &mark, 33.4, -104.5).await;
    page.wait_for(".lines path[data-from=sin][data-to=ams]").await;
    assert_eq!(page.text("#journey-from").await, "VM sin");
    assert_eq!(page.text("#journey-to").await, "VM ams");
    // One without a place is where its VM is.
    let near = sin.alert(json!({})).await;
    let mark = format!(".mark[data-id=\"{near}\"]");
    page.wait_for(&mark).await;
    assert_at(&page, &mark, 1.4, 103.8).await;
    let way = "return document.querySelector('#map .way').textContent";
    until("the time on the way", async || page.run(way).await.as_str()?.ends_with('s').then_some(())).await;
    until("no way any more", async || (page.count("#map .lines path").await == 0).then_some(())).await;
    assert_eq!(page.run(way).await, "", "its time goes with it");
    assert_eq!(
        page.run("return document.querySelector('#map').ariaLabel").await,
        "World map with 3 VMs and 2 landings"
    );

    let syd = Vm::spawn_on(&emulator.host(), "syd", &beacons).await;
    syd.ready().await;
    page.wait_for(".light[data-instance=vm-syd]").await;
    assert_at(&page, ".light[data-instance=vm-syd]", -33.9, 151.2).await;
    let small = size_of(&page, "vm-syd").await;
    let _sockets = [syd.connect().await, syd.connect().await, syd.connect().await];
    until("a larger light", async || (size_of(&page, "vm-syd").await > small).then_some(())).await;
    until("its sockets", async || (page.text("#vms").await == "4").then_some(())).await;

    // One that says goodbye, and one that does not.
    vms[2].end("TERM").await;
    page.wait_for(".light.gone[data-instance=vm-lax]").await;
    drop(syd);
    page.wait_for(".light.gone[data-instance=vm-syd]").await;
    until("dark", async || (page.count(".light").await == 2).then_some(())).await;
    assert_clean(&page, &[&vms[0]]).await;
    page.close().await;
}

#[tokio::test]
async fn the_list_tells_what_was_caught_up_and_shows_one_region_where_asked() {
    let emulator = Emulator::start().await;
    let vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vms[0]).await;
    page.wait_for("#empty:not([hidden])").await;
    until("an empty list", async || page.text("#empty").await.contains("quiet").then_some(())).await;
    let (mut sin, mut lax) = (vms[1].connect().await, vms[2].connect().await);
    sin.alert(json!({"place": "Live"})).await;
    page.wait_for("#landings li.new[data-region=sin]").await;
    let path = page.text("#landings li .path").await;
    assert!(path.starts_with("sin → ") && path.ends_with("page"), "{path}");

    page.set_offline(true).await;
    page.wait_for("#connection[data-state=offline]").await;
    // Its VM has it before the page is back, or it would come live.
    let mut witness = vms[0].connect().await;
    lax.alert(json!({"place": "Missed"})).await;
    witness.expect("alert").await;
    page.set_offline(false).await;
    page.wait_for("#landings li[data-region=lax] .caught-up").await;
    assert_eq!(page.count(".caught-up").await, 1, "the other one came by itself");

    let filter = async |region: &str| {
        let select = page.client.find(fantoccini::Locator::Css("#region")).await.unwrap();
        select.select_by_value(region).await.unwrap();
    };
    filter("lax").await;
    until("one of lax", async || (page.count("#landings li").await == 1).then_some(())).await;
    assert_eq!(page.count("#landings li[data-region=lax]").await, 1);
    // What comes from elsewhere meanwhile does not show, and is there afterwards.
    sin.alert(json!({"place": "Elsewhere"})).await;
    let last = lax.alert(json!({"place": "Here"})).await;
    page.wait_for(&format!("#landings li[data-id=\"{last}\"]")).await;
    assert_eq!(page.count("#landings li").await, 2);
    filter("").await;
    until("all", async || (page.count("#landings li").await == 4).then_some(())).await;
    page.close().await;
}

#[tokio::test]
async fn a_reload_of_the_page_loses_no_mark_and_nothing_of_how_landings_came() {
    let vm = Vm::alone(&[("FLY_REGION", "ams")]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.click("#press").await;
    page.wait_for("#landings li.own .path").await;
    page.set_offline(true).await;
    page.wait_for("#connection[data-state=offline]").await;
    vm.connect().await.alert(json!({"place": "Missed", "lat": 1.3, "lon": 103.9})).await;
    page.set_offline(false).await;
    page.wait_for("#landings li .caught-up").await;
    until("two marks", async || (page.count("#map .marks .mark").await == 2).then_some(())).await;
    let marks = "return [...document.querySelectorAll('#map .marks .mark')].map(({ dataset, style }) => [dataset.id, style.left, style.top])";
    let list = "return [...document.querySelectorAll('#landings li')].map((row) =>
        [row.className.replace('new', '').trim(), row.querySelector('.details').textContent.replace(/\\d+ s ago/, ''), row.querySelector('.path')?.textContent ?? ''])";
    let before = (page.run(marks).await, page.run(list).await);
    let text = before.1.to_string();
    assert!(text.contains("yours") && text.contains("caught up") && text.contains(" ms"), "{text}");

    page.reload().await;
    until("the list", async || (page.count("#landings li").await == 2).then_some(())).await;
    until("the marks", async || (page.count("#map .marks .mark").await == 2).then_some(())).await;
    assert_eq!((page.run(marks).await, page.run(list).await), before);
    assert_eq!(page.count("#map .mark.live").await, 0, "nothing old makes waves");
    page.close().await;
}

#[tokio::test]
async fn ages_go_on_also_where_the_browser_does_not_tell_what_is_in_sight() {
    let vm = Vm::alone(&[]).await;
    let mut sender = vm.connect().await;
    // They stand in three leaves, of which the last one is out of sight.
    for number in 0..50 {
        sender.alert(json!({"place": format!("Field {number}")})).await;
    }
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    let goes_on = async |row: i32| {
        until("the list", async || (page.count("#landings li").await == 50).then_some(())).await;
        let age = format!("return [...document.querySelectorAll('#landings .age')].at({row}).textContent");
        let before = page.run(&age).await;
        until("an older landing", async || (page.run(&age).await != before).then_some(())).await;
    };
    goes_on(0).await;
    page.run_first(
        "delete globalThis.ContentVisibilityAutoStateChangeEvent;
         addEventListener('contentvisibilityautostatechange', (event) => event.stopImmediatePropagation(), true);",
    )
    .await;
    page.reload().await;
    goes_on(-1).await;
    page.close().await;
}
