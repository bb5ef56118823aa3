//! Pages that were away, in a real Chromium: each ends with the same list as one that never was.

use serde_json::{Value, json};

use crate::browser::open;
use crate::support::browser::{Driver, Page};
use crate::support::client::Client;
use crate::support::emulator::Emulator;
use crate::support::until;
use crate::support::vm::Vm;

/// The ids on the page's list, from its top.
async fn landings(page: &Page) -> Vec<Value> {
    let ids =
        page.run("return [...document.querySelectorAll('#landings li')].map(({ dataset }) => dataset.id)");
    ids.await.as_array().unwrap().clone()
}

/// Waits until `count` landings, each once, are on both pages in the same order.
async fn same_list(one: &Page, other: &Page, count: usize) -> Vec<Value> {
    for page in [one, other] {
        until(&format!("{count} landings"), async || (landings(page).await.len() >= count).then_some(()))
            .await;
    }
    let list = landings(one).await;
    assert_eq!(list, landings(other).await);
    let distinct: std::collections::HashSet<_> = list.iter().collect();
    assert_eq!((list.len(), distinct.len()), (count, count));
    list
}

/// Sends alerts one after the other, until each is kept for certain.
async fn send(sender: &mut Client, count: usize) {
    for number in 0..count {
        sender.alert(json!({"place": format!("Field {number}")})).await;
    }
}

#[tokio::test]
async fn a_page_cut_off_through_alerts_and_a_restart_and_then_loaded_anew_has_every_landing_once() {
    let emulator = Emulator::start().await;
    let window = [("HISTORY_EVENTS", "100")];
    let mut ams = Vm::spawn_on(&emulator.host(), "ams", &window).await;
    let sin = Vm::spawn_on(&emulator.host(), "sin", &window).await;
    ams.ready().await;
    sin.ready().await;
    let driver = Driver::start().await;
    let (cut_off, steady) = (open(&driver, &ams).await, open(&driver, &sin).await);
    let mut sender = sin.connect().await;
    send(&mut sender, 2).await;
    same_list(&cut_off, &steady, 2).await;

    cut_off.set_offline(true).await;
    cut_off.wait_for("#connection[data-state=offline]").await;
    // Some by way of the VM that ends.
    send(&mut ams.connect().await, 10).await;
    send(&mut sender, 15).await;
    let port = ams.port.to_string();
    assert_eq!(ams.end("TERM").await.0, Some(0));
    let back = Vm::spawn_on(&emulator.host(), "ams", &[&window[..], &[("PORT", &port)]].concat()).await;
    back.ready().await;
    send(&mut sender, 25).await;
    assert_eq!(landings(&cut_off).await.len(), 2);
    cut_off.set_offline(false).await;
    cut_off.connected().await;
    same_list(&cut_off, &steady, 52).await;

    // Away for certain while these are sent.
    let address = format!("http://127.0.0.1:{port}/");
    cut_off.client.goto("about:blank").await.unwrap();
    send(&mut sender, 3).await;
    cut_off.client.goto(&address).await.unwrap();
    cut_off.connected().await;
    let list = same_list(&cut_off, &steady, 55).await;
    // The three may have come live.
    let news = cut_off
        .run("return [...document.querySelectorAll('#landings li')].slice(3).filter((row) => row.matches('.new')).length")
        .await;
    assert_eq!(news, 0, "nothing old is told as new");

    // Sent at whatever moment of the reload.
    let (reloaded, ()) = tokio::join!(cut_off.client.refresh(), send(&mut sender, 10));
    reloaded.unwrap();
    cut_off.connected().await;
    let longer = same_list(&cut_off, &steady, 65).await;
    assert_eq!(longer[10..], list[..]);

    for page in [&cut_off, &steady] {
        assert_eq!(page.text("#missing").await, "", "nothing is said to be missing");
        assert_eq!(page.console_errors().await, Vec::<String>::new());
    }
    cut_off.close().await;
    steady.close().await;
}

#[tokio::test]
async fn what_can_no_longer_be_shown_is_said() {
    let vm = Vm::alone(&[("HISTORY_EVENTS", "3")]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    let mut sender = vm.connect().await;
    send(&mut sender, 1).await;
    page.wait_for("#landings li").await;
    page.set_offline(true).await;
    page.wait_for("#connection[data-state=offline]").await;
    send(&mut sender, 5).await;
    page.set_offline(false).await;
    page.connected().await;
    // One from before, and the three that are kept.
    until("four", async || (landings(&page).await.len() == 4).then_some(())).await;
    let said = page.text("#missing").await;
    assert!(said.starts_with("Landings ") && said.contains("too many"), "{said}");
    page.click("#press").await;
    page.wait_for("#press[data-state=heard]").await;
    assert_eq!(page.text("#missing").await, said, "a press does not take it away");
    page.close().await;
}
