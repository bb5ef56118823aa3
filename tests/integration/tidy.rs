//! What a reader is promised: every file says what it is for, and the README tells the truth.

use std::path::{Path, PathBuf};

use alien_alert::config::VARIABLES;

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("build.rs")];
    for folder in ["src", "tests", "fuzz/src", "fuzz/targets", "bench/src", "bench/hot-path", "bench/scale"] {
        sources(&root.join(folder), &mut found);
    }
    assert!(found.len() > 30);
    for path in found {
        assert!(read(&path).starts_with("//! "), "{} has no //! at its top", path.display());
    }
}

#[test]
fn the_readme_lists_every_variable_with_its_default() {
    let readme = read("README.md");
    for (name, default, meaning) in VARIABLES {
        let row = format!("| `{name}` | {default} | {meaning} |");
        assert!(readme.contains(&row), "missing in README.md: {row}");
    }
}

#[test]
fn every_file_of_the_source_is_on_the_map() {
    let map = read("ARCHITECTURE.md");
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let beside = ["lib.rs", "clock.rs", "logs.rs", "metrics.rs", "signals.rs"];
        assert!(map.contains(&format!("src/{name}")) || beside.contains(&&*name), "{name} is not told of");
    }
}

#[test]
fn every_limit_s_proof_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut found);
    }
    let code: String = found.iter().map(read).collect();
    let limits = read("docs/limits.md");
    // The tables of bounds; others have no such column.
    let (mut is_bounds, mut rows) = (false, 0);
    for line in limits.lines() {
        is_bounds = line.ends_with("| proven by |") || is_bounds && line.starts_with('|');
        let Some(proof) = line.strip_suffix(" |").and_then(|line| line.rsplit(" | ").next()) else {
            continue;
        };
        if !is_bounds || line.ends_with("| proven by |") || line.starts_with("| ---") {
            continue;
        }
        let mut names = proof.split('`').skip(1).step_by(2).peekable();
        assert!(names.peek().is_some(), "no test proves it: {line}");
        for name in names {
            assert!(code.contains(&format!("fn {name}(")), "{name} is no test");
        }
        rows += 1;
    }
    assert!(rows > 50, "{rows} bounds");
}

#[test]
fn the_page_s_language_is_named_once() {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("static")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "js") {
            assert!(!read(&path).contains("\"en\""), "{}: it is the page's own `lang`", path.display());
        }
    }
}

#[test]
fn every_colour_of_the_page_has_a_name() {
    let style = read("static/style.css");
    // They are named in the first blocks, for dark and for light.
    let (_, rules) = style.split_once("\n* {").unwrap();
    let words = rules.split('#').skip(1).map(|rest| {
        rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').next().unwrap_or_default()
    });
    let colours: Vec<_> = words
        .filter(|word| (3..=8).contains(&word.len()) && word.chars().all(|letter| letter.is_ascii_hexdigit()))
        .collect();
    assert_eq!(colours, Vec::<&str>::new());
}
