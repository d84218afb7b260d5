//! `mayfly instance`.

use anyhow::Context;
use mayfly_api::InstanceView;
use mayfly_model::InstanceKey;

use crate::arguments::{InstanceCommand, Output, Wait};
use crate::connection::Connection;
use crate::console;
use crate::output::{self, mebibytes, or_dash};
use crate::wait::{Judge, Seen, until};

pub async fn run(connection: &Connection, command: InstanceCommand) -> anyhow::Result<()> {
    match command {
        InstanceCommand::List { service } => {
            let instances = connection.client.instance_list(service.as_ref()).await?;
            let header = [
                "instance",
                "state",
                "host",
                "fault domain",
                "update domain",
                "computer name",
                "DIP",
                "generation",
                "detail",
            ];
            output::list(connection.output, &instances, &header, |one| {
                vec![
                    full_name(one),
                    one.state.clone(),
                    or_dash(one.host.as_ref()),
                    or_dash(one.fault_domain.as_ref()),
                    one.update_domain.to_string(),
                    or_dash(one.computer_name.as_ref()),
                    or_dash(one.dip.as_ref()),
                    one.generation.to_string(),
                    one.detail.clone().unwrap_or_default(),
                ]
            })
        }
        InstanceCommand::Show { instance } => show(connection, &instance).await,
        InstanceCommand::Explain { instance } => {
            let lines = connection.client.instance_explain(&instance).await?;
            match connection.output {
                Output::Json => output::line(&serde_json::to_string_pretty(&lines)?),
                Output::Table => lines.iter().try_for_each(|line| output::line(line)),
            }
        }
        InstanceCommand::Reboot { instance, wait } => {
            act(connection, &instance, "reboot", &wait, |before, now| {
                now.vm != before.vm || now.reboots > before.reboots
            })
            .await
        }
        InstanceCommand::Reimage { instance, wait } => {
            act(connection, &instance, "reimage", &wait, |before, now| now.generation > before.generation).await
        }
        InstanceCommand::Console { instance, follow } => match follow {
            true => console::follow(connection, &instance).await,
            false => console::talk(connection, &instance).await,
        },
        InstanceCommand::Log { instance, console: false, .. } => script_log(connection, &instance).await,
        InstanceCommand::Log { instance, boots_ago, .. } => {
            let log = connection.client.instance_console_log(&instance, boots_ago.unwrap_or(0), false).await?;
            console::print(log).await
        }
        InstanceCommand::Screenshot { instance, file } => {
            let picture = connection.client.instance_screenshot(&instance).await?;
            std::fs::write(&file, &picture).with_context(|| format!("cannot write {}", file.display()))?;
            output::line(&format!("{} shows the screen of {instance}", file.display()))
        }
        InstanceCommand::Rebuild { instance, wait } => {
            act(connection, &instance, "rebuild", &wait, |before, now| now.generation > before.generation).await
        }
        InstanceCommand::Stop { instance, wait } => {
            act(connection, &instance, "stop", &wait, |_, now| now.stopped).await
        }
        InstanceCommand::Start { instance, wait } => {
            act(connection, &instance, "start", &wait, |_, now| !now.stopped).await
        }
    }
}

/// One instance, and how its guest came to be.
async fn show(connection: &Connection, instance: &InstanceKey) -> anyhow::Result<()> {
    let one = find(connection, instance).await?;
    let bytes = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), mebibytes);
    let rows = [
        ("instance", full_name(&one)),
        ("state", one.state.clone()),
        ("detail", or_dash(one.detail.as_ref())),
        ("host", or_dash(one.host.as_ref())),
        ("fault domain", or_dash(one.fault_domain.as_ref())),
        ("update domain", one.update_domain.to_string()),
        ("computer name", or_dash(one.computer_name.as_ref())),
        ("DIP", or_dash(one.dip.as_ref())),
        ("IPv6", or_dash(one.ipv6.as_ref())),
        ("VM", or_dash(one.vm.as_ref())),
        ("generation of the disk", one.generation.to_string()),
        ("written to the disk", bytes(one.disk_bytes)),
        ("write quota", bytes(one.disk_quota_bytes)),
        ("base image on the host", bytes(one.image_bytes)),
        ("sent", bytes(one.sent_bytes)),
        ("received", bytes(one.received_bytes)),
    ];
    output::show(connection.output, &one, &rows)?;
    if connection.output == Output::Table && !one.steps.is_empty() {
        output::line("\nhow its guest came to be:")?;
        for step in &one.steps {
            output::line(&format!("  {}  +{:>6.2} s  {}", step.at, step.millis as f64 / 1000.0, step.step))?;
        }
    }
    Ok(())
}

/// Each run of the script: its end, then its output.
async fn script_log(connection: &Connection, instance: &InstanceKey) -> anyhow::Result<()> {
    let runs = connection.client.instance_script(instance).await?;
    if connection.output == Output::Json {
        return output::line(&serde_json::to_string_pretty(&runs)?);
    }
    let real: Vec<_> = runs.iter().filter(|run| run.attempt > 0).collect();
    if real.is_empty() {
        return output::line(&format!("no post-boot script (Mayfly.Script) has run in this boot of {instance}"));
    }
    for run in real {
        let end = run.status.map_or_else(|| "took too long".to_owned(), |status| format!("exit status {status}"));
        output::line(&format!("--- try {}: {end}", run.attempt))?;
        output::line(run.output.trim_end())?;
    }
    Ok(())
}

fn full_name(instance: &InstanceView) -> String {
    match instance.slot {
        mayfly_model::Slot::Production => format!("{}/{}", instance.service, instance.name),
        mayfly_model::Slot::Staging => format!("{}@staging/{}", instance.service, instance.name),
    }
}

/// Does `verb` to an instance and, if wanted, waits until it has happened and the instance is ready again.
async fn act(
    connection: &Connection,
    key: &InstanceKey,
    verb: &str,
    wait: &Wait,
    happened: impl Fn(&InstanceView, &InstanceView) -> bool,
) -> anyhow::Result<()> {
    let before = find(connection, key).await?;
    connection.client.instance_act(key, verb).await?;
    if !wait.wait {
        return output::line(&format!("{key}: {verb} is under way"));
    }
    let judge = std::cell::RefCell::new(Judge::new());
    until(wait, || async {
        let now = find(connection, key).await?;
        if !happened(&before, &now) {
            return Ok(Seen::NotYet(format!("{} is {}", now.name, now.state)));
        }
        judge.borrow_mut().look(std::slice::from_ref(&now), 1)
    })
    .await?;
    let now = find(connection, key).await?;
    if now.stopped {
        return output::line(&format!("{key} is stopped; its disks are kept"));
    }
    output::line(&format!("{key} is ready: {} on {}", or_dash(now.computer_name.as_ref()), or_dash(now.host.as_ref())))
}

async fn find(connection: &Connection, key: &InstanceKey) -> anyhow::Result<InstanceView> {
    let instances = connection.client.instance_list(Some(&key.deployment.service)).await?;
    let mut found = instances.into_iter().filter(|one| one.slot == key.deployment.slot);
    found.find(|one| one.name == key.name()).with_context(|| format!("there is no instance `{key}`"))
}
