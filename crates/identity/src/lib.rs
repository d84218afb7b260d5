//! Who is who between hosts and controllers.
//!
//! A fabric has one authority, a key that its controllers share. A host joins with a token that works once: it makes a key
//! of its own, knows the controllers by the authority's digest in the token, and gets a certificate for that key. From then
//! on both sides show certificates. A host's certificate ends after a while and is renewed after a third of that; what a
//! controller shows is made anew with each start, and as often.
//!
//! What can go wrong with time, and what is done about it:
//!
//! - No date is computed by the calendar: a certificate lasts so many seconds. So there is no 29th of February of a year
//!   that has none (the outage of 2012).
//! - Both sides check certificates by a [`Clock`] that is the wall clock's only when the process starts, and then follows
//!   the monotonic one: setting the wall clock ends no certificate.
//! - A controller's start with a wrong wall clock must not lock all hosts out at once: a certificate that has ended still
//!   lets its host ask for a new one. That costs little, as each request is checked against the list of hosts that have
//!   joined: who takes a certificate's worth away is `mayfly host forget`, not time.
//! - A host whose clock is behind takes the controllers' certificates, which to it begin in the future.

mod authority;
mod certificate;
mod clock;
mod error;
mod keys;
mod tls;
mod token;
mod tunnel;

#[cfg(test)]
mod tests;

pub use authority::Authority;
pub use certificate::{Enrolled, Validity, is_due};
pub use clock::Clock;
pub use error::IdentityError;
pub use keys::{HostKeys, Request};
pub use tls::{Presented, client_config, joining_config, server_config};
pub use token::JoinToken;
pub use tunnel::tunnel_secret;

/// How long a host's certificate lasts, in seconds, unless the configuration says otherwise: 30 days.
pub const HOST_LIFE: u64 = 30 * 86_400;
/// How long what a controller shows lasts, in seconds: 30 days.
pub const CONTROLLER_LIFE: u64 = 30 * 86_400;
