//! Trouble: what goes wrong, when, and how it ends.

use mayfly_fabric::{Command, Input, State};
use mayfly_model::{Admission, DeploymentKey, HostCondition, Slot, UpgradeMode};
use rand::Rng;

use super::{Event, World};
use crate::host::Guest;
use crate::options::Fault;
use crate::oracle::Checked;
use crate::workload;

impl World {
    pub(super) fn fault(&mut self) -> Checked {
        if !self.in_trouble() {
            return self.end_trouble();
        }
        let delay = self.rng.faults.random_range(300..4000);
        self.at(delay * self.options.pace, Event::Fault);
        let kinds: Vec<Fault> = self.faults.iter().copied().collect();
        if kinds.is_empty() {
            return Ok(());
        }
        self.summary.faults += 1;
        let kind = kinds[self.rng.faults.random_range(0..kinds.len())];
        let host = self.rng.faults.random_range(0..self.hosts.len());
        self.inflict(kind, host)
    }

    fn inflict(&mut self, kind: Fault, host: usize) -> Checked {
        let now = self.now;
        let rng = &mut self.rng.faults;
        match kind {
            Fault::Crash => self.power_off(host),
            Fault::RackLoss => {
                let domain = self.hosts[host].domain;
                let rack: Vec<usize> = (0..self.hosts.len()).filter(|one| self.hosts[*one].domain == domain).collect();
                rack.into_iter().for_each(|host| self.power_off(host));
            }
            Fault::AgentRestart => self.hosts[host].restart_agent(now),
            Fault::Freeze => self.hosts[host].frozen_until = now + rng.random_range(200..8000),
            Fault::Partition => {
                let share = rng.random_range(1..60);
                let nodes = self.hosts.len() + 1;
                let heals = rng.random_ratio(1, 3);
                let minority = (0..nodes).filter(|_| !heals && rng.random_ratio(share, 100)).collect();
                self.network.partition(minority, now);
            }
            Fault::Mute => {
                let nodes = self.hosts.len() + 1;
                let heals = rng.random_ratio(1, 3);
                let mute = (0..nodes).filter(|_| !heals && rng.random_ratio(8, 100)).collect();
                self.network.mute(mute, now);
            }
            Fault::BadNetwork => self.network.badness = rng.random_range(0..30),
            Fault::ControllerCrash if self.core.is_some() => self.crash_controller(),
            Fault::StoreStall if now >= self.stalled_until => {
                let length = rng.random_range(100..7000);
                self.stalled_until = now + length;
                self.at(length, Event::StoreGoesOn);
            }
            Fault::Join => {
                let newcomers = (0..self.hosts.len()).filter(|host| {
                    let host = &self.hosts[*host];
                    host.session == 1 && !host.alive
                });
                for host in newcomers.collect::<Vec<_>>() {
                    self.at(1, Event::PowerOn(host));
                }
            }
            Fault::DiskFull => self.hosts[host].disk_full = rng.random(),
            Fault::StuckGuest | Fault::CrashingGuest => {
                let guests = self.hosts[host].vms.values_mut();
                for vm in guests.filter(|_| rng.random_ratio(1, 3)) {
                    match kind {
                        Fault::StuckGuest => vm.guest = Guest::Stuck,
                        _ => (vm.restarts, vm.ready_at) = (vm.restarts + 1, now + 2000),
                    }
                }
            }
            Fault::ControllerCrash | Fault::StoreStall => {}
            Fault::LostAnswers | Fault::BadChunks | Fault::KillerImage => {}
            Fault::Restore => return self.back_up_or_restore(),
        }
        Ok(())
    }

    fn power_off(&mut self, host: usize) {
        if self.hosts[host].alive {
            self.hosts[host].power(false, self.now);
            let off = self.rng.faults.random_range(100..12_000);
            self.at(off, Event::PowerOn(host));
        }
    }

    /// All faults end, and whoever is responsible has looked.
    fn end_trouble(&mut self) -> Checked {
        self.network.heal(self.now);
        for host in 0..self.hosts.len() {
            self.hosts[host].disk_full = false;
            if !self.hosts[host].alive {
                self.at(1, Event::PowerOn(host));
            }
        }
        self.start_controller()?;
        let killer = DeploymentKey { service: workload::valid(workload::KILLER.parse()), slot: Slot::Production };
        self.step(Input::Tick)?;
        let commands = self.core.as_ref().map_or_else(Vec::new, |core| tidy(core.state(), &killer));
        for command in commands {
            let id = format!("tidy-{}-{}", self.now, self.rng.users.random::<u64>());
            self.request(id, command)?;
        }
        // What is still stuck, lost or closed then is so for a reason that somebody else has to look at, again.
        if self.now < 1000 + self.options.trouble + self.options.calm / 2 {
            self.at(4000, Event::Fault);
        }
        Ok(())
    }
}

/// What a person would put right when the trouble is over.
fn tidy(state: &State, killer: &DeploymentKey) -> Vec<Command> {
    let mut commands = Vec::new();
    if state.deployments().get(killer).is_some_and(|one| !one.is_deleting()) {
        commands.push(Command::DeleteDeployment(killer.clone()));
    }
    commands.extend(state.breaker().trips.keys().cloned().map(Command::ResetBreaker));
    let closed = state.hosts().values().filter(|host| {
        host.condition == HostCondition::Up
            && matches!(host.admission, Admission::Draining { .. } | Admission::Quarantined { .. })
    });
    commands.extend(closed.map(|host| Command::Undrain(host.name.clone())));
    for deployment in state.deployments().values() {
        let Some(upgrade) = &deployment.upgrade else { continue };
        let (key, mode) = (deployment.key.clone(), UpgradeMode::Auto);
        if upgrade.stuck.is_some() {
            let mut version = deployment.version.clone();
            for role in &mut version.configuration.roles {
                role.settings.push(("again".to_owned(), deployment.newest.to_string()));
            }
            commands.push(Command::Upgrade { key, version, mode });
        } else if upgrade.mode == UpgradeMode::Manual {
            commands.push(Command::Rollback { key, mode });
        }
    }
    commands
}
