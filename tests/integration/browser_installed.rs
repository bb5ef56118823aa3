//! The page as an app of its own: installed in a real browser, opened, without a VM, and removed.

use serde_json::json;

use crate::support::pipe::PipedBrowser;
use crate::support::until;
use crate::support::vm::Vm;

#[tokio::test]
async fn the_page_can_be_installed_and_opens_in_a_window_of_its_own() {
    let mut vm = Vm::alone(&[]).await;
    let url = format!("http://127.0.0.1:{}/", vm.port);
    let mut browser = PipedBrowser::start();
    browser.call(None, "Target.createTarget", json!({"url": url})).await;
    let tab = browser.page(&url).await;
    let ready = "navigator.serviceWorker.ready.then(() => true)";
    until("service worker", async || (browser.evaluate(&tab, ready).await == true).then_some(())).await;
    let hindered = browser.call(Some(&tab), "Page.getInstallabilityErrors", json!({})).await;
    assert_eq!(hindered["installabilityErrors"], json!([]));
    let app = json!({"manifestId": browser.call(Some(&tab), "Page.getAppId", json!({})).await["appId"]});
    assert_eq!(app["manifestId"], url, "its name is its address, whatever file describes it");

    browser.call(Some(&tab), "PWA.install", app.clone()).await;
    let window = json!({"manifestId": url, "displayMode": "standalone"});
    browser.call(None, "PWA.changeAppUserSettings", window).await;
    browser.close(&url).await;
    browser.call(None, "PWA.launch", app.clone()).await;
    let window = browser.page(&url).await;
    let shown = "matchMedia('(display-mode: standalone)').matches
        && document.getElementById('connection').dataset.state";
    until("app", async || (browser.evaluate(&window, shown).await == "connected").then_some(())).await;
    browser.close(&url).await;

    vm.end("TERM").await;
    browser.call(None, "PWA.launch", app.clone()).await;
    let window = browser.page(&url).await;
    let title = "document.querySelector('h1')?.textContent";
    until("offline page", async || {
        (browser.evaluate(&window, title).await == "Nobody answers").then_some(())
    })
    .await;
    browser.call(None, "PWA.uninstall", app).await;
}
