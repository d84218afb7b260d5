//! Being a template: this guest may be stopped here, before it knows who it is, and go on as another, many times over. What
//! must not be the same in all of them is mended before anything else happens: random numbers, the time, and then the address
//! of its card, whose driver is loaded only afterwards.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::system::say;

/// Where QEMU's fw_cfg shows what the host says.
const IDENTITY: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.mayfly/identity/raw";
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(5);

/// `struct rand_pool_info` of Linux, with 32 bytes.
#[repr(C)]
struct Seed {
    bits: i32,
    bytes: i32,
    buffer: [u8; 32],
}

// linux/random.h: RNDADDENTROPY and RNDRESEEDCRNG.
nix::ioctl_write_ptr_bad!(add_entropy, 0x4008_5203, Seed);
nix::ioctl_none_bad!(reseed, 0x5207);

/// Waits for an identity, if this guest is a template, and takes up what it says. Returns the hardware address that its card
/// shall have: what the card says of itself is still the template's.
pub fn wait() -> anyhow::Result<Option<String>> {
    let Some(mut identity) = read() else { return Ok(None) };
    if field(&identity, "mode") == Some("template") {
        // Exactly this is what the host looks for.
        say("mayfly: waiting for an identity");
        while field(&identity, "mode") == Some("template") {
            sleep(LOOK);
            identity = read().context("the identity is gone")?;
        }
        // Only here: a guest that starts again from within finds the same identity, with the time of its first start.
        become_another(&identity)?;
    }
    Ok(field(&identity, "mac").map(str::to_owned))
}

fn become_another(identity: &str) -> anyhow::Result<()> {
    if let Some(seed) = field(identity, "seed") {
        take_seed(seed).context("cannot seed the random numbers")?;
    }
    if let Some(millis) = field(identity, "time_ms").and_then(|millis| millis.parse::<i64>().ok()) {
        let time = TimeSpec::new(millis / 1000, millis % 1000 * 1_000_000);
        clock_settime(ClockId::CLOCK_REALTIME, time).context("cannot set the time")?;
    }
    Ok(())
}

fn read() -> Option<String> {
    let bytes = fs::read(IDENTITY).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

fn field<'i>(identity: &'i str, name: &str) -> Option<&'i str> {
    identity.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn take_seed(text: &str) -> anyhow::Result<()> {
    ensure!(text.len() == 64, "a seed is 64 digits");
    let mut seed = Seed { bits: 256, bytes: 32, buffer: [0; 32] };
    for (number, byte) in seed.buffer.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(number * 2..number * 2 + 2).unwrap_or_default(), 16)?;
    }
    let random: File = OpenOptions::new().write(true).open("/dev/urandom")?;
    #[expect(unsafe_code, reason = "both calls take what is declared above, which outlives them")]
    unsafe {
        add_entropy(random.as_raw_fd(), &raw const seed)?;
        // Without this, what was drawn before decides for minutes.
        reseed(random.as_raw_fd())?;
    }
    Ok(())
}
