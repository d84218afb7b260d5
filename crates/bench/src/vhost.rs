//! vhost-user-blk, driven by a small front end, beside a qcow2 overlay inside QEMU's own block layer.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use mayfly_disk::Transport;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::peers::{self, Cores, Mayfly};
use crate::report::{Comparison, Report};

/// Mebibytes of the disk.
const DISK: u64 = 512;
const QUEUE: u16 = 128;
const MEMORY: u64 = 64 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 16 << 10;
const USED: u64 = 32 << 10;
const HEADERS: u64 = 64 << 10;
const BUFFERS: u64 = 1 << 20;
const BUFFER: u64 = 256 << 10;

/// Write or read, bytes, depth, requests.
const LOADS: [(bool, u64, u16, u64); 6] = [
    (false, 4096, 1, 60_000),
    (false, 4096, 32, 200_000),
    (true, 4096, 1, 40_000),
    (true, 4096, 32, 120_000),
    (false, 128 << 10, 4, 12_000),
    (true, 128 << 10, 4, 8_000),
];

pub fn measure(report: &mut Report, folder: &Path, mayfly: &Path, pairs: usize) -> anyhow::Result<()> {
    let base = peers::base(folder, DISK)?;
    let qemu = "qcow2 inside QEMU (`qemu-img bench`)";
    for (cores, where_) in [(Cores::One, "all on one processor"), (Cores::All, "as the system schedules them")] {
        report.table(&format!("I/O over vhost-user-blk, {where_}"), qemu);
        for (write, bytes, depth, count) in LOADS {
            let (mut ours, mut peer) = (Vec::new(), Vec::new());
            for _ in 0..pairs {
                ours.push(by_us(folder, mayfly, &base, cores, (write, bytes, depth, count))?);
                peer.push(by_qemu(folder, &base, cores, (write, bytes, depth, count))?);
            }
            let what = format!("{} {} KiB depth {depth}", if write { "write" } else { "read" }, bytes >> 10);
            report.compare(&Comparison {
                what: &what,
                ours: &ours,
                peer: &peer,
                is_time: false,
                unit: "/s",
                goal: 1.0,
            });
        }
        report.end();
    }
    std::fs::remove_file(base)?;
    Ok(())
}

type Load = (bool, u64, u16, u64);

/// Both walk through the disk in strides of ten times a request, as `qemu-img bench -S` does.
fn stride(bytes: u64) -> u64 {
    bytes * 10
}

fn by_qemu(folder: &Path, base: &Path, cores: Cores, (write, bytes, depth, count): Load) -> anyhow::Result<f64> {
    let overlay = folder.join("bench.qcow2");
    let (base, path) = (base.to_string_lossy(), overlay.to_string_lossy());
    peers::run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "vpc", &path])?;
    let half = format!("write 0 {}M", DISK / 2);
    peers::run("qemu-io", &["-f", "qcow2", "-c", &half, &path])?;
    let mut command = peers::command(cores, Path::new("qemu-img"));
    command.args(["bench", "-f", "qcow2"]);
    command.args(["-c", &count.to_string(), "-d", &depth.to_string(), "-s", &bytes.to_string()]);
    command.args(["-S", &stride(bytes).to_string()]);
    if write {
        command.arg("-w");
    }
    let output = command.arg(&overlay).output().context("cannot run qemu-img")?;
    ensure!(output.status.success(), "qemu-img bench: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds = text.lines().find_map(|line| line.strip_prefix("Run completed in ")?.split(' ').next()?.parse().ok());
    std::fs::remove_file(&overlay)?;
    Ok(count as f64 / seconds.unwrap_or(f64::NAN))
}

fn by_us(folder: &Path, mayfly: &Path, base: &Path, cores: Cores, load: Load) -> anyhow::Result<f64> {
    let folder = folder.join("vhost");
    if cores == Cores::One {
        let mut one = nix::sched::CpuSet::new();
        one.set(0)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one)?;
    }
    let server = Mayfly::start(mayfly, &folder, cores)?;
    let socket = server.export("bench", base, Transport::VhostUser)?;
    let mut front = FrontEnd::connect(&socket)?;
    for at in (0..DISK << 19).step_by(128 << 10) {
        front.submit(0, true, at, 128 << 10)?;
        front.finish(1)?;
    }
    let (write, bytes, depth, count) = load;
    let figure = front.run(write, bytes, depth, count)?;
    drop((front, server));
    if cores == Cores::One {
        let mut all = nix::sched::CpuSet::new();
        (0..std::thread::available_parallelism().map_or(1, usize::from).max(2)).try_for_each(|one| all.set(one))?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &all)?;
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(figure)
}

/// The driver's side of one queue.
struct FrontEnd {
    memory: GuestMemoryMmap,
    _frontend: Frontend,
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

impl FrontEnd {
    fn connect(socket: &Path) -> anyhow::Result<FrontEnd> {
        let file = File::from(memfd_create(c"bench", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(MEMORY)?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), MEMORY as usize)?;
        let region = GuestRegionMmap::new(map, GuestAddress(0)).context("no memory")?;
        let memory = GuestMemoryMmap::from_regions(vec![region])?;
        let mut frontend = Frontend::connect(socket, 1)?;
        frontend.set_owner()?;
        let features = frontend.get_features()?;
        // Without event indexes: the driver says by a flag whether it wants to be woken.
        frontend.set_features(features & !(1 << 29))?;
        let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
        let offered = frontend.get_protocol_features()?;
        frontend.set_protocol_features(offered & wanted)?;
        let region = memory.iter().next().context("no memory")?;
        let host = region.as_ptr() as u64;
        let info = VhostUserMemoryRegionInfo::from_guest_region(region)?;
        frontend.set_mem_table(&[info])?;
        let (kick, call) = (EventFd::new(0)?, EventFd::new(EFD_NONBLOCK)?);
        frontend.set_vring_num(0, QUEUE)?;
        let rings = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: host + DESCRIPTORS,
            used_ring_addr: host + USED,
            avail_ring_addr: host + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_addr(0, &rings)?;
        frontend.set_vring_base(0, 0)?;
        frontend.set_vring_call(0, &call)?;
        frontend.set_vring_kick(0, &kick)?;
        frontend.set_vring_enable(0, true)?;
        Ok(FrontEnd { memory, _frontend: frontend, kick, call, available: 0, used: 0 })
    }

    /// Puts a request into slot `slot` and tells the back end, if it wants to be told.
    fn submit(&mut self, slot: u16, write: bool, at: u64, bytes: u64) -> anyhow::Result<()> {
        let header = HEADERS + u64::from(slot) * 64;
        let status = header + 32;
        self.memory.write_obj(u32::from(write), GuestAddress(header))?;
        self.memory.write_obj(at / 512, GuestAddress(header + 8))?;
        self.memory.write_obj(0xffu8, GuestAddress(status))?;
        let first = slot * 3;
        let buffer = BUFFERS + u64::from(slot) * BUFFER;
        let data_flags = if write { 1u16 } else { 3 };
        for (index, address, length, flags, next) in [
            (first, header, 16, 1, first + 1),
            (first + 1, buffer, bytes as u32, data_flags, first + 2),
            (first + 2, status, 1, 2, 0),
        ] {
            let place = DESCRIPTORS + u64::from(index) * 16;
            self.memory.write_obj(address, GuestAddress(place))?;
            self.memory.write_obj(length, GuestAddress(place + 8))?;
            self.memory.write_obj(flags, GuestAddress(place + 12))?;
            self.memory.write_obj(next, GuestAddress(place + 14))?;
        }
        let entry = AVAILABLE + 4 + u64::from(self.available % QUEUE) * 2;
        self.memory.write_obj(first, GuestAddress(entry))?;
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, GuestAddress(AVAILABLE + 2), std::sync::atomic::Ordering::SeqCst)?;
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let quiet: u16 = self.memory.load(GuestAddress(USED), std::sync::atomic::Ordering::SeqCst)?;
        if quiet & 1 == 0 {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// Waits for at least `least` requests to end; returns their slots.
    fn finish(&mut self, least: usize) -> anyhow::Result<Vec<u16>> {
        let mut slots = Vec::new();
        while slots.len() < least {
            let used: u16 = self.memory.load(GuestAddress(USED + 2), std::sync::atomic::Ordering::Acquire)?;
            if used == self.used {
                let _ = self.call.read();
                std::thread::yield_now();
            }
            while self.used != used {
                let entry = USED + 4 + u64::from(self.used % QUEUE) * 8;
                let slot = self.memory.read_obj::<u32>(GuestAddress(entry))? as u16 / 3;
                let status: u8 = self.memory.read_obj(GuestAddress(HEADERS + u64::from(slot) * 64 + 32))?;
                ensure!(status == 0, "a request failed with status {status}");
                slots.push(slot);
                self.used = self.used.wrapping_add(1);
            }
        }
        Ok(slots)
    }

    /// Requests a second.
    fn run(&mut self, write: bool, bytes: u64, depth: u16, count: u64) -> anyhow::Result<f64> {
        let began = Instant::now();
        let (mut at, mut submitted, mut done) = (0, 0, 0);
        let mut free: Vec<u16> = (0..depth).collect();
        while done < count {
            while submitted < count
                && let Some(slot) = free.pop()
            {
                self.submit(slot, write, at, bytes)?;
                at = (at + stride(bytes)) % ((DISK << 20) - bytes + 1) / 512 * 512;
                submitted += 1;
            }
            let slots = self.finish(1)?;
            done += slots.len() as u64;
            free.extend(slots);
        }
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }
}
