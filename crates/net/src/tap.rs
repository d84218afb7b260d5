//! Taps: made by the agent, opened by QEMU, and there until the agent deletes them.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use nix::ioctl_write_int;

use mayfly_model::Traffic;

use crate::error::NetError;

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

ioctl_write_int!(tun_set_iff, b'T', 202);
ioctl_write_int!(tun_set_persist, b'T', 203);

/// Makes a persistent tap in this network namespace. One that is there already is success.
///
/// # Errors
/// [`NetError::Io`].
pub fn create_tap(name: &str) -> Result<(), NetError> {
    // One that a guest has open cannot be opened a second time.
    match nix::net::if_::if_nametoindex(name) {
        Ok(_) => Ok(()),
        Err(_) => persist(name, true),
    }
}

/// Deletes a tap. One that is not there is success.
///
/// # Errors
/// [`NetError::Io`], for example while QEMU still has it.
pub fn delete_tap(name: &str) -> Result<(), NetError> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(_) => persist(name, false),
        Err(_) => Ok(()),
    }
}

/// What has passed a tap, as its guest sees it. Nothing if that cannot be found out: a count of none would look like that of
/// a new tap.
pub fn traffic(tap: &str) -> Option<Traffic> {
    let count = |what: &str| {
        let text = std::fs::read_to_string(format!("/sys/class/net/{tap}/statistics/{what}_bytes")).ok()?;
        text.trim().parse().ok()
    };
    Some(Traffic { sent: count("rx")?, received: count("tx")? })
}

#[expect(unsafe_code, reason = "the tun driver is set up by ioctls (linux/if_tun.h); no library wraps them safely")]
fn persist(name: &str, on: bool) -> Result<(), NetError> {
    let fail = |error: nix::Error| NetError::io(format!("set up the tap {name}"))(error.into());
    let file =
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(NetError::io("open /dev/net/tun"))?;
    // `struct ifreq`: sixteen bytes of name, then the flags, forty bytes in all.
    let mut request = [0u8; 40];
    request[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    request[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
    // SAFETY: both ioctls read at most the forty bytes of an ifreq, which outlives the calls.
    unsafe {
        tun_set_iff(file.as_raw_fd(), request.as_mut_ptr() as u64).map_err(fail)?;
        tun_set_persist(file.as_raw_fd(), u64::from(on)).map_err(fail)?;
    }
    Ok(())
}
