//! What the controller shows to hosts, and what it makes for them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mayfly_identity::{Authority, CONTROLLER_LIFE, Clock, IdentityError, Presented, is_due};
use mayfly_secrets::SealingKey;
use rustls::ServerConfig;

use crate::config::ControllerConfig;

/// Between two looks at whether what is shown should be made anew.
const LOOK: Duration = Duration::from_secs(600);

/// The fabric's authority, at this controller.
pub struct Identity {
    /// The authority.
    pub authority: Authority,
    /// The time by which certificates are made and judged.
    pub clock: Clock,
    /// How long a host's certificate lasts, in seconds.
    pub host_life: u64,
    /// Under which secrets are stored. It follows from the authority's key, which all controllers share and no backup has.
    pub sealing: SealingKey,
    addresses: Vec<IpAddr>,
    presented: Arc<Presented>,
}

impl Identity {
    /// Opens the authority, or founds it, and makes what this controller shows.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub fn open(config: &ControllerConfig) -> Result<Arc<Identity>, IdentityError> {
        let folder: PathBuf = config.authority.clone().unwrap_or_else(|| config.folder.join("authority"));
        let clock = Clock::start();
        let authority = Authority::open(&folder, clock.now())?;
        let listen = config.listen_hosts.iter().map(std::net::SocketAddr::ip);
        let addresses: Vec<IpAddr> = listen.chain(config.advertise.iter().copied()).collect();
        let presented = Presented::new(authority.make_server(&addresses, clock.now(), CONTROLLER_LIFE)?);
        let host_life = u64::from(config.host_certificate_days) * 86_400;
        let sealing = SealingKey::from_secret(&authority.secret())
            .map_err(|error| IdentityError::unusable("the authority's key", error))?;
        Ok(Arc::new(Identity { authority, clock, host_life, sealing, addresses, presented }))
    }

    /// The authority's digest, in hexadecimal digits.
    pub fn digest(&self) -> String {
        self.authority.digest().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// For the ports where hosts connect.
    ///
    /// # Errors
    /// When the authority's certificate cannot be used.
    pub fn server_config(&self) -> Result<ServerConfig, IdentityError> {
        mayfly_identity::server_config(self.authority.certificate(), Arc::clone(&self.presented), self.clock)
    }

    /// Makes what this controller shows anew, long before it ends, for ever.
    pub async fn renew(self: Arc<Identity>) {
        let mut made = self.clock.now();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.clock.now();
            if !is_due(mayfly_identity::Validity { from: made, until: made + CONTROLLER_LIFE }, now) {
                continue;
            }
            match self.authority.make_server(&self.addresses, now, CONTROLLER_LIFE) {
                Ok(certified) => {
                    self.presented.replace(certified);
                    made = now;
                }
                Err(error) => tracing::error!(%error, "this controller's certificate cannot be renewed"),
            }
        }
    }
}
