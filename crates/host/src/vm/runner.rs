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

use mayfly_model::VmGoal;
use mayfly_net::address::tap_name;
use mayfly_net::{DhcpLease, delete_tap, serve_guest};
use mayfly_qemu::{Machine, VmSpec};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::farewell::{self, Plan};
use super::running::Ended;
use super::{Ask, Desired, local, prepare, provision, spec};
use crate::agent::{Agent, lock};
use crate::clock;
use crate::ledger::VmNote;
use crate::servers::domain;
use crate::status::{Stage, VmStatus};

/// Between two looks at whether what holds up a guest's start is over.
const HELD_UP: Duration = Duration::from_millis(500);
/// Pauses before another try grow from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Shorter than the patience of those who wait for a host that fails.
const PAUSE_LAST: Duration = Duration::from_secs(15);
/// A guest that has run so long is started again without a pause that earlier failures have made long.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long the controller is given to hear what a VM has sent and received, before it hears that nothing is left of it.
const HEARD: Duration = Duration::from_secs(1);

pub(super) struct Runner {
    pub(super) agent: Arc<Agent>,
    pub(super) goal: VmGoal,
    pub(super) desired: watch::Receiver<Desired>,
    pub(super) serving: watch::Receiver<bool>,
    /// What is asked of whoever holds the monitor.
    pub(super) asks: mpsc::Receiver<Ask>,
    /// Who answers the guest's questions for its addresses, and what with.
    dhcp: Option<(DhcpLease, tokio::task::JoinHandle<()>)>,
    pause: Duration,
    /// Whether a guest may be running from before.
    pub(super) adopted: bool,
    /// Its turn to boot.
    pub(super) turn: Option<OwnedSemaphorePermit>,
    /// Where the present boot begins in the console's log, in bytes.
    pub(super) log_from: u64,
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
        let machine = match self.take_up().await {
            Some(machine) => Ok(machine),
            None => {
                // Said first, so that whoever wants to read the disk from now on is refused.
                self.set(Stage::Preparing("making its disk".to_owned()));
                if let Some(reason) = self.held_up() {
                    self.set(Stage::Preparing(reason.to_owned()));
                    self.wait(HELD_UP).await;
                    return true;
                }
                self.start().await
            }
        };
        let machine = match machine {
            Ok(machine) => machine,
            Err(error) => {
                self.turn = None;
                if self.held_up().is_some() {
                    // That is said in the next turn, and is no failure.
                    return true;
                }
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

    /// Why the guest must not be started yet.
    pub(super) fn held_up(&self) -> Option<&'static str> {
        if lock(&self.agent.captures).contains(&self.goal.vm) {
            return Some("waiting until its disk has been captured");
        }
        if self.agent.goal.borrow().restored {
            return Some("waiting, as the records come from a backup: another host may have a later VM of it");
        }
        self.is_preceded().then_some("waiting until nothing is left of the VM before it")
    }

    /// Whether another VM of this host that is not wanted any more has the same address, or carried the same identity.
    fn is_preceded(&self) -> bool {
        let (own, wanted) = (&self.goal, self.agent.goal.borrow().clone());
        let going = |other: &VmGoal| other.vm != own.vm && wanted.vms.iter().all(|vm| vm.vm != other.vm);
        let identity = |goal: &VmGoal| (goal.deployment_id.clone(), goal.instance.name());
        let same = |other: &VmGoal| other.dip == own.dip || identity(other) == identity(own);
        self.agent.statuses().vms.values().any(|status| going(&status.goal) && same(&status.goal))
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
    pub(super) fn unwanted(&mut self) -> bool {
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

    /// Nothing may be left of a VM that is not wanted: a disk that is thrown away is never used again.
    async fn destroy(&mut self) {
        self.set(Stage::Stopped("it is being thrown away".to_owned()));
        self.stop_leftover().await;
        if let Some((_, dhcp)) = self.dhcp.take() {
            dhcp.abort();
        }
        self.measure_traffic();
        // The controller closes the VM's account with what it has heard last.
        let counted = clock::now();
        self.agent.tell();
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
        provision::throw_away(&self.agent, &self.goal);
        let mut reported = self.agent.reported.subscribe();
        let _ = tokio::time::timeout(HEARD, reported.wait_for(|at| *at >= counted)).await;
        self.agent.statuses().vms.remove(&vm);
        super::sweep(&self.agent);
        self.agent.tell();
        tracing::info!(%vm, "thrown away");
    }

    /// Takes what the VM's network card has counted.
    pub(super) fn measure_traffic(&self) {
        if let Some(card) = mayfly_net::traffic(&tap_name(self.goal.vm)) {
            self.update_quietly(|status| status.traffic.see(card));
        }
    }

    /// Ends a guest that an earlier agent started and this one has not taken up.
    pub(super) async fn stop_leftover(&mut self) {
        let spec = self.spec();
        if let Ok(machine) = Machine::adopt(&spec.monitor(), &spec.pid_file()).await {
            machine.stop().await;
        }
        let monitor = spec.monitor();
        // One that does not answer must not stay either.
        let _ = tokio::task::spawn_blocking(move || Machine::end_leftovers(&monitor)).await;
        self.adopted = false;
    }

    /// Where the VM's monitor is, whatever else it has.
    pub(super) fn spec(&self) -> VmSpec {
        spec::spec(&self.agent, &self.goal, Vec::new(), None)
    }

    /// Follows whether the running guest is to have IPv6.
    pub(super) async fn follow_ipv6(&mut self) {
        if self.dhcp.as_ref().is_none_or(|(lease, _)| lease.ipv6 == self.goal.ipv6) {
            return;
        }
        self.prepare_tap().await;
        self.serve_dhcp();
    }

    /// Makes the tap of a running guest what it should be.
    pub(super) async fn prepare_tap(&self) {
        // Its place in the network over IPv6 comes and goes with this.
        let done = prepare::tap(&self.agent, &self.goal).await;
        let (ready, wanted) = (done.is_ok(), self.goal.ipv6.is_some());
        self.update(|status| status.tap_has_ipv6 = ready && wanted);
        if let Err(error) = done {
            tracing::warn!(vm = %self.goal.vm, error = format!("{error:#}"), "its tap is not as it should be");
        }
    }

    pub(super) fn serve_dhcp(&mut self) {
        let zone = self.agent.goal.borrow().network.zone.clone();
        let lease = DhcpLease {
            address: self.goal.dip,
            ipv6: self.goal.ipv6.filter(|_| self.update_quietly(|status| status.tap_has_ipv6) == Some(true)),
            host_name: self.goal.computer_name.clone(),
            domain: domain(&self.goal, &zone),
            mtu: self.agent.guest_mtu,
        };
        match self.dhcp.take() {
            Some((served, task)) if served == lease && !task.is_finished() => {
                self.dhcp = Some((served, task));
                return;
            }
            other => other.into_iter().for_each(|(_, task)| task.abort()),
        }
        let (tap, links, told) = (tap_name(self.goal.vm), self.agent.links.clone(), lease.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = serve_guest(&links, &tap, told).await {
                tracing::error!(tap, %error, "DHCP ended");
            }
        });
        self.dhcp = Some((lease, task));
    }

    async fn back_off(&mut self) {
        let pause = self.pause;
        self.pause = (self.pause * 2).min(PAUSE_LAST);
        self.wait(pause).await;
    }

    /// Waits, but no longer than until something else is wanted.
    pub(super) async fn wait(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            _ = self.desired.changed() => {}
            _ = self.serving.changed() => {}
        }
    }

    pub(super) fn set(&self, stage: Stage) {
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

    pub(super) fn note(&self) {
        if let Err(error) = self.note_or_fail() {
            tracing::error!(error = format!("{error:#}"), "a VM cannot be written down");
        }
    }

    pub(super) fn note_or_fail(&self) -> anyhow::Result<()> {
        let note = self.update_quietly(|status| VmNote {
            goal: status.goal.clone(),
            reboots: status.reboots,
            restarts: status.restarts,
            ready: status.says_ready(),
            script_runs: status.script_runs.clone(),
            steps: status.steps.clone(),
            asked: (status.asked, status.cloud_init),
            beats: status.beats.1,
            traffic: status.traffic,
        });
        note.map_or(Ok(()), |note| self.agent.ledger.write_vm(&note))
    }
}
