//! The demo guest's first and only process of note. It has no kernel or shell of its own to speak of: the image adds
//! Debian's cloud kernel and busybox.
//!
//! In order: mounts and drivers, an identity if it is a template, the disk with its boot counter, the address by DHCP (an IPv6 address later, if there is a router), name and script from the
//! metadata address, identity and settings from the wire server, the page on port 80, and then a report of Ready.

mod disk;
mod fabric;
mod identity;
mod ipv6;
mod page;
mod script;
mod system;

use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;

/// Between two reports of health. The original agent took 25 seconds.
const HEARTBEAT: Duration = Duration::from_secs(5);

fn main() {
    system::say("mayfly hello: starting");
    if let Err(error) = run() {
        system::say(&format!("mayfly hello: {error:#}"));
    }
    // The first process must not end: the kernel would panic.
    loop {
        sleep(Duration::from_secs(3600));
    }
}

fn run() -> anyhow::Result<()> {
    system::mount_early().context("cannot mount /proc and the like")?;
    system::load_drivers("early");
    let mac = identity::wait().context("no identity")?;
    system::load_drivers("late");
    system::power_off_on_button();
    let boots = disk::start().context("cannot use the disk")?;
    disk::mount_local().context("cannot use the local disks")?;
    let address = system::configure_network(mac.as_deref()).context("no address by DHCP")?;
    system::say(&format!("mayfly hello: {address}, boot {boots}"));
    let seed = fabric::read_seed().context("no metadata")?;
    nix::unistd::sethostname(&seed.host_name).context("cannot set the host name")?;
    let goal = fabric::read_goal().context("no goal state")?;
    let identity = fabric::read_identity(&goal).context("no hosting environment")?;
    let script = script::run_once(&seed).context("cannot run the script")?;
    let computer_name = seed.host_name;
    let page = Arc::new(Mutex::new(page::Page { identity, computer_name, address, ipv6: None, boots, script }));
    page::serve(Arc::clone(&page)).context("cannot serve the page")?;
    follow_ipv6(Arc::clone(&page));
    let role_script = fabric::read_script().context("no word of a post-boot script")?;
    std::thread::spawn(move || {
        if let Err(error) = script::run_for_role(&role_script) {
            system::say(&format!("mayfly hello: the role's script: {error:#}"));
        }
    });
    system::say("mayfly hello: ready");
    report_for_ever(goal, &page)
}

/// Takes an IPv6 address in the background, if there is one.
fn follow_ipv6(page: Arc<Mutex<page::Page>>) {
    std::thread::spawn(move || match ipv6::configure(&system::mac()) {
        Ok(address) => {
            system::say(&format!("mayfly hello: {address}"));
            if let Ok(mut page) = page.lock() {
                page.ipv6 = Some(address);
            }
        }
        Err(error) => system::say(&format!("mayfly hello: no IPv6: {error:#}")),
    });
}

/// Reports Ready, and takes up new settings when the fabric tells of a new goal state.
fn report_for_ever(mut goal: fabric::Goal, page: &Mutex<page::Page>) -> anyhow::Result<()> {
    loop {
        match fabric::report_ready(&goal) {
            Ok(latest) if latest != goal.incarnation => {
                if let Ok(new) = fabric::read_goal()
                    && let Ok(identity) = fabric::read_identity(&new)
                {
                    goal = new;
                    page.lock().map_err(|_| anyhow::anyhow!("the page is broken"))?.identity = identity;
                }
            }
            Ok(_) => sleep(HEARTBEAT),
            Err(error) => {
                system::say(&format!("mayfly hello: cannot report: {error:#}"));
                sleep(Duration::from_secs(1));
            }
        }
    }
}
