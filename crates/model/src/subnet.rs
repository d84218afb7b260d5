//! A network, of either version of IP, as lists and access controls name it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address.
    pub address: IpAddr,
    /// The bits of its prefix, 0 to 32, for IPv6 to 128.
    pub prefix: u8,
}

impl Subnet {
    /// Whether it is everybody: 0.0.0.0/0 was written for all before there was another version.
    pub fn is_everybody(self) -> bool {
        self.prefix == 0 && self.address.is_ipv4()
    }

    /// Whether an address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.is_everybody() || masked(address, self.prefix) == Some(self.address)
    }
}

/// The network of so many bits that an address is in, if addresses like it have so many.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(address) if prefix <= 32 => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            Some(Ipv4Addr::from_bits(address.to_bits() & mask).into())
        }
        IpAddr::V6(address) if prefix <= 128 => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Some(Ipv6Addr::from_bits(address.to_bits() & mask).into())
        }
        _ => None,
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// `ADDRESS/BITS`, or an address alone.
    fn from_str(text: &str) -> Result<Subnet, String> {
        let wrong = || format!("`{text}` is not a network");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let prefix = bits.map_or(Ok(all), str::parse).map_err(|_| wrong())?;
        Ok(Subnet { address: masked(address, prefix).ok_or_else(wrong)?, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Subnet, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

/// Writes an address as one of its own version would be: so records in which there was one version only can be read.
pub(crate) mod plain {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(address: &IpAddr, serializer: S) -> Result<S::Ok, S::Error> {
        match address {
            IpAddr::V4(address) => address.serialize(serializer),
            IpAddr::V6(address) => address.serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
        deserializer.deserialize_any(Address)
    }

    /// Text for people, or the bytes.
    struct Address;

    impl<'de> Visitor<'de> for Address {
        type Value = IpAddr;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<IpAddr, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<IpAddr, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = parts.next_element::<u8>()? {
                bytes.push(byte);
            }
            let four = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            let six = || <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from);
            four.or_else(|_| six()).map_err(|_| A::Error::invalid_length(bytes.len(), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_in_networks_of_its_own_version() {
        for (network, address, is_in) in [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "10.2.0.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("2001:db8::/32", "2001:db8:9::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("2001:db8::/32", "10.1.2.3", false),
            ("10.0.0.0/8", "::10.1.2.3", false),
            ("0.0.0.0/0", "2001:db8::1", true),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.1.2.3", false),
        ] {
            assert_eq!(subnet(network).contains(address.parse().unwrap()), is_in, "{address} in {network}");
        }
        assert_eq!(subnet("2001:db8:1::7/32").to_string(), "2001:db8::/32");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "10.1.0.0/33", "2001:db8::/129", "10.1/16", "a.b", "::/x", "10.0.0.0/"] {
            text.parse::<Subnet>().unwrap_err();
        }
    }
}
