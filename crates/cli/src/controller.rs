//! `mayfly controller`.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use mayfly_controller::backup::{self, Place};
use mayfly_store::EtcdConfig;

use crate::arguments::{StorePlace, Target};
use crate::connection::Connection;
use crate::output::line;

pub async fn backup(connection: &Connection, file: &Path) -> anyhow::Result<()> {
    if file.exists() {
        bail!("{} is there already; a backup never replaces a file", file.display());
    }
    let bytes = connection.client.backup().await?;
    // An answer that broke off would be found only when it is needed.
    let records = backup::read(bytes.as_slice()).context("the controller's answer cannot be used")?.1.len();
    let partial = file.with_extension("partial");
    let write = || {
        // Scripts and settings may hold secrets.
        let mut out = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        out.write_all(&bytes)?;
        out.sync_all()?;
        fs::rename(&partial, file)
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    line(&format!(
        "{records} records are in {}; images are not: they lie in the object store (`images` in the controller's folder, if it has no other)",
        file.display()
    ))
}

pub fn restore(file: &Path, target: &Target) -> anyhow::Result<()> {
    let input = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let place = place(&target.to, target);
    let records = backup::restore(BufReader::new(input), &place, target.replace)?;
    line(&format!("{records} records are in {place}; start the controllers now"))
}

pub fn migrate(from: &StorePlace, target: &Target) -> anyhow::Result<()> {
    let into = place(&target.to, target);
    let records = backup::migrate(&place(from, target), &into, target.replace)?;
    line(&format!("{records} records have moved to {into}; say so in the controllers' configuration, and start them"))
}

fn place(store: &StorePlace, target: &Target) -> Place {
    match store {
        StorePlace::Embedded(path) => Place::File(path.clone()),
        StorePlace::Etcd(urls) => Place::Etcd(EtcdConfig {
            endpoints: urls.clone(),
            prefix: target.etcd_prefix.clone(),
            ca_file: target.etcd_ca.clone(),
            identity_file: target.etcd_identity.clone(),
        }),
    }
}
