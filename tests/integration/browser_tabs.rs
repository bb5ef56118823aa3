//! Two tabs of one browser, in a real Chromium: each is a page of its own, and what is to be told once is.

use fantoccini::wd::WindowHandle;
use serde_json::{Value, json};

use crate::browser::open;
use crate::browser_care::TOLD;
use crate::support::browser::{Driver, Page};
use crate::support::until;
use crate::support::vm::Vm;

/// Goes to a tab; all else happens there.
async fn switch(page: &Page, tab: &WindowHandle) {
    page.client.switch_to_window(tab.clone()).await.unwrap();
}

#[tokio::test]
async fn two_tabs_hear_each_landing_and_one_of_them_tells_it() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.permit("notifications", "granted").await;
    let url = page.client.current_url().await.unwrap();
    let one = page.client.window().await.unwrap();
    // A window of its own: what is behind another tab draws nothing.
    page.client.new_window(false).await.unwrap();
    let tabs = page.client.windows().await.unwrap();
    let other = tabs.iter().find(|tab| **tab != one).unwrap();
    for tab in [&one, other] {
        switch(&page, tab).await;
        page.run_first(TOLD).await;
        page.client.goto(url.as_str()).await.unwrap();
        page.connected().await;
        if tab == &one {
            page.click("#sound").await;
            page.click("#notify").await;
        } else {
            // A browser lets it sound after a gesture only.
            page.click("h1").await;
        }
        page.wait_for("#sound[aria-pressed=true]").await;
        page.wait_for("#notify[aria-pressed=true]").await;
        page.run("hide(true)").await;
    }
    until("a socket each", async || (vm.status().await["connectedClients"] == 2).then_some(())).await;

    page.click("#press").await;
    page.wait_for("#press[data-state=heard]").await;
    let mut whistles = 0;
    let mut told = Vec::new();
    for tab in [&one, other] {
        switch(&page, tab).await;
        page.wait_for("#landings li").await;
        assert_eq!(page.count("#landings li").await, 1);
        assert_eq!(page.count("#landings li.own").await, usize::from(tab == other), "pressed in one of them");
        // What this tab asked for before is answered before.
        page.run("return navigator.locks.request('after it', () => 0)").await;
        whistles += page.run("return whistles").await.as_u64().unwrap();
        told.push(page.run("return told").await);
    }
    assert_eq!(whistles, 1, "by the lock");
    let tag = |told: &Value| told[0][2].clone();
    assert_eq!((tag(&told[0]), tag(&told[1])), (json!("alien-alert"), json!("alien-alert")), "by the tag");
    page.close().await;
}
