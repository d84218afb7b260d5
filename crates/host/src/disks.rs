//! The disk server's news, and what it has to know.

use std::sync::Arc;
use std::time::Duration;

use mayfly_disk::{DiskClient, News, Sources};
use mayfly_model::{Incident, VmId};

use crate::agent::{Agent, lock};
use crate::joining::keys_file;

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(2);

/// Tells the disk server where images come from, until it knows.
pub(crate) async fn introduce(agent: &Agent) -> anyhow::Result<()> {
    let config = &agent.config;
    let sources = Sources {
        controller: agent.client.url().to_owned(),
        identity: Some(keys_file(&config.folder)),
        address: config.address,
        background_rate: config.background_rate,
        cache_bytes: config.image_cache_bytes,
    };
    let disks = agent.disks.clone();
    Ok(tokio::task::spawn_blocking(move || disks.set_sources(sources)).await??)
}

/// Asks for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut introduced = None;
    loop {
        // Another controller may lead by now, or the certificate may be a new one.
        let controller = (agent.client.url().to_owned(), *agent.identity.borrow());
        if introduced.as_ref() != Some(&controller) {
            match introduce(&agent).await {
                Ok(()) => introduced = Some(controller),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the disk server cannot be told of images"),
            }
        }
        let disks = agent.disks.clone();
        if let Ok(Ok(news)) = tokio::task::spawn_blocking(move || DiskClient::news(&disks)).await {
            take(&agent, news);
        }
        tokio::time::sleep(if introduced.is_some() { INTERVAL } else { INTERVAL / 10 }).await;
    }
}

fn take(agent: &Agent, news: News) {
    for export in news.exports {
        let Ok(vm) = export.name.parse::<VmId>() else { continue };
        if let Some(status) = agent.statuses().vms.get_mut(&vm) {
            status.disk_bytes = export.file_bytes;
            let image = news.images.iter().find(|image| image.digest == status.goal.image);
            status.image_bytes = image.map_or(0, |image| image.present_bytes);
        }
    }
    *lock(&agent.images) = news.images.iter().map(|image| image.digest.clone()).collect();
    let incidents = news.incidents.into_iter();
    *lock(&agent.incidents) =
        incidents.map(|incident| Incident { number: incident.number, message: incident.message }).collect();
}
