//! The program from outside, in one binary for the linker's sake: real processes, Google's
//! emulator, real sockets and a real browser.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests end at the first surprise"
)]
#![expect(clippy::print_stdout, reason = "tests tell their figures")]

mod support;

#[path = "../../fuzz/src/lib.rs"]
mod holds;

mod api;
mod api_documents;
mod auth;
mod authorizer;
mod browser;
mod browser_button;
mod browser_care;
mod browser_catch_up;
mod browser_channels;
mod browser_hostile;
mod browser_installed;
mod browser_map;
mod browser_smooth;
mod browser_tabs;
mod bus;
mod channels;
mod clocks;
mod codes;
mod connections;
mod deployment;
mod doctor;
mod endurance;
mod faults;
mod fleet;
mod fleet_script;
mod google;
mod hostile_topic;
mod http;
mod image;
mod isolation;
mod keyless;
mod lifecycle;
mod limits;
mod logs;
mod memory;
mod misconfiguration;
mod model;
mod monitoring;
mod network;
mod properties;
mod protocol;
mod receipts;
mod resources;
mod restart;
mod start;
mod tidy;
#[cfg(feature = "otlp")]
mod traces;
mod upgrade;
mod wire;
