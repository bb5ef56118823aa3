//! Subscriptions that VMs left behind: named as a VM's, on the topic, and no VM's beacon says that it lives.
//!
//! Pub/Sub tells neither who reads a subscription nor since when it is there. So the doctor listens to the
//! fleet, as far back as the topic keeps it, and goes by the label that VMs give their subscriptions.
//! It deletes none whose age is not known, none younger than an hour, none that is not this program's, and
//! nothing at all where it can't be sure that it hears. Should one be a VM's all the same, that VM notices
//! within seconds, makes it anew, and hears again what it missed.

use std::future::Future;
use std::io::Write;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::checks::Patient;
use super::findings::{Findings, Line, Outcome};
use crate::bus::Message;
use crate::bus::pubsub::probe::{Ear, Found, Kind, Trouble};
use crate::bus::pubsub::rights;
use crate::clock;
use crate::event::Told;
use crate::fleet::Fleet;

const CHECK: &str = "left-overs";

/// How the subscriptions of VMs begin.
const PREFIX: &str = "ID_";

/// How many of its intervals a VM may be silent.
const SILENT: f64 = 2.5;

/// For the way, beyond that.
const MARGIN: Duration = Duration::from_secs(1);

/// Listened to at most: a fleet of 1,400 speaks as seldom as that.
const LONGEST: Duration = Duration::from_secs(3600);

/// Younger ones may be of VMs that are starting.
const OLD: i64 = 3600;

/// Looked at or deleted at once.
const AT_ONCE: usize = 8;

/// Named in a line.
const NAMED: usize = 10;

/// What is heard of the fleet.
pub struct Scene {
    fleet: Fleet,
    /// The longest that a VM says it may be silent.
    interval: Duration,
    /// Beacons of before the doctor came are heard too.
    with_past: bool,
    /// This clock less the topic's, in µs.
    pub skew: i64,
}

impl Scene {
    pub fn new(interval: Duration, with_past: bool, skew: i64) -> Self {
        Self { fleet: Fleet::default(), interval, with_past, skew }
    }

    /// Takes note of a beacon; whatever else there is, is others'.
    pub fn hear(&mut self, message: &Message, published_at: i64) {
        if message.to.is_some() {
            return;
        }
        let Ok(Told::Beacon(beacon)) = Told::decode(&message.data) else { return };
        let instance = beacon.origin.instance.clone();
        let interval = Duration::from_millis(beacon.interval_ms);
        self.fleet.hear(beacon, published_at + self.skew);
        // One out of the past says nothing of how often VMs speak now.
        if self.fleet.has(&instance) {
            self.interval = self.interval.max(interval);
        }
    }

    fn drain(&mut self, ear: &mut Ear) {
        while let Some(heard) = ear.waiting() {
            self.hear(&heard.message, heard.published_at);
        }
    }

    /// After this much silence a VM does not live.
    fn patience(&self) -> Duration {
        self.interval.mul_f64(SILENT) + MARGIN
    }

    fn speaks_for(&self, subscription: &str) -> bool {
        subscription.strip_prefix(PREFIX).is_some_and(|instance| self.fleet.has(instance))
    }
}

/// What is known of subscriptions that no VM speaks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Silent {
    /// With their ages in seconds.
    old: Vec<(String, i64)>,
    young: Vec<(String, i64)>,
    /// Of unknown age, or not of this program.
    unknown: Vec<String>,
}

impl Silent {
    /// By what is found of each, `now` in seconds.
    fn sort(found: Vec<(String, Option<Found>)>, now: i64) -> Self {
        let mut silent = Self::default();
        for (name, found) in found {
            match found {
                None => {}
                Some(Found { is_ours: true, created: Some(created) }) => {
                    let age = now.saturating_sub(created);
                    if age >= OLD { &mut silent.old } else { &mut silent.young }.push((name, age));
                }
                Some(_) => silent.unknown.push(name),
            }
        }
        silent.old.sort();
        silent.young.sort();
        silent.unknown.sort();
        silent
    }
}

/// Looks for them, and deletes them where that is wished.
pub async fn look<W: Write>(
    patient: &Patient<'_>,
    ear: &mut Ear,
    mut scene: Scene,
    clean: bool,
    findings: &mut Findings<W>,
) -> Line {
    let names = match patient.probe.subscriptions().await {
        Ok(names) => names,
        Err(trouble) => return not_seen(patient.line(CHECK, &trouble, &[rights::GET_TOPIC]), &trouble),
    };
    let names: Vec<_> = names.into_iter().filter(|name| name.starts_with(PREFIX)).collect();
    let silent = match listen(patient, ear, &mut scene, names, findings).await {
        Ok(silent) => silent,
        Err(line) => return line,
    };
    let mut silent = match ask(patient, silent, scene.skew).await {
        Ok(silent) => silent,
        Err(line) => return line,
    };
    let mut deleted = Vec::new();
    let mut refused = None;
    if clean && !scene.with_past && scene.fleet.is_empty() {
        let why = "no VM is heard at all, and the topic keeps nothing of before: is BEACON_INTERVAL as VMs \
                   have it?";
        refused = Some(why.to_owned());
    } else if clean {
        (deleted, refused) = delete(patient, ear, &mut scene, &mut silent.old).await;
    }
    sum_up(&scene.fleet, &silent, &deleted, refused, &patient.settings.project)
}

/// Listens until each of `names` is spoken for, or none of the others will be; returns those.
async fn listen<W: Write>(
    patient: &Patient<'_>,
    ear: &mut Ear,
    scene: &mut Scene,
    names: Vec<String>,
    findings: &mut Findings<W>,
) -> Result<Vec<String>, Line> {
    let broken = |trouble: Trouble| {
        let found = format!("the beacons can't be listened to: {}", trouble.why);
        Line::failed(CHECK, found, "try again")
    };
    let begun = Instant::now();
    let mut noted = false;
    loop {
        scene.drain(ear);
        let silent = names.iter().filter(|name| !scene.speaks_for(name)).count();
        let patience = scene.patience();
        if silent == 0 {
            return Ok(Vec::new());
        }
        if patience > LONGEST {
            let seconds = scene.interval.as_secs();
            let found = format!("in so large a fleet a VM may be silent for {seconds} s: too long to listen");
            let todo = "compare /status of a VM with gcloud pubsub topics list-subscriptions";
            return Err(Line::warning(CHECK, found, todo));
        }
        if !noted {
            noted = true;
            let (seconds, count) = (patience.as_secs(), names.len());
            findings.note(&format!(
                "{silent} of {count} subscriptions not spoken for yet, listening for {seconds} s"
            ));
        }
        match timeout_at(begun + patience, ear.next()).await {
            Ok(Ok(heard)) => scene.hear(&heard.message, heard.published_at),
            Ok(Err(trouble)) => return Err(broken(trouble)),
            Err(_) => break,
        }
    }
    // The silence might be the doctor's own.
    patient.still_hears(ear, scene).await.map_err(broken)?;
    scene.fleet.expire();
    Ok(names.into_iter().filter(|name| !scene.speaks_for(name)).collect())
}

/// Asks Pub/Sub whose they are, and since when.
async fn ask(patient: &Patient<'_>, names: Vec<String>, skew: i64) -> Result<Silent, Line> {
    let asked = each(names, |name| {
        let probe = patient.probe.clone();
        async move { probe.look(&name).await.map(|found| (name, found)) }
    });
    let found: Result<Vec<_>, Trouble> = asked.await.into_iter().collect();
    let now = (clock::now_micros() - skew) / 1_000_000;
    match found {
        Ok(found) => Ok(Silent::sort(found, now)),
        Err(trouble) => Err(not_seen(patient.line(CHECK, &trouble, &[rights::GET]), &trouble)),
    }
}

/// Deletes those of `old` that are still not spoken for; the names of the deleted, and why others are not.
async fn delete(
    patient: &Patient<'_>,
    ear: &mut Ear,
    scene: &mut Scene,
    old: &mut Vec<(String, i64)>,
) -> (Vec<String>, Option<String>) {
    let (mut deleted, mut refused, mut kept) = (Vec::new(), None, Vec::new());
    for group in old.chunks(AT_ONCE) {
        // A VM that has just come back under its name speaks for it again.
        scene.drain(ear);
        let silent = group.iter().filter(|(name, _)| !scene.speaks_for(name)).cloned().collect();
        let tried = each(silent, |one: (String, i64)| {
            let probe = patient.probe.clone();
            async move { (probe.delete(&one.0).await, one) }
        });
        for (gone, one) in tried.await {
            match gone {
                Ok(()) => deleted.push(one.0),
                Err(trouble) => {
                    refused = Some(patient.line(CHECK, &trouble, &[rights::DELETE]).found);
                    kept.push(one);
                }
            }
        }
    }
    *old = kept;
    deleted.sort();
    (deleted, refused)
}

/// Does something with each, several at once, and returns what came of it in any order.
async fn each<N, T, F>(names: Vec<N>, act: impl Fn(N) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut waiting = names.into_iter();
    let mut acting = JoinSet::new();
    let mut done = Vec::new();
    loop {
        while acting.len() < AT_ONCE
            && let Some(name) = waiting.next()
        {
            acting.spawn(act(name));
        }
        match acting.join_next().await {
            Some(Ok(one)) => done.push(one),
            // None of them panics, and none is aborted.
            Some(Err(_)) => {}
            None => return done,
        }
    }
}

/// VMs get along without these rights.
fn not_seen(line: Line, trouble: &Trouble) -> Line {
    match trouble.kind {
        Kind::Denied => Line { outcome: Outcome::Warning, ..line },
        _ => line,
    }
}

fn sum_up(
    fleet: &Fleet,
    silent: &Silent,
    deleted: &[String],
    refused: Option<String>,
    project: &str,
) -> Line {
    let mut told = vec![match fleet.len() {
        0 => "no VM is alive".to_owned(),
        1 => "1 VM is alive".to_owned(),
        count => format!("{count} VMs are alive"),
    }];
    if !deleted.is_empty() {
        told.push(format!("deleted {}", list(deleted.iter().cloned())));
    }
    let aged = |(name, age): &(String, i64)| format!("{name} ({} old)", time(*age));
    if !silent.old.is_empty() {
        told.push(format!("left behind: {}", list(silent.old.iter().map(aged))));
    }
    if !silent.young.is_empty() {
        let young = list(silent.young.iter().map(aged));
        told.push(format!("left behind, or of a VM that is starting: {young}"));
    }
    if !silent.unknown.is_empty() {
        let names = list(silent.unknown.iter().cloned());
        told.push(format!("of nobody who is heard, and nobody says since when: {names}"));
    }
    if let Some(why) = &refused {
        told.push(format!("not deleted: {why}"));
    }
    let found = told.join("; ");
    let mut todo = Vec::new();
    if !silent.old.is_empty() {
        todo.push(
            "alien-alert doctor --clean deletes what is older than an hour; Pub/Sub does after a day without a \
             reader"
                .to_owned(),
        );
    }
    if !silent.young.is_empty() {
        todo.push("what is younger than an hour may be of a VM that is starting: look again then".to_owned());
    }
    if let Some(name) = silent.unknown.first() {
        todo.push(format!(
            "where you know that nobody reads it: gcloud pubsub subscriptions delete {name} --project={project}"
        ));
    }
    if todo.is_empty() { Line::ok(CHECK, found) } else { Line::warning(CHECK, found, todo.join("; ")) }
}

/// The first of them, and how many more.
fn list(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

fn time(seconds: i64) -> String {
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7_200.. => format!("{} h", seconds / 3_600),
        _ => format!("{} min", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(is_ours: bool, created: Option<i64>) -> Option<Found> {
        Some(Found { is_ours, created })
    }

    #[test]
    fn only_what_is_ours_and_known_to_be_old_is_old() {
        let now = 1_000_000;
        let names = [
            ("ID_old", found(true, Some(now - OLD))),
            ("ID_young", found(true, Some(now - OLD + 1))),
            ("ID_of-tomorrow", found(true, Some(now + 86_400))),
            ("ID_undated", found(true, None)),
            ("ID_foreign", found(false, Some(0))),
            ("ID_gone", None),
        ];
        let names = names.map(|(name, found)| (name.to_owned(), found)).into();
        let silent = Silent::sort(names, now);
        assert_eq!(silent.old, [("ID_old".to_owned(), OLD)]);
        let names = |named: &[(String, i64)]| named.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&silent.young), ["ID_of-tomorrow", "ID_young"]);
        assert_eq!(silent.unknown, ["ID_foreign", "ID_undated"]);
    }

    #[test]
    fn what_is_found_decides_on_how_it_is_told() {
        let tell = |silent: &Silent, deleted: &[String]| {
            sum_up(&Fleet::default(), silent, deleted, None, "my-project")
        };
        assert_eq!(tell(&Silent::default(), &[]).outcome, Outcome::Ok);
        assert_eq!(tell(&Silent::default(), &["ID_a".into()]).outcome, Outcome::Ok);
        let old = Silent { old: vec![("ID_a".into(), 7_200)], ..Silent::default() };
        let line = tell(&old, &[]);
        assert_eq!(line.outcome, Outcome::Warning);
        assert!(line.found.contains("ID_a (2 h old)") && line.todo.unwrap().contains("--clean"));
        let unknown = Silent { unknown: vec!["ID_b".into()], ..Silent::default() };
        assert!(tell(&unknown, &[]).todo.unwrap().contains("delete ID_b --project=my-project"));
    }

    #[test]
    fn a_long_list_is_cut() {
        let names = (0..12).map(|number| format!("ID_{number}")).collect::<Vec<_>>();
        assert!(list(names.into_iter()).ends_with("ID_9 and 2 more"));
    }
}
