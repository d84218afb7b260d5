//! Memory of the disk server with many guests, each of which has read and written.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, ensure};
use mayfly_disk::Transport;

use crate::peers::{self, Cores, Mayfly};
use crate::report::Report;

/// Mebibytes of the base.
const BASE: u64 = 256;
/// Reads and writes of each guest, of 64 KiB.
const REQUESTS: u64 = 200;

pub fn measure(report: &mut Report, folder: &Path, mayfly: &Path) -> anyhow::Result<()> {
    let base = peers::base(folder, BASE)?;
    report.say("### Memory of the disk server\n");
    for guests in [1, 10, 100] {
        let work = folder.join("memory");
        let server = Mayfly::start(mayfly, &work, Cores::All)?;
        let mut clients = Vec::new();
        for number in 0..guests {
            let socket = server.export(&format!("guest{number}"), &base, Transport::Nbd)?;
            let mut client = connect(&socket)?;
            for request in 0..REQUESTS {
                let at = (request * 7 + number) * (1 << 20) % (BASE << 20);
                exchange(&mut client, u16::from(request % 2 == 1), at)?;
            }
            clients.push(client);
        }
        let busy = resident(server.process.id())?;
        // Guests are idle most of the time; then their buffers are given back.
        std::thread::sleep(std::time::Duration::from_secs(3));
        let idle = resident(server.process.id())?;
        report.say(&format!("- {guests} guests: {busy:.1} MiB after reading and writing, {idle:.1} MiB when idle"));
        drop(clients);
        drop(server);
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::remove_file(base)?;
    Ok(())
}

/// Connects as the oldest clients do: by the export's name, with simple replies.
fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.read_exact(&mut [0; 18])?;
    // No zeros at the end; then the export without a name.
    stream.write_all(&3u32.to_be_bytes())?;
    stream.write_all(&[b"IHAVEOPT", &1u32.to_be_bytes()[..], &0u32.to_be_bytes()[..]].concat())?;
    stream.read_exact(&mut [0; 10])?;
    Ok(stream)
}

fn exchange(stream: &mut UnixStream, write: u16, at: u64) -> anyhow::Result<()> {
    const BYTES: usize = 64 << 10;
    let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
    request.extend([0, 0]);
    request.extend(write.to_be_bytes());
    request.extend([0; 8]);
    request.extend(at.to_be_bytes());
    request.extend((BYTES as u32).to_be_bytes());
    if write == 1 {
        request.resize(request.len() + BYTES, 7);
    }
    stream.write_all(&request)?;
    let mut reply = vec![0; 16 + if write == 1 { 0 } else { BYTES }];
    stream.read_exact(&mut reply)?;
    ensure!(reply[4..8] == [0; 4], "the disk server refused a request");
    Ok(())
}

/// Mebibytes of memory that the process itself takes, without files' pages.
fn resident(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}
