//! The kernel's side: mounts, drivers, address, power button.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};

/// Prints a line on the serial console.
pub fn say(line: &str) {
    // Without a console there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Mounts what the kernel offers.
pub fn mount_early() -> anyhow::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        fs::create_dir_all(target)?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| target.to_owned())?;
    }
    Ok(())
}

/// Loads the modules in a folder of the image, in the order of their names.
pub fn load_drivers(when: &str) {
    let mut modules: Vec<PathBuf> = fs::read_dir(Path::new("/lib/modules").join(when))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    modules.sort();
    for module in modules {
        let loaded = File::open(&module)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty())?));
        if let Err(error) = loaded {
            say(&format!("mayfly hello: {}: {error}", module.display()));
        }
    }
}

/// Gets an address by DHCP and returns it. The card gets this hardware address first, if there is one to give it.
pub fn configure_network(mac: Option<&str>) -> anyhow::Result<String> {
    if let Some(mac) = mac {
        let set = ["ip", "link", "set", "eth0", "address", mac];
        let status = Command::new("/bin/busybox").args(set).status().context("cannot run ip")?;
        if !status.success() {
            bail!("ip: {status}");
        }
    }
    let status = Command::new("/bin/busybox")
        .args("udhcpc -q -n -f -i eth0 -t 30 -T 1 -A 1 -S -s /etc/udhcpc.sh".split(' '))
        .status()
        .context("cannot run udhcpc")?;
    if !status.success() {
        bail!("udhcpc: {status}");
    }
    Ok(fs::read_to_string("/run/address")?.trim().to_owned())
}

/// Waits for the power button, whichever input device it is, and switches off in good order.
pub fn power_off_on_button() {
    for entry in fs::read_dir("/dev/input").into_iter().flatten().flatten() {
        std::thread::spawn(move || watch_button(&entry.path()));
    }
}

fn watch_button(device: &Path) {
    // `struct input_event` on x86-64: two words of time, then type, code and value.
    const EVENT_BYTES: usize = 24;
    const TYPE_KEY: u16 = 1;
    const KEY_POWER: u16 = 116;
    let Ok(mut device) = File::open(device) else { return };
    let mut event = [0; EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        let half = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
        if (half(16), half(18)) == (TYPE_KEY, KEY_POWER) {
            say("mayfly hello: power button, switching off");
            crate::disk::stop();
            // If the kernel refuses, the host switches off the hard way.
            let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
        }
    }
}

/// Lets the kernel give up.
pub fn crash() -> anyhow::Result<()> {
    Ok(fs::write("/proc/sysrq-trigger", "c")?)
}

/// Restarts the guest from within.
pub fn reboot() -> anyhow::Result<()> {
    crate::disk::stop();
    nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT)?;
    Ok(())
}

/// The hardware address of the card.
pub fn mac() -> String {
    fs::read_to_string("/sys/class/net/eth0/address").unwrap_or_default().trim().to_owned()
}

/// What has to be another in each guest, as JSON.
pub fn identity() -> serde_json::Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    serde_json::json!({
        "mac": mac(),
        "boot_id": read("/proc/sys/kernel/random/boot_id"),
        "random": draw().unwrap_or_default(),
        "machine_id": own("machine-id"),
        "host_key": own("host-key"),
        "time": std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    })
}

/// Sixteen random bytes.
fn draw() -> std::io::Result<String> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What a system draws at its first boot and then keeps on its disk, such as the key by which others know it.
fn own(name: &str) -> String {
    if let Some(known) = crate::disk::read(name) {
        return known;
    }
    let drawn = draw().unwrap_or_default();
    match crate::disk::write(name, drawn.as_bytes()) {
        Ok(()) => drawn,
        Err(error) => {
            say(&format!("mayfly hello: {name} cannot be kept: {error:#}"));
            String::new()
        }
    }
}
