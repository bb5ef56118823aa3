//! Channels and tokens in a real Chromium: the client module on the VM's own page, and the example of a
//! job as its readers run it.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::browser::open;
use crate::support::browser::{Driver, Page};
use crate::support::emulator::Emulator;
use crate::support::http::request;
use crate::support::vm::Vm;
use crate::support::{until, within};

const API_KEY: &str = "a-key-for-this-example";
const AUTH_SECRET: &str = "a-secret-of-32-bytes-for-the-example";

async fn change(vm: &Vm, environment: &str, value: &str) {
    let key = format!("Bearer {API_KEY}");
    let body = json!({"type": "change", "data": value}).to_string();
    let path = format!("/channels/environment:{environment}");
    let answer = request(vm.port, "POST", &path, &[("authorization", &key)], &body).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
}

async fn heard(page: &Page, count: usize) -> Value {
    let script = format!("return window.heard?.length >= {count} ? heard : null");
    until("the changes", async || Some(page.run(&script).await).filter(|heard| !heard.is_null())).await
}

#[tokio::test]
async fn a_page_stays_in_its_channel_while_its_network_comes_and_goes() {
    let emulator = Emulator::start().await;
    let vms = Vm::fleet(&emulator, &["ams", "sin", "lax"], &[("API_KEY", API_KEY)]).await;
    let [ams, sin, lax] = &vms[..] else { unreachable!() };
    let driver = Driver::start().await;
    let page = open(&driver, ams).await;
    change(sin, "42", "before").await;
    page.run(
        "import('/static/client.js').then(({ AlienClient }) => {
           window.heard = [];
           window.client = new AlienClient(undefined, { storage: null });
           client.on('change', ({ data }) => heard.push(data));
           client.subscribe('environment:42');
           client.connect();
         })",
    )
    .await;
    heard(&page, 1).await;
    change(lax, "43", "another's").await;
    change(lax, "42", "live").await;
    heard(&page, 2).await;
    page.set_offline(true).await;
    until("loss", async || (page.run("return client.state").await == "offline").then_some(())).await;
    change(sin, "42", "away").await;
    page.set_offline(false).await;
    heard(&page, 3).await;
    change(ams, "42", "back").await;
    assert_eq!(heard(&page, 4).await, json!(["before", "live", "away", "back"]));
    assert_eq!(page.console_errors().await, Vec::<String>::new());
    page.close().await;
}

/// The example's backend, and where it serves its page; it ends with the value.
async fn jobs(vm: &Vm) -> (Child, String) {
    let mut backend = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/jobs/server.mjs"))
        .envs([("API_KEY", API_KEY), ("AUTH_SECRET", AUTH_SECRET), ("PORT", "0"), ("STEP_MS", "20")])
        .env("RELAY", format!("http://127.0.0.1:{}", vm.port))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node is needed: apt-get install nodejs");
    let mut lines = BufReader::new(backend.stdout.take().unwrap()).lines();
    let address = within("address of the example", lines.next_line()).await.unwrap().unwrap();
    (backend, address)
}

#[tokio::test]
async fn a_job_s_bar_moves_in_each_tab_of_its_user_and_stands_where_it_is_after_a_reload() {
    // The example's port is not known before its relay's.
    let vars = [("API_KEY", API_KEY), ("AUTH_SECRET", AUTH_SECRET), ("ALLOWED_ORIGINS", "*")];
    let vm = Vm::alone(&vars).await;
    let (_backend, address) = jobs(&vm).await;
    let driver = Driver::start().await;
    let (one, other) = (driver.open(&address).await, driver.open(&address).await);
    for page in [&one, &other] {
        until("connection", async || (page.text("#status").await == "connected").then_some(())).await;
    }
    one.run(
        "window.seen = new Set();
         new MutationObserver(() => seen.add(document.querySelector('progress').value))
           .observe(document.getElementById('jobs'), { subtree: true, childList: true, attributes: true });",
    )
    .await;
    one.click("#start").await;
    for page in [&one, &other] {
        until("end of the job", async || {
            (page.run("return document.querySelector('#jobs li')?.textContent").await == " done")
                .then_some(())
        })
        .await;
    }
    let steps = one.run("return seen.size").await.as_u64().unwrap();
    assert!(steps > 5, "the bar moved {steps} times");
    one.client.refresh().await.unwrap();
    one.wait_for("#jobs progress[value='100']").await;
    until("connection", async || (one.text("#status").await == "connected").then_some(())).await;
    assert_eq!(one.count("#jobs li").await, 1);
    for page in [one, other] {
        let errors = page.console_errors().await;
        assert!(errors.iter().all(|error| error.contains("favicon")), "{errors:?}");
        page.close().await;
    }
}
