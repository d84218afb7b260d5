//! Flows that have to find another backend. A client of UDP that keeps its port keeps its backend too, as the kernel remembers
//! the flow for as long as packets come; so those to a backend that does not answer any more are forgotten. Those of TCP are
//! when the backend is gone: what the client says next reaches another, which refuses it, so that the client need not wait.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_proto::sys::protocols::NETLINK_NETFILTER;

use crate::ask::{ask, connect};
use crate::error::NetError;
use crate::plan::{Entrance, Flows, Plan};

impl Plan {
    /// Whether there may be flows to forget, where the kernel held `before`; nothing is known of it without.
    pub fn may_have_strays(&self, before: Option<&Plan>) -> bool {
        let lost = |before: &Plan| before.routes.keys().any(|dip| !self.routes.contains_key(dip));
        !self.flows.is_empty() && before.is_none_or(|before| before.flows != self.flows || lost(before))
    }
}

/// Forgets the flows that this host leads to backends that are gone, or in `flows`. One that is only being drained keeps its own.
/// Returns how many there were.
///
/// # Errors
/// [`NetError::Io`].
pub async fn forget_strays(flows: &Flows, has_route: impl Fn(&IpAddr) -> bool) -> Result<usize, NetError> {
    let kernel = connect::<NetfilterMessage>(NETLINK_NETFILTER).map_err(NetError::io("open netlink"))?;
    let mut forgotten = 0;
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        if !flows.keys().any(|one| one.address.is_ipv4() == (family == NetfilterProtoFamily::IPv4)) {
            continue;
        }
        let message = |inner| NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
        let listed = ask(&kernel, message(ConntrackMessage::Get(Vec::new())), NLM_F_REQUEST | NLM_F_DUMP).await;
        for entry in listed.map_err(NetError::io("list connections"))? {
            let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = entry.inner else { continue };
            let Some((there, back)) = ways(&attributes) else { continue };
            let (Some(entrance), Some(backend)) = (entrance(there), source(back)) else { continue };
            let Some(out) = flows.get(&entrance) else { continue };
            if !out.contains(&backend) && has_route(&backend) {
                continue;
            }
            let which = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(there.clone())]);
            match ask(&kernel, message(which), NLM_F_REQUEST | NLM_F_ACK).await {
                Ok(_) => forgotten += 1,
                // It has ended meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(NetError::io("forget a connection")(error)),
            }
        }
    }
    Ok(forgotten)
}

/// A connection as its first packet has it, and as the answers have it.
fn ways(attributes: &[ConntrackAttribute]) -> Option<(&Vec<Tuple>, &Vec<Tuple>)> {
    let there = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(way) => Some(way),
        _ => None,
    });
    let back = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(way) => Some(way),
        _ => None,
    });
    Some((there?, back?))
}

/// Where the first packet of a flow was sent to.
fn entrance(way: &[Tuple]) -> Option<Entrance> {
    let parts = way.iter().find_map(|part| match part {
        Tuple::Proto(parts) => Some(parts),
        _ => None,
    })?;
    let udp = parts.iter().find_map(|part| match part {
        ProtoTuple::Protocol(Protocol::Udp) => Some(true),
        ProtoTuple::Protocol(Protocol::Tcp) => Some(false),
        _ => None,
    })?;
    let port = parts.iter().find_map(|part| match part {
        ProtoTuple::DestinationPort(port) => Some(*port),
        _ => None,
    })?;
    let address = addresses(way).find_map(|part| match part {
        IPTuple::DestinationAddress(address) => Some(*address),
        _ => None,
    });
    Some(Entrance { address: address?, udp, port })
}

fn source(way: &[Tuple]) -> Option<IpAddr> {
    addresses(way).find_map(|part| match part {
        IPTuple::SourceAddress(address) => Some(*address),
        _ => None,
    })
}

fn addresses(way: &[Tuple]) -> impl Iterator<Item = &IPTuple> {
    let parts = way.iter().filter_map(|part| match part {
        Tuple::Ip(parts) => Some(parts),
        _ => None,
    });
    parts.flatten()
}
