//! The page and the documents are embedded: a file added to them must be seen by the next build.

fn main() {
    println!("cargo:rerun-if-changed=static");
    println!("cargo:rerun-if-changed=src/http/documents");
}
