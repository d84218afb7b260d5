//! Capturing: the disk of a stopped instance becomes a base image.

use std::io::Write;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use mayfly_model::{ImageName, InstanceKey};

use super::push::{Pushed, push};
use crate::connection::Connection;

/// Fetches the differencing disk, and pushes it over the image that it stands on.
pub async fn capture(connection: &Connection, instance: &InstanceKey, name: &ImageName) -> anyhow::Result<Pushed> {
    let client = &connection.client;
    let taken = client.image_list().await?.iter().any(|image| image.name == name.as_str());
    ensure!(!taken, "there is an image `{name}` already; images never change, so choose another name");
    let folder = tempfile::tempdir().context("cannot make a folder for the disk")?;
    let path = folder.path().join("disk.vhd");
    let mut file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut pieces = client.instance_disk(instance).await?.bytes_stream();
    while let Some(piece) = pieces.next().await {
        file.write_all(&piece.context("the connection broke off")?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    file.sync_all()?;
    push(client, &path, name).await
}
