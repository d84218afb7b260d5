//! Routes: which way each instance's address is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};

use crate::address::{OVERLAY_DEVICE, ROUTE_PROTOCOL, UNDERLAY_DEVICE};
use crate::error::NetError;
use crate::links::Links;
use crate::plan::NextHop;

impl Links {
    /// Sends what goes nowhere else to `gateway`.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn add_default_route(&self, gateway: Ipv4Addr) -> Result<(), NetError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        let added = self.handle().route().add(route).replace().execute().await;
        added.map_err(NetError::netlink(format!("set the default route through {gateway}")))
    }

    /// Says that all addresses of a network are neighbours on a device. One that is there already is success.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn add_on_link(&self, device: &str, network: Ipv6Addr, bits: u8) -> Result<(), NetError> {
        let device = self.index(device).await?;
        let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(network, bits).output_interface(device);
        let added = self.handle().route().add(route.build()).replace().execute().await;
        added.map_err(NetError::netlink(format!("reach {network}/{bits}")))
    }

    /// Makes the agent's routes exactly `wanted`. Only what is not so already is changed; returns how many routes that were. A
    /// route through a device that is gone is left out.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn set_routes(&self, wanted: &BTreeMap<IpAddr, NextHop>) -> Result<usize, NetError> {
        let (mut present, mut changed) = (BTreeMap::new(), 0);
        for route in self.own_routes().await? {
            match destination(&route) {
                Some(address) if wanted.contains_key(&address) => drop(present.insert(address, way(&route))),
                _ => {
                    changed += 1;
                    // It may have gone with its device meanwhile.
                    if let Err(error) = self.handle().route().del(route).execute().await {
                        tracing::debug!(%error, "a route was gone already");
                    }
                }
            }
        }
        let mut indexes = BTreeMap::new();
        for (address, hop) in wanted {
            let (device, gateway) = match hop {
                NextHop::Tap(tap) => (tap.as_str(), None),
                NextHop::Overlay(peer) => (OVERLAY_DEVICE, Some(*peer)),
                NextHop::Host(peer) => (UNDERLAY_DEVICE, Some(*peer)),
            };
            if !indexes.contains_key(device) {
                indexes.insert(device, self.get(device).await?.map(|link| link.header.index));
            }
            let Some(Some(index)) = indexes.get(device) else { continue };
            if present.get(address) == Some(&(gateway, Some(*index))) {
                continue;
            }
            changed += 1;
            let added = self.handle().route().add(route(*address, gateway, *index)).replace().execute().await;
            added.map_err(NetError::netlink(format!("route {address}")))?;
        }
        Ok(changed)
    }

    /// The routes that the agent has made.
    async fn own_routes(&self) -> Result<Vec<RouteMessage>, NetError> {
        let mut own = Vec::new();
        let filters = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for filter in filters {
            let listed = self.handle().route().get(filter).execute();
            let listed: Vec<RouteMessage> = listed.try_collect().await.map_err(NetError::netlink("list routes"))?;
            let is_own = |route: &RouteMessage| route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
            own.extend(listed.into_iter().filter(is_own));
        }
        Ok(own)
    }
}

/// A route to one address.
fn route(address: IpAddr, gateway: Option<IpAddr>, device: u32) -> RouteMessage {
    let mut message = RouteMessageBuilder::<IpAddr>::new().protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
    message = match gateway {
        Some(_) => message.onlink(),
        None => message.scope(RouteScope::Link),
    };
    let mut message = message.output_interface(device).build();
    let (family, bits) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    (message.header.address_family, message.header.destination_prefix_length) = (family, bits);
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

pub(crate) fn destination(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => address_of(address),
        _ => None,
    })
}

/// By which gateway and through which device it leads.
fn way(route: &RouteMessage) -> (Option<IpAddr>, Option<u32>) {
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        _ => None,
    });
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    (gateway, device)
}
