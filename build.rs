//! The page is embedded: a file added to `static/` must be seen by the next build.

fn main() {
    println!("cargo:rerun-if-changed=static");
}
