//! The page on port 80: `GET /` as text, `GET /json` as JSON, `POST /mark` leaves a mark on the disk, `POST /mark/NAME` one
//! on a local disk; `POST /crash` and `/reboot` do that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::disk;
use crate::fabric::Identity;
use crate::script::Script;
use crate::system;

const MARK_BYTES_MAX: u64 = 4096;

/// What the page shows.
pub struct Page {
    /// Who the guest is.
    pub identity: Identity,
    /// Its own name.
    pub computer_name: String,
    /// Its address.
    pub address: String,
    /// Its IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
    /// How often it has booted from this disk.
    pub boots: u32,
    /// What became of the user's script.
    pub script: Script,
}

/// Serves the page in the background.
pub fn serve(page: Arc<Mutex<Page>>) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let page = Arc::clone(&page);
            // A visitor who breaks off is no news.
            std::thread::spawn(move || drop(answer(&stream, &page)));
        }
    });
    Ok(())
}

fn answer(mut stream: &TcpStream, page: &Mutex<Page>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.by_ref().take(8192).read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.by_ref().take(8192).read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0u64);
        }
    }
    let mut body = Vec::new();
    reader.take(length.min(MARK_BYTES_MAX)).read_to_end(&mut body)?;
    let mut words = request.split(' ');
    let (status, kind, text) = match (words.next(), words.next()) {
        (Some("GET"), Some("/")) => ("200 OK", "text/plain; charset=utf-8", text(page)),
        (Some("GET"), Some("/json")) => ("200 OK", "application/json", json_text(page)),
        (Some("POST"), Some("/mark")) => marked(disk::write("mark", &body)),
        (Some("POST"), Some(path)) if path.starts_with("/mark/") => {
            marked(disk::mark_local(path.trim_start_matches("/mark/"), &body))
        }
        (Some("POST"), Some("/crash")) => marked(system::crash()),
        (Some("POST"), Some("/reboot")) => marked(system::reboot()),
        _ => ("404 Not Found", "text/plain", "there is /, /json, POST /mark, /mark/DISK, /crash, /reboot\n".to_owned()),
    };
    let length = text.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all((head + &text).as_bytes())
}

fn marked(done: anyhow::Result<()>) -> (&'static str, &'static str, String) {
    match done {
        Ok(()) => ("200 OK", "text/plain", "marked\n".to_owned()),
        Err(error) => ("500 Internal Server Error", "text/plain", format!("{error:#}\n")),
    }
}

fn value(page: &Mutex<Page>) -> serde_json::Value {
    let page = page.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let settings: serde_json::Map<_, _> =
        page.identity.settings.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "instance": page.identity.instance,
        "computer_name": page.computer_name,
        "address": page.address,
        "ipv6": page.ipv6,
        "boots": page.boots,
        "fresh_disk": page.boots == 1,
        "mark": disk::read("mark"),
        "local": disk::local_marks(),
        "identity": system::identity(),
        "settings": settings,
        "script_status": page.script.status,
        "script_output": page.script.output,
    })
}

fn json_text(page: &Mutex<Page>) -> String {
    value(page).to_string() + "\n"
}

fn text(page: &Mutex<Page>) -> String {
    let value = value(page);
    let or = |name: &str, other: &str| value[name].as_str().unwrap_or(other).to_owned();
    let settings: Vec<String> = value["settings"]
        .as_object()
        .map(|all| all.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or(""))).collect())
        .unwrap_or_default();
    format!(
        "Hello from {}\ncomputer name: {}\naddress: {}\nboot count: {}\ndisk: {}\nmark: {}\nsettings: {}\nscript: {}{}",
        or("instance", "?"),
        or("computer_name", "?"),
        or("address", "?"),
        value["boots"],
        if value["fresh_disk"] == true { "fresh" } else { "used before" },
        or("mark", "none"),
        settings.join(" "),
        value["script_status"].as_i64().map_or("none\n".to_owned(), |status| format!("exit status {status}\n")),
        or("script_output", ""),
    )
}
