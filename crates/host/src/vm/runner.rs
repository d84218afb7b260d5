//! The task of one VM.
//!
//! ```text
//!   prepare ──▶ start or adopt ──▶ watch ──┬─ guest ended: again, after a pause that grows
//!      ▲                                   ├─ suspended: stop in good order, wait
//!      ▲ fails: again, after a pause       ├─ reboot wanted: stop in good order, start
//!      │                                   ├─ no lease: stop at once, wait for one
//!      └───────────────────────────────────┴─ not wanted: stop, throw everything away, end
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use mayfly_model::VmGoal;
use mayfly_net::address::tap_name;
use mayfly_net::{DhcpLease, delete_tap, serve_dhcp};
use mayfly_qemu::{Machine, Memory, VmSpec};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::farewell::{self, Plan};
use super::{Ask, Desired, console, local, prepare, provision, spec, template};
use crate::agent::Agent;
use crate::ledger::VmNote;
use crate::processor::Processor;
use crate::servers::domain;
use crate::status::{BEATS, Stage, VmStatus};

/// Pauses before another try grow from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LAST: Duration = Duration::from_secs(30);
/// A guest that has run so long is started again without a pause that earlier failures have made long.
const HEALTHY: Duration = Duration::from_secs(60);
/// Between two tries to go on after the disk was full.
const RESUME: Duration = Duration::from_secs(5);
/// How long a guest that is not heard has its turn to boot.
const TURN: Duration = Duration::from_secs(60);
/// How long the last words of a kernel take to the console's log.
const LAST_WORDS: Duration = Duration::from_millis(200);
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

pub(super) struct Runner {
    agent: Arc<Agent>,
    pub(super) goal: VmGoal,
    desired: watch::Receiver<Desired>,
    pub(super) serving: watch::Receiver<bool>,
    /// What is asked of whoever holds the monitor.
    asks: mpsc::Receiver<Ask>,
    dhcp: Option<tokio::task::JoinHandle<()>>,
    pause: Duration,
    /// Whether a guest may be running from before.
    adopted: bool,
    /// Its turn to boot.
    turn: Option<OwnedSemaphorePermit>,
    /// Where the present boot begins in the console's log, in bytes.
    log_from: u64,
}

/// Runs until nothing is left of the VM.
pub(super) async fn run(
    agent: Arc<Agent>,
    goal: VmGoal,
    adopted: bool,
    desired: watch::Receiver<Desired>,
    asks: mpsc::Receiver<Ask>,
) {
    let serving = agent.serving.subscribe();
    let mut runner = Runner {
        agent,
        goal,
        desired,
        serving,
        asks,
        dhcp: None,
        pause: PAUSE_FIRST,
        adopted,
        turn: None,
        log_from: 0,
    };
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
                self.turn = None;
                tracing::warn!(vm = %self.goal.vm, error = format!("{error:#}"), "a VM cannot be started");
                self.set(Stage::Failed(format!("{error:#}")));
                self.back_off().await;
                return true;
            }
        };
        let began = tokio::time::Instant::now();
        let (ended, machine) = self.watch(machine).await;
        self.turn = None;
        match ended {
            Ended::Exit(reason) => {
                // One whose kernel has given up is still there.
                machine.stop().await;
                self.update_quietly(|status| status.restarts += 1);
                self.set(Stage::Stopped(reason));
                self.note();
                if began.elapsed() > HEALTHY {
                    self.pause = PAUSE_FIRST;
                }
                self.back_off().await;
            }
            Ended::Reboot => {
                self.stop(machine, Plan::Reboot).await;
                let wanted = self.goal.reboots;
                self.update(|status| status.reboots = wanted);
                self.note();
            }
            Ended::Off => {
                self.stop(machine, Plan::Stop).await;
            }
            Ended::Fenced => {
                self.set(Stage::Stopped("its host has no lease".to_owned()));
                machine.stop().await;
            }
            Ended::Unwanted => {
                self.stop(machine, Plan::Discard).await;
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

    /// Stops a guest as planned: with notice, and in good order if it is well. One that is sick would only be waited for.
    async fn stop(&self, mut machine: Machine, plan: Plan) {
        let well = farewell::say(self, plan).await;
        self.set(Stage::Stopped(plan.reason().to_owned()));
        let seconds = if well || plan != Plan::Discard { self.goal.guest.shutdown_seconds } else { 0 };
        let mut serving = self.serving.clone();
        tokio::select! {
            () = machine.power_down(Duration::from_secs(u64::from(seconds))) => {}
            // Without a lease there is no time for good order.
            _ = serving.wait_for(|serving| !serving) => {}
        }
        machine.stop().await;
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
            status.steps.clear();
            status.reach("its host begins");
            // A reboot that was asked for before there was a guest has nothing to do.
            status.reboots = status.reboots.max(goal.reboots);
        });
        self.note_or_fail()?;
        self.set(Stage::Preparing("making its disk".to_owned()));
        let template = match prepare::disk_path(&agent, &goal).exists() {
            true => None,
            false => template::for_new(&agent, &goal)?,
        };
        prepare::disk(&agent, &goal, template::base(&agent, &goal)).await?;
        let local_disks = local::disks(&agent, &goal).await?;
        let cdrom = provision::disk(&agent, &goal)?;
        prepare::tap(&agent, &goal).await?;
        self.update(|status| status.has_tap = true);
        self.serve_dhcp();
        crate::guard::check(&agent);
        self.take_turn().await?;
        // Much may have changed while the image was on its way, and others booted.
        if self.desired.borrow().as_ref().is_none_or(|now| now.vm != goal.vm) || !*self.serving.borrow() {
            bail!("it is not wanted here any more");
        }
        console::rotate(&agent.ledger.vm_folder(goal.vm));
        self.log_from = 0;
        self.update_quietly(|status| status.reach("its disks and its network are there"));
        let mut spec = spec::spec(&agent, &goal, local_disks, cdrom);
        if let Some(template) = &template {
            spec.memory = Memory::Clone(template.ram());
            spec.identity = Some(template::identity(&agent, &goal)?);
        }
        let machine = Machine::start(&spec).await?;
        if let Some(template) = template {
            let socket = spec.folder.join("incoming.sock");
            let restored = machine.restore(&template.state(), &socket).await;
            // It holds what its random numbers are made of.
            let _ = std::fs::remove_file(spec.folder.join("identity"));
            if let Err(error) = restored {
                // The next try boots it as always.
                template.give_up();
                machine.stop().await;
                template::forget(&agent, &goal);
                return Err(anyhow::Error::from(error).context("it cannot start from its template"));
            }
            self.update_quietly(|status| status.from_template = true);
        }
        self.update(|status| {
            let copied = std::mem::take(&mut status.from_template);
            status.forget_guest();
            status.reach(if copied { "it goes on from a template" } else { "QEMU runs" });
            status.stage = Stage::Running;
        });
        Ok(machine)
    }

    /// Waits for a turn to boot, and keeps it until the guest is heard.
    async fn take_turn(&mut self) -> anyhow::Result<()> {
        if self.agent.boots.available_permits() == 0 {
            self.set(Stage::Preparing("waiting for its turn to boot".to_owned()));
        }
        self.turn = Some(Arc::clone(&self.agent.boots).acquire_owned().await?);
        Ok(())
    }

    /// Takes up a guest that an earlier agent started. What it said to that one still holds.
    async fn adopt(&mut self) -> Option<Machine> {
        let spec = self.spec();
        let machine = Machine::adopt(&spec.monitor(), &spec.pid_file()).await.ok()?;
        // One that was never given its template's state, or whose kernel has given up, is no guest that runs.
        if !machine.has_guest().await {
            machine.stop().await;
            return None;
        }
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
        let mut changed = self.agent.changed.subscribe();
        let began = tokio::time::Instant::now();
        let mut noted = None;
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
            if self.turn.is_some()
                && (began.elapsed() > TURN || self.update_quietly(|status| status.is_heard()) == Some(true))
            {
                self.turn = None;
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
                    // From within: it was not asked for, but it is no crash of the machine.
                    Some(event) if event.name == "RESET" => self.restarted_by_itself(),
                    Some(event) if event.name == "GUEST_PANICKED" => {
                        return (Ended::Exit(self.gave_up().await), machine);
                    }
                    Some(_) => {}
                },
                _ = changed.changed(), if self.turn.is_some() => {}
                Some(ask) = self.asks.recv() => ask.answer(&machine).await,
                () = resume => {
                    resume_at = None;
                    if machine.resume().await.is_ok() {
                        self.set(Stage::Running);
                    }
                }
                _ = measure.tick() => {
                    let log = console::log(&self.agent.ledger.vm_folder(self.goal.vm), 0);
                    console::limit(&log);
                    self.note_last_words(console::last_words(&log, self.log_from));
                    self.take_out_provisioning(&machine).await;
                    let used = processor.used_lately();
                    let traffic = mayfly_net::traffic(&tap_name(self.goal.vm));
                    self.update_quietly(|status| (status.cpu_milli, status.traffic) = (used, traffic));
                    let now = self.update_quietly(|status| (status.says_ready(), status.script_runs.len(), status.steps.len(), status.cloud_init, status.beats.1.min(BEATS)));
                    if now != noted {
                        noted = now;
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
        let exports: Vec<String> = std::iter::once(vm.to_string()).chain(local::export_names(&self.goal)).collect();
        self.update(|status| status.has_tap = false);
        loop {
            let (disks, folder, exports) = (self.agent.disks.clone(), folder.clone(), exports.clone());
            let done = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
                for name in &exports {
                    disks.close(name)?;
                }
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
        super::sweep(&self.agent);
        self.agent.tell();
        tracing::info!(%vm, "thrown away");
    }

    /// Ends a guest that an earlier agent started and this one has not taken up.
    async fn stop_leftover(&mut self) {
        let spec = self.spec();
        if let Ok(machine) = Machine::adopt(&spec.monitor(), &spec.pid_file()).await {
            machine.stop().await;
        }
        let monitor = spec.monitor();
        // One that does not answer must not stay either.
        let _ = tokio::task::spawn_blocking(move || Machine::end_leftovers(&monitor)).await;
        self.adopted = false;
    }

    /// The guest has started again from within.
    fn restarted_by_itself(&mut self) {
        let log = console::log(&self.agent.ledger.vm_folder(self.goal.vm), 0);
        self.log_from = std::fs::metadata(log).map_or(0, |data| data.len());
        self.update(|status| {
            // The firmware resets the machine too, before there is a guest.
            if status.asked || status.said.is_some() {
                status.restarts += 1;
                status.steps.clear();
                status.reach("the guest has restarted by itself");
            }
            status.forget_guest();
        });
        self.note();
    }

    /// The guest's kernel has given up. Its last words may still be on their way to the console's log.
    async fn gave_up(&self) -> String {
        tokio::time::sleep(LAST_WORDS).await;
        let log = console::log(&self.agent.ledger.vm_folder(self.goal.vm), 0);
        match console::last_words(&log, self.log_from) {
            Some(words) => format!("its kernel panicked: {words}"),
            None => "its kernel panicked".to_owned(),
        }
    }

    /// A kernel without the driver by which it could tell its host has only the console for its last words.
    fn note_last_words(&self, words: Option<String>) {
        if self.update_quietly(|status| std::mem::replace(&mut status.panic, words.clone()) != words) == Some(true) {
            self.agent.tell();
        }
    }

    /// A guest that is ready has read what it was told, and nobody else shall.
    async fn take_out_provisioning(&self, machine: &Machine) {
        let ready = self.update_quietly(|status| status.says_ready()) == Some(true);
        if !ready || !provision::is_there(&self.agent, &self.goal) {
            return;
        }
        let done = match machine.eject().await {
            Ok(()) => provision::forget(&self.agent, &self.goal),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = done {
            tracing::warn!(vm = %self.goal.vm, error = format!("{error:#}"), "its provisioning disk stays for now");
        }
    }

    /// Where the VM's monitor is, whatever else it has.
    fn spec(&self) -> VmSpec {
        spec::spec(&self.agent, &self.goal, Vec::new(), None)
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
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut VmStatus) -> T) -> Option<T> {
        let result = self.update_quietly(change);
        self.agent.tell();
        result
    }

    pub(super) fn update_quietly<T>(&self, change: impl FnOnce(&mut VmStatus) -> T) -> Option<T> {
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
            script_runs: status.script_runs.clone(),
            steps: status.steps.clone(),
            asked: (status.asked, status.cloud_init),
            beats: status.beats.1,
        });
        note.map_or(Ok(()), |note| self.agent.ledger.write_vm(&note))
    }
}
