//! Guests: from the command to Ready, cold and from a template, beside the same guest started by libvirt's QEMU driver from the
//! same base with the same devices; what an idle guest takes; reboot and reimage.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mayfly_xtask::fabric::{DevFabric, wait_until};
use mayfly_xtask::{image, workspace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::report::{Comparison, Report, median};

const NAMES: &str = "xmlns=\"http://schemas.microsoft.com/ServiceHosting/2008/10/";
/// How many instances are started at once.
const COUNTS: [usize; 4] = [1, 5, 10, 20];

pub fn measure(report: &mut Report, work: &Path, mayfly: &Path, pairs: usize) -> anyhow::Result<()> {
    let demo = image::build(&workspace())?;
    let peer = Peer::new(work, &demo)?;
    // The first one asks QEMU what it can do, and remembers it.
    peer.start()?;
    let fabric = DevFabric::new(mayfly, &work.join("state"));
    fabric.run(&["dev", "up", "--host-cores", "32", "--host-memory", "60000"])?;
    fabric.run(&["image", "push", &demo.to_string_lossy(), "--name", "hello"])?;
    let unread = unread_base(&fabric, work, &demo, pairs)?;
    for (service, template) in [("cold", "off"), ("copies", "on")] {
        deploy(&fabric, work, service, "hello", template)?;
    }
    // One on each host, so that each has the image, and a template.
    for service in ["cold", "copies"] {
        scale(&fabric, service, 3)?;
    }
    wait_until("each host has a template", Duration::from_secs(120), || {
        Ok((1..=3).all(|number| has_template(&fabric.host_folder(&format!("host-{number}")))))
    })?;
    one_at_a_time(report, &fabric, &peer, &unread, pairs)?;
    many(report, &fabric, "three hosts of one machine", pairs)?;
    on_one_host(report, &fabric, pairs)?;
    idle(report, &fabric)?;
    again(report, &fabric, pairs)?;
    fabric.run(&["dev", "down", "--purge"]).map(drop)
}

/// From the command to Ready, where no host has anything of the image yet.
fn unread_base(fabric: &DevFabric, work: &Path, demo: &Path, pairs: usize) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::new();
    for number in 0..pairs {
        // The same disk in another file is another image.
        let (name, copy) = (format!("unread-{number}"), work.join("unread.vhd"));
        let _ = std::fs::remove_file(&copy);
        fabric.run(&["vhd", "convert", &demo.to_string_lossy(), &copy.to_string_lossy()])?;
        fabric.run(&["image", "push", &copy.to_string_lossy(), "--name", &name])?;
        let began = Instant::now();
        deploy(fabric, work, &name, &name, "off")?;
        all.push(began.elapsed().as_secs_f64());
        fabric.run(&["service", "delete", &name, "--wait"])?;
    }
    Ok(all)
}

/// The same as on three, with the other two drained.
fn on_one_host(report: &mut Report, fabric: &DevFabric, pairs: usize) -> anyhow::Result<()> {
    for host in ["host-2", "host-3"] {
        fabric.run(&["host", "drain", host])?;
    }
    wait_until("all stand on one host", Duration::from_secs(120), || {
        let all = [fabric.instances("cold")?, fabric.instances("copies")?].concat();
        Ok(all.iter().all(|one| one["host"] == "host-1" && one["state"] == "ReadyRole"))
    })?;
    many(report, fabric, "one host", pairs)?;
    for host in ["host-2", "host-3"] {
        fabric.run(&["host", "undrain", host])?;
    }
    Ok(())
}

fn one_at_a_time(
    report: &mut Report,
    fabric: &DevFabric,
    peer: &Peer,
    unread: &[f64],
    pairs: usize,
) -> anyhow::Result<()> {
    let (mut cold, mut copies, mut others, mut share) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        others.push(peer.start()?);
        let (seconds, booted) = started(fabric, "cold", 4)?;
        cold.push(seconds);
        share.push((seconds - booted) / seconds * 100.0);
        copies.push(started(fabric, "copies", 4)?.0);
    }
    report.table("From the command to Ready, one instance", "libvirt, to the guest's address");
    for (what, ours, goal) in [("from the base image, warm", &cold, 1.0), ("from a template", &copies, 4.0)] {
        report.compare(&Comparison { what, ours, peer: &others, is_time: true, unit: "s", goal });
    }
    report.end();
    report.say(&format!("From a base image of which no host has anything yet: {:.2} s.", median(unread)));
    report.bound("share of that, from the base image, that is not QEMU and the guest", median(&share), "%", 5.0);
    report.say(
        "libvirt's QEMU driver (`virt-qemu-run`, its capabilities cached) is asked for the same guest over a qcow2 overlay; its clock \
         stops when the guest has its address, ours when the controller knows that the instance is Ready and in rotation.",
    );
    Ok(())
}

fn many(report: &mut Report, fabric: &DevFabric, place: &str, pairs: usize) -> anyhow::Result<()> {
    report.say(&format!("### Many at once, on {place}"));
    for (service, what) in [("cold", "from the base image"), ("copies", "from templates")] {
        let mut line = Vec::new();
        for count in COUNTS {
            let mut all = Vec::new();
            for _ in 0..pairs.div_ceil(3) {
                all.push(started(fabric, service, 3 + count)?.0);
            }
            line.push(format!("{count}: {:.1} s", median(&all)));
        }
        report.say(&format!("- {what}, until the last is Ready: {}", line.join(", ")));
    }
    Ok(())
}

/// Proportional memory of an idle guest, shared pages counted once, and what its disk takes.
fn idle(report: &mut Report, fabric: &DevFabric) -> anyhow::Result<()> {
    report.say("### An idle instance");
    for (service, what) in [("cold", "booted"), ("copies", "from a template, of 10 that share it")] {
        scale(fabric, service, 33)?;
        std::thread::sleep(Duration::from_secs(3));
        let (mut memory, mut disk) = (Vec::new(), Vec::new());
        for one in fabric.instances(service)? {
            let vm = one["vm"].as_str().context("no VM")?.to_owned();
            let pid =
                fabric.processes(&format!("-name {vm},")).into_iter().next().context("the guest has no process")?;
            memory.push(proportional_mib(pid)?);
            disk.push(one["disk_bytes"].as_f64().unwrap_or_default() / f64::from(1 << 20));
        }
        report.say(&format!("- {what}: {:.0} MiB of memory, {:.1} MiB of disk", median(&memory), median(&disk)));
        scale(fabric, service, 3)?;
    }
    Ok(())
}

fn again(report: &mut Report, fabric: &DevFabric, pairs: usize) -> anyhow::Result<()> {
    report.say("### Reboot and reimage, from the command to Ready, notice and good order included");
    for (service, verb, what) in [
        ("cold", "reboot", "reboot"),
        ("cold", "reimage", "reimage, from the base image"),
        ("copies", "reimage", "reimage, from a template"),
    ] {
        let mut all = Vec::new();
        for _ in 0..pairs {
            let began = Instant::now();
            fabric.run(&["instance", verb, &format!("{service}/web_IN_0"), "--wait", "--timeout", "120s"])?;
            all.push(began.elapsed().as_secs_f64());
        }
        report.say(&format!("- {what}: {:.1} s", median(&all)));
    }
    Ok(())
}

/// Scales out to `count`, and back to three. Returns the seconds from the command until the last new one was Ready, and of those
/// how many the slowest guest took from its start to its own word.
fn started(fabric: &DevFabric, service: &str, count: usize) -> anyhow::Result<(f64, f64)> {
    let known: Vec<String> = names(&fabric.instances(service)?);
    let began = jiff::Timestamp::now();
    scale(fabric, service, count)?;
    let mut last = (0.0, 0.0);
    for one in fabric.instances(service)?.iter().filter(|one| !known.contains(&name(one))) {
        let at = |step: &str| -> anyhow::Result<jiff::Timestamp> {
            let steps = one["steps"].as_array().context("no steps")?;
            let found = steps.iter().find(|known| known["step"] == step);
            let text =
                found.and_then(|step| step["at"].as_str()).with_context(|| format!("`{step}` is missing: {one}"))?;
            Ok(text.parse()?)
        };
        let seconds = |from: jiff::Timestamp, to: jiff::Timestamp| (to - from).total(jiff::Unit::Second);
        let total = seconds(began, at("Ready")?)?;
        let begun = at("QEMU runs").or_else(|_| at("it goes on from a template"))?;
        let own = seconds(begun, at("the guest says that it is ready")?)?;
        if total > last.0 {
            last = (total, own);
        }
    }
    scale(fabric, service, 3)?;
    Ok(last)
}

fn names(instances: &[Value]) -> Vec<String> {
    instances.iter().map(name).collect()
}

fn name(instance: &Value) -> String {
    instance["name"].as_str().unwrap_or_default().to_owned()
}

fn scale(fabric: &DevFabric, service: &str, count: usize) -> anyhow::Result<()> {
    let count = format!("web={count}");
    fabric.run(&["service", "scale", service, &count, "--wait", "--timeout", "600s"]).map(drop)
}

fn has_template(host: &Path) -> bool {
    let templates = std::fs::read_dir(host.join("templates")).into_iter().flatten().flatten();
    templates.map(|one| one.path()).any(|one| one.join("ready").exists())
}

fn deploy(fabric: &DevFabric, work: &Path, service: &str, image: &str, template: &str) -> anyhow::Result<()> {
    let (definition, configuration) = (work.join("guest.csdef"), work.join("guest.cscfg"));
    std::fs::write(
        &definition,
        format!(
            "<ServiceDefinition name=\"Bench\" {NAMES}ServiceDefinition\">\
             <VirtualMachineRole name=\"web\" vmsize=\"ExtraSmall\"/></ServiceDefinition>"
        ),
    )?;
    std::fs::write(
        &configuration,
        format!(
            "<ServiceConfiguration serviceName=\"Bench\" {NAMES}ServiceConfiguration\"><Role name=\"web\">\
             <OsImage href=\"{image}\"/><Instances count=\"1\"/><ConfigurationSettings>\
             <Setting name=\"Mayfly.Template\" value=\"{template}\"/><Setting name=\"Mayfly.Spread\" value=\"soft\"/><Setting name=\"Mayfly.DrainSeconds\" value=\"0\"/>\
             </ConfigurationSettings></Role></ServiceConfiguration>"
        ),
    )?;
    fabric.run(&["service", "create", service])?;
    let (definition, configuration) = (definition.to_string_lossy(), configuration.to_string_lossy());
    let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "300s"];
    fabric.run(&[&["service", "deploy", service], &files[..]].concat()).map(drop)
}

/// The memory of a process in MiB, each shared page counted in parts.
fn proportional_mib(pid: i32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// The same guest, started by libvirt.
struct Peer {
    folder: PathBuf,
    base: PathBuf,
}

impl Peer {
    fn new(work: &Path, demo: &Path) -> anyhow::Result<Peer> {
        let folder = work.join("libvirt");
        std::fs::create_dir_all(folder.join("root/etc"))?;
        let base = folder.join("base.raw");
        // A fixed VHD is its disk and a footer.
        let bytes = std::fs::read(demo)?;
        std::fs::write(&base, &bytes[..bytes.len() - 512])?;
        let settings = "stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
                        cgroup_controllers = [ ]\nnamespaces = [ ]\n";
        std::fs::write(folder.join("root/etc/qemu.conf"), settings)?;
        let place = folder.display();
        let domain = format!(
            "<domain type=\"qemu\"><name>peer</name><memory unit=\"MiB\">768</memory><vcpu>1</vcpu>\
             <os><type arch=\"x86_64\" machine=\"q35\">hvm</type></os><features><acpi/></features><cpu mode=\"maximum\"/>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
             <disk type=\"file\" device=\"disk\"><driver name=\"qemu\" type=\"qcow2\"/><source file=\"{place}/overlay.qcow2\"/>\
             <target dev=\"vda\" bus=\"virtio\"/></disk><interface type=\"user\"><model type=\"virtio\"/></interface>\
             <rng model=\"virtio\"><backend model=\"random\">/dev/urandom</backend></rng>\
             <video><model type=\"vga\" vram=\"4096\"/></video>\
             <serial type=\"file\"><source path=\"{place}/serial.log\"/></serial></devices></domain>"
        );
        std::fs::write(folder.join("domain.xml"), domain)?;
        Ok(Peer { folder, base })
    }

    /// Seconds from the start until the guest has its address.
    fn start(&self) -> anyhow::Result<f64> {
        let (overlay, log) = (self.folder.join("overlay.qcow2"), self.folder.join("serial.log"));
        for stale in [&overlay, &log] {
            let _ = std::fs::remove_file(stale);
        }
        let began = Instant::now();
        let base = self.base.to_string_lossy();
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &overlay.to_string_lossy()])
            .status()?;
        ensure!(made.success(), "qemu-img: {made}");
        let mut child = Command::new("virt-qemu-run")
            .arg("-r")
            .arg(self.folder.join("root"))
            .arg(self.folder.join("domain.xml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.folder.join("said"))?)
            .spawn()
            .context("cannot run virt-qemu-run")?;
        let reached = wait_for_line(&log, "boot 1")
            .with_context(|| std::fs::read_to_string(self.folder.join("said")).unwrap_or_default());
        let seconds = began.elapsed().as_secs_f64();
        end(&mut child);
        reached.map(|()| seconds)
    }
}

fn wait_for_line(log: &Path, line: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(log).unwrap_or_default().contains(line) {
        ensure!(Instant::now() < deadline, "libvirt's guest did not say `{line}`");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// It ends its guest when it is told to end.
fn end(child: &mut Child) {
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    let _ = child.wait();
}
