//! Validated names and the keys made of them.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use arcstr::ArcStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be the name of this {kind}: {rule}")]
pub struct NameError {
    /// What was meant, for example `service`.
    pub kind: &'static str,
    /// The offending text.
    pub text: String,
    /// The rule it broke.
    pub rule: &'static str,
}

const LABEL_RULE: &str =
    "use 1 to 63 lower-case letters, digits and hyphens, with a letter or digit first and last (it becomes a DNS name)";
const ROLE_RULE: &str = "use 1 to 48 letters, digits, hyphens and underscores, with a letter first";

fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_role(text: &str) -> bool {
    text.len() <= 48
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && !text.contains("_IN_")
}

/// Keeps each text once. A clone of a name shares its memory; names that were read apart from each other do not, until
/// they have gone through a pool.
#[derive(Debug, Default)]
pub struct NamePool(HashSet<ArcStr>);

impl NamePool {
    /// The same text, in the memory that the pool has for it.
    pub fn take(&mut self, text: &ArcStr) -> ArcStr {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        self.0.insert(text.clone());
        text.clone()
    }
}

/// Reads a text as what it names.
struct TextOf<T>(PhantomData<T>);

impl<T: FromStr<Err = NameError>> serde::de::Visitor<'_> for TextOf<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name(ArcStr);

        // Most names that are compared are clones of each other.
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                if ArcStr::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(TextOf(PhantomData))
            }
        }

        impl $name {
            /// Checks `text` and makes a name of it.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
                let text = text.as_ref();
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NameError { kind: $kind, text: text.to_owned(), rule: $rule })
                }
            }

            /// The same name in the memory of `pool`, so that names that are written often are kept once.
            #[must_use]
            pub fn pooled(&self, pool: &mut NamePool) -> Self {
                Self(pool.take(&self.0))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

    };
}

name_type!(
    /// A hosted service, `shop`.
    ServiceName,
    "service",
    is_label,
    LABEL_RULE
);
name_type!(
    /// A host, `host-1`.
    HostName,
    "host",
    is_label,
    LABEL_RULE
);
name_type!(
    /// A base image, `hello`.
    ImageName,
    "image",
    is_label,
    LABEL_RULE
);
name_type!(
    /// A reserved public address, `front`.
    ReservedName,
    "reserved address",
    is_label,
    LABEL_RULE
);
name_type!(
    /// A role of a service definition, `web`.
    RoleName,
    "role",
    is_role,
    ROLE_RULE
);

/// Where in a hosted service a deployment runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// The slot that the service's DNS name leads to.
    #[default]
    Production,
    /// The slot to try a deployment in.
    Staging,
}

impl Slot {
    /// The slot as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Slot::Production => "production",
            Slot::Staging => "staging",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A deployment: a service and a slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeploymentKey {
    /// The hosted service.
    pub service: ServiceName,
    /// Its slot.
    pub slot: Slot,
}

impl fmt::Display for DeploymentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            Slot::Production => write!(f, "{}", self.service),
            Slot::Staging => write!(f, "{}@staging", self.service),
        }
    }
}

/// A role instance: the identity that outlives any one VM that carries it. Written `shop/web_IN_0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceKey {
    /// The deployment it belongs to.
    pub deployment: DeploymentKey,
    /// Its role.
    pub role: RoleName,
    /// Its number within the role, from 0.
    pub index: u32,
}

impl InstanceKey {
    /// The name without the service, `web_IN_0`.
    pub fn name(&self) -> String {
        format!("{}_IN_{}", self.role, self.index)
    }

    /// A key that is less than or equal to every key of the deployment, for looking up a range.
    pub fn first_of(deployment: &DeploymentKey) -> InstanceKey {
        InstanceKey { deployment: deployment.clone(), role: RoleName(ArcStr::new()), index: 0 }
    }

    /// The host label of the identity in DNS, `web-in-0`.
    pub fn dns_label(&self) -> String {
        self.name().to_ascii_lowercase().replace('_', "-")
    }
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.deployment, self.name())
    }
}

impl FromStr for InstanceKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError {
            kind: "instance",
            text: text.to_owned(),
            rule: "write SERVICE/ROLE_IN_NUMBER, for example shop/web_IN_0 (in the staging slot shop@staging/web_IN_0)",
        };
        let (deployment, name) = text.split_once('/').ok_or_else(error)?;
        let (service, slot) = match deployment.split_once('@') {
            None => (deployment, Slot::Production),
            Some((service, "staging")) => (service, Slot::Staging),
            Some((service, "production")) => (service, Slot::Production),
            Some(_) => return Err(error()),
        };
        let (role, index) = name.rsplit_once("_IN_").ok_or_else(error)?;
        Ok(InstanceKey {
            deployment: DeploymentKey { service: ServiceName::new(service)?, slot },
            role: RoleName::new(role)?,
            index: index.parse().map_err(|_| error())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        assert!(ServiceName::new("shop-2").is_ok());
        for bad in ["", "-a", "a-", "Shop", "a.b", "a_b", &"x".repeat(64)] {
            assert!(ServiceName::new(bad).is_err(), "{bad}");
        }
        assert!(RoleName::new("Web_Role1").is_ok());
        for bad in ["", "1web", "a b", "a_IN_3"] {
            assert!(RoleName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn instance_keys_read_back_what_they_print() {
        for text in ["shop/web_IN_0", "shop@staging/a_b_IN_12"] {
            assert_eq!(text.parse::<InstanceKey>().unwrap().to_string(), text);
        }
        let error = "shop/web".parse::<InstanceKey>().unwrap_err();
        assert!(error.to_string().contains("shop/web_IN_0"), "{error}");
        assert_eq!("shop/A_b_IN_1".parse::<InstanceKey>().unwrap().dns_label(), "a-b-in-1");
    }
}
