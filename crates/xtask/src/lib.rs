//! The project's chores: setting up a machine, building the demo image, telling the demo's story, running the tests, the
//! benchmarks and the fuzz targets.

pub mod bench;
pub mod etcd;
pub mod fabric;
pub mod fuzz;
pub mod image;
mod kubernetes;
pub mod linear;
pub mod run;
pub mod setup;
pub mod story;
pub mod visitor;

use std::path::PathBuf;

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).map_or_else(|| own.clone(), PathBuf::from)
}
