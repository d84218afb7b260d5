//! What a role asks of the hosts that carry it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::host::Host;

/// Labels and features that a host has to have. Written `disk=ssd, kvm`: with an equals sign a label, without one a
/// feature.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirements {
    /// Labels, by name.
    pub labels: BTreeMap<String, String>,
    /// Features.
    pub features: BTreeSet<String>,
}

impl Requirements {
    /// Whether any host will do.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.features.is_empty()
    }

    /// Whether `host` has everything.
    pub fn met_by(&self, host: &Host) -> bool {
        self.features.is_subset(&host.features)
            && self.labels.iter().all(|(name, value)| host.labels.get(name) == Some(value))
    }
}

impl fmt::Display for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.labels.iter().map(|(name, value)| format!("{name}={value}"));
        let all: Vec<String> = labels.chain(self.features.iter().cloned()).collect();
        f.write_str(&all.join(", "))
    }
}

impl FromStr for Requirements {
    type Err = String;

    fn from_str(text: &str) -> Result<Requirements, String> {
        let mut requirements = Requirements::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let word = |text: &str| {
                let good = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
                if good { Ok(text.to_owned()) } else { Err(format!("`{part}` is neither LABEL=VALUE nor a feature")) }
            };
            match part.split_once('=') {
                Some((name, value)) => drop(requirements.labels.insert(word(name.trim())?, word(value.trim())?)),
                None => drop(requirements.features.insert(word(part)?)),
            }
        }
        Ok(requirements)
    }
}

/// How strictly a role's instances are spread over fault domains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// The counts of two fault domains never differ by more than one: rather wait than stand unevenly.
    #[default]
    Strict,
    /// As evenly as there is room: rather stand unevenly than wait.
    Soft,
}

impl FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Spread, String> {
        match text {
            "strict" => Ok(Spread::Strict),
            "soft" => Ok(Spread::Soft),
            _ => Err(format!("`{text}` is neither strict nor soft")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_read_back_what_they_print() {
        let both: Requirements = "kvm, disk=ssd,".parse().unwrap();
        assert_eq!(both.to_string(), "disk=ssd, kvm");
        assert_eq!(both, both.to_string().parse().unwrap());
        assert!("".parse::<Requirements>().unwrap().is_empty());
        assert!("a=".parse::<Requirements>().is_err() && "a b".parse::<Requirements>().is_err());
    }
}
