//! The story that the demo tells and an end-to-end test asserts: a service of VMs survives the death of its host.

mod summary;
mod teller;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::fabric::{DevFabric, wait_until};
use crate::run::output;
use crate::visitor::{Visitor, get, post};
pub use summary::Summary;
use teller::Teller;

const SERVICE: &str = "shop";
const FIRST: &str = "shop/web_IN_0";
/// Seconds without an answer after which the definition's probe takes a backend out.
const PROBE_TIMEOUT: f64 = 11.0;

/// Tells the story on a fabric that is not started yet, with the demo image.
///
/// # Errors
/// The first promise that was not kept.
pub fn tell(fabric: &DevFabric, image: &Path) -> anyhow::Result<Summary> {
    let mut story = Story { fabric, image, teller: Teller::new(), summary: Summary::default(), vip: String::new() };
    story.start()?;
    story.deploy()?;
    story.visit()?;
    story.reboot()?;
    story.reimage()?;
    story.kill_host()?;
    story.check_disks()?;
    story.delete()?;
    Ok(story.summary)
}

struct Story<'f> {
    fabric: &'f DevFabric,
    image: &'f Path,
    teller: Teller,
    summary: Summary,
    vip: String,
}

impl Story<'_> {
    fn start(&mut self) -> anyhow::Result<()> {
        let fabric = self.fabric;
        self.teller.step("starting a controller and three hosts, each in its own namespaces", || {
            fabric.run(&["dev", "up"]).map(|said| said.lines().last().unwrap_or_default().to_owned())
        })?;
        let image = self.image.to_string_lossy().into_owned();
        self.teller.step("uploading the base image", || {
            fabric.run(&["image", "push", &image, "--name", "hello"]).map(|said| said.trim().to_owned())
        })
    }

    fn deploy(&mut self) -> anyhow::Result<()> {
        let fabric = self.fabric;
        let assets = crate::workspace().join("crates/xtask/assets");
        let (definition, configuration) =
            (assets.join("ServiceDefinition.csdef"), assets.join("ServiceConfiguration.cscfg"));
        let (definition, configuration) = (definition.to_string_lossy(), configuration.to_string_lossy());
        self.teller.step("deploying two instances of the role `web`", || {
            fabric.run(&["service", "create", SERVICE])?;
            let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "180s"];
            fabric.run(&[&["service", "deploy", SERVICE], &files[..]].concat()).map(|said| said.trim().to_owned())
        })?;
        let instances = fabric.instances(SERVICE)?;
        self.teller.list(&instances);
        ensure!(instances.len() == 2, "two instances were asked for, {} are there", instances.len());
        let (a, b) = (&instances[0], &instances[1]);
        ensure!(a["fault_domain"] != b["fault_domain"], "both instances stand in one fault domain");
        ensure!(a["computer_name"] != b["computer_name"], "both instances have one computer name");
        for instance in &instances {
            let name = instance["computer_name"].as_str().unwrap_or_default();
            let good = name.len() == 12 && name.starts_with("mf");
            ensure!(good, "`{name}` is not `mf` and ten letters or digits");
        }
        self.summary.promise("instances stand in different fault domains, with random names", "2 of 2 ready");
        self.vip = fabric.vip(SERVICE)?;
        Ok(())
    }

    fn visit(&mut self) -> anyhow::Result<()> {
        let vip = self.vip.clone();
        let pages =
            self.teller.step_with("visiting the public address, and leaving a mark in each instance", || {
                let pages = pages(&vip, 2)?;
                for _ in 0..40 {
                    post(&format!("http://{vip}/mark"), "seen by a visitor")?;
                    if self::pages(&vip, 2)?.values().all(|page| page["mark"] == "seen by a visitor") {
                        break;
                    }
                }
                Ok((pages, format!("http://{vip}/ is answered by both in turn")))
            })?;
        let instances = self.fabric.instances(SERVICE)?;
        for instance in &instances {
            let page = pages.get(instance["name"].as_str().unwrap_or_default());
            let page = page.with_context(|| format!("{} never answered", instance["name"]))?;
            for (shown, known) in [("computer_name", "computer_name"), ("address", "dip")] {
                ensure!(
                    page[shown] == instance[known],
                    "the page shows {}, the fabric {}",
                    page[shown],
                    instance[known]
                );
            }
            check_new(page)?;
            ensure!(page["settings"]["Greeting"] == "good morning", "the setting did not reach the guest: {page}");
        }
        self.summary.promise("both instances answer behind one address", &format!("http://{}/", self.vip));
        self.summary.promise("the post-boot script ran in each, and settings arrived", "output on the page");
        Ok(())
    }

    fn reboot(&mut self) -> anyhow::Result<()> {
        let (fabric, vip) = (self.fabric, self.vip.clone());
        let before = fabric.instance(SERVICE, "web_IN_0")?;
        let page = self.teller.step_with("rebooting web_IN_0: its disk is kept", || {
            fabric.run(&["instance", "reboot", FIRST, "--wait", "--timeout", "180s"])?;
            let page = page_of(&vip, "web_IN_0")?;
            let said = format!("boot count {}, mark: {}", page["boots"], page["mark"]);
            Ok((page, said))
        })?;
        let after = fabric.instance(SERVICE, "web_IN_0")?;
        ensure!(page["boots"] == 2, "the boot count is {}, not 2", page["boots"]);
        ensure!(page["mark"] == "seen by a visitor", "the mark is lost: {page}");
        ensure!(after["generation"] == before["generation"], "the disk's generation changed");
        ensure!(after["computer_name"] == before["computer_name"], "the computer name changed");
        self.summary.promise("a reboot keeps the differencing disk", "boot count 2, mark kept");
        Ok(())
    }

    fn reimage(&mut self) -> anyhow::Result<()> {
        let (fabric, vip) = (self.fabric, self.vip.clone());
        let before = fabric.instance(SERVICE, "web_IN_0")?;
        let page = self.teller.step_with("reimaging web_IN_0: back to the base image", || {
            fabric.run(&["instance", "reimage", FIRST, "--wait", "--timeout", "180s"])?;
            let page = page_of(&vip, "web_IN_0")?;
            let said = format!("fresh disk, new name {}", page["computer_name"]);
            Ok((page, said))
        })?;
        let after = fabric.instance(SERVICE, "web_IN_0")?;
        check_new(&page)?;
        ensure!(after["generation"].as_u64() > before["generation"].as_u64(), "the generation did not grow");
        ensure!(after["computer_name"] != before["computer_name"], "the computer name is the old one");
        self.summary.promise("a reimage gives an empty disk and a new name", "mark gone, generation 2");
        Ok(())
    }

    fn kill_host(&mut self) -> anyhow::Result<()> {
        let (fabric, vip) = (self.fabric, self.vip.clone());
        let before = fabric.instance(SERVICE, "web_IN_0")?;
        let victim = before["host"].as_str().context("web_IN_0 has no host")?.to_owned();
        let visitor = Visitor::start(&vip);
        std::thread::sleep(Duration::from_secs(2));
        let (killed, killed_wall) = (Instant::now(), wall_seconds());
        let healed =
            self.teller.step_with(&format!("pulling the plug of {victim}, under twenty requests a second"), || {
                fabric.run(&["dev", "kill", &victim])?;
                wait_until("web_IN_0 is ready elsewhere", Duration::from_secs(180), || {
                    let now = fabric.instance(SERVICE, "web_IN_0")?;
                    Ok(now["state"] == "ReadyRole" && now["computer_name"] != before["computer_name"])
                })?;
                let after = fabric.instance(SERVICE, "web_IN_0")?;
                let said = format!("web_IN_0 is ready on {} as {}", after["host"], after["computer_name"]);
                Ok((after, said))
            })?;
        std::thread::sleep(Duration::from_secs(2));
        let visits = visitor.finish()?;
        let failed: Vec<_> = visits.iter().filter(|visit| visit.page.is_err()).collect();
        let last = failed.iter().map(|visit| (visit.at - killed.min(visit.at)).as_secs_f64()).fold(0.0, f64::max);
        if let Some(Err(why)) = failed.last().map(|visit| &visit.page) {
            self.summary.figure("the last failure", why);
        }
        let old_name = before["computer_name"].as_str().unwrap_or_default();
        ensure!(last <= PROBE_TIMEOUT, "requests still failed {last:.1} s after the host's death");
        ensure!(healed["fault_domain"] != before["fault_domain"], "the replacement stands in the dead fault domain");
        ensure!(healed["generation"].as_u64() > before["generation"].as_u64(), "the generation did not grow");
        ensure!(healed["dip"] != before["dip"], "the address of a VM that may still run was used again");
        check_new(&page_of(&vip, "web_IN_0")?)?;
        let placed = self.event_time("Placed", killed_wall)? - killed_wall;
        let ready = self.event_time("State", killed_wall)? - killed_wall;
        self.summary
            .figure("requests during the host's death", &format!("{} of {} failed", failed.len(), visits.len()));
        self.summary.figure("load balancer let go of the dead instance", &format!("after {last:.1} s"));
        self.summary.figure("replacement was placed", &format!("after {placed:.1} s"));
        self.summary.figure("replacement was Ready", &format!("after {ready:.1} s"));
        self.summary.promise("the lost instance is made anew elsewhere, by itself", &format!("on {}", healed["host"]));
        self.return_host(&victim, old_name)
    }

    /// The time of the last event of a kind about web_IN_0, in seconds since 1970.
    fn event_time(&self, kind: &str, since: f64) -> anyhow::Result<f64> {
        let events = self.fabric.json(&["event", "list"])?;
        let events = events.as_array().context("no events")?;
        let about = |event: &&Value| {
            let ready = kind != "State" || event["message"] == "ReadyRole";
            event["kind"] == kind && event["subject"] == FIRST && ready
        };
        let times = events.iter().filter(about).filter_map(|event| seconds(event["time"].as_str()?));
        times.filter(|time| *time >= since).reduce(f64::min).with_context(|| format!("no {kind} event of {FIRST}"))
    }

    fn return_host(&mut self, victim: &str, old_name: &str) -> anyhow::Result<()> {
        let (fabric, vip) = (self.fabric, self.vip.clone());
        self.teller.step(&format!("starting {victim} again, and scaling to three instances"), || {
            fabric.run(&["dev", "start", victim])?;
            wait_until("the host is up and has thrown its old VMs away", Duration::from_secs(60), || {
                let hosts = fabric.json(&["host", "list"])?;
                let up = hosts
                    .as_array()
                    .is_some_and(|hosts| hosts.iter().any(|host| host["name"] == victim && host["state"] == "Up"));
                let left = std::fs::read_dir(fabric.host_folder(victim).join("vms"))?.count();
                Ok(up && left == 0)
            })?;
            let said = fabric.run(&["service", "scale", SERVICE, "web=3", "--wait", "--timeout", "180s"])?;
            Ok(said.trim().to_owned())
        })?;
        let instances = fabric.instances(SERVICE)?;
        self.teller.list(&instances);
        ensure!(instances.iter().any(|one| one["host"] == victim), "{victim} got no new work");
        let pages = pages(&vip, 3)?;
        for (name, page) in &pages {
            ensure!(page["computer_name"] != old_name, "the dead VM of {name} answers");
        }
        self.summary
            .promise("the killed host comes back clean and takes new work", &format!("{victim} carries web_IN_2"));
        Ok(())
    }

    fn check_disks(&mut self) -> anyhow::Result<()> {
        let (fabric, image) = (self.fabric, self.image);
        let instances = fabric.instances(SERVICE)?;
        let checked = self.teller.step_with("comparing the base images on the hosts with the original", || {
            let images: Vec<Value> = serde_json::from_str(&fabric.run(&["image", "list", "--output", "json"])?)?;
            let digest = images[0]["digest"].as_str().context("the image has no digest")?.to_owned();
            let bytes = format!("--bytes={}", images[0]["disk_bytes"]);
            let mut checked = 0;
            for instance in &instances {
                let folder = fabric.host_folder(instance["host"].as_str().unwrap_or_default());
                let base = folder.join("images").join(&digest).join("disk.vhd");
                // What no guest has read yet may still be on its way.
                wait_until(
                    &format!("the base on {} is the original", instance["host"]),
                    Duration::from_secs(30),
                    || {
                        let arguments = [Path::new(&bytes), image, &base];
                        Ok(std::process::Command::new("cmp").args(arguments).output()?.status.success())
                    },
                )?;
                let disk = folder.join("vms").join(instance["vm"].as_str().unwrap_or_default()).join("disk.vhd");
                let data = std::fs::metadata(&disk).with_context(|| disk.display().to_string())?;
                ensure!(data.len() > 1 << 20, "the differencing disk of {} did not grow", instance["name"]);
                ensure!(data.blocks() * 512 < 64 << 20, "the differencing disk of {} holds a copy", instance["name"]);
                checked += 1;
            }
            Ok((checked, format!("the same bytes, {}…", &digest[..16])))
        })?;
        self.summary.promise("the base image is never written", &format!("same bytes on {checked} hosts"));
        Ok(())
    }

    fn delete(&mut self) -> anyhow::Result<()> {
        if self.fabric.keep {
            return Ok(());
        }
        let fabric = self.fabric;
        self.teller.step("deleting the service and stopping the fabric", || {
            fabric.run(&["service", "delete", SERVICE, "--wait", "--timeout", "60s"])?;
            let bridge = fabric.bridge()?;
            fabric.run(&["dev", "down", "--purge"])?;
            wait_until("nothing is left", Duration::from_secs(10), || Ok(fabric.leftovers(&bridge).is_empty()))
                .with_context(|| fabric.leftovers(&bridge).join(", "))?;
            Ok("no process, device or file is left".to_owned())
        })?;
        self.summary.promise("nothing is left behind", "no process, device or file");
        Ok(())
    }
}

/// Pages of as many different instances, by name.
fn pages(vip: &str, count: usize) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut pages = BTreeMap::new();
    wait_until(&format!("{count} instances answer"), Duration::from_secs(20), || {
        let page = get(&format!("http://{vip}/json"))?;
        pages.insert(page["instance"].as_str().unwrap_or_default().to_owned(), page);
        Ok(pages.len() >= count)
    })?;
    Ok(pages)
}

/// The page of one instance.
fn page_of(vip: &str, name: &str) -> anyhow::Result<Value> {
    let mut found = Value::Null;
    wait_until(&format!("{name} answers"), Duration::from_secs(20), || {
        found = get(&format!("http://{vip}/json"))?;
        Ok(found["instance"] == name)
    })?;
    Ok(found)
}

/// Checks the page of a VM that has just been made.
fn check_new(page: &Value) -> anyhow::Result<()> {
    ensure!(
        page["boots"] == 1 && page["fresh_disk"] == true && page["mark"].is_null(),
        "its disk is not fresh: {page}"
    );
    let expected = format!("configured by script on {}\n", page["computer_name"].as_str().unwrap_or_default());
    ensure!(page["script_output"] == expected && page["script_status"] == 0, "the script did not run: {page}");
    Ok(())
}

fn wall_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Seconds since 1970 of a time as the API writes it.
fn seconds(text: &str) -> Option<f64> {
    let text = output("date", &["-d", text, "+%s.%N"]).ok()?;
    text.trim().parse().ok()
}
