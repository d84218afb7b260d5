//! The breaker: what stops healing when it does more harm than good.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::name::{HostName, ServiceName, Slot};
use crate::time::Time;

/// What healing has been stopped for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// Everything.
    Fleet,
    /// One deployment.
    Deployment(ServiceName, Slot),
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scope::Fleet => f.pad("fleet"),
            Scope::Deployment(service, Slot::Production) => f.pad(service.as_str()),
            Scope::Deployment(service, Slot::Staging) => f.pad(&format!("{service}@staging")),
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Scope, String> {
        if text == "fleet" {
            return Ok(Scope::Fleet);
        }
        let (service, slot) = match text.strip_suffix("@staging") {
            Some(service) => (service, Slot::Staging),
            None => (text, Slot::Production),
        };
        let service = ServiceName::new(service).map_err(|error| error.to_string())?;
        Ok(Scope::Deployment(service, slot))
    }
}

impl TryFrom<String> for Scope {
    type Error = String;

    fn try_from(text: String) -> Result<Scope, String> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> String {
        scope.to_string()
    }
}

/// Why and when it was tripped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trip {
    /// When.
    pub since: Time,
    /// The pattern that was seen.
    pub why: String,
}

/// The breaker's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// What is stopped. Only a person lets it go on.
    pub trips: BTreeMap<Scope, Trip>,
    /// Hosts that were lost lately.
    pub losses: BTreeMap<HostName, Loss>,
}

/// A host that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// When it was lost last.
    pub at: Time,
    /// The fault domain it stood in.
    pub domain: String,
    /// Deployments of which it was booting an instance then.
    pub booting: BTreeSet<Scope>,
    /// Those of them whose instance had lost a host before: a rack that fails takes each instance once.
    #[serde(default)]
    pub again: BTreeSet<Scope>,
    /// A person has looked, and it is no sign of trouble with the whole fleet.
    #[serde(default)]
    pub forgiven: bool,
}
