//! Hosted services and their deployments.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::configuration::ServiceConfiguration;
use crate::definition::ServiceDefinition;
use crate::name::{DeploymentKey, ServiceName};
use crate::time::Time;

/// A hosted service: a named container for deployments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name, and the first label of its DNS name.
    pub name: ServiceName,
    /// When it was created.
    pub created: Time,
    /// Whether it goes away as soon as its last VM has gone.
    pub deleting: bool,
}

/// A package and configuration running in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Where it runs.
    pub key: DeploymentKey,
    /// 32 hexadecimal digits, never used twice.
    pub id: String,
    /// Its public address.
    pub vip: Ipv4Addr,
    /// What it consists of.
    pub definition: ServiceDefinition,
    /// How it is set up.
    pub configuration: ServiceConfiguration,
    /// When it was created.
    pub created: Time,
    /// Whether it is going away.
    pub deleting: bool,
    /// The last generation of instances that were scaled away, by name, so that generations only grow.
    #[serde(default)]
    pub generations: BTreeMap<String, u64>,
}
