//! DNS: authoritative for the fabric's zone and for the addresses in it, from the goal state; forwarding for the rest.
//!
//! Answers are made when the zone changes, not when somebody asks: a question is looked up by its bytes, and the answer is
//! copied. Names, types and rules are those of RFC 1034, 1035, 2308 (negative answers), 2782 (SRV) and 6891 (EDNS).

mod forward;
mod limit;
mod question;
mod server;
mod shares;
mod zone;

pub use forward::Forwarder;
pub use limit::Limit;
pub use server::{Asked, DnsServer, NameObserver};
pub use zone::Zone;
