//! Certificates and passwords on their way to guests.
//!
//! A person hands in a certificate with its private key ([`KeyedCertificate`]). The controller keeps it sealed
//! ([`SealingKey`]): what lies in a store or in a backup is of no use without the authority's key. A host asks for what its
//! own VMs need, keeps it in memory only, and seals it to each guest's own transport certificate ([`envelope`]). The same
//! kind of envelope carries a password that a person has encrypted to a service's certificate, which only the host of a VM
//! of that service opens.

mod certificate;
pub mod envelope;
mod error;
mod password;
mod sealing;

#[cfg(test)]
mod tests;

pub use certificate::{KeyedCertificate, PublicCertificate, guest_pfx};
pub use error::SecretError;
pub use password::{hash_password, random_password};
pub use sealing::SealingKey;
