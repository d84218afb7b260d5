//! Simulation: the real core and the real host-side lease, among simulated hosts, clocks, networks and crashes.
//!
//! One seed is one run: a fabric of hosts, a random workload and random faults for a while, with the design's
//! invariants checked after every step against what is true, not what the controller believes; then all faults end and
//! the fabric has to come to rest as wanted. A run depends on nothing but its seed and its options, so a failure can be
//! repeated, and made smaller ([`shrink`]).

mod host;
mod network;
mod nodes;
mod options;
mod oracle;
mod shrink;
mod workload;
mod world;

pub use options::{Failure, Fault, Options, Plant, Summary};
pub use shrink::{find, shrink};
pub use world::run;
