//! The fabric core: `step(now, entropy, input) -> changes`. It decides; it never does.
//!
//! There is no I/O, clock, randomness, thread or logging in here. Time and random bits come in as data, changes go out
//! as whole records, and the driver commits them to the store before anybody acts on them. What a host should run
//! ([`goal`]) is a pure function of the records.
//!
//! A step is a transaction: what is refused, or only planned, is taken back whole (`step`). Choosing lives in files of its
//! own: `placement` (over `inventory`, which is kept up to date with each record; `because` and `no_room` put its choices and
//! refusals into words), [`lease`], `ladder` (sick instances), `breaker` (when healing has to
//! stop), `upgrade` (the walk over update domains), `autoscale`, `rebalance`.

pub mod address;
mod autoscale;
mod because;
mod breaker;
mod certificates;
pub mod check;
mod command;
mod core;
mod counts;
mod deployments;
mod drain;
mod enrolment;
mod entropy;
pub mod explain;
pub mod goal;
mod healing;
mod hosts;
mod instances;
mod inventory;
mod ladder;
pub mod lease;
pub mod meter;
mod mutant;
pub mod names;
mod no_room;
pub mod placement;
mod rebalance;
pub mod record;
mod report;
mod reservations;
pub mod restore;
mod services;
pub mod state;
mod step;
mod swap;
mod upgrade;

pub use command::{Command, Input, Outcome, Rejected};
pub use core::{Config, Core, HealingPolicy, Overcommit};
pub use entropy::Entropy;
pub use mutant::Mutant;
pub use record::{Answered, Change, Meta, Record, RecordId};
pub use state::State;
pub use upgrade::role_change;

#[cfg(test)]
mod tests;
