//! What the doctor finds: a line for each check, told as it comes, or all at the end as JSON.

use std::io::Write;

use serde::Serialize;

/// All checks, in their order.
pub const CHECKS: [&str; 12] = [
    "configuration",
    "credentials",
    "service",
    "clock",
    "topic",
    "retention",
    "subscribe",
    "pull",
    "publish",
    "round trip",
    "left-overs",
    "delete",
];

/// Characters of a line.
const MAX_FOUND: usize = 4_000;

/// How a check ended, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Something before it must be well first.
    Skipped,
    Ok,
    Warning,
    Failed,
}

/// One check's line.
#[derive(Debug, Serialize)]
pub struct Line {
    pub check: &'static str,
    pub outcome: Outcome,
    pub found: String,
    /// What to do about it.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl Line {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Ok, found: found.into(), todo: None }
    }

    pub fn warning(check: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Warning, found: found.into(), todo: Some(todo.into()) }
    }

    pub fn failed(check: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Failed, found: found.into(), todo: Some(todo.into()) }
    }

    pub fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Skipped, found: why.into(), todo: None }
    }
}

pub struct Findings<W> {
    out: W,
    json: bool,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Told<'a> {
    result: &'static str,
    checks: &'a [Line],
}

impl<W: Write> Findings<W> {
    pub fn new(out: W, json: bool) -> Self {
        Self { out, json, lines: Vec::new() }
    }

    pub fn add(&mut self, mut line: Line) {
        // What others say may hold anything and be long; a line is one line.
        let found = line.found.chars().take(MAX_FOUND);
        line.found = found.map(|c| if c.is_control() { ' ' } else { c }).collect();
        if !self.json {
            let Line { check, outcome, found, .. } = &line;
            let outcome = outcome.name();
            self.write(&format!("{outcome:<8} {check:<14} {found}\n"));
            if let Some(todo) = &line.todo {
                self.write(&format!("{:>8} {:<14} → {todo}\n", "", ""));
            }
        }
        self.lines.push(line);
    }

    /// A check that is not told of yet can't be run.
    pub fn skip(&mut self, check: &'static str, why: &str) {
        if !self.lines.iter().any(|line| line.check == check) {
            self.add(Line::skipped(check, why));
        }
    }

    /// All the rest of them.
    pub fn skip_rest(&mut self, why: &str) {
        for check in CHECKS {
            self.skip(check, why);
        }
    }

    pub fn no_configuration(&mut self, why: &str) {
        let todo = "a VM does not start with it; alien-alert --help lists the variables";
        self.add(Line::failed("configuration", why, todo));
        self.skip_rest("needs the configuration");
    }

    pub fn in_process(&mut self) {
        let found = "the bus is in the process: one VM alone, which needs nothing of Google's. More VMs would \
                     not hear one another; for those set GOOGLE_SERVICE_ACCOUNT_JSON";
        self.add(Line::ok("configuration", found));
        self.skip_rest("the bus in the process has none");
    }

    /// The probe's own subscription could not be deleted.
    pub fn left_behind(&mut self, name: &str, why: &str) {
        let found = format!("the doctor's own subscription {name} may be left behind: {why}");
        let todo =
            format!("delete it: gcloud pubsub subscriptions delete {name}; else it is gone after a day");
        let told = self.lines.iter().any(|line| line.check == "delete" && line.outcome == Outcome::Failed);
        if !told {
            self.add(Line::failed("delete", found, todo));
        }
    }

    /// Says how it is on the whole; the exit code.
    pub fn end(mut self, is_whole: bool) -> u8 {
        let count = |outcome| self.lines.iter().filter(|line| line.outcome == outcome).count();
        let [skipped, warnings, failed] = [Outcome::Skipped, Outcome::Warning, Outcome::Failed].map(count);
        let worst = self.lines.iter().map(|line| line.outcome).max();
        let (result, code) = match worst {
            _ if !is_whole => ("interrupted", super::INTERRUPTED),
            Some(Outcome::Failed) => ("failed", 2),
            Some(Outcome::Warning) => ("warning", 1),
            _ => ("ok", 0),
        };
        if self.json {
            let told = Told { result, checks: &self.lines };
            // Strings alone always serialize.
            let text = serde_json::to_string_pretty(&told).unwrap_or_default();
            self.write(&format!("{text}\n"));
        } else if is_whole && code == 0 {
            self.write("all is well\n");
        } else if is_whole {
            self.write(&format!("failed: {failed}, warnings: {warnings}, skipped: {skipped}\n"));
        } else {
            self.write("interrupted\n");
        }
        code
    }

    /// Something to know meanwhile, for who watches.
    pub fn note(&mut self, text: &str) {
        if !self.json {
            self.write(&format!("         {text}\n"));
        }
    }

    fn write(&mut self, text: &str) {
        // A reader that closed the pipe has seen enough.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}
