//! `mayfly address …`.

use clap::Subcommand;
use mayfly_model::ReservedName;

#[derive(Subcommand)]
pub enum AddressCommand {
    /// Reserve a public address, and print it; a configuration asks for it by <ReservedIP name="NAME"/>
    Reserve {
        /// A name for it
        name: ReservedName,
    },
    /// List the reserved addresses, and who has them
    List,
    /// Give up a reserved address that no deployment has
    Release {
        /// Its name
        name: ReservedName,
    },
}
