//! Disks as a host serves them: the disk server (a process of its own, so that the agent can die while guests run),
//! its control protocol, and the cache of base images.

mod cache;
mod control;
mod disk;
mod nbd;
mod server;

pub use cache::{CacheError, ImageCache, PartialImage};
pub use control::{ControlError, DiskClient};
pub use server::{DiskServer, Export, ServerError};
