//! The program from outside, in one binary for the linker's sake: real processes, Google's
//! emulator, real sockets and a real browser.

mod support;

mod bus;
mod fleet;
mod http;
mod limits;
mod misconfiguration;
mod start;
mod wire;
