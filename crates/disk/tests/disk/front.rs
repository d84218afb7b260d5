//! A small front end for vhost-user-blk: one queue, driven as a guest's driver would. The benchmarks use it too.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const QUEUE: u16 = 128;
const MEMORY: u64 = 64 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 16 << 10;
const USED: u64 = 32 << 10;
const HEADERS: u64 = 64 << 10;
const BUFFERS: u64 = 1 << 20;
/// Bytes of a request at the most.
pub const BUFFER: u64 = 256 << 10;

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

/// The driver's side of one queue. Its memory outlives the back end, as a guest's does.
pub struct FrontEnd {
    memory: GuestMemoryMmap,
    _frontend: Frontend,
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

impl FrontEnd {
    /// Connects with new memory.
    pub fn connect(socket: &Path) -> io::Result<FrontEnd> {
        let file = File::from(memfd_create(c"front", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(MEMORY)?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), MEMORY as usize).map_err(other)?;
        let region = GuestRegionMmap::new(map, GuestAddress(0)).ok_or(io::ErrorKind::InvalidInput)?;
        let memory = GuestMemoryMmap::from_regions(vec![region]).map_err(other)?;
        let (frontend, kick, call) = FrontEnd::introduce(socket, &memory, 0)?;
        Ok(FrontEnd { memory, _frontend: frontend, kick, call, available: 0, used: 0 })
    }

    /// Connects again, as a hypervisor does when its back end was restarted: same memory, rings as they stand.
    pub fn reconnect(&mut self, socket: &Path) -> io::Result<()> {
        (self._frontend, self.kick, self.call) = FrontEnd::introduce(socket, &self.memory, self.used)?;
        self.kick.write(1)
    }

    fn introduce(socket: &Path, memory: &GuestMemoryMmap, base: u16) -> io::Result<(Frontend, EventFd, EventFd)> {
        let mut frontend = Frontend::connect(socket, 1).map_err(other)?;
        frontend.set_owner().map_err(other)?;
        let features = frontend.get_features().map_err(other)?;
        // Without event indexes: the driver says by a flag whether it wants to be woken.
        frontend.set_features(features & !(1 << 29)).map_err(other)?;
        let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
        let offered = frontend.get_protocol_features().map_err(other)?;
        frontend.set_protocol_features(offered & wanted).map_err(other)?;
        let region = memory.iter().next().ok_or(io::ErrorKind::InvalidInput)?;
        let host = region.as_ptr() as u64;
        let info = VhostUserMemoryRegionInfo::from_guest_region(region).map_err(other)?;
        frontend.set_mem_table(&[info]).map_err(other)?;
        let (kick, call) = (EventFd::new(0)?, EventFd::new(EFD_NONBLOCK)?);
        frontend.set_vring_num(0, QUEUE).map_err(other)?;
        let rings = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: host + DESCRIPTORS,
            used_ring_addr: host + USED,
            avail_ring_addr: host + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_addr(0, &rings).map_err(other)?;
        frontend.set_vring_base(0, base).map_err(other)?;
        frontend.set_vring_call(0, &call).map_err(other)?;
        frontend.set_vring_kick(0, &kick).map_err(other)?;
        frontend.set_vring_enable(0, true).map_err(other)?;
        Ok((frontend, kick, call))
    }

    /// Fills a slot's buffer.
    pub fn fill(&self, slot: u16, data: &[u8]) -> io::Result<()> {
        self.memory.write_slice(data, GuestAddress(BUFFERS + u64::from(slot) * BUFFER)).map_err(other)
    }

    /// What stands in a slot's buffer.
    pub fn buffer(&self, slot: u16, bytes: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; bytes];
        self.memory.read_slice(&mut data, GuestAddress(BUFFERS + u64::from(slot) * BUFFER)).map_err(other)?;
        Ok(data)
    }

    /// Puts a request into slot `slot` and tells the back end, if it wants to be told.
    pub fn submit(&mut self, slot: u16, write: bool, at: u64, bytes: u64) -> io::Result<()> {
        let header = HEADERS + u64::from(slot) * 64;
        let status = header + 32;
        self.memory.write_obj(u32::from(write), GuestAddress(header)).map_err(other)?;
        self.memory.write_obj(at / 512, GuestAddress(header + 8)).map_err(other)?;
        self.memory.write_obj(0xffu8, GuestAddress(status)).map_err(other)?;
        let first = slot * 3;
        let buffer = BUFFERS + u64::from(slot) * BUFFER;
        let data_flags = if write { 1u16 } else { 3 };
        for (index, address, length, flags, next) in [
            (first, header, 16, 1, first + 1),
            (first + 1, buffer, bytes as u32, data_flags, first + 2),
            (first + 2, status, 1, 2, 0),
        ] {
            let place = DESCRIPTORS + u64::from(index) * 16;
            self.memory.write_obj(address, GuestAddress(place)).map_err(other)?;
            self.memory.write_obj(length, GuestAddress(place + 8)).map_err(other)?;
            self.memory.write_obj(flags, GuestAddress(place + 12)).map_err(other)?;
            self.memory.write_obj(next, GuestAddress(place + 14)).map_err(other)?;
        }
        let entry = AVAILABLE + 4 + u64::from(self.available % QUEUE) * 2;
        self.memory.write_obj(first, GuestAddress(entry)).map_err(other)?;
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, GuestAddress(AVAILABLE + 2), Ordering::SeqCst).map_err(other)?;
        fence(Ordering::SeqCst);
        let quiet: u16 = self.memory.load(GuestAddress(USED), Ordering::SeqCst).map_err(other)?;
        if quiet & 1 == 0 {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// Waits for at least `least` requests to end; returns their slots, and those of others that have ended too.
    pub fn finish(&mut self, least: usize) -> io::Result<Vec<u16>> {
        let mut slots = Vec::new();
        loop {
            let used: u16 = self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).map_err(other)?;
            while self.used != used {
                let entry = USED + 4 + u64::from(self.used % QUEUE) * 8;
                let slot = self.memory.read_obj::<u32>(GuestAddress(entry)).map_err(other)? as u16 / 3;
                let status = HEADERS + u64::from(slot) * 64 + 32;
                let status: u8 = self.memory.read_obj(GuestAddress(status)).map_err(other)?;
                if status != 0 {
                    return Err(io::Error::other(format!("a request failed with status {status}")));
                }
                slots.push(slot);
                self.used = self.used.wrapping_add(1);
            }
            if slots.len() >= least {
                break;
            }
            let _ = self.call.read();
            std::thread::yield_now();
        }
        Ok(slots)
    }
}
