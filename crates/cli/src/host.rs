//! `mayfly host`.

use crate::arguments::HostCommand;
use crate::connection::Connection;
use crate::output;

pub async fn run(connection: &Connection, command: HostCommand) -> anyhow::Result<()> {
    match command {
        HostCommand::List => {
            let hosts = connection.client.host_list().await?;
            let header = ["name", "state", "fault domain", "address", "instances", "cores used", "memory used"];
            output::list(connection.output, &hosts, &header, |host| {
                let (used, all) = (host.used, host.capacity);
                vec![
                    host.name.clone(),
                    host.state.clone(),
                    host.fault_domain.clone(),
                    host.address.to_string(),
                    host.instances.to_string(),
                    format!("{} of {}", used.cpu_milli as f64 / 1000.0, all.cpu_milli as f64 / 1000.0),
                    format!("{} of {} MiB", used.memory_mib, all.memory_mib),
                ]
            })
        }
        HostCommand::Drain { name } => {
            connection.client.host_act(&name, "drain").await?;
            output::line(&format!("{name} is being drained; `mayfly host list` shows how many instances are left"))
        }
        HostCommand::Undrain { name } => {
            connection.client.host_act(&name, "undrain").await?;
            output::line(&format!("{name} takes instances again"))
        }
        HostCommand::Reboot { name } => {
            connection.client.host_act(&name, "reboot").await?;
            output::line(&format!("{name} is being drained, and reboots when it is empty"))
        }
        HostCommand::Forget { name } => {
            connection.client.host_act(&name, "forget").await?;
            output::line(&format!("{name} will be forgotten"))
        }
    }
}
