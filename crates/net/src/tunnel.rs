//! Encrypted tunnels between hosts: a WireGuard device, and what is led into it.
//!
//! Hosts keep the addresses by which they know each other. What they say to each other is told by its ports: rules lead it to
//! a table of routes that has one way only, the tunnel. WireGuard's own packets have another port and go as always. So
//! nothing else has to know of the tunnel, and what is not led into it (controllers, public addresses) works without.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use futures_util::TryStreamExt;
use mayfly_model::{Transit, TunnelKey};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_proto::ConnectionHandle;
use netlink_proto::sys::protocols::NETLINK_GENERIC;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RulePortRange};
use rtnetlink::{LinkWireguard, RouteMessageBuilder};

use crate::address::{
    IMAGE_PORT, TUNNEL_DEVICE, TUNNEL_PORT, TUNNEL_ROUTE_PROTOCOL, TUNNEL_TABLE, UNDERLAY_DEVICE, VXLAN_PORT,
};
use crate::ask::{ask, connect};
use crate::error::NetError;
use crate::links::Links;
use crate::mesh;
use crate::prepare::sysctl;
use crate::routes::destination;

/// Where the rules stand: behind the one for the host's own addresses (0), before the usual ones (32766).
const RULE_PRIORITY: u32 = 7000;
/// How many peers the kernel is told of at once; a message of its own size could not hold them all.
const PEERS_AT_ONCE: usize = 100;

/// This host's end of the tunnels.
#[derive(Clone)]
pub struct Tunnel {
    private_key: [u8; 32],
    links: Links,
    kernel: ConnectionHandle<GenlMessage<WireguardMessage>>,
    family: u16,
    own: Ipv4Addr,
}

impl Tunnel {
    /// Sets it up, if it is not there: with this private key, for the host with this address.
    ///
    /// # Errors
    /// [`NetError`]; [`NetError::NoWireguard`] where the kernel has none.
    pub async fn open(links: &Links, own: Ipv4Addr, private_key: [u8; 32]) -> Result<Tunnel, NetError> {
        if links.get(TUNNEL_DEVICE).await?.is_none() {
            create(links, TUNNEL_DEVICE).await?;
        }
        let family = family("wireguard").await?;
        let kernel = connect(NETLINK_GENERIC).map_err(NetError::io("open netlink"))?;
        let tunnel = Tunnel { private_key, links: links.clone(), kernel, family, own };
        tunnel.set_up().await?;
        tunnel.lead_in().await?;
        Ok(tunnel)
    }

    /// Makes the device ready for other ends.
    async fn set_up(&self) -> Result<(), NetError> {
        let key = WireguardAttribute::PrivateKey(self.private_key);
        self.set(vec![key, WireguardAttribute::ListenPort(TUNNEL_PORT)]).await?;
        // Answers come from where they were sent to, by whatever way.
        sysctl(&format!("net/ipv4/conf/{TUNNEL_DEVICE}/rp_filter"), "0")?;
        let mtu = self.links.mtu(UNDERLAY_DEVICE).await?.saturating_sub(Transit::TUNNEL_BYTES);
        self.links.up_with_mtu(TUNNEL_DEVICE, mtu).await
    }

    /// Looks whether the kernel has WireGuard, by making a device and taking it away.
    ///
    /// # Errors
    /// [`NetError::NoWireguard`], or another.
    pub async fn probe(links: &Links) -> Result<(), NetError> {
        const PROBE_DEVICE: &str = "mfwgprobe";
        links.delete(PROBE_DEVICE).await?;
        create(links, PROBE_DEVICE).await?;
        links.delete(PROBE_DEVICE).await
    }

    /// Takes the device away, where a host goes over to another transit. Rules that lead to an empty table lead nowhere.
    ///
    /// # Errors
    /// [`NetError::Netlink`].
    pub async fn close(links: &Links) -> Result<(), NetError> {
        links.delete(TUNNEL_DEVICE).await
    }

    /// The public key.
    ///
    /// # Errors
    /// [`NetError::Io`].
    pub async fn key(&self) -> Result<TunnelKey, NetError> {
        let own = self.get().await?.into_iter().find_map(|attribute| match attribute {
            WireguardAttribute::PublicKey(key) => Some(TunnelKey(key)),
            _ => None,
        });
        own.ok_or_else(|| NetError::NoDevice(format!("{TUNNEL_DEVICE} with a key")))
    }

    /// Makes exactly these hosts the other ends, by their addresses. Only what is not so already is changed; returns how many
    /// ends and ways to them that were.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn lead_to(&self, peers: &BTreeMap<Ipv4Addr, TunnelKey>) -> Result<usize, NetError> {
        // Somebody may have taken it away.
        if self.links.get(TUNNEL_DEVICE).await?.is_none() {
            create(&self.links, TUNNEL_DEVICE).await?;
            self.set_up().await?;
        }
        let present = self.peers().await?;
        // A key that is gone, or is another host's now. It goes first, so that nobody's packets are read as another's.
        let is_right = |(key, allowed): &(&TunnelKey, &Option<Ipv4Addr>)| {
            allowed.is_some_and(|address| peers.get(&address) == Some(key))
        };
        let gone: Vec<WireguardPeer> =
            present.iter().filter(|peer| !is_right(peer)).map(|(key, _)| without(*key)).collect();
        let is_there = |address: &Ipv4Addr, key: &TunnelKey| present.get(key) == Some(&Some(*address));
        let new: Vec<WireguardPeer> = peers
            .iter()
            .filter(|(address, key)| !is_there(address, key))
            .map(|(address, key)| with(*address, *key))
            .collect();
        let mut changed = gone.len() + new.len();
        for some in gone.chunks(PEERS_AT_ONCE).chain(new.chunks(PEERS_AT_ONCE)) {
            self.set(vec![WireguardAttribute::Peers(some.to_vec())]).await?;
        }
        changed += self.set_ways(peers).await?;
        Ok(changed)
    }

    /// Makes the tunnel the way to these hosts, in its own table.
    async fn set_ways(&self, peers: &BTreeMap<Ipv4Addr, TunnelKey>) -> Result<usize, NetError> {
        let (index, mut changed) = (self.links.index(TUNNEL_DEVICE).await?, 0);
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let listed = self.links.handle().route().get(filter).execute();
        let listed: Vec<RouteMessage> = listed.try_collect().await.map_err(NetError::netlink("list routes"))?;
        let own = listed.into_iter().filter(|route| route.header.protocol == TUNNEL_ROUTE);
        let mut present = Vec::new();
        for route in own {
            match destination(&route) {
                Some(IpAddr::V4(address)) if peers.contains_key(&address) && self.is_own(&route, index) => {
                    present.push(address);
                }
                _ => {
                    changed += 1;
                    let gone = self.links.handle().route().del(route).execute().await;
                    gone.map_err(NetError::netlink("lead the tunnel to a host no more"))?;
                }
            }
        }
        for address in peers.keys().filter(|address| !present.contains(address)) {
            let mut way = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*address, 32)
                .output_interface(index)
                .table_id(TUNNEL_TABLE)
                .scope(RouteScope::Link)
                .protocol(TUNNEL_ROUTE)
                .build();
            way.attributes.push(RouteAttribute::PrefSource(self.own.into()));
            let added = self.links.handle().route().add(way).replace().execute().await;
            added.map_err(NetError::netlink(format!("lead the tunnel to {address}")))?;
            changed += 1;
        }
        Ok(changed)
    }

    /// Whether a route leads through the device, from the address that the host has now.
    fn is_own(&self, route: &RouteMessage, device: u32) -> bool {
        [RouteAttribute::PrefSource(self.own.into()), RouteAttribute::Oif(device)]
            .iter()
            .all(|attribute| route.attributes.contains(attribute))
    }

    /// Leads what hosts say to each other into the tunnel.
    async fn lead_in(&self) -> Result<(), NetError> {
        let range = |port| RulePortRange { start: port, end: port };
        let to = |port| RuleAttribute::DestinationPortRange(range(port));
        for (protocol, port) in [
            (IpProtocol::Udp, to(VXLAN_PORT)),
            (IpProtocol::Udp, to(mesh::PORT)),
            (IpProtocol::Tcp, to(IMAGE_PORT)),
            (IpProtocol::Tcp, RuleAttribute::SourcePortRange(range(IMAGE_PORT))),
        ] {
            let rule = self.links.handle().rule().add().v4().table_id(TUNNEL_TABLE).priority(RULE_PRIORITY);
            let mut rule = rule.action(RuleAction::ToTable);
            rule.message_mut().attributes.extend([RuleAttribute::IpProtocol(protocol), port]);
            match rule.execute().await {
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {}
                other => other.map_err(NetError::netlink("lead the hosts' words into the tunnel"))?,
            }
        }
        Ok(())
    }

    /// The other ends: their keys, and the address that each may speak for.
    async fn peers(&self) -> Result<BTreeMap<TunnelKey, Option<Ipv4Addr>>, NetError> {
        let parts = self.get().await?.into_iter().filter_map(|attribute| match attribute {
            WireguardAttribute::Peers(peers) => Some(peers),
            _ => None,
        });
        let mut peers = BTreeMap::new();
        for peer in parts.flatten() {
            // One that does not fit into a message goes on in the next, with its key again.
            if let Some(key) = key_of(&peer) {
                let known: &mut Option<Ipv4Addr> = peers.entry(key).or_default();
                *known = known.or(allowed(&peer));
            }
        }
        Ok(peers)
    }

    async fn get(&self) -> Result<Vec<WireguardAttribute>, NetError> {
        let name = vec![WireguardAttribute::IfName(TUNNEL_DEVICE.to_owned())];
        let message = self.message(WireguardCmd::GetDevice, name);
        let asked = ask(&self.kernel, message, NLM_F_REQUEST | NLM_F_DUMP).await;
        let parts = asked.map_err(NetError::io("read the tunnel's state"))?;
        Ok(parts.into_iter().flat_map(|part| part.payload.attributes).collect())
    }

    async fn set(&self, attributes: Vec<WireguardAttribute>) -> Result<(), NetError> {
        let name = WireguardAttribute::IfName(TUNNEL_DEVICE.to_owned());
        let message = self.message(WireguardCmd::SetDevice, [vec![name], attributes].concat());
        let asked = ask(&self.kernel, message, NLM_F_REQUEST | NLM_F_ACK).await;
        asked.map(drop).map_err(NetError::io("set up the tunnel"))
    }

    fn message(&self, cmd: WireguardCmd, attributes: Vec<WireguardAttribute>) -> GenlMessage<WireguardMessage> {
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message
    }
}

async fn create(links: &Links, device: &str) -> Result<(), NetError> {
    let added = links.handle().link().add(LinkWireguard::new(device).build()).execute().await;
    added.map_err(|error| match error {
        rtnetlink::Error::NetlinkError(refused) if refused.raw_code() == -libc::EOPNOTSUPP => NetError::NoWireguard,
        other => NetError::netlink("make the tunnel")(other),
    })
}

const TUNNEL_ROUTE: RouteProtocol = RouteProtocol::Other(TUNNEL_ROUTE_PROTOCOL);

/// A peer that may speak for one address, and is found there.
fn with(address: Ipv4Addr, key: TunnelKey) -> WireguardPeer {
    let allowed = WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
        WireguardAllowedIpAttr::IpAddr(address.into()),
        WireguardAllowedIpAttr::Cidr(32),
    ]);
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::Endpoint(SocketAddr::from((address, TUNNEL_PORT))),
        WireguardPeerAttribute::AllowedIps(vec![allowed]),
    ])
}

fn without(key: TunnelKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ])
}

fn key_of(peer: &WireguardPeer) -> Option<TunnelKey> {
    peer.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(TunnelKey(*key)),
        _ => None,
    })
}

fn allowed(peer: &WireguardPeer) -> Option<Ipv4Addr> {
    let mut all = peer.iter().filter_map(|attribute| match attribute {
        WireguardPeerAttribute::AllowedIps(all) => Some(all),
        _ => None,
    });
    all.next()?.first()?.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::IpAddr(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

/// The number of a family of generic netlink.
async fn family(name: &'static str) -> Result<u16, NetError> {
    let kernel = connect(NETLINK_GENERIC).map_err(NetError::io("open netlink"))?;
    let nlas = vec![GenlCtrlAttrs::FamilyName(name.to_owned())];
    let message = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas });
    let told = ask(&kernel, message, NLM_F_REQUEST).await.map_err(|error| match error.kind() {
        // There is no module for it.
        std::io::ErrorKind::NotFound => NetError::NoWireguard,
        _ => NetError::io("ask for WireGuard")(error),
    })?;
    let number = told.iter().flat_map(|answer| &answer.payload.nlas).find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(number) => Some(*number),
        _ => None,
    });
    number.ok_or(NetError::NoWireguard)
}
