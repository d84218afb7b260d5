//! Devices and their addresses, through netlink; the tunnel is in `overlay.rs`, routes are in `routes.rs`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, CacheInfo};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use crate::address::UNDERLAY_DEVICE;
use crate::error::NetError;

/// The links of the network namespace that the process was in when this was made.
#[derive(Clone)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Opens a netlink connection. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Io`].
    pub fn open() -> Result<Links, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::io("open netlink"))?;
        tokio::spawn(connection);
        Ok(Links { handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The index of a device.
    ///
    /// # Errors
    /// [`NetError::NoDevice`].
    pub async fn index(&self, device: &str) -> Result<u32, NetError> {
        Ok(self.get(device).await?.ok_or_else(|| NetError::NoDevice(device.to_owned()))?.header.index)
    }

    /// The hardware address of a device.
    ///
    /// # Errors
    /// [`NetError::NoDevice`].
    pub async fn mac(&self, device: &str) -> Result<[u8; 6], NetError> {
        let link = self.get(device).await?.ok_or_else(|| NetError::NoDevice(device.to_owned()))?;
        let bytes = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        bytes.ok_or_else(|| NetError::NoDevice(format!("{device} with a hardware address")))
    }

    /// The largest packet that a device carries, in bytes.
    ///
    /// # Errors
    /// [`NetError::NoDevice`].
    pub async fn mtu(&self, device: &str) -> Result<u16, NetError> {
        let link = self.get(device).await?.ok_or_else(|| NetError::NoDevice(device.to_owned()))?;
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(u16::try_from(*mtu).unwrap_or(u16::MAX)),
            _ => None,
        });
        mtu.ok_or_else(|| NetError::NoDevice(format!("{device} with an MTU")))
    }

    /// The names of all devices.
    ///
    /// # Errors
    /// [`NetError::Netlink`].
    pub async fn names(&self) -> Result<Vec<String>, NetError> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(NetError::netlink("list devices"))?;
        let name = |link: &LinkMessage| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })
        };
        Ok(links.iter().filter_map(name).collect())
    }

    pub(crate) async fn get(&self, device: &str) -> Result<Option<LinkMessage>, NetError> {
        match self.handle.link().get().match_name(device.to_owned()).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(NetError::netlink(format!("look for {device}"))(error)),
        }
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn up(&self, device: &str) -> Result<(), NetError> {
        let index = self.index(device).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(NetError::netlink(format!("bring {device} up")))
    }

    /// Brings a device up with this MTU.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn up_with_mtu(&self, device: &str, mtu: u16) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(self.index(device).await?).mtu(u32::from(mtu)).up().build();
        self.handle.link().set(message).execute().await.map_err(NetError::netlink(format!("bring {device} up")))
    }

    /// Makes a bridge that bears `owner` as its alias. Its hardware address is `mac`: left to itself, a bridge takes
    /// that of one of its ports, and another one when that port goes, so that its neighbours lose it for seconds.
    ///
    /// # Errors
    /// [`NetError::Netlink`], also when it is there already.
    pub async fn create_bridge(&self, name: &str, mac: [u8; 6], owner: &str) -> Result<(), NetError> {
        let fail = || NetError::netlink(format!("make the bridge {name}"));
        self.handle
            .link()
            .add(LinkBridge::new(name).address(mac.to_vec()).up().build())
            .execute()
            .await
            .map_err(fail())?;
        let alias = LinkUnspec::new_with_name(name).alias(owner).build();
        self.handle.link().set(alias).execute().await.map_err(fail())
    }

    /// The alias of a device, if there is such a device and it has one.
    ///
    /// # Errors
    /// [`NetError::Netlink`].
    pub async fn owner(&self, device: &str) -> Result<Option<String>, NetError> {
        let link = self.get(device).await?;
        Ok(link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias),
            _ => None,
        }))
    }

    /// Makes a pair of devices: `name` on the bridge `bridge`, and its peer as [`UNDERLAY_DEVICE`] in the network
    /// namespace of the process `pid`.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn create_leg(&self, name: &str, bridge: &str, pid: u32) -> Result<(), NetError> {
        self.delete(name).await?;
        let far = format!("{name}x");
        let fail = || NetError::netlink(format!("make {name}"));
        self.handle.link().add(LinkVeth::new(name, &far).build()).execute().await.map_err(fail())?;
        let bridge = self.index(bridge).await?;
        let near = LinkUnspec::new_with_index(self.index(name).await?).controller(bridge).up().build();
        self.handle.link().set(near).execute().await.map_err(fail())?;
        let far = LinkUnspec::new_with_index(self.index(&far).await?).name(UNDERLAY_DEVICE).setns_by_pid(pid).build();
        self.handle.link().set(far).execute().await.map_err(fail())
    }

    /// Deletes a device. One that is not there is success.
    ///
    /// # Errors
    /// [`NetError::Netlink`].
    pub async fn delete(&self, device: &str) -> Result<(), NetError> {
        let Some(link) = self.get(device).await? else { return Ok(()) };
        let deleted = self.handle.link().del(link.header.index).execute().await;
        match deleted {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(()),
            other => other.map_err(NetError::netlink(format!("delete {device}"))),
        }
    }

    /// Gives a device an address. One that it has already is success.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn add_address(&self, device: &str, address: impl Into<IpAddr>, prefix: u8) -> Result<(), NetError> {
        self.add(device, address.into(), prefix, u32::MAX).await
    }

    /// The same with an address from which the host says nothing of its own accord, if it has another. (Of IPv4 addresses,
    /// the first is that other.)
    pub(crate) async fn add_aside(&self, device: &str, address: IpAddr, prefix: u8) -> Result<(), NetError> {
        self.add(device, address, prefix, 0).await
    }

    /// Gives a device an address that is preferred for so many seconds.
    async fn add(&self, device: &str, address: IpAddr, prefix: u8, preferred: u32) -> Result<(), NetError> {
        let mut request = self.handle.address().add(self.index(device).await?, address, prefix);
        if address.is_ipv6() {
            // It is the fabric's, so nobody has to be asked whether it is free.
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            let mut times = CacheInfo::default();
            (times.ifa_preferred, times.ifa_valid) = (preferred, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(times));
        }
        match request.execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
            other => other.map_err(NetError::netlink(format!("give {device} the address {address}"))),
        }
    }

    /// The IPv4 addresses of a device, with their prefixes.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn addresses(&self, device: &str) -> Result<Vec<(Ipv4Addr, u8)>, NetError> {
        let index = self.index(device).await?;
        let listed = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> =
            listed.try_collect().await.map_err(NetError::netlink(format!("list addresses of {device}")))?;
        let address = |message: &AddressMessage| {
            let Some(IpAddr::V4(address)) = local(message) else { return None };
            Some((address, message.header.prefix_len))
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Makes those addresses of the underlay device that are alone in their network, and of which `is_public` says so, exactly
    /// `wanted`. Returns those that are new.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn set_vips(
        &self,
        wanted: &BTreeSet<IpAddr>,
        is_public: impl Fn(IpAddr) -> bool,
    ) -> Result<Vec<IpAddr>, NetError> {
        let index = self.index(UNDERLAY_DEVICE).await?;
        let listed = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = listed.try_collect().await.map_err(NetError::netlink("list public addresses"))?;
        let mut present = BTreeSet::new();
        for message in messages {
            let bits = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
            let alone = local(&message).filter(|address| message.header.prefix_len == bits(address));
            match alone.filter(|address| is_public(*address)) {
                Some(address) if wanted.contains(&address) => drop(present.insert(address)),
                Some(_) => {
                    let dropped = self.handle.address().del(message).execute().await;
                    dropped.map_err(NetError::netlink("drop a public address"))?;
                }
                None => {}
            }
        }
        let new: Vec<IpAddr> = wanted.difference(&present).copied().collect();
        for address in &new {
            self.add_aside(UNDERLAY_DEVICE, *address, if address.is_ipv4() { 32 } else { 128 }).await?;
        }
        Ok(new)
    }
}

/// The address that a message tells of.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let own = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    // Over IPv6 there is no other side, and the kernel says it like this.
    own.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
