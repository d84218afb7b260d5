//! The tunnel between hosts, and where it leads.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::LinkVxlan;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use mayfly_model::{Ipv6Prefix, Transit};

use crate::address::{OVERLAY_DEVICE, OVERLAY_ID, OVERLAY_PREFIX, TUNNEL_DEVICE, UNDERLAY_DEVICE, VXLAN_PORT};
use crate::error::NetError;
use crate::links::Links;

/// Another host: its address on the overlay, its hardware address there, its address on the network below.
pub type Peer = (Ipv4Addr, [u8; 6], Ipv4Addr);

/// The device that carries the hosts' words to each other.
fn carrier(transit: Transit) -> &'static str {
    match transit {
        Transit::Vxlan | Transit::Routed => UNDERLAY_DEVICE,
        Transit::Wireguard => TUNNEL_DEVICE,
    }
}

impl Links {
    /// Makes the tunnel device, if it is not there. Returns whether it was not: rules that name the device by its number
    /// have to be set again.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn create_overlay(
        &self,
        own: Ipv4Addr,
        mac: [u8; 6],
        (underlay, transit): (Ipv4Addr, Transit),
    ) -> Result<bool, NetError> {
        let below = self.index(carrier(transit)).await?;
        // A host that has joined again has another number, and so another address there; or it is led another way now.
        if let Some(link) = self.get(OVERLAY_DEVICE).await?
            && (self.mac(OVERLAY_DEVICE).await? != mac || !leads(&link, below, underlay))
        {
            self.delete(OVERLAY_DEVICE).await?;
        }
        let is_new = self.get(OVERLAY_DEVICE).await?.is_none();
        if is_new {
            // The device below bounds the size of packets (by `dev`), so that none has to be cut. The kernel is told
            // where every peer is, so there is nothing to learn.
            let message = LinkVxlan::new(OVERLAY_DEVICE, OVERLAY_ID)
                .dev(below)
                .port(VXLAN_PORT)
                .append_info_data(InfoVxlan::Local(underlay))
                .append_info_data(InfoVxlan::Learning(false))
                .address(mac.to_vec())
                .up()
                .build();
            self.handle().link().add(message).execute().await.map_err(NetError::netlink("make the overlay"))?;
        }
        self.add_address(OVERLAY_DEVICE, own, OVERLAY_PREFIX).await?;
        Ok(is_new)
    }

    /// Tells the tunnel where the other hosts are: exactly `peers`. Only what is not so already is changed. Returns how many
    /// entries that were; each peer has two, and with IPv6 three.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn set_peers(&self, peers: &BTreeSet<Peer>, ipv6: Option<Ipv6Prefix>) -> Result<usize, NetError> {
        let index = self.index(OVERLAY_DEVICE).await?;
        let mut neighbours = self.neighbours(index, AddressFamily::Inet).await?;
        neighbours.extend(self.neighbours(index, AddressFamily::Inet6).await?);
        let forwards = self.neighbours(index, AddressFamily::Bridge).await?;
        let on_overlay = |(overlay, mac, _): &Peer| {
            let newer = ipv6.map(|prefix| (*mac, IpAddr::V6(prefix.embed(*overlay))));
            [Some((*mac, IpAddr::V4(*overlay))), newer]
        };
        let wanted_neighbours: BTreeSet<Entry> = peers.iter().flat_map(on_overlay).flatten().collect();
        let wanted_forwards: BTreeSet<Entry> = peers.iter().map(|(_, mac, below)| (*mac, (*below).into())).collect();
        let mut changed = 0;
        let stale = neighbours.iter().filter(|(entry, _)| !wanted_neighbours.contains(entry));
        for ((_, address), message) in
            stale.chain(forwards.iter().filter(|(entry, _)| !wanted_forwards.contains(entry)))
        {
            let deleted = self.handle().neighbours().del(message.clone()).execute().await;
            deleted.map_err(NetError::netlink(format!("lead the overlay to {address} no more")))?;
            changed += 1;
        }
        let has = |known: &[(Entry, NeighbourMessage)], entry: &Entry| known.iter().any(|(known, _)| known == entry);
        for (mac, overlay) in wanted_neighbours.iter().filter(|entry| !has(&neighbours, entry)) {
            let request = self.handle().neighbours().add(index, *overlay).link_layer_address(mac);
            let added = request.state(NeighbourState::Permanent).replace().execute().await;
            added.map_err(NetError::netlink(format!("lead the overlay to {overlay}")))?;
            changed += 1;
        }
        for (mac, underlay) in wanted_forwards.iter().filter(|entry| !has(&forwards, entry)) {
            let request = self.handle().neighbours().add_bridge(index, mac).destination(*underlay);
            let request = request.state(NeighbourState::Permanent).flags(NeighbourFlags::Own);
            let added = request.replace().execute().await;
            added.map_err(NetError::netlink(format!("lead the overlay to {underlay}")))?;
            changed += 1;
        }
        Ok(changed)
    }

    /// The entries of a device's table that do not age.
    async fn neighbours(&self, index: u32, family: AddressFamily) -> Result<Vec<(Entry, NeighbourMessage)>, NetError> {
        let listed = self.handle().neighbours().get().set_address_family(family).execute();
        let all: Vec<_> = listed.try_collect().await.map_err(NetError::netlink("list where the overlay leads"))?;
        let own = all.into_iter().filter(|message| message.header.ifindex == index);
        let own = own.filter(|message| message.header.state == NeighbourState::Permanent);
        Ok(own.filter_map(|message| Some((entry(&message)?, message))).collect())
    }

    /// Tells the kernel the hardware address behind a tap, so that no guest can claim another's.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn pin_neighbour(&self, tap: &str, address: impl Into<IpAddr>, mac: [u8; 6]) -> Result<(), NetError> {
        let (index, address) = (self.index(tap).await?, address.into());
        let request = self.handle().neighbours().add(index, address).link_layer_address(&mac);
        let request = request.state(NeighbourState::Permanent).replace();
        request.execute().await.map_err(NetError::netlink(format!("pin {address} to {tap}")))
    }
}

/// Whether a tunnel's packets go through this device, from this address.
fn leads(link: &LinkMessage, below: u32, from: Ipv4Addr) -> bool {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let tunnel = infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(tunnel)) => Some(tunnel),
        _ => None,
    });
    tunnel.is_some_and(|tunnel| tunnel.contains(&InfoVxlan::Link(below)) && tunnel.contains(&InfoVxlan::Local(from)))
}

/// A hardware address on the overlay, and the address that goes with it: on the overlay, or below it.
type Entry = ([u8; 6], IpAddr);

fn entry(message: &NeighbourMessage) -> Option<Entry> {
    Some((hardware_address(message)?, destination(message)?))
}

fn hardware_address(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    })
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        // In a bridge's table the library does not know of what family it is.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            let newer = || <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv6Addr::from(bytes).into());
            <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv4Addr::from(bytes).into()).or_else(newer)
        }
        _ => None,
    })
}
