//! `mayfly image`.

use std::io::IsTerminal;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::arguments::ImageCommand;
use crate::connection::Connection;
use crate::output::{self, mebibytes};

pub async fn run(connection: &Connection, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Push { file, name } => {
            let data = std::fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?;
            ensure!(data.is_file(), "{} is not a file", file.display());
            let bytes = data.len();
            let bar = if std::io::stderr().is_terminal() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
            bar.set_style(ProgressStyle::with_template(
                "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            )?);
            let shown = bar.clone();
            let pushed = connection.client.image_push(&name, &file, move |sent| shown.set_position(sent)).await;
            bar.finish_and_clear();
            let image = pushed.with_context(|| format!("{} was not stored", file.display()))?;
            output::line(&format!(
                "{} is committed: a disk of {}, sha256 {}",
                image.name,
                mebibytes(image.disk_bytes),
                image.digest
            ))
        }
        ImageCommand::List => {
            let images = connection.client.image_list().await?;
            let header = ["name", "disk", "file", "created", "sha256"];
            output::list(connection.output, &images, &header, |image| {
                let (disk, file) = (mebibytes(image.disk_bytes), mebibytes(image.file_bytes));
                vec![image.name.clone(), disk, file, image.created.clone(), image.digest[..16].to_owned()]
            })
        }
        ImageCommand::Delete { name } => {
            connection.client.image_delete(&name).await?;
            output::line(&format!("{name} is gone"))
        }
    }
}
