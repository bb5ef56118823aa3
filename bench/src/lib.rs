//! What the load and the peers written in Rust share: the words they say, and the frames around them. And
//! the look of plots, which the model of scale shares.

pub mod chart;
pub mod frame;
pub mod words;
