//! The checks on Pub/Sub, in their order, and what to do about each.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::Options;
use super::findings::{Findings, Line};
use super::leftovers::{self, Scene};
use crate::bus::pubsub::Settings;
use crate::bus::pubsub::probe::{Ear, Heard, Kind, Probe, Skew, Trouble, endpoint, knock};
use crate::bus::pubsub::rights::{self, Right};
use crate::clock;
use crate::config::{Config, ConfigError, VARIABLES};

/// A probe goes round within this, behind a backlog too.
pub const ROUND: Duration = Duration::from_secs(10);

/// So much clocks may differ: what others say is dated by the topic's clock, and so are ages.
const ALIKE: i64 = 1_000_000;

/// Beyond this Google refuses what this machine signs, or soon does.
const APART: i64 = 60_000_000;

/// Every VM speaks within this, but in a fleet of more than three hundred: the longest BEACON_INTERVAL.
const PAST: Duration = Duration::from_secs(300);

pub fn look_at_bus<W: Write>(config: &Config, settings: &Settings, findings: &mut Findings<W>) {
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let variables: Vec<_> = VARIABLES.iter().map(|(name, ..)| *name).filter(set).collect();
    let by = if variables.is_empty() { String::new() } else { format!("; set: {}", variables.join(", ")) };
    let Settings { project, topic, .. } = settings;
    let region = config.identity.region();
    findings.add(Line::ok(
        "configuration",
        format!("Pub/Sub, project {project}, topic {topic}, region {region}{by}"),
    ));
}

/// Goes through all that needs Pub/Sub.
pub async fn examine<W: Write>(
    config: &Config,
    settings: &Settings,
    probe: &Result<Probe, ConfigError>,
    options: Options,
    findings: &mut Findings<W>,
) {
    let probe = look_at_credentials(settings, probe, findings).await;
    let Some(skew) = look_at_service(settings, findings).await else {
        return findings.skip_rest("needs the service");
    };
    look_at_clock(skew, findings);
    let Some(probe) = probe else { return findings.skip_rest("needs the credentials") };
    let patient = Patient { settings, probe };

    let kept = match patient.look_at_topic(findings).await {
        Ok(kept) => kept,
        Err(why) => return findings.skip_rest(why),
    };
    patient.look_at_retention(kept, findings);
    if let Some(name) = &config.lifecycle_topic {
        patient.look_at_lifecycle(name, findings).await;
    }
    let subscribed = patient.try_to_subscribe(findings).await;
    let ear = match subscribed && patient.try_to_pull(findings).await {
        true => Some(probe.listen().await),
        false => None,
    };
    findings.skip("pull", "needs a subscription");
    let sent = patient.try_to_publish(findings).await;
    match (ear, sent) {
        (Some(Ok(mut ear)), Some(sent)) => {
            let with_past = kept.is_some_and(|kept| kept >= PAST);
            let mut scene = Scene::new(config.beacon_interval, with_past, skew.unwrap_or_default().about);
            if patient.go_round(&mut ear, &sent, &mut scene, findings).await {
                let line = leftovers::look(&patient, &mut ear, scene, options.clean, findings).await;
                findings.add(line);
            }
            ear.close().await;
        }
        (Some(Err(trouble)), _) => findings.add(patient.line("round trip", &trouble, &[rights::CONSUME])),
        (None, _) => findings.skip("round trip", "needs a subscription that can be pulled"),
        (_, None) => findings.skip("round trip", "needs the right to publish"),
    }
    findings.skip("left-overs", "needs the round trip");
    match subscribed {
        true => patient.try_to_delete(findings).await,
        false => findings.skip("delete", "needs a subscription"),
    }
}

fn none(why: &str) -> Trouble {
    Trouble { kind: Kind::Other, why: why.into() }
}

async fn look_at_credentials<'a, W: Write>(
    settings: &Settings,
    probe: &'a Result<Probe, ConfigError>,
    findings: &mut Findings<W>,
) -> Option<&'a Probe> {
    let credentials = &settings.credentials;
    let probe = match probe {
        Ok(probe) => probe,
        Err(error) => {
            let todo = "a key is what gcloud iam service-accounts keys create writes, whole and unchanged";
            findings.add(Line::failed("credentials", error.to_string(), todo));
            return None;
        }
    };
    if let Err(trouble) = probe.prove().await {
        let found = format!("{credentials}: {}", trouble.why);
        findings.add(Line::failed("credentials", found, "docs/deploy.md tells how to set them up"));
        return None;
    }
    let other = credentials.project().filter(|project| *project != settings.project);
    let other = other.map_or(String::new(), |project| format!(", which is of the project {project}"));
    findings.add(Line::ok("credentials", format!("{credentials}{other}")));
    Some(probe)
}

/// How the clocks differ, if the service answers and says so.
async fn look_at_service<W: Write>(settings: &Settings, findings: &mut Findings<W>) -> Option<Option<Skew>> {
    let endpoint = endpoint(settings);
    match knock(settings).await {
        Ok(skew) => {
            findings.add(Line::ok("service", format!("{endpoint} answers")));
            Some(skew)
        }
        Err(trouble) => {
            let todo = match settings.credentials.is_emulator() {
                true => "start the emulator there, or set PUBSUB_EMULATOR_HOST to where it is",
                false => "see to it that this machine reaches it: its DNS, its firewall, HTTPS_PROXY",
            };
            findings.add(Line::failed("service", format!("{endpoint}: {}", trouble.why), todo));
            None
        }
    }
}

fn look_at_clock<W: Write>(skew: Option<Skew>, findings: &mut Findings<W>) {
    let line = match skew {
        None => Line::skipped("clock", "the service's answer has no date; the round trip tells"),
        Some(skew) => clock("clock", skew, "within a second of the service's"),
    };
    findings.add(line);
}

/// A clock that is not as the service's, or what is well.
fn clock(check: &'static str, skew: Skew, well: &str) -> Line {
    let apart = skew.least.abs();
    if apart <= ALIKE {
        return Line::ok(check, well);
    }
    let way = if skew.least > 0 { "ahead of" } else { "behind" };
    let seconds = skew.about.abs() as f64 / 1e6;
    let found = format!("this machine's clock is {seconds:.1} s {way} the service's");
    let todo = "let it be set by NTP (timedatectl set-ntp true): VMs date what they say by it, and Google \
                refuses what is signed at a wrong time";
    if apart <= APART { Line::warning(check, found, todo) } else { Line::failed(check, found, todo) }
}

/// Where the checks are made, and with what.
pub struct Patient<'a> {
    pub settings: &'a Settings,
    pub probe: &'a Probe,
}

/// A probe that was published.
struct Sent {
    data: Bytes,
    at: Instant,
    /// Between these times (µs) the topic took it, by this machine's clock.
    between: (i64, i64),
}

impl Patient<'_> {
    /// For how long it keeps messages, where that may be looked at.
    async fn look_at_topic<W: Write>(
        &self,
        findings: &mut Findings<W>,
    ) -> Result<Option<Duration>, &'static str> {
        let Settings { project, topic, .. } = self.settings;
        let (line, kept) = match self.probe.topic().await {
            Ok(kept) => (Line::ok("topic", format!("{topic} is there")), Ok(Some(kept))),
            Err(trouble) if trouble.kind == Kind::Denied => {
                // VMs get along without.
                let line = Line {
                    outcome: super::Outcome::Warning,
                    ..self.line("topic", &trouble, &[rights::GET_TOPIC])
                };
                (line, Ok(None))
            }
            Err(trouble) if trouble.kind == Kind::Missing => {
                let seconds = self.probe.wanted().as_secs();
                let todo = format!(
                    "make it: gcloud pubsub topics create {topic} --project={project} \
                     --message-retention-duration={seconds}s; or let the first VM do it, if it has {}",
                    rights::CREATE_TOPIC.on_what()
                );
                let found = format!("{topic} is not there: {}", trouble.why);
                (Line::failed("topic", found, todo), Err("needs the topic"))
            }
            Err(trouble) => (self.line("topic", &trouble, &[rights::GET_TOPIC]), Err("needs the topic")),
        };
        findings.add(line);
        kept
    }

    fn look_at_retention<W: Write>(&self, kept: Option<Duration>, findings: &mut Findings<W>) {
        let Settings { project, topic, window, .. } = self.settings;
        let wanted = self.probe.wanted().as_secs();
        let window = window.as_secs();
        findings.add(match kept.map(|kept| kept.as_secs()) {
            None => Line::skipped("retention", "needs the right to look at the topic"),
            Some(kept) if kept >= wanted => {
                Line::ok("retention", format!("{kept} s, enough for HISTORY_SECONDS={window}"))
            }
            Some(kept) => Line::warning(
                "retention",
                format!(
                    "the topic keeps messages for {kept} s, {wanted} s are wanted for HISTORY_SECONDS={window}: \
                     a new VM does not know what was before it, and an outage may lose events"
                ),
                format!(
                    "gcloud pubsub topics update {topic} --project={project} \
                     --message-retention-duration={wanted}s; a VM does it by itself, if it has {}",
                    rights::UPDATE_TOPIC.on_what()
                ),
            ),
        });
    }

    async fn look_at_lifecycle<W: Write>(&self, name: &str, findings: &mut Findings<W>) {
        let check = "lifecycle";
        findings.add(match self.probe.other_topic(name).await {
            Ok(()) => Line::ok(
                check,
                format!(
                    "LIFECYCLE_TOPIC={name} is there; that VMs may publish on it is not tried, since a \
                         backend would hear it"
                ),
            ),
            Err(Trouble { kind: Kind::Denied, .. }) => Line::skipped(
                check,
                format!("LIFECYCLE_TOPIC={name} may not be looked at, which VMs need not"),
            ),
            Err(trouble) => {
                let found = format!("LIFECYCLE_TOPIC={name}: {}", trouble.why);
                let todo = format!(
                    "gcloud pubsub topics create {name} --project={}, and grant {} there to {}; what is told \
                     before a backend has a subscription reaches nobody",
                    self.settings.project,
                    rights::PUBLISH.name,
                    self.account()
                );
                Line::warning(check, found, todo)
            }
        });
    }

    async fn try_to_subscribe<W: Write>(&self, findings: &mut Findings<W>) -> bool {
        let check = "subscribe";
        let name = self.probe.subscription();
        let made = self.probe.subscribe().await;
        findings.add(match &made {
            Err(trouble) => self.line(check, trouble, &[rights::CREATE, rights::ATTACH]),
            // A VM that comes back after a crash looks at what it left.
            Ok(()) => match self.probe.look(&name).await {
                Ok(_) => Line::ok(check, format!("made {name}, and it can be looked at")),
                Err(trouble) => self.line(check, &trouble, &[rights::GET]),
            },
        });
        made.is_ok()
    }

    async fn try_to_publish<W: Write>(&self, findings: &mut Findings<W>) -> Option<Sent> {
        match self.send().await {
            Ok(sent) => {
                findings.add(Line::ok("publish", "the topic took a probe"));
                Some(sent)
            }
            Err(trouble) => {
                findings.add(self.line("publish", &trouble, &[rights::PUBLISH]));
                None
            }
        }
    }

    async fn send(&self) -> Result<Sent, Trouble> {
        // Told from all others, and JSON as all on the topic is.
        let data = Bytes::from(format!("\"{}\"", Uuid::new_v4()));
        let (at, before) = (Instant::now(), clock::now_micros());
        self.probe.publish(data.clone()).await?;
        Ok(Sent { data, at, between: (before, clock::now_micros()) })
    }

    /// Winds back as each VM does when it joins, to hear of VMs what they said last.
    async fn try_to_pull<W: Write>(&self, findings: &mut Findings<W>) -> bool {
        let sought = self.probe.seek(clock::now_micros() - clock::micros(PAST)).await;
        findings.add(match &sought {
            Ok(()) => Line::ok("pull", "the subscription can be wound back, as VMs do to catch up"),
            Err(trouble) => self.line("pull", trouble, &[rights::CONSUME]),
        });
        sought.is_ok()
    }

    /// Whether the probe comes round; when the topic took it tells how the clocks differ.
    async fn go_round<W: Write>(
        &self,
        ear: &mut Ear,
        sent: &Sent,
        scene: &mut Scene,
        findings: &mut Findings<W>,
    ) -> bool {
        let heard = timeout(ROUND, self.hear(ear, sent, scene)).await;
        let line = match heard {
            Ok(Ok(published_at)) => {
                let skew = Skew::between(sent.between.0, sent.between.1, published_at, published_at);
                let took = sent.at.elapsed().as_secs_f64();
                scene.skew = skew.about;
                findings.add(clock("round trip", skew, &format!("the probe came back after {took:.2} s")));
                return true;
            }
            Ok(Err(trouble)) => self.line("round trip", &trouble, &[rights::CONSUME]),
            Err(_) => {
                let found = format!("the probe did not come back within {} s", ROUND.as_secs());
                let todo = "try again; if it lasts, gRPC's streams are held up on the way: a proxy or a \
                            firewall that lets HTTP/2 through is needed";
                Line::failed("round trip", found, todo)
            }
        };
        findings.add(line);
        false
    }

    /// When the topic took what was sent (µs). Whatever else comes is for the scene.
    async fn hear(&self, ear: &mut Ear, sent: &Sent, scene: &mut Scene) -> Result<i64, Trouble> {
        loop {
            let Heard { message, published_at } = ear.next().await?;
            if message.to.as_deref() == Some(self.probe.instance()) && message.data == sent.data {
                return Ok(published_at);
            }
            scene.hear(&message, published_at);
        }
    }

    /// Whether what is published still comes round.
    pub async fn still_hears(&self, ear: &mut Ear, scene: &mut Scene) -> Result<(), Trouble> {
        let sent = self.send().await?;
        match timeout(ROUND, self.hear(ear, &sent, scene)).await {
            Ok(heard) => heard.map(drop),
            Err(_) => Err(none("a second probe did not come back")),
        }
    }

    async fn try_to_delete<W: Write>(&self, findings: &mut Findings<W>) {
        let name = self.probe.subscription();
        findings.add(match self.probe.remove().await {
            Ok(()) => Line::ok("delete", format!("deleted {name}")),
            Err(trouble) => {
                let line = self.line("delete", &trouble, &[rights::DELETE]);
                let found = format!("{name} is left behind, and gone after a day: {}", line.found);
                Line { found, ..line }
            }
        });
    }

    /// What went wrong with a call that needs these rights, and what to do.
    pub fn line(&self, check: &'static str, trouble: &Trouble, rights: &[Right]) -> Line {
        let Trouble { kind, why } = trouble;
        let todo = match kind {
            Kind::Denied => {
                let rights: Vec<_> = rights.iter().map(Right::on_what).collect();
                let (rights, account) = (rights.join(" and "), self.account());
                format!("grant {rights} to {account}; deploy/google and docs/deploy.md have the whole role")
            }
            Kind::Missing => format!(
                "see to it that {} is there, and that nobody deletes what is on it meanwhile",
                self.settings.topic
            ),
            Kind::NotProven => {
                "Google does not believe these credentials: look at the clock, and at how they are set up \
                 (docs/deploy.md)"
                    .into()
            }
            Kind::Unreachable => "try again; then see whether a proxy or a firewall is in the way".into(),
            Kind::Other => "try again; what Google says is all that is known".into(),
        };
        Line::failed(check, why, todo)
    }

    fn account(&self) -> &str {
        self.settings.credentials.account().unwrap_or("the account of these credentials")
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::Outcome;
    use super::*;

    #[test]
    fn a_clock_is_judged_by_what_is_certain() {
        let outcome = |least| clock("clock", Skew { least, about: least }, "well").outcome;
        for (least, expected) in [
            (0, Outcome::Ok),
            (-ALIKE, Outcome::Ok),
            (ALIKE + 1, Outcome::Warning),
            (-APART, Outcome::Warning),
            (APART + 1, Outcome::Failed),
        ] {
            assert_eq!(outcome(least), expected, "{least}");
        }
        let line = clock("clock", Skew { least: -2_000_000, about: -2_500_000 }, "well");
        assert!(line.found.contains("2.5 s behind"), "{line:?}");
    }
}
