//! Reserved public addresses.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::name::ReservedName;
use crate::time::Time;

/// A public address that is kept under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its name, by which configurations ask for it.
    pub name: ReservedName,
    /// The address.
    pub address: Ipv4Addr,
    /// Since when.
    pub reserved: Time,
}
