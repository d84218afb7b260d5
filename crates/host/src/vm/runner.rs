//! The task of one VM.
//!
//! ```text
//!   prepare ──▶ start or adopt ──▶ watch ──┬─ guest ended: again, after a pause that grows
//!      ▲                                   ├─ suspended: stop in good order, wait
//!      ▲ fails: again, after a pause       ├─ reboot wanted: stop in good order, start
//!      │                                   ├─ no lease: stop at once, wait for one
//!      └───────────────────────────────────┴─ not wanted: stop, throw everything away, end
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use mayfly_model::{DiskModel, VmGoal};
use mayfly_net::address::tap_name;
use mayfly_net::{DhcpLease, delete_tap, serve_dhcp};
use mayfly_qemu::{DiskDevice, DiskSpec, Firmware, Machine, VmSpec};
use tokio::sync::watch;

use super::{Desired, connections, prepare};
use crate::agent::Agent;
use crate::config::DiskFull;
use crate::ledger::VmNote;
use crate::processor::Processor;
use crate::servers::domain;
use crate::status::{Stage, VmStatus};

/// How long a guest may take to power off in good order.
const GRACE: Duration = Duration::from_secs(10);
/// Pauses before another try grow from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LAST: Duration = Duration::from_secs(30);
/// A guest that has run so long is started again without a pause that earlier failures have made long.
const HEALTHY: Duration = Duration::from_secs(60);
/// Bytes of the serial console's log that are kept at the most.
const SERIAL_LOG_BYTES: u64 = 1 << 20;
/// Between two tries to go on after the disk was full.
const RESUME: Duration = Duration::from_secs(5);
/// How long it takes until no host sends anybody new to a guest that is leaving.
const HEARSAY: Duration = Duration::from_millis(600);
/// Between two looks at its connections.
const LINGER: Duration = Duration::from_millis(100);
/// Between two looks at the size of the disk's file.
const MEASURE: Duration = Duration::from_secs(2);

/// Why watching a guest has ended.
enum Ended {
    /// By itself.
    Exit(String),
    /// A reboot is wanted.
    Reboot,
    /// No guest is wanted for now.
    Off,
    /// The host may not serve.
    Fenced,
    /// The VM is not wanted any more.
    Unwanted,
}

struct Runner {
    agent: Arc<Agent>,
    goal: VmGoal,
    desired: watch::Receiver<Desired>,
    serving: watch::Receiver<bool>,
    dhcp: Option<tokio::task::JoinHandle<()>>,
    pause: Duration,
    /// Whether a guest may be running from before.
    adopted: bool,
}

/// Runs until nothing is left of the VM.
pub(super) async fn run(agent: Arc<Agent>, goal: VmGoal, adopted: bool, desired: watch::Receiver<Desired>) {
    let serving = agent.serving.subscribe();
    let mut runner = Runner { agent, goal, desired, serving, dhcp: None, pause: PAUSE_FIRST, adopted };
    while runner.turn().await {}
    runner.destroy().await;
}

impl Runner {
    /// One life of the guest. Returns whether the VM is still wanted.
    async fn turn(&mut self) -> bool {
        if self.unwanted() {
            return false;
        }
        if !*self.serving.borrow() {
            self.stop_leftover().await;
            self.set(Stage::Stopped("its host has no lease".to_owned()));
            self.wait(Duration::from_secs(3600)).await;
            return true;
        }
        if !self.goal.on {
            return self.stay_off().await;
        }
        let machine = match self.start().await {
            Ok(machine) => machine,
            Err(error) => {
                tracing::warn!(vm = %self.goal.vm, error = format!("{error:#}"), "a VM cannot be started");
                self.set(Stage::Failed(format!("{error:#}")));
                self.back_off().await;
                return true;
            }
        };
        let began = tokio::time::Instant::now();
        let (ended, machine) = self.watch(machine).await;
        match ended {
            Ended::Exit(reason) => {
                self.update_quietly(|status| status.restarts += 1);
                self.set(Stage::Stopped(reason));
                self.note();
                if began.elapsed() > HEALTHY {
                    self.pause = PAUSE_FIRST;
                }
                self.back_off().await;
            }
            Ended::Reboot => {
                self.drain().await;
                self.set(Stage::Stopped("it is being rebooted".to_owned()));
                machine.stop(GRACE).await;
                let wanted = self.goal.reboots;
                self.update(|status| status.reboots = wanted);
                self.note();
            }
            Ended::Off => {
                self.drain().await;
                self.set(Stage::Stopped("its deployment is suspended".to_owned()));
                machine.stop(GRACE).await;
            }
            Ended::Fenced => {
                self.set(Stage::Stopped("its host has no lease".to_owned()));
                machine.stop(Duration::ZERO).await;
            }
            Ended::Unwanted => {
                self.drain().await;
                self.set(Stage::Stopped("it is being thrown away".to_owned()));
                machine.stop(Duration::ZERO).await;
                return false;
            }
        }
        true
    }

    /// Sees that there is no guest, and waits until something else is wanted. Returns whether the VM still is.
    async fn stay_off(&mut self) -> bool {
        self.stop_leftover().await;
        let wanted = self.goal.reboots;
        self.update_quietly(|status| status.reboots = wanted);
        self.set(Stage::Off);
        self.note();
        self.wait(Duration::from_secs(3600)).await;
        true
    }

    /// Takes up what is wanted now. Returns whether that is nothing.
    fn unwanted(&mut self) -> bool {
        let desired = self.desired.borrow_and_update().clone();
        let Some(goal) = desired else { return true };
        if goal != self.goal {
            let settings_changed = goal.settings != self.goal.settings;
            self.goal = goal.clone();
            self.update(|status| {
                status.incarnation += u64::from(settings_changed);
                status.goal = goal;
            });
            // An agent that starts before it hears a controller goes on with this.
            self.note();
        }
        false
    }

    /// Takes a guest that is well out of rotation before it is stopped, and lets the requests that it serves come to an end.
    async fn drain(&self) {
        let limit = Duration::from_secs(u64::from(self.goal.drain_seconds));
        let serves = self.update_quietly(|status| status.says_ready() || status.answered.values().any(|well| *well));
        if limit.is_zero() || serves != Some(true) {
            return;
        }
        self.update(|status| status.leaving = true);
        let began = tokio::time::Instant::now();
        // The other hosts have to hear of it, and change their tables.
        tokio::time::sleep(HEARSAY.min(limit)).await;
        while began.elapsed() < limit && *self.serving.borrow() && connections::are_open(self.goal.dip) {
            tokio::time::sleep(LINGER).await;
        }
    }

    /// Finds the guest running, or makes what is missing and starts it.
    async fn start(&mut self) -> anyhow::Result<Machine> {
        if std::mem::take(&mut self.adopted)
            && let Some(machine) = self.adopt().await
        {
            return Ok(machine);
        }
        let (agent, goal) = (Arc::clone(&self.agent), self.goal.clone());
        self.update_quietly(|status| {
            status.forget_guest();
            // A reboot that was asked for before there was a guest has nothing to do.
            status.reboots = status.reboots.max(goal.reboots);
        });
        self.note_or_fail()?;
        self.set(Stage::Preparing("making its disk".to_owned()));
        prepare::disk(&agent, &goal).await?;
        prepare::tap(&agent, &goal).await?;
        self.update(|status| status.has_tap = true);
        self.serve_dhcp();
        crate::guard::check(&agent);
        // Much may have changed while the image was on its way.
        if self.desired.borrow().as_ref().is_none_or(|now| now.vm != goal.vm) || !*self.serving.borrow() {
            bail!("it is not wanted here any more");
        }
        let machine = Machine::start(&self.spec()).await?;
        self.update(|status| {
            status.forget_guest();
            status.stage = Stage::Running;
        });
        Ok(machine)
    }

    /// Takes up a guest that an earlier agent started. What it said to that one still holds.
    async fn adopt(&mut self) -> Option<Machine> {
        let spec = self.spec();
        let machine = Machine::adopt(&spec.monitor(), &spec.pid_file()).await.ok()?;
        tracing::info!(vm = %self.goal.vm, "found its guest running");
        self.update(|status| {
            status.has_tap = true;
            status.stage = Stage::Running;
        });
        // An earlier build, or another configuration, may have made its tap otherwise.
        if let Err(error) = prepare::tap(&self.agent, &self.goal).await {
            tracing::warn!(vm = %self.goal.vm, error = format!("{error:#}"), "its tap is not as it should be");
        }
        self.serve_dhcp();
        crate::guard::check(&self.agent);
        // It may have been paused by a full disk, with nobody left to let it go on.
        if let Err(error) = machine.resume().await {
            tracing::warn!(vm = %self.goal.vm, %error, "cannot let it go on");
        }
        Some(machine)
    }

    /// Watches a running guest until something has to be done.
    async fn watch(&mut self, mut machine: Machine) -> (Ended, Machine) {
        let mut measure = tokio::time::interval(MEASURE);
        let mut processor = Processor::of(machine.pid());
        let mut resume_at = None;
        let mut noted_ready = false;
        loop {
            if self.unwanted() {
                return (Ended::Unwanted, machine);
            }
            if !*self.serving.borrow_and_update() {
                return (Ended::Fenced, machine);
            }
            if !self.goal.on {
                return (Ended::Off, machine);
            }
            if self.update_quietly(|status| status.reboots).is_some_and(|done| self.goal.reboots > done) {
                return (Ended::Reboot, machine);
            }
            let resume = async {
                match resume_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = machine.event() => match event {
                    None => return (Ended::Exit(machine.exit().to_string()), machine),
                    Some(event) if event.name == "BLOCK_IO_ERROR" && event.data["action"] == "stop" => {
                        let full = event.data["nospace"] == true;
                        let why = if full { "the host's disk is full; the guest waits" } else { "its disk fails; the guest waits" };
                        self.set(Stage::Paused(why.to_owned()));
                        resume_at = Some(tokio::time::Instant::now() + RESUME);
                    }
                    Some(event) if event.name == "RESET" => self.update(VmStatus::forget_guest).unwrap_or(()),
                    Some(_) => {}
                },
                () = resume => {
                    resume_at = None;
                    if machine.resume().await.is_ok() {
                        self.set(Stage::Running);
                    }
                }
                _ = measure.tick() => {
                    limit_log(&self.spec().serial_log());
                    let used = processor.used_lately();
                    let traffic = mayfly_net::traffic(&tap_name(self.goal.vm));
                    self.update_quietly(|status| (status.cpu_milli, status.traffic) = (used, traffic));
                    let ready = self.update_quietly(|status| status.says_ready());
                    if ready != Some(noted_ready) {
                        noted_ready = ready == Some(true);
                        self.note();
                    }
                }
                _ = self.desired.changed() => {}
                _ = self.serving.changed() => {}
            }
        }
    }

    /// Nothing may be left of a VM that is not wanted: a disk that is thrown away is never used again.
    async fn destroy(&mut self) {
        self.set(Stage::Stopped("it is being thrown away".to_owned()));
        self.stop_leftover().await;
        if let Some(dhcp) = self.dhcp.take() {
            dhcp.abort();
        }
        let (vm, folder) = (self.goal.vm, self.agent.ledger.vm_folder(self.goal.vm));
        self.update(|status| status.has_tap = false);
        loop {
            let (disks, folder) = (self.agent.disks.clone(), folder.clone());
            let done = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
                disks.close(&vm.to_string())?;
                delete_tap(&tap_name(vm))?;
                match std::fs::remove_dir_all(&folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                    _ => Ok(()),
                }
            });
            let mut done = done.await.map_err(anyhow::Error::from).and_then(|done| done);
            if done.is_ok() {
                done = self.agent.links.forget_rate(&tap_name(vm)).await.map_err(anyhow::Error::from);
            }
            match done {
                Ok(()) => break,
                Err(error) => tracing::warn!(%vm, error = format!("{error:#}"), "a VM cannot be thrown away yet"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.agent.statuses().vms.remove(&vm);
        self.agent.tell();
        tracing::info!(%vm, "thrown away");
    }

    /// Ends a guest that an earlier agent started and this one has not taken up.
    async fn stop_leftover(&mut self) {
        let spec = self.spec();
        if let Ok(machine) = Machine::adopt(&spec.monitor(), &spec.pid_file()).await {
            machine.stop(Duration::ZERO).await;
        }
        let monitor = spec.monitor();
        // One that does not answer must not stay either.
        let _ = tokio::task::spawn_blocking(move || Machine::end_leftovers(&monitor)).await;
        self.adopted = false;
    }

    fn spec(&self) -> VmSpec {
        let goal = &self.goal;
        let guest =
            mayfly_wire::Guest { goal: goal.clone(), incarnation: 0, domain: String::new(), location: String::new() };
        VmSpec {
            name: goal.vm.to_string(),
            accelerator: self.agent.config.accelerator,
            vcpus: goal.size.vcpus(),
            memory_mib: goal.size.resources().memory_mib,
            disk: DiskSpec {
                socket: prepare::disk_socket(&self.agent, goal),
                device: match prepare::model(&self.agent, goal) {
                    DiskModel::Virtio => DiskDevice::Virtio,
                    DiskModel::VhostUser => DiskDevice::VhostUser,
                    DiskModel::Sata => DiskDevice::Sata,
                    DiskModel::Nvme => DiskDevice::Nvme,
                },
                pause_when_full: self.agent.config.disk_full == DiskFull::Pause,
            },
            tap: tap_name(goal.vm),
            mac: goal.mac(),
            firmware: Firmware {
                uuid: guest.system_uuid(),
                serial: "ds=nocloud-net;s=http://169.254.169.254/nocloud/".to_owned(),
            },
            folder: self.agent.ledger.vm_folder(goal.vm),
        }
    }

    fn serve_dhcp(&mut self) {
        if self.dhcp.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let tap = tap_name(self.goal.vm);
        let zone = self.agent.goal.borrow().network.zone.clone();
        let lease = DhcpLease {
            address: self.goal.dip,
            host_name: self.goal.computer_name.clone(),
            domain: domain(&self.goal, &zone),
            mtu: self.agent.guest_mtu,
        };
        self.dhcp = Some(tokio::spawn(async move {
            if let Err(error) = serve_dhcp(&tap, lease).await {
                tracing::error!(tap, %error, "DHCP ended");
            }
        }));
    }

    async fn back_off(&mut self) {
        let pause = self.pause;
        self.pause = (self.pause * 2).min(PAUSE_LAST);
        self.wait(pause).await;
    }

    /// Waits, but no longer than until something else is wanted.
    async fn wait(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            _ = self.desired.changed() => {}
            _ = self.serving.changed() => {}
        }
    }

    fn set(&self, stage: Stage) {
        self.update(|status| {
            if !matches!(stage, Stage::Running | Stage::Paused(_)) {
                status.forget_guest();
            }
            status.stage = stage;
        });
    }

    /// Changes the status and tells everybody.
    fn update<T>(&self, change: impl FnOnce(&mut VmStatus) -> T) -> Option<T> {
        let result = self.update_quietly(change);
        self.agent.tell();
        result
    }

    fn update_quietly<T>(&self, change: impl FnOnce(&mut VmStatus) -> T) -> Option<T> {
        self.agent.statuses().vms.get_mut(&self.goal.vm).map(change)
    }

    fn note(&self) {
        if let Err(error) = self.note_or_fail() {
            tracing::error!(error = format!("{error:#}"), "a VM cannot be written down");
        }
    }

    fn note_or_fail(&self) -> anyhow::Result<()> {
        let note = self.update_quietly(|status| VmNote {
            goal: status.goal.clone(),
            reboots: status.reboots,
            restarts: status.restarts,
            ready: status.says_ready(),
        });
        note.map_or(Ok(()), |note| self.agent.ledger.write_vm(&note))
    }
}

/// Empties a console's log that has grown too long: a guest must not fill its host's disk by talking.
fn limit_log(path: &Path) {
    let long = std::fs::metadata(path).is_ok_and(|data| data.len() > SERIAL_LOG_BYTES);
    if long && let Err(error) = std::fs::OpenOptions::new().write(true).truncate(true).open(path) {
        tracing::warn!(path = %path.display(), %error, "a long console log cannot be emptied");
    }
}
