//! What a hypervisor has told: its memory, its queues.

use std::fs::File;
use std::sync::{Arc, PoisonError, RwLock};

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::config::{FEATURE_EVENT_IDX, FEATURES, QUEUE_SIZE_MAX, QUEUES_MAX, space};
use super::queue::{Memory, RunningQueue};
use crate::disk::ServedDisk;

/// A hypervisor's connection.
pub(super) struct Session {
    disk: Arc<ServedDisk>,
    memory: Memory,
    /// Where each piece of memory stands in the hypervisor, in which it names the rings: (start, bytes, guest address).
    places: Vec<(u64, u64, u64)>,
    features: u64,
    rings: Vec<Ring>,
}

#[derive(Default)]
struct Ring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    base: u16,
    enabled: bool,
    kick: Option<File>,
    call: Option<File>,
    running: Option<RunningQueue>,
}

impl Session {
    pub(super) fn new(disk: Arc<ServedDisk>) -> Session {
        Session {
            disk,
            memory: Arc::new(RwLock::new(GuestMemoryMmap::new())),
            places: Vec::new(),
            features: 0,
            rings: (0..QUEUES_MAX).map(|_| Ring::default()).collect(),
        }
    }

    /// Ends all queues.
    pub(super) fn stop(&mut self) {
        for ring in &mut self.rings {
            ring.running.take().and_then(RunningQueue::stop);
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn guest_address(&self, address: u64) -> Result<u64> {
        let place = self.places.iter().find(|(start, bytes, _)| address.wrapping_sub(*start) < *bytes);
        place.map(|(start, _, guest)| address - start + guest).ok_or(Error::InvalidParam)
    }

    /// Starts a queue that has all it needs.
    fn start(&mut self, index: u32) -> Result<()> {
        let event_idx = self.features & FEATURE_EVENT_IDX != 0;
        let (disk, memory) = (Arc::clone(&self.disk), Arc::clone(&self.memory));
        let ring = self.ring(index)?;
        if ring.running.is_some() || !ring.enabled || ring.size == 0 {
            return Ok(());
        }
        let Some(kick) = &ring.kick else { return Ok(()) };
        let wrong = |_| Error::InvalidParam;
        let mut queue = Queue::new(QUEUE_SIZE_MAX).map_err(wrong)?;
        queue.try_set_size(ring.size).map_err(wrong)?;
        queue.try_set_desc_table_address(GuestAddress(ring.descriptors)).map_err(wrong)?;
        queue.try_set_avail_ring_address(GuestAddress(ring.available)).map_err(wrong)?;
        queue.try_set_used_ring_address(GuestAddress(ring.used)).map_err(wrong)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        {
            let memory = memory.read().unwrap_or_else(PoisonError::into_inner);
            // Where the last process stopped, whatever the hypervisor believes: see the module's description.
            let used = queue.used_idx(&*memory, std::sync::atomic::Ordering::Acquire).map_err(wrong)?;
            queue.set_next_avail(used.0);
            queue.set_next_used(used.0);
        }
        let (kick, call) = (kick.try_clone(), ring.call.as_ref().map(File::try_clone).transpose());
        let io = Error::ReqHandlerError;
        ring.running =
            Some(RunningQueue::start(disk, memory, queue, kick.map_err(io)?, call.map_err(io)?).map_err(io)?);
        Ok(())
    }

    fn stop_ring(&mut self, index: u32) -> Result<()> {
        let ring = self.ring(index)?;
        if let Some(queue) = ring.running.take().and_then(RunningQueue::stop) {
            ring.base = queue.next_avail();
        }
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop();
        self.rings.iter_mut().for_each(|ring| *ring = Ring::default());
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let (mut mapped, mut places) = (Vec::new(), Vec::new());
        for (region, file) in regions.iter().zip(files) {
            let offset = FileOffset::new(file, region.mmap_offset);
            let bytes = usize::try_from(region.memory_size).map_err(|_| Error::InvalidParam)?;
            let map = MmapRegion::from_file(offset, bytes);
            let map = map.map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
            let guest = GuestAddress(region.guest_phys_addr);
            mapped.push(GuestRegionMmap::new(map, guest).ok_or(Error::InvalidParam)?);
            places.push((region.user_addr, region.memory_size, region.guest_phys_addr));
        }
        let memory = GuestMemoryMmap::from_regions(mapped);
        let memory = memory.map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
        debug_assert!(memory.iter().all(|region| region.len() > 0));
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = memory;
        self.places = places;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| *size <= QUEUE_SIZE_MAX && size.is_power_of_two());
        self.ring(index)?.size = size.ok_or(Error::InvalidParam)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let guest = |address| self.guest_address(address);
        let (descriptors, used, available) = (guest(descriptor)?, guest(used)?, guest(available)?);
        let ring = self.ring(index)?;
        (ring.descriptors, ring.used, ring.available) = (descriptors, used, available);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index)?.base = base as u16;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop_ring(index)?;
        let ring = self.ring(index)?;
        (ring.kick, ring.call) = (None, None);
        Ok(VhostUserVringState::new(index, u32::from(ring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.stop_ring(u32::from(index))?;
        self.ring(u32::from(index))?.kick = fd;
        // Without protocol features, a queue is enabled by its kick.
        if self.features & (1 << 30) == 0 {
            self.ring(u32::from(index))?.enabled = true;
        }
        self.start(u32::from(index))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let running = self.ring(u32::from(index))?.running.is_some();
        self.stop_ring(u32::from(index))?;
        self.ring(u32::from(index))?.call = fd;
        if running { self.start(u32::from(index)) } else { Ok(()) }
    }

    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES_MAX)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        if enable { self.start(index) } else { self.stop_ring(index) }
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let space = space(self.disk.disk_bytes());
        let mut bytes = vec![0; size as usize];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = space.get(offset as usize + at).copied().unwrap_or(0);
        }
        Ok(bytes)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("the configuration cannot be changed"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(unsupported())
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(unsupported())
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(unsupported())
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(unsupported())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(unsupported())
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(unsupported())
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(unsupported())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(unsupported())
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(unsupported())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(unsupported())
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(unsupported())
    }
}

fn unsupported() -> Error {
    Error::InvalidOperation("not offered")
}
