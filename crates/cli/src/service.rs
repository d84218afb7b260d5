//! `mayfly service`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use mayfly_api::{
    DeployRequest, ErrorCode, PlanView, ScaleRequest, ServiceView, SourceFile, UpdateView, UpgradeRequest,
};
use mayfly_model::{ServiceName, Slot};
use mayfly_service_model::{FILE_SETTINGS, Source, check, parse_configuration, parse_definition, resolve_files};

use crate::arguments::{Output, ServiceCommand, Wait};
use crate::connection::Connection;
use crate::output;
use crate::wait::{Judge, Seen, until};

pub async fn run(connection: &Connection, command: ServiceCommand) -> anyhow::Result<()> {
    let client = &connection.client;
    match command {
        ServiceCommand::Create { name } => {
            client.service_create(&name).await?;
            output::line(&format!("{name} is there, and empty"))
        }
        ServiceCommand::List => {
            let services = client.service_list().await?;
            output::list(connection.output, &services, &["name", "state", "DNS name", "VIP", "instances ready"], row)
        }
        ServiceCommand::Show { name } => show(connection.output, &client.service_show(&name).await?),
        ServiceCommand::Deploy { name, definition, configuration, slot, dry_run, wait } => {
            let request = read_files(&definition, &configuration)?;
            if dry_run {
                return show_plan(connection.output, &client.deploy_plan(&name, slot, &request).await?);
            }
            client.deploy(&name, slot, &request).await?;
            settle(connection, &name, slot, &wait).await
        }
        ServiceCommand::Scale { name, roles, slot, dry_run, wait } => {
            let mut instances = BTreeMap::new();
            for (role, count) in roles {
                ensure!(instances.insert(role.clone(), count).is_none(), "the role `{role}` is named twice");
            }
            let request = ScaleRequest { instances };
            if dry_run {
                return show_plan(connection.output, &client.scale_plan(&name, slot, &request).await?);
            }
            client.scale(&name, slot, &request).await?;
            settle(connection, &name, slot, &wait).await
        }
        ServiceCommand::Delete { name, slot: None, wait } => {
            client.service_delete(&name).await?;
            if !wait.wait {
                return output::line(&format!("{name} is being deleted"));
            }
            until(&wait, || async {
                match client.service_show(&name).await {
                    Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(Seen::Done),
                    Err(error) => Err(error.into()),
                    Ok(_) => {
                        // All instances: those of a service that is gone by now would be an error.
                        let left = client.instance_list(None).await?;
                        let left = left.iter().filter(|one| one.service == name.as_str()).count();
                        Ok(Seen::NotYet(format!("{left} VMs left")))
                    }
                }
            })
            .await?;
            output::line(&format!("{name} is gone"))
        }
        other => change(connection, other).await,
    }
}

/// What changes a deployment that is there.
async fn change(connection: &Connection, command: ServiceCommand) -> anyhow::Result<()> {
    let client = &connection.client;
    match command {
        ServiceCommand::Upgrade { name, definition, configuration, slot, mode, dry_run, wait } => {
            let request = UpgradeRequest { files: read_files(&definition, &configuration)?, mode: mode.into() };
            if dry_run {
                return show_plan(connection.output, &client.upgrade_plan(&name, slot, &request).await?);
            }
            client.upgrade(&name, slot, &request).await?;
            updated(connection, &name, slot, &wait).await
        }
        ServiceCommand::Walk { name, domain, slot } => {
            client.walk(&name, slot, domain).await?;
            output::line(&format!("{name}: the update goes on; `mayfly service show {name}` shows how far it is"))
        }
        ServiceCommand::Rollback { name, slot, mode, wait } => {
            client.roll_back(&name, slot, mode.into()).await?;
            updated(connection, &name, slot, &wait).await
        }
        ServiceCommand::Swap { name } => {
            client.swap(&name).await?;
            output::line(&format!("{name}: production and staging are swapped"))
        }
        ServiceCommand::Suspend { name, slot } => {
            client.deployment_act(&name, slot, "suspend").await?;
            output::line(&format!("{name}: its guests stop; their disks are kept"))
        }
        ServiceCommand::Start { name, slot, wait } => {
            client.deployment_act(&name, slot, "start").await?;
            settle(connection, &name, slot, &wait).await
        }
        ServiceCommand::Metric { name, role, metric: (metric, value), slot } => {
            client.metric_push(&name, slot, &role, &metric, value).await?;
            output::line(&format!("{metric} of {name}/{role} is {value}"))
        }
        ServiceCommand::Usage => {
            let usage = client.usage().await?;
            output::list(connection.output, &usage, &["day", "service", "instance hours", "sent", "received"], |one| {
                let hours = one.instance_seconds.iter();
                let hours = hours.map(|(size, seconds)| format!("{size} {:.3}", *seconds as f64 / 3600.0));
                let hours = hours.collect::<Vec<_>>().join(", ");
                let [sent, received] = [one.sent_bytes, one.received_bytes].map(output::mebibytes);
                vec![one.day.clone(), one.service.clone(), hours, sent, received]
            })
        }
        ServiceCommand::Delete { name, slot: Some(slot), wait } => {
            client.deployment_delete(&name, slot).await?;
            if !wait.wait {
                return output::line(&format!("{slot} of {name} is being emptied"));
            }
            until(&wait, || async {
                let service = client.service_show(&name).await?;
                match service.deployments.iter().any(|one| one.slot == slot) {
                    true => Ok(Seen::NotYet(format!("{slot} of {name} is being emptied"))),
                    false => Ok(Seen::Done),
                }
            })
            .await?;
            output::line(&format!("{slot} of {name} is empty"))
        }
        ServiceCommand::Create { .. }
        | ServiceCommand::List
        | ServiceCommand::Show { .. }
        | ServiceCommand::Deploy { .. }
        | ServiceCommand::Scale { .. }
        | ServiceCommand::Delete { slot: None, .. } => Ok(()),
    }
}

/// Shows what a command would do.
fn show_plan(format: Output, plan: &PlanView) -> anyhow::Result<()> {
    if format == Output::Json {
        return output::line(&serde_json::to_string_pretty(plan)?);
    }
    for line in &plan.summary {
        output::line(&format!("this would happen: {line}"))?;
    }
    if plan.steps.is_empty() {
        return output::line("no instance would be touched");
    }
    let header = ["instance", "action", "host", "fault domain", "update domain", "why, or when"];
    output::list(format, &plan.steps, &header, |step| {
        vec![
            step.instance.clone(),
            step.action.clone(),
            output::or_dash(step.host.as_ref()),
            output::or_dash(step.fault_domain.as_ref()),
            output::or_dash(step.update_domain.as_ref()),
            step.detail.clone().unwrap_or_default(),
        ]
    })?;
    output::line("nothing was changed")
}

/// Waits, if wanted, until an update is over and all instances are ready.
async fn updated(connection: &Connection, name: &ServiceName, slot: Slot, wait: &Wait) -> anyhow::Result<()> {
    let client = &connection.client;
    if !wait.wait {
        return output::line(&format!("{name} is being updated; `mayfly service show {name}` shows how far it is"));
    }
    until(wait, || async {
        let service = client.service_show(name).await?;
        let update = service.deployments.into_iter().find(|one| one.slot == slot).and_then(|one| one.update);
        match update {
            None => Ok(Seen::Done),
            Some(UpdateView { stuck: Some(why), .. }) => {
                bail!("the update has stopped: {why}; update again, or `mayfly service rollback {name}`")
            }
            Some(update) => {
                let now = update.walking.map_or_else(String::new, |domain| format!(", update domain {domain} now"));
                Ok(Seen::NotYet(format!("{} instances updated, {} left{now}", update.updated, update.left)))
            }
        }
    })
    .await?;
    settle(connection, name, slot, wait).await
}

/// Reads and checks the files here, so that errors show before anything is sent.
fn read_files(definition: &Path, configuration: &Path) -> anyhow::Result<DeployRequest> {
    let (definition_source, configuration_source) = (read_source(definition)?, read_source(configuration)?);
    let parsed = parse_definition(&definition_source)?;
    let mut configured = parse_configuration(&configuration_source)?;
    check(&parsed, &configured, &configuration_source)?;
    let mut files = BTreeMap::new();
    let folder = configuration.parent().unwrap_or(Path::new(""));
    for role in &configured.roles {
        for name in FILE_SETTINGS.iter().filter_map(|setting| role.setting(setting)?.strip_prefix('@')) {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => drop(files.insert(name.to_owned(), text)),
                // The check below says so, and where the name stands.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            }
        }
    }
    resolve_files(&mut configured, &files, &configuration_source)?;
    let file = |source: Source| SourceFile { name: source.name, text: source.text };
    Ok(DeployRequest { definition: file(definition_source), configuration: file(configuration_source), files })
}

fn read_source(path: &Path) -> anyhow::Result<Source> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Source::new(&path.display().to_string(), &bytes)?)
}

/// Waits, if wanted, until a deployment has all instances that it should have, all ready.
async fn settle(connection: &Connection, name: &ServiceName, slot: Slot, wait: &Wait) -> anyhow::Result<()> {
    let client = &connection.client;
    if !wait.wait {
        return output::line(&format!("{name} is under way; `mayfly instance list {name}` shows how far it is"));
    }
    let judge = RefCell::new(Judge::new());
    until(wait, || async {
        let service = client.service_show(name).await?;
        let wanted = service.deployments.iter().find(|one| one.slot == slot);
        let wanted: u32 = wanted.map_or(0, |one| one.roles.iter().map(|role| role.wanted).sum());
        let instances: Vec<_> =
            client.instance_list(Some(name)).await?.into_iter().filter(|one| one.slot == slot).collect();
        judge.borrow_mut().look(&instances, wanted as usize)
    })
    .await?;
    let service = client.service_show(name).await?;
    let Some(deployment) = service.deployments.iter().find(|one| one.slot == slot) else { return Ok(()) };
    let ready: u32 = deployment.roles.iter().map(|role| role.ready).sum();
    output::line(&format!("{name} is ready: {ready} instances behind {}", deployment.vip))
}

fn row(service: &ServiceView) -> Vec<String> {
    let production = service.deployments.iter().find(|one| one.slot == Slot::Production);
    let (ready, wanted) = service
        .deployments
        .iter()
        .flat_map(|one| &one.roles)
        .fold((0, 0), |(ready, wanted), role| (ready + role.ready, wanted + role.wanted));
    vec![
        service.name.clone(),
        service.state.clone(),
        service.dns_name.clone(),
        production.map_or_else(|| "-".to_owned(), |one| one.vip.to_string()),
        format!("{ready} of {wanted}"),
    ]
}

fn describe_update(update: &UpdateView) -> String {
    let what = if update.rollback { "rollback" } else { "update" };
    let mut text = format!("{what} ({:?}): {} instances updated, {} left", update.mode, update.updated, update.left);
    if let Some(domain) = update.walking {
        text = format!("{text}; update domain {domain} now");
    }
    match &update.stuck {
        Some(why) => format!("{text}; stopped: {why}"),
        None => text,
    }
}

fn show(format: Output, service: &ServiceView) -> anyhow::Result<()> {
    if format == Output::Json {
        return output::line(&serde_json::to_string_pretty(service)?);
    }
    output::line(&format!(
        "name:      {}\nstate:     {}\nDNS name:  {}\ncreated:   {}",
        service.name, service.state, service.dns_name, service.created
    ))?;
    for slot in [Slot::Production, Slot::Staging] {
        let Some(deployment) = service.deployments.iter().find(|one| one.slot == slot) else {
            output::line(&format!("\n{slot}: empty"))?;
            continue;
        };
        let newer = deployment.ipv6.map_or_else(String::new, |address| format!(" and {address}"));
        output::line(&format!(
            "\n{slot}: {}\n  VIP:  {}{newer}\n  id:   {}",
            deployment.state, deployment.vip, deployment.id
        ))?;
        if let Some(update) = &deployment.update {
            output::line(&format!("  {}", describe_update(update)))?;
        }
        for role in &deployment.roles {
            let image = role.image.as_deref().unwrap_or("-");
            output::line(&format!(
                "  role {}: {} of {} ready, {}, image {image}",
                role.name, role.ready, role.wanted, role.size
            ))?;
            for endpoint in &role.endpoints {
                let (vip, port) = (deployment.vip, endpoint.port);
                if let Some(last) = endpoint.last_port {
                    output::line(&format!(
                        "    {} {vip}:{port} to {last}, one for each instance in turn -> {} ({})",
                        endpoint.name, endpoint.local_port, endpoint.protocol
                    ))?;
                    continue;
                }
                output::line(&format!(
                    "    {} {vip}:{port} -> {} ({})",
                    endpoint.name, endpoint.local_port, endpoint.protocol
                ))?;
            }
        }
    }
    Ok(())
}
