//! Where a role's guests may go outside their own deployment.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::definition::PortRange;
use crate::subnet::Subnet;

/// Where guests may go. Their own deployment, and the host's servers (DHCP, DNS, wire server, metadata), are always open
/// to them as far as the definition says.
///
/// Written `allow`, `deny`, or as a list of destinations, separated by commas or blanks: `198.51.100.0/24`,
/// `198.51.100.7:443`, `[2001:db8::/32]:443`, `example.org:443`, `*.example.org:8000-8080`, `example.org:53/udp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Egress {
    /// Everywhere that the host lets guests go.
    #[default]
    Allow,
    /// Nowhere.
    Deny,
    /// To these destinations and no others.
    Only(Vec<Destination>),
}

/// A destination that is open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The address or name.
    pub target: Target,
    /// The protocol; any if none is named.
    pub protocol: Option<Transport>,
    /// The ports; all if none are named.
    pub ports: Option<PortRange>,
}

/// Who a destination is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// A network.
    Network {
        /// Its address.
        address: IpAddr,
        /// The bits of its prefix, 0 to 32, for IPv6 to 128.
        prefix: u8,
    },
    /// A name, in lower case: whatever addresses it has when the guest asks for them.
    Name(String),
    /// All names below this one, in lower case.
    Below(String),
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The name as nftables and users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

impl Egress {
    /// Whether guests may ask for the addresses of `name` (lower case, without a dot at the end), which is outside the
    /// fabric's zone. Where only some destinations are open, asking for others would be a way out by itself.
    pub fn may_resolve(&self, name: &str) -> bool {
        match self {
            Egress::Allow => true,
            Egress::Deny => false,
            Egress::Only(destinations) => destinations.iter().any(|one| one.target.is_named(name)),
        }
    }
}

impl Target {
    /// Whether it is this name, or one that covers it.
    pub fn is_named(&self, name: &str) -> bool {
        match self {
            Target::Network { .. } => false,
            Target::Name(own) => own == name,
            Target::Below(above) => name.strip_suffix(above.as_str()).is_some_and(|rest| rest.ends_with('.')),
        }
    }
}

impl FromStr for Egress {
    type Err = String;

    fn from_str(text: &str) -> Result<Egress, String> {
        match text.trim() {
            "allow" => return Ok(Egress::Allow),
            "deny" => return Ok(Egress::Deny),
            _ => {}
        }
        let parts = text.split([',', ' ', '\t', '\r', '\n']).filter(|part| !part.is_empty());
        let destinations = parts.map(str::parse).collect::<Result<Vec<Destination>, String>>()?;
        if destinations.is_empty() {
            return Err("`allow`, `deny` or a list of destinations is expected here".to_owned());
        }
        Ok(Egress::Only(destinations))
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Destination, String> {
        let wrong = |what: &str| format!("`{text}` is no destination: {what}");
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Transport::Tcp)),
            Some((rest, "udp")) => (rest, Some(Transport::Udp)),
            _ => (text, None),
        };
        // Ports after an IPv6 network would be part of it, but for brackets.
        let (target, ports) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((target, "")) => (target, None),
            Some((target, ports)) => (target, Some(ports.strip_prefix(':').unwrap_or_default())),
            None if rest.matches(':').count() > 1 => (rest, None),
            None => rest.split_once(':').map_or((rest, None), |(target, ports)| (target, Some(ports))),
        };
        let ports = ports.map(|ports| read_ports(ports).ok_or_else(|| wrong("its ports are not 1 to 65535")));
        let ports = ports.transpose()?;
        let first = target.split(['/', '.']).next().unwrap_or_default();
        let dotted = first.parse::<u8>().is_ok() && target.split('.').count() == 4;
        let target = if target.contains(['/', ':']) || dotted {
            read_network(target)
                .ok_or_else(|| wrong("this is not a network such as 198.51.100.0/24 or [2001:db8::/32]:443"))?
        } else {
            read_name(target).ok_or_else(|| wrong("this is neither a network nor a name such as example.org"))?
        };
        Ok(Destination { target, protocol, ports })
    }
}

fn read_ports(text: &str) -> Option<PortRange> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    let (min, max): (u16, u16) = (min.parse().ok()?, max.parse().ok()?);
    (min > 0 && min <= max).then_some(PortRange { min, max })
}

fn read_network(text: &str) -> Option<Target> {
    let Subnet { address, prefix } = text.parse().ok()?;
    Some(Target::Network { address, prefix })
}

fn read_name(text: &str) -> Option<Target> {
    let (below, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, text),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let good = |label: &str| {
        let inner = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        !label.is_empty() && label.len() < 64 && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let valid = name.len() < 254 && name.split('.').all(good);
    valid.then_some(if below { Target::Below(name) } else { Target::Name(name) })
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Egress::Allow => f.write_str("allow"),
            Egress::Deny => f.write_str("deny"),
            Egress::Only(all) => f.write_str(&all.iter().map(Destination::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Network { address, prefix } if address.is_ipv6() => write!(f, "[{address}/{prefix}]"),
            Target::Network { address, prefix } => write!(f, "{address}/{prefix}"),
            Target::Name(name) => f.write_str(name),
            Target::Below(name) => write!(f, "*.{name}"),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.target)?;
        match self.ports {
            Some(PortRange { min, max }) if min == max => write!(f, ":{min}")?,
            Some(PortRange { min, max }) => write!(f, ":{min}-{max}")?,
            None => {}
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{}", protocol.as_str()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant() {
        for (text, shown) in [
            ("allow", "allow"),
            (" deny ", "deny"),
            ("198.51.100.77/24", "198.51.100.0/24"),
            ("198.51.100.7:443", "198.51.100.7/32:443"),
            ("0.0.0.0/0:53/udp", "0.0.0.0/0:53/udp"),
            ("2001:db8:1::/32, 2001:db8::7", "[2001:db8::/32], [2001:db8::7/128]"),
            ("[2001:db8::/32]:80-90/tcp [2001:db8::7]", "[2001:db8::/32]:80-90/tcp, [2001:db8::7/128]"),
            (
                "Example.ORG:443, *.example.net:8000-8080/tcp\n9.example",
                "example.org:443, *.example.net:8000-8080/tcp, 9.example",
            ),
        ] {
            assert_eq!(text.parse::<Egress>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            " , ",
            "198.51.100.0/33",
            "198.51.100.300",
            "[2001:db8::/32]443",
            "[2001:db8::/32",
            "2001:db8::/129",
            "[example.org]:443:1",
            "a..b",
            "-a.b",
            "example.org:0",
            "example.org:9-8",
            "*",
            "a b:x",
        ] {
            assert!(text.parse::<Egress>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_asked_for_only_where_they_are_open() {
        let egress: Egress = "example.org:443, *.example.net".parse().unwrap();
        for (name, may) in [
            ("example.org", true),
            ("www.example.org", false),
            ("example.net", false),
            ("a.b.example.net", true),
            ("badexample.net", false),
        ] {
            assert_eq!(egress.may_resolve(name), may, "{name}");
        }
        assert!(Egress::Allow.may_resolve("x.y") && !Egress::Deny.may_resolve("x.y"));
    }
}
