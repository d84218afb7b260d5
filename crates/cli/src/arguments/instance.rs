//! `mayfly instance`.

use std::path::PathBuf;

use clap::Subcommand;
use mayfly_model::{InstanceKey, ServiceName};

use super::Wait;

#[derive(Subcommand)]
pub enum InstanceCommand {
    /// List instances
    List {
        /// Only those of this service
        service: Option<ServiceName>,
    },
    /// Show one instance: where it is, and how much its disk holds
    Show {
        /// For example shop/web_IN_0
        instance: InstanceKey,
    },
    /// Say why an instance is where it is, or why it waits
    Explain {
        /// For example shop/web_IN_0
        instance: InstanceKey,
    },
    /// Restart the guest; its differencing disk is kept
    Reboot {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        #[command(flatten)]
        wait: Wait,
    },
    /// Back to the base image: a new empty differencing disk and a new computer name; local disks are kept
    Reimage {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        #[command(flatten)]
        wait: Wait,
    },
    /// All disks new and empty, the local ones too, and a new computer name
    Rebuild {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop the guest; its disks, its address and its place are kept
    Stop {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        #[command(flatten)]
        wait: Wait,
    },
    /// Start the guest of an instance that was stopped
    Start {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        #[command(flatten)]
        wait: Wait,
    },
    /// Open the guest's serial console; Ctrl-] leaves it
    Console {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        /// Only watch: show what it has said in this boot, and go on
        #[arg(long)]
        follow: bool,
    },
    /// Show what became of the role's post-boot script, or what the serial console has said
    Log {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        /// The serial console instead of the script
        #[arg(long)]
        console: bool,
        /// The console of an earlier boot: 1 is the one before this, 3 the oldest that is kept
        #[arg(long, value_name = "BOOTS", requires = "console", value_parser = clap::value_parser!(u8).range(0..=3))]
        boots_ago: Option<u8>,
    },
    /// Take a picture of the guest's screen
    Screenshot {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        /// The new PNG file
        file: PathBuf,
    },
}
