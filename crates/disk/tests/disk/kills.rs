//! A disk server that is killed in the middle of writes: what it acknowledged is there, and the hypervisor goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use mayfly_disk::{Base, DiskClient, DiskServer, Export, Transport};
use mayfly_vhd::{CreateOptions, create_fixed};

use crate::front::FrontEnd;
use crate::tool::wait_until;

const DISK: u64 = 64 << 20;

/// Not a test by itself: the process that the tests below kill.
#[test]
fn server_process() {
    let Ok(folder) = std::env::var("MAYFLY_TEST_DISK_SERVER") else { return };
    let folder = PathBuf::from(folder);
    let server = DiskServer::start(&folder.join("exports"), &folder.join("images")).unwrap();
    server.control(&folder.join("control.sock")).unwrap();
}

fn spawn(folder: &Path) -> Child {
    let _ = std::fs::remove_file(folder.join("control.sock"));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::server_process", "--nocapture"])
        .env("MAYFLY_TEST_DISK_SERVER", folder)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the server listens", || folder.join("control.sock").exists());
    child
}

/// A server in a process of its own, with one empty disk.
fn serve(folder: &Path, transport: Transport) -> (Child, PathBuf) {
    let base = folder.join("base.vhd");
    create_fixed(&base, DISK, &CreateOptions { unique_id: [1; 16], timestamp: 1, durable: false }).unwrap();
    let child = spawn(folder);
    let (socket, disk) = (folder.join("d.sock"), folder.join("d.vhd"));
    let (name, base) = ("d".to_owned(), Base::File(base));
    let export = Export { name, disk, base, socket: socket.clone(), quota_bytes: None, transport };
    DiskClient::new(folder.join("control.sock")).open(export).unwrap();
    (child, socket)
}

fn connect(socket: &Path) -> Option<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let greeted = UnixStream::connect(socket).and_then(|mut stream| {
            stream.read_exact(&mut [0; 18])?;
            stream.write_all(&3u32.to_be_bytes())?;
            stream.write_all(&[b"IHAVEOPT", &1u32.to_be_bytes()[..], &0u32.to_be_bytes()[..]].concat())?;
            stream.read_exact(&mut [0; 10])?;
            Ok(stream)
        });
        if let Ok(stream) = greeted {
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// One request; `None` when the connection broke before the reply.
fn exchange(stream: &mut UnixStream, write: Option<&[u8]>, at: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
    request.extend([0, 0]);
    request.extend(u16::from(write.is_some()).to_be_bytes());
    request.extend([0; 8]);
    request.extend(at.to_be_bytes());
    request.extend((bytes as u32).to_be_bytes());
    request.extend(write.unwrap_or_default());
    stream.write_all(&request).ok()?;
    let mut reply = vec![0; 16 + if write.is_some() { 0 } else { bytes }];
    stream.read_exact(&mut reply).ok()?;
    assert_eq!(reply[4..8], [0; 4], "an error was replied");
    Some(reply.split_off(16))
}

/// What page `page` holds after its `version`th write; zero is the base.
fn content(page: usize, version: u32) -> Vec<u8> {
    (page as u32 ^ version << 16).to_le_bytes().repeat(1024)
}

#[test]
fn acknowledged_writes_survive_kill_9_at_random_moments() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, socket) = serve(folder.path(), Transport::Nbd);
    let pages = (DISK / 4096) as usize;
    let mut versions = vec![0u32; pages];
    let mut stream = connect(&socket).unwrap();
    let (mut random, mut written) = (12345u64, 0u32);
    for round in 0..12 {
        // Another thread pulls the trigger, at a moment that has nothing to do with the writes.
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let trigger = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20 + round * 13));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        });
        loop {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let page = (random >> 33) as usize % pages;
            let version = versions[page] + 1;
            if exchange(&mut stream, Some(&content(page, version)), page as u64 * 4096, 4096).is_none() {
                // Nobody knows whether this one was done; do it again, as QEMU does.
                trigger.join().unwrap();
                child.wait().unwrap();
                child = spawn(folder.path());
                stream = connect(&socket).unwrap();
                exchange(&mut stream, Some(&content(page, version)), page as u64 * 4096, 4096).unwrap();
                versions[page] = version;
                break;
            }
            versions[page] = version;
            written += 1;
        }
        for (page, version) in versions.iter().enumerate().filter(|(_, version)| **version > 0) {
            let found = exchange(&mut stream, None, page as u64 * 4096, 4096).unwrap();
            assert!(found == content(page, *version), "page {page} lost its write {version} after kill {round}");
        }
    }
    assert!(written > 1000, "{written} writes are too few to say anything");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_hypervisor_goes_on_over_vhost_user_after_kill_9() {
    const SLOTS: u16 = 16;
    let folder = tempfile::tempdir().unwrap();
    let (mut child, socket) = serve(folder.path(), Transport::VhostUser);
    let mut front = FrontEnd::connect(&socket).unwrap();
    let pages = (DISK / 4096) as usize;
    let (mut versions, mut writing) = (vec![0u32; pages], vec![None; usize::from(SLOTS)]);
    let (mut random, mut done) = (99u64, 0);
    for round in 0..8 {
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let until = Instant::now() + Duration::from_millis(30 + round * 17);
        let trigger = std::thread::spawn(move || {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        });
        // Sixteen at a time, until nothing comes back any more.
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(100) || !trigger.is_finished() {
            for slot in 0..SLOTS {
                if writing[usize::from(slot)].is_none() && !trigger.is_finished() {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let page = (random >> 33) as usize % pages;
                    // Two writes to a page at a time have no order.
                    if writing.contains(&Some(page)) {
                        continue;
                    }
                    versions[page] += 1;
                    front.fill(slot, &content(page, versions[page])).unwrap();
                    front.submit(slot, true, page as u64 * 4096, 4096).unwrap();
                    writing[usize::from(slot)] = Some(page);
                }
            }
            for slot in front.finish(0).unwrap() {
                writing[usize::from(slot)] = None;
                done += 1;
                quiet = Instant::now();
            }
        }
        trigger.join().unwrap();
        child.wait().unwrap();
        child = spawn(folder.path());
        front.reconnect(&socket).unwrap();
        // What was under way is carried out by the new process, and nothing twice to another's harm.
        let left = writing.iter().flatten().count();
        wait_until("what was under way is done", || {
            for slot in front.finish(0).unwrap() {
                writing[usize::from(slot)] = None;
            }
            writing.iter().all(Option::is_none)
        });
        done += left;
        for (page, version) in versions.iter().enumerate().filter(|(_, version)| **version > 0) {
            front.submit(0, false, page as u64 * 4096, 4096).unwrap();
            front.finish(1).unwrap();
            assert!(front.buffer(0, 4096).unwrap() == content(page, *version), "page {page} after kill {round}");
        }
    }
    assert!(done > 1000, "{done} writes are too few to say anything");
    child.kill().unwrap();
    child.wait().unwrap();
}
