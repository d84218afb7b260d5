//! IPv6 addresses that are made of IPv4 addresses: the location has a prefix of 96 bits, and whoever has an IPv4 address may
//! have the IPv6 address with the same last 32 bits (the form of RFC 6052). So nothing has to be given out, or kept from being
//! given out, a second time.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The bits that a location's IPv6 addresses have in common.
pub const PREFIX_BITS: u8 = 96;

/// A location's prefix for IPv6 addresses, `fd6d:6179:666c:79::/96`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv6Prefix(u128);

impl Ipv6Prefix {
    /// The IPv6 address of whoever has this IPv4 address.
    pub fn embed(self, address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0 | u128::from(address.to_bits()))
    }

    /// The IPv4 address of whoever has this IPv6 address; nothing if that is none of the location's.
    pub fn embedded(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let bits = address.to_bits();
        (bits >> 32 == self.0 >> 32).then_some(Ipv4Addr::from_bits(bits as u32))
    }

    /// The network's own address, that of 0.0.0.0.
    pub fn network(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0)
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{PREFIX_BITS}", self.network())
    }
}

impl FromStr for Ipv6Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Ipv6Prefix, String> {
        let wrong = || format!("`{text}` is no IPv6 prefix of {PREFIX_BITS} bits, such as fd6d:6179:666c:79::/96");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
        if bits.parse() != Ok(PREFIX_BITS) || address.to_bits() as u32 != 0 {
            return Err(wrong());
        }
        if !address.is_unique_local() && address.segments()[0] >> 13 != 1 {
            return Err(format!("`{text}` is neither unique local (fc00::/7) nor global (2000::/3)"));
        }
        Ok(Ipv6Prefix(address.to_bits()))
    }
}

impl TryFrom<String> for Ipv6Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Ipv6Prefix, String> {
        text.parse()
    }
}

impl From<Ipv6Prefix> for String {
    fn from(prefix: Ipv6Prefix) -> String {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_there_and_back() {
        let prefix: Ipv6Prefix = "fd6d:6179:666c:79::/96".parse().unwrap();
        let (four, six) = (Ipv4Addr::new(10, 80, 0, 2), "fd6d:6179:666c:79::a50:2".parse().unwrap());
        assert_eq!((prefix.embed(four), prefix.embedded(six)), (six, Some(four)));
        assert_eq!(prefix.embedded("fd6d:6179:666c:78::a50:2".parse().unwrap()), None);
        assert_eq!(prefix.to_string(), "fd6d:6179:666c:79::/96");
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "fd00::", "fd00::/64", "fd00::1/96", "10.80.0.0/16", "fe80::/96", "ff02::/96", "::/96"] {
            text.parse::<Ipv6Prefix>().unwrap_err();
        }
        "2001:db8:1::/96".parse::<Ipv6Prefix>().unwrap();
    }
}
