//! Showing what a VHD is.

use std::path::Path;

use mayfly_vhd::{Access, DiskType, Geometry, Holder, Vhd, open_chain};
use serde::Serialize;

use super::existing;
use crate::arguments::Output;
use crate::output::{self, mebibytes};

#[derive(Serialize)]
struct Info {
    file: String,
    kind: &'static str,
    disk_bytes: u64,
    geometry: String,
    unique_id: String,
    timestamp: u32,
    own_bytes: u64,
    blocks: usize,
    unflushed_blocks: usize,
    file_bytes: u64,
    parent: Option<String>,
}

fn describe(disk: &Vhd) -> Info {
    let (blocks, unflushed_blocks) = disk.blocks();
    let geometry = Geometry::of(disk.disk_bytes());
    let space = |data: std::fs::Metadata| std::os::unix::fs::MetadataExt::blocks(&data) * 512;
    Info {
        file: disk.path().display().to_string(),
        kind: match disk.disk_type() {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        },
        disk_bytes: disk.disk_bytes(),
        geometry: format!("{}/{}/{}", geometry.cylinders, geometry.heads, geometry.sectors),
        unique_id: disk.unique_id().iter().map(|byte| format!("{byte:02x}")).collect(),
        timestamp: disk.timestamp(),
        own_bytes: disk.own_sectors() * mayfly_vhd::SECTOR,
        blocks,
        unflushed_blocks,
        file_bytes: std::fs::metadata(disk.path()).map_or(0, space),
        parent: disk.parent().map(|parent| parent.path().display().to_string()),
    }
}

pub fn info(format: Output, file: &Path) -> anyhow::Result<()> {
    existing(file)?;
    let top = open_chain(file, Access::ReadOnly)?;
    let mut chain = vec![describe(&top)];
    let mut disk = &top;
    while let Some(parent) = disk.parent() {
        chain.push(describe(parent));
        disk = parent;
    }
    if format == Output::Json {
        return output::line(&serde_json::to_string_pretty(&chain)?);
    }
    for (depth, one) in chain.iter().enumerate() {
        let rows = [
            (if depth == 0 { "file" } else { "parent" }, one.file.clone()),
            ("kind", one.kind.to_owned()),
            ("disk", format!("{} ({} bytes)", mebibytes(one.disk_bytes), one.disk_bytes)),
            ("geometry", one.geometry.clone()),
            ("unique id", one.unique_id.clone()),
            ("time stamp", format!("{} s after 2000-01-01", one.timestamp)),
            ("sectors of its own", mebibytes(one.own_bytes)),
            ("blocks", format!("{}, {} with writes not yet flushed", one.blocks, one.unflushed_blocks)),
            ("takes on disk", mebibytes(one.file_bytes)),
        ];
        output::show(format, one, &rows)?;
        if depth + 1 < chain.len() {
            output::line("")?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Range {
    offset: u64,
    bytes: u64,
    /// 0 is the disk itself, 1 its parent, and so on.
    depth: u32,
}

pub fn map(format: Output, file: &Path) -> anyhow::Result<()> {
    existing(file)?;
    let disk = open_chain(file, Access::ReadOnly)?;
    let (mut at, end) = (0, disk.disk_bytes());
    let mut ranges: Vec<Range> = Vec::new();
    while at < end {
        let (holder, bytes) = disk.extent(at, end - at);
        if let Holder::Ancestor(depth) = holder {
            match ranges.last_mut().filter(|last| last.depth == depth && last.offset + last.bytes == at) {
                Some(last) => last.bytes += bytes,
                None => ranges.push(Range { offset: at, bytes, depth }),
            }
        }
        at += bytes;
    }
    output::list(format, &ranges, &["offset", "bytes", "held by"], |range| {
        let holder = match range.depth {
            0 => "itself".to_owned(),
            1 => "its parent".to_owned(),
            depth => format!("ancestor {depth}"),
        };
        vec![range.offset.to_string(), range.bytes.to_string(), holder]
    })
}
