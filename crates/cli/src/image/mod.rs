//! `mayfly image`.

mod capture;
mod push;
mod remote;

use anyhow::{Context, ensure};

use crate::arguments::ImageCommand;
use crate::connection::Connection;
use crate::output::{self, mebibytes};
use push::Pushed;

pub async fn run(connection: &Connection, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Push { file, name } => {
            let data = std::fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?;
            ensure!(data.is_file(), "{} is not a file", file.display());
            let pushed = push::push(&connection.client, &file, &name).await;
            tell(&pushed.with_context(|| format!("{} was not stored", file.display()))?)
        }
        ImageCommand::Capture { instance, name } => {
            let captured = capture::capture(connection, &instance, &name).await;
            tell(&captured.with_context(|| format!("{instance} was not captured"))?)
        }
        ImageCommand::List => {
            let images = connection.client.image_list().await?;
            let header = ["name", "disk", "data", "created", "sha256"];
            output::list(connection.output, &images, &header, |image| {
                let (disk, data) = (mebibytes(image.disk_bytes), mebibytes(image.data_bytes));
                vec![image.name.clone(), disk, data, image.created.clone(), image.digest[..16].to_owned()]
            })
        }
        ImageCommand::Delete { name } => {
            connection.client.image_delete(&name).await?;
            output::line(&format!("{name} is gone"))
        }
    }
}

fn tell(Pushed { image, sent }: &Pushed) -> anyhow::Result<()> {
    output::line(&format!(
        "{} is committed: a disk of {} with {} of data, of which {} had to be sent; sha256 {}",
        image.name,
        mebibytes(image.disk_bytes),
        mebibytes(image.data_bytes),
        mebibytes(*sent),
        image.digest
    ))
}
