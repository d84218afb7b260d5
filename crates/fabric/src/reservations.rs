//! Public addresses that are reserved under a name: they stay the same whatever becomes of the deployments that have them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_model::{EventKind, Reservation, ReservedName};

use crate::address::next_free;
use crate::command::Rejected;
use crate::record::{Record, RecordId};
use crate::state::State;
use crate::step::Step;

pub(crate) fn reserve(step: &mut Step<'_>, name: ReservedName) -> Result<(), Rejected> {
    if step.state.reservations.contains_key(&name) {
        return Err(Rejected::AlreadyExists { kind: "reserved address", name: name.to_string() });
    }
    let taken = |vip: &Ipv4Addr| step.state.has_given_out(vip);
    let (address, next) = next_free(taken, step.config.vips, step.state.meta.next_vip)
        .ok_or_else(|| Rejected::NoRoom("no public address is free; release one, or delete a deployment".to_owned()))?;
    step.state.meta.next_vip = next;
    step.event(EventKind::Command, &name, format!("the public address {address} is reserved"));
    step.put(Record::Reservation(Arc::new(Reservation { name, address, reserved: step.now })));
    Ok(())
}

pub(crate) fn release(step: &mut Step<'_>, name: &ReservedName) -> Result<(), Rejected> {
    let reservation = find(step.state, name)?;
    let address = reservation.address;
    if let Some(user) = step.state.deployments.values().find(|one| one.vip == address) {
        return Err(Rejected::Conflict(format!("{address} (`{name}`) is the address of {}", user.key)));
    }
    step.delete(RecordId::Reservation(name.clone()));
    step.event(EventKind::Command, name, format!("the public address {address} is reserved no more"));
    Ok(())
}

/// The address of that name, for a new deployment.
pub(crate) fn for_deployment(state: &State, name: &ReservedName) -> Result<Ipv4Addr, Rejected> {
    let address = find(state, name)?.address;
    match state.deployments.values().find(|one| one.vip == address) {
        None => Ok(address),
        Some(user) => Err(Rejected::Conflict(format!("{address} (`{name}`) is the address of {} already", user.key))),
    }
}

fn find<'s>(state: &'s State, name: &ReservedName) -> Result<&'s Reservation, Rejected> {
    let found = state.reservations.get(name).map(|one| &**one);
    found.ok_or_else(|| Rejected::NotFound { kind: "reserved address", name: name.to_string() })
}
