//! Alien Alert: someone presses the red button, and every open page in the world knows.
//!
//! The modules, in reading order: a [`vm`] lives by its [`config`] and [`identity`]. It joins a
//! [`bus`], on which all VMs tell one another [`event`]s; [`path`] keeps that way alive and
//! [`health`] says whether it is. The [`relay`] gives what clients send to [`publishing`], which
//! does not let go before the bus has it, and passes what the bus brings to the sockets in its
//! [`hub`]. Its memory are the [`history`], the [`fleet`], and the [`ledger`] of what is missing.
//! Clients come in by [`http`], where [`auth`] and [`admission`] let them, and stay as a socket of a
//! [`shard`]; what is said there is in [`wire`]. A backend reaches one of them by [`connections`], and
//! hears of their coming and going by [`lifecycle`]. Before all that, the [`doctor`] looks whether a VM
//! would have what it needs.

pub mod vm;

pub mod doctor;

pub mod admission;
pub mod auth;
pub mod authorizer;
pub mod config;
pub mod identity;

pub mod bus;
pub mod event;
pub mod health;
pub mod path;
pub mod publishing;

pub mod channel;
pub mod connections;
pub mod cursor;
pub mod fleet;
pub mod history;
pub mod hub;
pub mod ledger;
pub mod lifecycle;
pub mod receipts;
pub mod relay;
pub mod shard;

pub mod frame;
pub mod http;
pub mod wire;

pub mod clock;
pub mod logs;
pub mod metrics;
pub mod privileges;
pub mod process;
pub mod signals;
pub mod traces;

#[cfg(test)]
mod model;
