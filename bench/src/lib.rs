//! What the load and the peers written in Rust share: the words they say, and the frames around them.

pub mod frame;
pub mod words;
