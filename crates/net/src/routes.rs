//! Routes: which way each instance's address is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

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

    /// Makes the agent's routes exactly `wanted`. Only what is not so already is changed; returns how many routes that were. A
    /// route through a device that is gone is left out.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn set_routes(&self, wanted: &BTreeMap<Ipv4Addr, NextHop>) -> Result<usize, NetError> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let listed: Vec<RouteMessage> = self
            .handle()
            .route()
            .get(filter)
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list routes"))?;
        let (mut present, mut changed) = (BTreeMap::new(), 0);
        for route in listed.into_iter().filter(is_own) {
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
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*address, 32)
                .output_interface(*index)
                .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
            let route = match gateway {
                None => route.scope(RouteScope::Link),
                Some(peer) => route.gateway(peer).onlink(),
            };
            let added = self.handle().route().add(route.build()).replace().execute().await;
            added.map_err(NetError::netlink(format!("route {address}")))?;
        }
        Ok(changed)
    }
}

/// Whether the agent made it.
fn is_own(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) && route.header.address_family == AddressFamily::Inet
}

fn destination(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

/// By which gateway and through which device it leads.
fn way(route: &RouteMessage) -> (Option<Ipv4Addr>, Option<u32>) {
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    (gateway, device)
}
