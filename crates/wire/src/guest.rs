//! Who asks.

use std::net::Ipv4Addr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use mayfly_model::{RoleName, VmGoal};
use serde::{Deserialize, Serialize};

/// A guest, as the protocols show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What it should be.
    pub goal: VmGoal,
    /// Whether all that it is told once is known here; if not, it has to ask again.
    pub complete: bool,
    /// The number of the guest's own goal state; grows when its settings change, or who else is in its deployment.
    pub incarnation: u64,
    /// Its domain, for example `shop.internal.mayfly.test`.
    pub domain: String,
    /// The location's name.
    pub location: String,
    /// The instances of its deployment, itself included, in order.
    pub members: Arc<Vec<Member>>,
    /// What is about to happen to it.
    pub planned: Option<Planned>,
}

/// An instance of a guest's deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its role.
    pub role: RoleName,
    /// Its number in that.
    pub index: u32,
    /// Its update domain.
    pub update_domain: u32,
    /// Its address.
    pub dip: Ipv4Addr,
    /// Its public endpoints.
    pub endpoints: Vec<MemberEndpoint>,
}

impl Member {
    /// `web_IN_0`.
    pub fn name(&self) -> String {
        format!("{}_IN_{}", self.role, self.index)
    }
}

/// A public endpoint of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEndpoint {
    /// Its name.
    pub name: String,
    /// Whether it is UDP.
    pub udp: bool,
    /// The port in the guest.
    pub local_port: u16,
    /// The public address.
    pub vip: Ipv4Addr,
    /// The port there.
    pub port: u16,
}

/// What is planned for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its id, a UUID.
    pub id: String,
    /// What happens: `Reboot`, `Redeploy` (a new VM) or `Terminate`, the words of the original's scheduled events.
    pub kind: &'static str,
    /// Until when the guest may get ready for it, as HTTP dates are written.
    pub not_before: String,
    /// Whether the guest has said that it is ready for it.
    pub acknowledged: bool,
    /// Why, for people.
    pub description: String,
}

impl Guest {
    /// The container's id: a UUID made of the VM's id.
    pub fn container_id(&self) -> String {
        uuid(&self.goal, "c0")
    }

    /// The system's UUID, new with each VM.
    pub fn system_uuid(&self) -> String {
        system_uuid(&self.goal)
    }

    /// `{deployment}.{instance}`.
    pub fn instance_id(&self) -> String {
        format!("{}.{}", self.goal.deployment_id, self.goal.instance.name())
    }

    /// The name by which the host's plug-in knows its configuration.
    pub fn config_name(&self) -> String {
        let (deployment, name) = (&self.goal.deployment_id, self.goal.instance.name());
        format!("{deployment}.0.{deployment}.0._{name}.1.xml")
    }
}

/// The system's UUID of a VM, new with each.
pub fn system_uuid(goal: &VmGoal) -> String {
    uuid(goal, "51")
}

/// The id of what is planned for a VM's guest; `life` tells its guests apart.
pub fn event_id(goal: &VmGoal, life: u32) -> String {
    let id = uuid(goal, "e7");
    format!("{}{:04x}{:08x}", &id[..24], life & 0xffff, goal.vm.0 & 0xffff_ffff)
}

/// A UUID (version 8: made by the maker's own rule) of the deployment's id and the VM's.
fn uuid(goal: &VmGoal, kind: &str) -> String {
    let deployment = &goal.deployment_id;
    let part = |from: usize, to: usize| deployment.get(from..to).unwrap_or("0000");
    format!("{}-{}-8{}-8{kind}0-{:012x}", part(0, 8), part(8, 12), part(12, 15), goal.vm.0)
}

/// What a guest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthReport {
    /// Whether it is ready.
    pub ready: bool,
    /// Its own words, if it is not.
    pub detail: String,
}

/// What became of a run of a role's post-boot script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptReport {
    /// Which try it was, from 1.
    pub attempt: u32,
    /// Its exit status; none when its time was over.
    pub status: Option<i32>,
    /// Whether nothing more follows: it has succeeded, or was tried often enough.
    pub last: bool,
    /// The end of what it printed.
    pub output: String,
}

/// What guests' agents say to their host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// How it is.
    Health(HealthReport),
    /// cloud-init has read what it is told, and says that it is ready, long before it is through.
    CloudInit,
    /// Nothing but that it is there: its agent asks for news.
    Alive,
    /// Its agent uploads a status, which it does only when it is at work.
    Status,
    /// What became of its script.
    Script(ScriptReport),
    /// It knows of what is planned, and asks for more of that.
    AsksForEvents,
    /// It is ready for what is planned.
    Acknowledges(String),
}

/// The guests of a host.
pub trait Guests: Send + Sync + 'static {
    /// The guest with this address.
    fn guest(&self, address: Ipv4Addr) -> Option<Guest>;

    /// The archive (PKCS #12) of the certificates that a guest gets, with their private keys; or why it cannot be had now.
    fn certificates<'a>(&'a self, guest: &'a Guest) -> BoxFuture<'a, Result<Arc<[u8]>, String>>;

    /// The guest with this address has said something. Returns whether that was taken; if not, it has to say it again.
    fn hear(&self, address: Ipv4Addr, word: Word) -> bool;
}
