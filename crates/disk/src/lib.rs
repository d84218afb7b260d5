//! Disks as a host serves them: the disk server (a process of its own, so that the agent can die while guests run),
//! its control protocol, and the host's base images, which fill as they are read.

mod control;
mod disk;
mod formatted;
mod image;
mod nbd;
mod server;
mod turns;
mod vhost;

pub use control::{ControlError, DiskClient, ExportNews, ImageNews, News};
pub use formatted::{FileSystem, FormatError, make_formatted};
pub use image::{CacheError, ImageCache, Incident, PEER_PORT, Sources};
pub use server::{Base, DiskServer, Export, ServerError, Transport};
