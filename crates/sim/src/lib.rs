//! Simulation: the real core and the real host-side lease, among simulated hosts, clocks, networks and crashes.
//!
//! One seed is one run: a fabric of hosts, a random workload and random faults for a while, with the design's
//! invariants checked after every step; then all faults end and the fabric has to come to rest as wanted. A run
//! depends on nothing but its seed and its options, so a failure can be repeated.

mod host;
mod network;
mod workload;
mod world;

pub use world::{Failure, Options, Summary, run};
