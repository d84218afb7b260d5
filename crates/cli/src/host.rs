//! `mayfly host`.

use mayfly_api::HostView;
use mayfly_model::HostName;

use crate::arguments::HostCommand;
use crate::connection::Connection;
use crate::output;

pub async fn run(connection: &Connection, command: HostCommand) -> anyhow::Result<()> {
    match command {
        HostCommand::List => {
            let hosts = connection.client.host_list().await?;
            let header =
                ["name", "state", "fault domain", "address", "transit", "instances", "cores used", "memory used"];
            output::list(connection.output, &hosts, &header, |host| {
                let (used, all) = (host.used, host.capacity);
                vec![
                    host.name.clone(),
                    host.state.clone(),
                    host.fault_domain.clone(),
                    host.address.to_string(),
                    host.transit.to_string(),
                    host.instances.to_string(),
                    format!("{} of {}", used.cpu_milli as f64 / 1000.0, all.cpu_milli as f64 / 1000.0),
                    format!("{} of {} MiB", used.memory_mib, all.memory_mib),
                ]
            })
        }
        HostCommand::Drain { name } => {
            connection.client.host_act(&name, "drain").await?;
            output::line(&expectation(connection, &name, "").await)
        }
        HostCommand::Undrain { name } => {
            connection.client.host_act(&name, "undrain").await?;
            output::line(&format!("{name} takes instances again"))
        }
        HostCommand::Reboot { name } => {
            connection.client.host_act(&name, "reboot").await?;
            output::line(&expectation(connection, &name, "; it reboots when it is empty").await)
        }
        HostCommand::Forget { name } => {
            connection.client.host_act(&name, "forget").await?;
            output::line(&format!("{name} will be forgotten"))
        }
    }
}

/// What to expect, as far as it can be found out: what was asked for is done already.
async fn expectation(connection: &Connection, name: &HostName, then: &str) -> String {
    match connection.client.host_list().await {
        Ok(hosts) => drained(name, &hosts, then),
        Err(_) => format!("{name} takes no new instances; `mayfly host list` shows how many are left{then}"),
    }
}

/// What to expect of a host that is being drained from now on.
fn drained(name: &HostName, hosts: &[HostView], then: &str) -> String {
    let carried = hosts.iter().find(|host| host.name == name.as_str()).map_or(0, |host| host.instances);
    let open = hosts.iter().filter(|host| host.state == "Up" && host.name != name.as_str());
    let domains: std::collections::BTreeSet<&str> = open.map(|host| host.fault_domain.as_str()).collect();
    let instances = if carried == 1 { "instance".to_owned() } else { format!("{carried} instances") };
    let stays = if carried == 1 { "stays" } else { "stay" };
    let undo = format!("`mayfly host undrain {name}` opens it again");
    match (carried, domains.len()) {
        (0, 0) => {
            format!("{name} takes no new instances, and no other host does: nothing can be placed now; {undo}{then}")
        }
        (_, 0) => format!(
            "{name} takes no new instances, and no other host does: its {instances} {stays} until one does; {undo}{then}"
        ),
        (0, _) => format!("{name} takes no new instances, and carries none; {undo}{then}"),
        (_, left) => {
            let last = if left == 1 {
                "; one fault domain is left, where roles of two or more instances do not go unless their spread is soft"
            } else {
                ""
            };
            format!(
                "{name} takes no new instances; its {instances} will move to other hosts, one update domain of each \
                 deployment at a time{last}; `mayfly host list` shows how many are left; {undo}{then}"
            )
        }
    }
}
