//! Whether KVM runs a guest here. That `/dev/kvm` opens says nothing: some machines emulate every instruction behind
//! it, a hundred times slower than TCG, and die on the first unusual one.
//!
//! The probe runs a guest of a few instructions in long mode: a loop of 16 million instructions to see the speed, a
//! breakpoint through a real interrupt table, and a `cmpxchg16b`, the two that such an emulator fails on. It belongs
//! into a process of its own that is killed after [`PROBE_LIMIT`]: a hanging guest cannot be interrupted reliably.

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// How long the process that probes may take.
pub const PROBE_LIMIT: Duration = Duration::from_millis(400);
/// The loop may take this long: 160 million instructions a second. Real hardware does over a billion, an emulator
/// three million.
const LOOP_LIMIT: Duration = Duration::from_millis(100);

/// How a guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By QEMU's translator.
    Tcg,
}

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// What to use.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
}

impl Verdict {
    /// TCG, for this reason.
    pub fn tcg(reason: impl Into<String>) -> Verdict {
        Verdict { accelerator: Accelerator::Tcg, reason: reason.into() }
    }
}

/// Runs the probe in this process. It may hang where KVM is broken.
pub fn probe() -> Verdict {
    match run_guest() {
        Ok(verdict) => verdict,
        Err(error) => Verdict::tcg(format!("/dev/kvm cannot be used: {error}")),
    }
}

const MEMORY: usize = 64 << 10;
const PML4: usize = 0x1000;
const IDT: usize = 0x4000;
const CODE: usize = 0x6000;
const HANDLER: usize = 0x6100;
const STACK: u64 = 0x7000;
const REPORT_PORT: u16 = 0xe9;
const END_PORT: u16 = 0xf4;

/// Each stage is reported as a letter: long mode, loop done, breakpoint survived, cmpxchg16b survived.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xb0, b'L', 0xe6, 0xe9,                         // mov al, 'L'; out 0xe9, al
    0xb9, 0x00, 0x12, 0x7a, 0x00,                   // mov ecx, 8_000_000
    0xff, 0xc9, 0x75, 0xfc,                         // dec ecx; jnz
    0xb0, b'T', 0xe6, 0xe9,
    0xcc,                                           // int3
    0xb0, b'I', 0xe6, 0xe9,
    0x31, 0xc0, 0x31, 0xd2,                         // xor eax, eax; xor edx, edx
    0xbb, 0x07, 0x00, 0x00, 0x00,                   // mov ebx, 7
    0xb9, 0x09, 0x00, 0x00, 0x00,                   // mov ecx, 9
    0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x80, 0x00, 0x00, // lock cmpxchg16b [0x8000]
    0xb0, b'X', 0xe6, 0xe9,
    0xe6, 0xf4,                                     // out 0xf4, al
    0xf4,                                           // hlt
];

fn run_guest() -> Result<Verdict, kvm_ioctls::Error> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let mut memory = GuestMemory::new()?;
    fill(memory.bytes());
    memory.attach(&vm)?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?)?;
    enter_long_mode(&vcpu)?;
    let mut stages = String::new();
    let (mut started, mut took) = (Instant::now(), Duration::MAX);
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(REPORT_PORT, data)) => {
                match data.first() {
                    Some(b'L') => started = Instant::now(),
                    Some(b'T') => took = started.elapsed(),
                    _ => {}
                }
                stages.extend(data.iter().map(|byte| char::from(*byte)));
            }
            Ok(VcpuExit::IoOut(END_PORT, _)) if took < LOOP_LIMIT => {
                let reason = format!("KVM ran a guest: 16 million instructions in {took:?}");
                return Ok(Verdict { accelerator: Accelerator::Kvm, reason });
            }
            Ok(VcpuExit::IoOut(END_PORT, _)) => {
                return Ok(Verdict::tcg(format!("KVM is too slow here: 16 million instructions took {took:?}")));
            }
            Ok(other) => {
                return Ok(Verdict::tcg(format!("KVM failed a test guest after stage `{stages}`: {other:?}")));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}

fn fill(memory: &mut [u8]) {
    let mut word = |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    // Descriptors with their accessed bits set, so that nobody has to write them.
    word(0x508, 0x00AF_9B00_0000_FFFF);
    word(0x510, 0x00CF_9300_0000_FFFF);
    word(PML4, 0x2003);
    word(0x2000, 0x3003);
    word(0x3000, 0x83);
    // Vector 3: an interrupt gate to the handler.
    word(IDT + 3 * 16, 0x0000_8E00_0008_0000 | HANDLER as u64);
    memory[CODE..CODE + PROGRAM.len()].copy_from_slice(PROGRAM);
    memory[HANDLER..HANDLER + 2].copy_from_slice(&[0x48, 0xcf]); // iretq
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    special.cr3 = PML4 as u64;
    special.cr4 = 1 << 5 | 1 << 9;
    special.cr0 = 0x8005_0033;
    special.efer = 0x500;
    let data =
        kvm_segment { limit: u32::MAX, selector: 16, type_: 3, present: 1, db: 1, s: 1, g: 1, ..Default::default() };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
    (special.gdt.base, special.gdt.limit) = (0x500, 23);
    (special.idt.base, special.idt.limit) = (IDT as u64, 0x1ff);
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&kvm_regs { rip: CODE as u64, rsp: STACK, rflags: 2, ..Default::default() })
}

/// Anonymous memory that lives as long as the guest.
struct GuestMemory {
    address: std::ptr::NonNull<libc::c_void>,
}

#[expect(unsafe_code, reason = "a guest's memory is raw memory that KVM maps; there is no safe interface to it")]
impl GuestMemory {
    fn new() -> Result<GuestMemory, kvm_ioctls::Error> {
        // SAFETY: a fresh anonymous mapping touches nothing that exists.
        let address = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), MEMORY, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        match std::ptr::NonNull::new(address).filter(|_| address != libc::MAP_FAILED) {
            Some(address) => Ok(GuestMemory { address }),
            None => Err(kvm_ioctls::Error::last()),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is MEMORY bytes long, initialised to zero, and borrowed mutably with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr().cast(), MEMORY) }
    }

    fn attach(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: self.address.as_ptr() as u64,
        };
        // SAFETY: the mapping outlives the guest, which runs only within `run_guest`, where `self` lives.
        unsafe { vm.set_user_memory_region(region) }
    }
}

#[expect(unsafe_code, reason = "the mapping was made by hand")]
impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has it any more.
        unsafe { libc::munmap(self.address.as_ptr(), MEMORY) };
    }
}
