//! DNS for the outside: services' names and endpoints, as the records have them. Names of instances lead to addresses that
//! nobody outside can reach, so they are not told.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mayfly_fabric::{Core, names};
use mayfly_model::{DnsRecord, ServiceRecord};
use mayfly_net::{DnsServer, Limit, Zone};
use tokio::sync::watch;

use crate::driver::Driver;

/// Between two looks at the records, however often they change.
const PAUSE: Duration = Duration::from_millis(20);
/// Questions that one asker may put in a second, and at once.
const LIMIT: (u32, u32) = (2000, 4000);
/// Threads that answer.
const THREADS: usize = 2;

type Public = (String, Vec<DnsRecord>, Vec<ServiceRecord>);

/// Starts to answer on these addresses, for as long as the process lives.
///
/// # Errors
/// When an address cannot be had.
pub async fn serve(addresses: &[SocketAddrV4], driver: &Driver) -> anyhow::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let limit = Arc::new(Mutex::new(Limit::new(LIMIT.0, LIMIT.1)));
    for address in addresses {
        let zone = watch::Sender::new(Arc::new(Zone::default()));
        let server =
            DnsServer { zone: zone.subscribe(), forwarder: None, limit: Some(Arc::clone(&limit)), observer: None };
        server.start(*address, THREADS, Arc::default()).await?;
        tokio::spawn(follow(driver.clone(), zone, *address.ip()));
    }
    Ok(())
}

/// Follows the records until the driver ends, for who asks at this address.
async fn follow(driver: Driver, zone: watch::Sender<Arc<Zone>>, address: Ipv4Addr) {
    let mut commits = driver.watch();
    let mut told: Option<Public> = None;
    loop {
        let Ok(public) = driver.read(public).await else { return };
        if told.as_ref() != Some(&public) {
            let new = Zone::new(&public.0, &public.1, &public.2).answered_at(&public.0, address);
            zone.send_replace(Arc::new(new));
            told = Some(public);
        }
        tokio::time::sleep(PAUSE).await;
        if commits.changed().await.is_err() {
            return;
        }
    }
}

fn public(core: &Core) -> Public {
    let zone = core.config().zone.clone();
    let inside = format!(".internal.{zone}");
    let mut services = names::services(core);
    services.retain(|service| !service.name.ends_with(&inside));
    (zone, names::public(core), services)
}
