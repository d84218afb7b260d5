//! Getting a guest to run: taking up one that runs already, or making what it needs and starting QEMU.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use mayfly_qemu::{Machine, Memory};

use super::runner::Runner;
use super::{console, local, prepare, provision, spec, template};
use crate::status::Stage;

/// Between two questions for what a guest is to be told.
const ASK_AGAIN: Duration = Duration::from_secs(2);

impl Runner {
    /// Finds the guest running, if an earlier agent has started it.
    pub(super) async fn take_up(&mut self) -> Option<Machine> {
        if std::mem::take(&mut self.adopted) { self.adopt().await } else { None }
    }

    /// Makes what is missing and starts the guest.
    pub(super) async fn start(&mut self) -> anyhow::Result<Machine> {
        let (agent, goal) = (Arc::clone(&self.agent), self.goal.clone());
        self.update_quietly(|status| {
            status.forget_guest();
            status.steps.clear();
            status.reach("its host begins");
            // A reboot that was asked for before there was a guest has nothing to do.
            status.reboots = status.reboots.max(goal.reboots);
        });
        self.note_or_fail()?;
        if goal.guest.remote_access.is_some() && !provision::is_done(&agent, &goal) {
            self.set(Stage::Preparing("asking for its user's password".to_owned()));
            agent.secrets.of(&agent, &goal).await?;
        }
        self.set(Stage::Preparing("making its disk".to_owned()));
        let template = match prepare::disk_path(&agent, &goal).exists() {
            true => None,
            false => template::for_new(&agent, &goal)?,
        };
        prepare::disk(&agent, &goal, template::base(&agent, &goal)).await?;
        let local_disks = local::disks(&agent, &goal).await?;
        let cdrom = provision::disk(&agent, &goal)?;
        prepare::tap(&agent, &goal).await?;
        self.update(|status| (status.has_tap, status.tap_has_ipv6) = (true, goal.ipv6.is_some()));
        self.serve_dhcp();
        crate::guard::check(&agent);
        self.take_turn().await?;
        // Much may have changed while the image was on its way, and others booted.
        if self.desired.borrow().as_ref().is_none_or(|now| now.vm != goal.vm) || !*self.serving.borrow() {
            bail!("it is not wanted here any more");
        }
        if let Some(why) = self.held_up() {
            bail!("{why}");
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

    /// A guest that an earlier agent started may not have been told yet of its user.
    fn ask_for_user(&self) {
        let (agent, goal) = (Arc::clone(&self.agent), self.goal.clone());
        if goal.guest.remote_access.is_none() || provision::is_done(&agent, &goal) {
            return;
        }
        tokio::spawn(async move {
            while agent.statuses().vms.contains_key(&goal.vm) && agent.secrets.of(&agent, &goal).await.is_err() {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        });
    }

    /// Waits for a turn to boot, and keeps it until the guest is heard.
    async fn take_turn(&mut self) -> anyhow::Result<()> {
        if self.agent.boots.available_permits() == 0 {
            self.set(Stage::Preparing("waiting for its turn to boot".to_owned()));
        }
        let boots = Arc::clone(&self.agent.boots);
        loop {
            tokio::select! {
                turn = Arc::clone(&boots).acquire_owned() => {
                    self.turn = Some(turn?);
                    return Ok(());
                }
                _ = self.desired.changed() => {}
                _ = self.serving.changed() => {}
            }
            if self.desired.borrow().is_none() || !*self.serving.borrow() {
                bail!("it is not wanted here any more");
            }
        }
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
        self.prepare_tap().await;
        self.serve_dhcp();
        crate::guard::check(&self.agent);
        self.ask_for_user();
        // It may have been paused by a full disk, with nobody left to let it go on.
        if let Err(error) = machine.resume().await {
            tracing::warn!(vm = %self.goal.vm, %error, "cannot let it go on");
        }
        Some(machine)
    }
}
