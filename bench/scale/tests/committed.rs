//! What is committed in `docs/scale/` is what the model makes now.

use std::collections::BTreeMap;
use std::fs;

#[test]
fn what_is_committed_is_what_the_model_makes() {
    let mut committed = BTreeMap::new();
    for entry in fs::read_dir(scale::folder()).expect("docs/scale") {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("its name").to_string_lossy().into_owned();
        committed.insert(name, fs::read_to_string(path).expect("text"));
    }
    let made: BTreeMap<_, _> = scale::made().expect("the plots").into_iter().collect();
    assert!(made.keys().eq(committed.keys()), "{:?}, not {:?}", committed.keys(), made.keys());
    for (name, text) in made {
        assert!(committed[&name] == text, "docs/scale/{name} is not what is made now: cargo run -p scale");
    }
}
