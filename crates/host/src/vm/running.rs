//! Watching a guest that runs: what it does by itself, what is asked of it, and when something has to be done.

use std::time::Duration;

use mayfly_qemu::Machine;

use super::runner::Runner;
use super::{console, provision};
use crate::processor::Processor;
use crate::status::{BEATS, Stage};

/// Between two tries to go on after the disk was full.
const RESUME: Duration = Duration::from_secs(5);
/// How long a guest that is not heard has its turn to boot.
const TURN: Duration = Duration::from_secs(60);
/// How long the last words of a kernel take to the console's log.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Between two looks at the size of the disk's file.
const MEASURE: Duration = Duration::from_secs(2);

/// Why watching a guest has ended.
pub(super) enum Ended {
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

impl Runner {
    /// Watches a running guest until something has to be done.
    pub(super) async fn watch(&mut self, mut machine: Machine) -> (Ended, Machine) {
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
            self.follow_ipv6().await;
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
                    self.measure_traffic();
                    self.update_quietly(|status| status.cpu_milli = used);
                    let now = self.update_quietly(|status| (status.says_ready(), status.script_runs.len(), status.steps.len(), status.cloud_init, status.beats.1.min(BEATS), status.traffic.worth()));
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
        if !ready || provision::is_done(&self.agent, &self.goal) {
            return;
        }
        let done = match provision::is_there(&self.agent, &self.goal) {
            true => match machine.eject().await {
                Ok(()) => provision::forget(&self.agent, &self.goal),
                Err(error) => Err(error.into()),
            },
            // Others have no such disk, and need not know whether they were told; this one was told of its user.
            false if self.goal.guest.remote_access.is_some() => provision::note(&self.agent, &self.goal),
            false => return,
        };
        if let Err(error) = done {
            tracing::warn!(vm = %self.goal.vm, error = format!("{error:#}"), "its provisioning disk stays for now");
        }
    }
}
