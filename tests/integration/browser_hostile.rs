//! What strangers send, in a real Chromium on a small screen: it is text, and it stays in its place.

use serde_json::json;

use crate::browser::{assert_clean, open};
use crate::support::browser::Driver;
use crate::support::until;
use crate::support::vm::Vm;

#[tokio::test]
async fn no_landing_breaks_the_layout_or_runs() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    page.set_size(320, 568).await;
    let button = "const { x, width, height } = document.querySelector('#press').getBoundingClientRect(); \
                  return [x, width, height, document.documentElement.scrollWidth]";
    let before = page.run(button).await;
    assert_eq!(before[3], 320);

    let markup =
        "<img src=x onerror=\"document.title='owned'\"><b>bold</b><script>document.title='owned'</script>";
    let template = "${alert(1)}{{7*7}}javascript:alert(1)";
    let over = "\u{202E}lmth.exe\u{2066}\u{2067}";
    let zalgo = format!("Z{}", "\u{0300}\u{0310}\u{0489}".repeat(39));
    let texts = [
        "x".repeat(120),
        "W\u{00a0}".repeat(60),
        markup.chars().take(120).collect(),
        template.into(),
        "قرب البحر الأحمر، حيث لا أحد يرى شيئا".into(),
        over.into(),
        "👨‍👩‍👧‍👦👽🏳️‍🌈".repeat(6),
        zalgo,
        "\u{0000}\u{0007}\u{200B}\u{FEFF}\u{2028}\n\t\r".into(),
        "constructor".into(),
    ];
    let mut sender = vm.connect().await;
    for text in &texts {
        sender
            .alert(json!({"place": text, "note": text.repeat(4).chars().take(500).collect::<String>()}))
            .await;
    }
    // Odd numbers that are numbers.
    for (lat, lon) in [(90.0, 180.0), (-90.0, -180.0), (5e-324, -0.0), (89.999_999_999, 1e-300)] {
        sender.alert(json!({"lat": lat, "lon": lon})).await;
    }
    let count = texts.len() + 4;
    until("all of them", async || (page.count("#landings li").await == count).then_some(())).await;
    page.click("#drawer summary").await;
    page.wait_for("#frames li").await;

    assert_eq!(page.run(button).await, before, "nothing is pushed aside");
    let wide = page.run(
        "return [...document.querySelectorAll('.scroll, #landings, #frames')]
           .filter((list) => list.scrollWidth > list.clientWidth).map(({ innerHTML }) => innerHTML)",
    );
    assert_eq!(wide.await, json!([]), "nothing is wider than its place");
    let foreign = "#landings :is(img, b, script), #frames :is(img, b, script)";
    assert_eq!(page.count(foreign).await, 0);
    assert!(
        page.run("return document.querySelector('#landings').textContent")
            .await
            .as_str()
            .unwrap()
            .contains("<img src=x")
    );
    assert_eq!(page.client.title().await.unwrap(), "Alien Alert");
    assert_clean(&page, &[&vm]).await;
    page.close().await;
}

/// What no server of this kind sends, but another one might.
#[tokio::test]
async fn no_number_is_too_odd_for_the_map_and_the_clock() {
    let vm = Vm::alone(&[]).await;
    let driver = Driver::start().await;
    let page = open(&driver, &vm).await;
    let odd = page.run(
        "return Promise.all(['map', 'journey', 'words', 'regions', 'landings'].map((name) => import(`/static/${name}.js`)))
           .then(([map, journey, words, regions, landings]) => {
             const numbers = [NaN, Infinity, -Infinity, 1e308, -1e308, '1', null, undefined, {}, [], true];
             const clock = { at: (moment) => moment };
             const said = [];
             for (const number of numbers) {
               const event = { id: 'odd', data: { lat: number, lon: number }, timestamp: number, published: number, received: number, regionCode: 'nowhere' };
               if (map.placeOfLanding(event)) said.push(['place', String(number)]);
               for (const leg of journey.legsOf(event, { heardAt: number }, clock)) {
                 const text = words.duration(leg);
                 if (text.length > 13 || /NaN|Infinity|undefined/.test(text)) said.push(['leg', text]);
               }
               const age = words.age(number);
               if (age.length > 13 || /NaN|Infinity|undefined/.test(age)) said.push(['age', age]);
               if (/NaN|Infinity|undefined/.test(landings.nameOf(event))) said.push(['name', landings.nameOf(event)]);
             }
             const crossed = { timestamp: 5, published: 40, received: 30 };
             const legs = journey.legsOf(crossed, { pressedAt: 10, heardAt: 60 }, clock);
             if (String(legs) !== '0,30,0,20') said.push(['clocks that differ', legs]);
             for (const name of ['constructor', '__proto__', 'toString']) {
               if (regions.placeOfRegion(name) || words.city(name) !== name) said.push(['region', name]);
             }
             return said;
           })",
    );
    assert_eq!(odd.await, json!([]));
    page.close().await;
}
