//! A host's base images: fetched chunk by chunk when a guest first reads them, verified before use, shared by all.

mod cache;
mod fetch;
mod fill;
mod incident;
mod lazy;
mod order;
mod peer;

pub use cache::{CacheError, ImageCache};
pub use fetch::Sources;
pub use incident::Incident;
pub(crate) use incident::Incidents;
pub use peer::PEER_PORT;
