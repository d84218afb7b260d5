//! `mayfly address`.

use crate::arguments::AddressCommand;
use crate::connection::Connection;
use crate::output;

pub async fn run(connection: &Connection, command: AddressCommand) -> anyhow::Result<()> {
    let client = &connection.client;
    match command {
        AddressCommand::Reserve { name } => {
            let reserved = client.address_reserve(&name).await?;
            eprintln!("reserved as {name}; a configuration asks for it by <ReservedIP name=\"{name}\"/>:");
            output::line(&reserved.address.to_string())
        }
        AddressCommand::List => {
            let all = client.address_list().await?;
            output::list(connection.output, &all, &["name", "address", "used by", "reserved"], |one| {
                let used_by = output::or_dash(one.used_by.as_ref());
                vec![one.name.clone(), one.address.to_string(), used_by, one.reserved.clone()]
            })
        }
        AddressCommand::Release { name } => {
            client.address_release(&name).await?;
            output::line(&format!("{name} is released; its address may be given to others"))
        }
    }
}
