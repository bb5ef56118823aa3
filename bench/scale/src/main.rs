//! Writes `docs/scale/`: `cargo run -p scale`.

use std::fs;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let folder = scale::folder();
    fs::create_dir_all(&folder)?;
    for (name, text) in scale::made()? {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
