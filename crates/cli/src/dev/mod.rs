//! The dev fabric: a controller and three hosts on one machine, each host a process tree of its own in its own
//! network, process and mount namespaces, joined by a bridge that plays the data centre. They run the code that
//! production hosts would run. Killing a host's first process is pulling its plug.

mod controller;
mod etcd;
mod fabric;
mod hosts;
mod layout;
mod process;

pub use controller::supervise_controller;
pub use etcd::supervise as supervise_etcd;
pub use hosts::{boot_host, init_host};
pub use layout::Layout;

use std::path::Path;

use crate::arguments::{DevCommand, Output};

pub fn run(state: &Path, output: Output, command: DevCommand) -> anyhow::Result<()> {
    let layout = Layout::new(state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            DevCommand::Up { host_cores, host_memory, controllers, store } => {
                let etcd = store.map(|store| store == crate::arguments::StoreKind::Etcd);
                let wanted = fabric::Wanted { cores: host_cores, memory: host_memory, controllers, etcd };
                fabric::up(&layout, wanted).await
            }
            DevCommand::Down { purge } => fabric::down(&layout, purge).await,
            DevCommand::Kill { name } => fabric::kill(&layout, &name).await,
            DevCommand::Start { name } => fabric::start(&layout, &name).await,
            DevCommand::Status => fabric::status(&layout, output).await,
        }
    })
}
