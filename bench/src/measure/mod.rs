//! What is measured of each contender, one question a file.

pub mod cores;
pub mod direct;
pub mod fanout;
pub mod inbound;
pub mod joins;
pub mod memory;
pub mod neighbour;
