//! Who may come in as a host.

use std::sync::Arc;

use mayfly_model::{Enrolment, EventKind, HostCondition, HostName, HostToken, Time};

use crate::command::Rejected;
use crate::record::{Record, RecordId};
use crate::step::Step;

/// Writes down which authority makes hosts' certificates.
pub(crate) fn set_authority(step: &mut Step<'_>, digest: String) -> Result<(), Rejected> {
    match &step.state.meta.authority {
        Some(known) if *known == digest => Ok(()),
        Some(known) => {
            let message = format!("the fabric's authority is {known}, and this is {digest}");
            Err(Rejected::Conflict(message))
        }
        None => {
            step.event(EventKind::Command, "fabric", format!("the authority of this fabric is {digest}"));
            step.state.meta.authority = Some(digest);
            Ok(())
        }
    }
}

/// Makes a token that one host may use until `expires`.
pub(crate) fn make_token(
    step: &mut Step<'_>,
    id: String,
    host: Option<HostName>,
    expires: Time,
) -> Result<(), Rejected> {
    let now = step.now;
    let over: Vec<String> =
        step.state.tokens.values().filter(|one| one.expires <= now).map(|one| one.id.clone()).collect();
    for id in over {
        step.delete(RecordId::HostToken(id));
    }
    let whom = host.as_ref().map_or_else(|| "a host".to_owned(), ToString::to_string);
    step.event(EventKind::Command, &id, format!("join token made for {whom}"));
    step.put(Record::HostToken(Arc::new(HostToken { id, host, made: now, expires, used: None })));
    Ok(())
}

/// Takes a token back.
pub(crate) fn delete_token(step: &mut Step<'_>, id: &str) -> Result<(), Rejected> {
    if !step.state.tokens.contains_key(id) {
        return Err(Rejected::NotFound { kind: "join token", name: id.to_owned() });
    }
    step.delete(RecordId::HostToken(id.to_owned()));
    step.event(EventKind::Command, id, "join token taken back");
    Ok(())
}

/// Lets a host in that has a token. `key` is the digest of its key: if the same host asks again with the same key, as the
/// answer was lost, it is the same joining.
pub(crate) fn enrol(step: &mut Step<'_>, id: &str, host: HostName, key: String) -> Result<(), Rejected> {
    let token = step.state.tokens.get(id).filter(|token| token.expires > step.now).cloned();
    let unknown = "the join token is not known, or it has expired; `mayfly token create` makes another";
    let token = token.ok_or_else(|| Rejected::Denied(unknown.to_owned()))?;
    if token.host.as_ref().is_some_and(|only| *only != host) {
        return Err(Rejected::Denied("the join token is for another host".to_owned()));
    }
    let user = (host.clone(), key);
    match &token.used {
        Some(used) if *used == user && step.state.enrolments.contains_key(&host) => return Ok(()),
        Some((other, _)) => {
            let message = format!("the join token was used already, by {other}; `mayfly token create` makes another");
            return Err(Rejected::Denied(message));
        }
        None => {}
    }
    if let Some(known) = step.state.hosts.get(&host)
        && !matches!(known.condition, HostCondition::Lost { .. })
    {
        let state = known.state();
        let message = format!("there is a host {host} already, and it is {state}; a host needs a name of its own");
        return Err(Rejected::Conflict(message));
    }
    let number = step.entropy.bits();
    step.event(EventKind::Host, &host, "joined");
    step.put(Record::Enrolment(Arc::new(Enrolment { host, number, at: step.now })));
    step.put(Record::HostToken(Arc::new(HostToken { used: Some(user), ..HostToken::clone(&token) })));
    Ok(())
}
