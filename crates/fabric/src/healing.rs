//! Healing: a host is lost, so every instance it carried gets a new VM elsewhere.

use mayfly_model::{EventKind, Host, HostCondition, HostName, Instance, InstanceState, Then};

use crate::record::Record;
use crate::state::Step;

/// Gives up a host whose lease is certainly over: its VMs count as gone, as it has stopped them itself.
pub(crate) fn give_up(step: &mut Step<'_>, name: &HostName) {
    let Some(host) = step.state.hosts.get(name) else { return };
    let host = Host { condition: HostCondition::Lost { since: step.now }, ..host.clone() };
    let last = match step.state.hosts.get(name).map(|host| host.condition) {
        Some(HostCondition::Suspect { since }) => since,
        _ => step.now,
    };
    step.put(Record::Host(host));
    let instances: Vec<Instance> = step.state.instances_on(name).cloned().collect();
    let silent = step.now.since(last) as f64 / 1000.0;
    let message =
        format!("lost: no report for {silent:.1} s; instances to be made anew elsewhere: {}", instances.len());
    step.event(EventKind::Host, name, message);
    for instance in instances {
        match &instance.state {
            InstanceState::Waiting { .. } => {}
            InstanceState::Retiring { then: Then::Remove, .. } => crate::instances::bury(step, &instance),
            InstanceState::Placed { .. } | InstanceState::Retiring { .. } => {
                step.event(EventKind::Healing, &instance.key, format!("its VM is lost with {name}"));
                let reason = format!("its VM was lost with {name}");
                let state = InstanceState::Waiting { reason, prefer: None, since: step.now };
                step.put(Record::Instance(Box::new(Instance { state, ..instance })));
            }
        }
    }
}
