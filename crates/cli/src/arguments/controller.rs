//! `mayfly controller`, as it is written.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub enum ControllerCommand {
    /// Write all records of the running fabric to a file; images are not in it, as their chunks never change
    Backup {
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Put a backup's records into a store. Stop all controllers before; hosts and guests may run on
    ///
    /// What the backup does not know of is undone: hosts drop VMs that were made since, and make those again that are gone.
    /// Nothing else is placed until all hosts have done so.
    Restore {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Move the records from one store to another. Stop all controllers before; the first store stays as it is
    Migrate {
        /// Where they are: embedded:FILE (a controller's records.redb) or etcd:URL,URL,…
        #[arg(long, value_name = "STORE")]
        from: StorePlace,
        #[command(flatten)]
        target: Target,
    },
}

/// The store to fill.
#[derive(Args)]
pub struct Target {
    /// The store to fill: embedded:FILE (a controller's records.redb) or etcd:URL,URL,…
    #[arg(long, value_name = "STORE")]
    pub to: StorePlace,
    /// Throw away what the store to fill holds
    #[arg(long)]
    pub replace: bool,
    /// What all keys in etcd begin with
    #[arg(long, value_name = "PREFIX", default_value = "mayfly")]
    pub etcd_prefix: String,
    /// The authority of etcd's certificates, a PEM file
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// What is shown to etcd: certificate and key in one PEM file
    #[arg(long, value_name = "FILE")]
    pub etcd_identity: Option<PathBuf>,
}

/// A store, as it is written on the command line.
#[derive(Clone, Debug)]
pub enum StorePlace {
    Embedded(PathBuf),
    Etcd(Vec<String>),
}

impl std::str::FromStr for StorePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<StorePlace, String> {
        match text.split_once(':') {
            Some(("embedded", path)) if !path.is_empty() => Ok(StorePlace::Embedded(path.into())),
            Some(("etcd", urls)) if urls.split(',').all(|url| url.starts_with("http")) => {
                Ok(StorePlace::Etcd(urls.split(',').map(str::to_owned).collect()))
            }
            _ => Err("write embedded:FILE, where FILE is records.redb in the controller's folder (dev fabric: \
                      STATE/controller/records.redb), or etcd:URL,URL,…"
                .to_owned()),
        }
    }
}
