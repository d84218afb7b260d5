//! The dev fabric: a controller and three hosts on one machine, each host a process tree of its own in its own
//! network, process and mount namespaces, joined by a bridge that plays the data centre. They run the code that
//! production hosts would run. Killing a host's first process is pulling its plug.

mod controller;
mod etcd;
mod fabric;
mod gate;
mod hosts;
mod layout;
mod process;

pub use controller::supervise_controller;
pub use etcd::supervise as supervise_etcd;
pub use gate::keep as keep_gate;
pub use hosts::{boot_host, init_host};
pub use layout::Layout;

use std::path::Path;

use anyhow::{Context, bail};

use crate::arguments::{DevCommand, Output};

pub fn run(state: &Path, output: Output, command: DevCommand) -> anyhow::Result<()> {
    let layout = Layout::new(state);
    gate::enter(&layout, &command)?;
    if let DevCommand::Exec { command } = command {
        return exec(&command);
    }
    // Others only look; one of these may have opened the gate for nothing, or have left it without a fabric.
    let changes = matches!(command, DevCommand::Up { .. } | DevCommand::Down { .. });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match command {
            DevCommand::Up { host_cores, host_memory, controllers, store, transit } => {
                let etcd = store.map(|store| store == crate::arguments::StoreKind::Etcd);
                let transit = transit.map(Into::into);
                let wanted = fabric::Wanted { cores: host_cores, memory: host_memory, controllers, etcd, transit };
                fabric::up(&layout, wanted).await
            }
            DevCommand::Down { purge } => fabric::down(&layout, purge).await,
            DevCommand::Kill { name } => fabric::kill(&layout, &name).await,
            DevCommand::Start { name } => fabric::start(&layout, &name).await,
            DevCommand::Status => fabric::status(&layout, output).await,
            DevCommand::Exec { .. } => Ok(()),
        }
    });
    if changes {
        gate::tidy(&layout);
    }
    done
}

/// Becomes another program, which sees the fabric's network as this process does.
fn exec(command: &[String]) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    let Some((program, arguments)) = command.split_first() else { bail!("which command?") };
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}
