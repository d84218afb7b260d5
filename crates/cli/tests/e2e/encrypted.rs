//! Hosts that encrypt what they say to each other. This machine's kernel may have no WireGuard, so the fabric runs in a guest; it
//! has no guests of its own there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use mayfly_xtask::fabric::{DevFabric, wait_until};

use crate::borrowed;

#[test]
fn hosts_that_encrypt_hear_each_other() {
    let binary = Path::new(env!("CARGO_BIN_EXE_mayfly"));
    if !borrowed::is_inside("encrypted::hosts_that_encrypt_hear_each_other", &[binary]) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { mayfly_net::Links::open().unwrap().up("lo").await.unwrap() });
    // It is looked for before a fabric is started, and not needed for one without guests.
    std::fs::write("/bin/qemu-system-x86_64", "").unwrap();
    std::fs::set_permissions("/bin/qemu-system-x86_64", std::fs::Permissions::from_mode(0o755)).unwrap();
    let fabric = DevFabric::new(Path::new("/bin/mayfly"), Path::new("/tmp/state"));
    fabric.run(&["dev", "up", "--transit", "wireguard"]).unwrap();
    for host in 0..3 {
        hears(&fabric, host);
    }
    let hosts = fabric.json(&["host", "list"]).unwrap();
    assert!(hosts.as_array().unwrap().iter().all(|host| host["transit"] == "wireguard"), "{hosts}");
    let key = || std::fs::read_to_string("/tmp/state/hosts/host-2/tunnel.key").unwrap();
    let before = key();
    // A host that dies and comes back is known by the key that it had.
    fabric.run(&["dev", "kill", "host-2"]).unwrap();
    fabric.run(&["dev", "start", "host-2"]).unwrap();
    hears(&fabric, 1);
    hears(&fabric, 0);
    assert_eq!(key(), before);
    let refused = fabric.run(&["dev", "up", "--transit", "vxlan"]).unwrap_err().to_string();
    assert!(refused.contains("transit wireguard") && refused.contains("dev down"), "{refused}");
    fabric.run(&["dev", "down", "--purge"]).unwrap();
}

/// Waits until a host gets more and more through its tunnel.
fn hears(fabric: &DevFabric, host: usize) {
    let first = received(fabric, host);
    wait_until("a host hears the others through its tunnel", Duration::from_secs(30), || {
        Ok(received(fabric, host) > first + 2000)
    })
    .unwrap();
}

/// Bytes that have come to a host through its tunnel.
fn received(fabric: &DevFabric, host: usize) -> u64 {
    let status = fabric.json(&["dev", "status"]).unwrap();
    let process = status["hosts"][host]["first_process"].as_u64().unwrap();
    let devices = std::fs::read_to_string(format!("/proc/{process}/net/dev")).unwrap();
    let counts = devices.lines().find_map(|line| line.trim().strip_prefix("mfwg:"));
    counts.map_or(0, |counts| counts.split_whitespace().next().unwrap().parse().unwrap())
}
