//! The fabric core: `step(now, entropy, input) -> changes`. It decides; it never does.
//!
//! There is no I/O, clock, randomness, thread or logging in here. Time and random bits come in as data, changes go out
//! as whole records, and the driver commits them to the store before anybody acts on them. What a host should run
//! ([`goal`]) is a pure function of the records.
//!
//! Choosing lives in files of its own: [`placement`], [`lease`], `healing`, `rebalance`.

pub mod address;
pub mod check;
mod command;
mod core;
mod entropy;
pub mod goal;
mod healing;
mod instances;
pub mod lease;
pub mod placement;
mod rebalance;
pub mod record;
mod report;
mod services;
pub mod state;

pub use command::{Command, Input, Outcome, Rejected};
pub use core::{Config, Core};
pub use entropy::Entropy;
pub use record::{Change, Meta, Record};
pub use state::State;

#[cfg(test)]
mod tests;
