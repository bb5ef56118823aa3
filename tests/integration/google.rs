//! `deploy/google` and `docs/deploy.md`, held to what the program does. Terraform itself looks at the files
//! in `scripts/check-terraform`, where it is installed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use alien_alert::bus::pubsub::rights::{ALL, Right, Scope};
use hcl::{Block, Body, Expression};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The whole of it as one text, as Terraform reads it.
fn text() -> String {
    let files = std::fs::read_dir(root().join("deploy/google")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "tf")).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    files.iter().map(read).collect::<Vec<_>>().join("\n")
}

fn parsed() -> Body {
    hcl::parse(&text()).unwrap()
}

fn labels(block: &Block) -> Vec<&str> {
    block.labels.iter().map(hcl::BlockLabel::as_str).collect()
}

fn named<'a>(body: &'a Body, kind: &str, labels_are: &[&str]) -> &'a Block {
    let mut blocks = body.blocks().filter(|block| block.identifier() == kind);
    blocks.find(|block| labels(block) == labels_are).unwrap_or_else(|| panic!("no {kind} {labels_are:?}"))
}

/// An attribute as it is written.
fn written(block: &Block, attribute: &str) -> String {
    let found = block.body.attributes().find(|found| found.key() == attribute);
    hcl::format::to_string(found.unwrap_or_else(|| panic!("no {attribute}")).expr()).unwrap()
}

/// The permissions of one of the custom roles.
fn permissions(body: &Body, role: &str) -> BTreeSet<String> {
    let role = named(body, "resource", &["google_project_iam_custom_role", role]);
    let list = role.body.attributes().find(|attribute| attribute.key() == "permissions").unwrap().expr();
    let Expression::Array(list) = list else { panic!("{list:?}") };
    let name = |item: &Expression| match item {
        Expression::String(name) => name.clone(),
        other => panic!("{other:?}"),
    };
    let all: Vec<_> = list.iter().map(name).collect();
    let set: BTreeSet<_> = all.iter().cloned().collect();
    assert_eq!(all.len(), set.len(), "one is twice in {all:?}");
    set
}

fn names<'a>(rights: impl Iterator<Item = &'a Right>) -> BTreeSet<String> {
    rights.map(|right| right.name.to_owned()).collect()
}

#[test]
fn the_roles_hold_exactly_what_the_program_uses() {
    let body = parsed();
    for (role, scope) in [("topic", Scope::Topic), ("subscriptions", Scope::Project)] {
        let used = names(ALL.iter().filter(|right| right.on == scope && !right.is_extra));
        assert_eq!(permissions(&body, role), used, "{role}");
    }
    // Each where it belongs, and nothing besides but to publish what a backend hears.
    let grants = |kind: &str| {
        let mut roles: Vec<_> = body
            .blocks()
            .filter(|block| labels(block).first() == Some(&kind))
            .map(|block| written(block, "role"))
            .collect();
        roles.sort();
        roles
    };
    let on_topic = ["\"roles/pubsub.publisher\"", "google_project_iam_custom_role.topic.id"];
    assert_eq!(grants("google_pubsub_topic_iam_member"), on_topic);
    assert_eq!(grants("google_project_iam_member"), ["google_project_iam_custom_role.subscriptions.id"]);
    let federated = "\"roles/iam.workloadIdentityUser\"";
    assert_eq!(grants("google_service_account_iam_member"), [federated]);
}

#[test]
fn the_role_made_by_hand_holds_them_too() {
    let guide = read("docs/deploy.md");
    let role = guide.split("--permissions=\\\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let told: BTreeSet<_> = role.split([',', '\\', '\n', ' ']).filter(|word| !word.is_empty()).collect();
    let used = names(ALL.iter());
    assert_eq!(told, used.iter().map(String::as_str).collect());
    for right in &ALL {
        let short = right.name.strip_prefix("pubsub.").unwrap();
        assert!(guide.contains(&format!("`{short}`")), "{short} is explained");
    }
}

#[test]
fn each_permission_is_named_with_the_call_that_needs_it() {
    let text = text();
    for right in ALL.iter().filter(|right| !right.is_extra) {
        let line = text.lines().find(|line| line.contains(&format!("\"{}\",", right.name))).unwrap();
        assert!(line.split_once('#').is_some_and(|(_, why)| why.contains('.')), "{line}");
    }
}

#[test]
fn what_is_referred_to_is_there_and_variables_are_checked_and_told() {
    let (text, body) = (text(), parsed());
    let declared = |kind: &str| -> BTreeSet<String> {
        let blocks = body.blocks().filter(|block| block.identifier() == kind);
        blocks.map(|block| labels(block).join(".")).collect()
    };
    let (variables, resources) = (declared("variable"), declared("resource"));
    // Words that follow such a beginning, as far as they are names.
    let after = |beginning: &str, parts: usize| -> BTreeSet<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let found = text.match_indices(beginning).filter(|(at, _)| {
            let before = text[..*at].chars().next_back();
            !before.is_some_and(|c| is_name(c) || c == '.' || c == '"' || c == '/')
        });
        let words = found.map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c: char| !is_name(c) && c != '.').unwrap_or(rest.len());
            rest[..end].split('.').take(parts).collect::<Vec<_>>().join(".")
        });
        words.collect()
    };
    let used: BTreeSet<_> = after("var.", 2).iter().map(|name| name["var.".len()..].to_owned()).collect();
    assert_eq!(used, variables, "those used and those there are");
    for name in after("google_", 2).iter().filter(|name| name.contains('.')) {
        assert!(resources.contains(name), "{name} in {resources:?}");
    }
    let readme = read("deploy/google/README.md");
    for name in &variables {
        let block = named(&body, "variable", &[name]);
        assert!(block.body.blocks().any(|inner| inner.identifier() == "validation"), "{name} is not checked");
        assert!(readme.contains(&format!("| `{name}` |")), "{name} is not told of");
    }
    let versions = named(&body, "terraform", &[]);
    let providers = versions.body.blocks().find(|block| block.identifier() == "required_providers").unwrap();
    let google = written(providers, "google");
    assert!(google.contains(|c: char| c.is_ascii_digit()) && !google.contains('~') && !google.contains('>'));
}

#[test]
fn what_is_put_out_are_variables_of_the_program() {
    let environment = written(named(&parsed(), "output", &["environment"]), "value");
    let is_name = |word: &&str| word.len() > 4 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let words = environment.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let told: BTreeSet<_> = words.filter(is_name).collect();
    assert!(told.contains("GOOGLE_WORKLOAD_IDENTITY_PROVIDER"), "{told:?}");
    for name in told {
        assert!(alien_alert::config::VARIABLES.iter().any(|(known, ..)| *known == name), "{name}");
    }
}

#[test]
fn of_what_fly_signs_one_app_alone_is_let_in() {
    let body = parsed();
    let provider = named(&body, "resource", &["google_iam_workload_identity_pool_provider", "fly"]);
    // Google takes no shorter ones, which Terraform says only when it is too late.
    let pool = named(&body, "resource", &["google_iam_workload_identity_pool", "fly"]);
    for id in
        [written(pool, "workload_identity_pool_id"), written(provider, "workload_identity_pool_provider_id")]
    {
        assert!((4..=32).contains(&id.trim_matches('"').len()), "{id}");
    }
    let condition = written(provider, "attribute_condition");
    assert_eq!(condition, "\"assertion.app_name == '${var.fly.app}'\"");
    let oidc = provider.body.blocks().find(|block| block.identifier() == "oidc").unwrap();
    assert_eq!(written(oidc, "issuer_uri"), "\"https://oidc.fly.io/${var.fly.org}\"");
    // None but the provider itself, which is whom the program asks Fly for.
    assert!(oidc.body.attributes().all(|attribute| attribute.key() != "allowed_audiences"));
}
