//! Base images as the controller keeps them: chunks and manifests in an object store, never written again.

mod holders;
mod store;

pub use holders::Holders;
pub use store::{ImageStore, ObjectStoreConfig};
