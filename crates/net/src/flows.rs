//! Flows that have to find another backend, or to end. A client of UDP that keeps its port keeps its backend too, as the kernel
//! remembers the flow for as long as packets come; so those to a backend that does not answer any more are forgotten, and
//! those that are not allowed any more. Whatever led to a guest that is gone is forgotten too: the client of a connection of TCP
//! reaches another, which refuses what it says next, so that it need not wait; and nobody who gets the address inherits it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mayfly_model::{AccessRule, Ipv6Prefix, VmId};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_proto::sys::protocols::NETLINK_NETFILTER;

use crate::address::{DIP_NETWORK, DIP_PREFIX};
use crate::ask::{ask, connect};
use crate::error::NetError;

/// An endpoint of UDP over one version of IP, as its clients name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entrance {
    /// The public address.
    pub address: IpAddr,
    /// The public port.
    pub port: u16,
}

/// Endpoints of UDP, who may come in at each, and its backends in rotation.
pub type Entrances = BTreeMap<Entrance, (Vec<AccessRule>, BTreeSet<IpAddr>)>;

/// What says which flows may stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Endpoints, of UDP only: a connection of TCP would be lost where a flow of UDP goes on, and it may be that its backend is only
    /// slow.
    pub entrances: Entrances,
    /// Guests that are being drained.
    pub leaving: BTreeSet<IpAddr>,
    /// Guests that there are, and their VMs.
    pub there: BTreeMap<IpAddr, Option<VmId>>,
    /// What IPv6 addresses begin with, if there are any.
    pub ipv6: Option<Ipv6Prefix>,
}

impl Flows {
    /// Whether there may be flows to forget, where `before` was obeyed.
    pub fn may_have_strays(&self, before: &Flows) -> bool {
        let goes = |(address, vm): (&IpAddr, &Option<VmId>)| self.there.get(address) != Some(vm);
        before.entrances != self.entrances || before.there.iter().any(goes)
    }

    /// Whether the kernel has to forget a flow with these addresses.
    fn is_stray(&self, before: Option<&Flows>, there: &[Tuple], back: &[Tuple]) -> bool {
        if [there, back].iter().filter_map(|way| source(way)).any(|address| self.is_gone(before, address)) {
            return true;
        }
        let (Some(entrance), Some(backend)) = (entrance(there), source(back)) else { return false };
        let access_before = before.and_then(|before| before.entrances.get(&entrance)).map(|(access, _)| access);
        match self.entrances.get(&entrance) {
            Some((access, up)) => {
                access_before.is_some_and(|before| before != access)
                    || !up.contains(&backend) && !self.leaving.contains(&backend)
            }
            None => access_before.is_some(),
        }
    }

    /// Whether a guest that had this address is gone, be it that another has the address now.
    fn is_gone(&self, before: Option<&Flows>, address: IpAddr) -> bool {
        let dip = match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(address) => self.ipv6.and_then(|prefix| prefix.embedded(address)),
        };
        let of_network = |dip| u32::from(dip) >> (32 - DIP_PREFIX) == u32::from(DIP_NETWORK) >> (32 - DIP_PREFIX);
        let (now, before) = (self.there.get(&address), before.and_then(|before| before.there.get(&address)));
        dip.is_some_and(of_network) && (now.is_none() || before.is_some() && before != now)
    }
}

/// Has the kernel forget flows that may not stay, where `before` was obeyed. Those to a guest that is only being drained stay.
/// Returns how many there were.
///
/// # Errors
/// [`NetError::Io`].
pub async fn forget_strays(flows: &Flows, before: Option<&Flows>) -> Result<usize, NetError> {
    let kernel = connect::<NetfilterMessage>(NETLINK_NETFILTER).map_err(NetError::io("open netlink"))?;
    let mut forgotten = 0;
    let newer = flows.ipv6.map(|_| NetfilterProtoFamily::IPv6);
    for family in [Some(NetfilterProtoFamily::IPv4), newer].into_iter().flatten() {
        let message = |inner| NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
        let listed = ask(&kernel, message(ConntrackMessage::Get(Vec::new())), NLM_F_REQUEST | NLM_F_DUMP).await;
        for entry in listed.map_err(NetError::io("list connections"))? {
            let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = entry.inner else { continue };
            let Some((there, back)) = ways(&attributes) else { continue };
            if !flows.is_stray(before, there, back) {
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

/// Where the first packet of a flow of UDP was sent to.
fn entrance(way: &[Tuple]) -> Option<Entrance> {
    let protocol = way.iter().find_map(|part| match part {
        Tuple::Proto(parts) if parts.contains(&ProtoTuple::Protocol(Protocol::Udp)) => Some(parts),
        _ => None,
    });
    let port = protocol?.iter().find_map(|part| match part {
        ProtoTuple::DestinationPort(port) => Some(*port),
        _ => None,
    });
    let address = addresses(way).find_map(|part| match part {
        IPTuple::DestinationAddress(address) => Some(*address),
        _ => None,
    });
    Some(Entrance { address: address?, port: port? })
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn flows(there: &[(u8, u64)]) -> Flows {
        let there = there.iter().map(|(last, vm)| (Ipv4Addr::new(10, 80, 0, *last).into(), Some(VmId(*vm))));
        Flows { there: there.collect(), ..Flows::default() }
    }

    #[test]
    fn nobody_inherits_the_flows_of_an_address() {
        let (before, after) = (flows(&[(2, 1), (3, 2)]), flows(&[(2, 1), (3, 9), (4, 3)]));
        assert!(after.may_have_strays(&before) && !before.may_have_strays(&before));
        let gone = |last: u8| after.is_gone(Some(&before), Ipv4Addr::new(10, 80, 0, last).into());
        assert_eq!([2, 3, 4, 5].map(gone), [false, true, false, true]);
        assert!(!after.is_gone(Some(&before), Ipv4Addr::new(10, 77, 0, 5).into()), "none of a guest");
        assert!(!after.is_gone(None, Ipv4Addr::new(10, 80, 0, 3).into()), "for all that is known");
    }
}
