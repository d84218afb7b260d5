//! The store in a real three-node etcd.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mayfly_identity::Authority;
use mayfly_store::{Election, EtcdConfig, EtcdStore, Store, StoreError, Write};
use mayfly_xtask::etcd::Cluster;

fn config(cluster: &Cluster, prefix: &str) -> EtcdConfig {
    EtcdConfig { endpoints: cluster.endpoints(), prefix: prefix.to_owned(), ca_file: None, identity_file: None }
}

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.to_owned(), value.as_bytes().to_vec())
}

/// One cluster for all, as three members take a while to agree.
#[test]
fn etcd_keeps_records_as_the_embedded_store_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path(), 3, None).unwrap();
    let config = |prefix: &str| config(&cluster, prefix);
    crate::conforms(&mut EtcdStore::open(&config("conformance")).unwrap());
    two_fabrics_share_one_etcd(&config("one"), &config("two"));
    large_transactions_are_whole(&config("large"));
    folding_loses_nothing(&config("folding"));
    a_leader_knows_when_it_leads_no_longer(&config("election"));
    let survivor = config("members");
    members_may_die(&mut cluster, &survivor);
}

fn two_fabrics_share_one_etcd(one: &EtcdConfig, two: &EtcdConfig) {
    let (mut first, mut second) = (EtcdStore::open(one).unwrap(), EtcdStore::open(two).unwrap());
    assert_eq!((first.take_over(0).unwrap(), second.take_over(0).unwrap()), (1, 1));
    first.commit(1, &[put("key", "first")]).unwrap();
    assert_eq!(second.load().unwrap(), []);
    // Another controller of the same fabric takes over, and the first can write no more.
    let mut heir = EtcdStore::open(one).unwrap();
    assert_eq!(heir.take_over(0).unwrap(), 2);
    assert!(matches!(first.commit(1, &[put("key", "late")]), Err(StoreError::Fenced { own: 1, current: 2 })));
    heir.commit(2, &[put("other", "heir")]).unwrap();
    assert_eq!(heir.load().unwrap(), [("key".into(), b"first".to_vec()), ("other".into(), b"heir".to_vec())]);
}

fn large_transactions_are_whole(config: &EtcdConfig) {
    let mut store = EtcdStore::open(config).unwrap();
    assert_eq!(store.take_over(0).unwrap(), 1);
    let writes: Vec<Write> = (0..3000).map(|number| put(&format!("{number:06}"), &"x".repeat(700))).collect();
    store.commit(1, &writes).unwrap();
    store.commit(1, &[Write::Delete("000007".into())]).unwrap();
    let records = EtcdStore::open(config).unwrap().load().unwrap();
    assert_eq!(records.len(), 2999);
    assert!(records.iter().all(|(_, value)| value.len() == 700));
}

fn folding_loses_nothing(config: &EtcdConfig) {
    let mut store = EtcdStore::open(config).unwrap();
    assert_eq!(store.take_over(0).unwrap(), 1);
    // More than the journal holds.
    for number in 0..2100 {
        store.commit(1, &[put(&format!("{:03}", number % 150), &number.to_string())]).unwrap();
    }
    let check = |store: &dyn Store| {
        let records = store.load().unwrap();
        assert_eq!(records.len(), 150);
        let last = |(key, value): &(String, Vec<u8>)| {
            let (key, value): (u32, u32) = (key.parse().unwrap(), String::from_utf8_lossy(value).parse().unwrap());
            value % 150 == key && value >= 1950
        };
        assert!(records.iter().all(last));
    };
    check(&store);
    let mut again = EtcdStore::open(config).unwrap();
    check(&again);
    assert_eq!(again.take_over(0).unwrap(), 2);
    again.commit(2, &[put("new", "x")]).unwrap();
    assert_eq!(again.load().unwrap().len(), 151);
}

fn a_leader_knows_when_it_leads_no_longer(config: &EtcdConfig) {
    let candidate = |name: &str| Election::new(config, name).unwrap();
    let first = candidate("first").win(|_| {});
    assert!(first.holds());
    assert!(candidate("other").leader().unwrap().unwrap().starts_with("first by lease"));
    let second = candidate("second");
    let won = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let won = &won;
        scope.spawn(move || {
            second.win(|leader| assert!(leader.starts_with("first by lease")));
            won.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(3500));
        assert!(first.holds() && !won.load(Ordering::SeqCst), "it renews its lease");
        // Whoever takes the key away, the first knows before the second leads.
        first.give_up();
        let began = Instant::now();
        while !won.load(Ordering::SeqCst) && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!first.holds() && won.load(Ordering::SeqCst), "after {:?}", began.elapsed());
        println!("the next leader after {:?}", began.elapsed());
    });
}

fn members_may_die(cluster: &mut Cluster, config: &EtcdConfig) {
    let mut store = EtcdStore::open(config).unwrap();
    assert_eq!(store.take_over(0).unwrap(), 1);
    let mut count = 0;
    for member in 0..3 {
        cluster.kill(member);
        for _ in 0..20 {
            store.commit(1, &[put(&format!("{count:04}"), "x")]).unwrap();
            count += 1;
        }
        cluster.revive(member).unwrap();
        std::thread::sleep(Duration::from_secs(2));
    }
    assert_eq!(store.load().unwrap().len(), count);
}

#[test]
fn etcd_is_spoken_to_by_mutual_tls() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let authority = Authority::open(&path("authority"), now).unwrap();
    let loopback = [std::net::IpAddr::from([127, 0, 0, 1])];
    let (certificate, key) = authority.make_server_pem(&loopback, now, 3600).unwrap();
    std::fs::write(path("authority.pem"), &authority.pem).unwrap();
    std::fs::write(path("member.pem"), &certificate).unwrap();
    std::fs::write(path("member.key"), &key).unwrap();
    let (certificate, key) = authority.make_server_pem(&loopback, now, 3600).unwrap();
    std::fs::write(path("client.pem"), format!("{certificate}{key}")).unwrap();
    let files = (path("authority.pem"), path("member.pem"), path("member.key"));
    let cluster = Cluster::start(&path("etcd"), 1, Some(files)).unwrap();
    let known = EtcdConfig {
        ca_file: Some(path("authority.pem")),
        identity_file: Some(path("client.pem")),
        ..config(&cluster, "tls")
    };
    crate::conforms(&mut EtcdStore::open(&known).unwrap());
    // Who shows no certificate is not let in, and who is shown one of another authority does not speak.
    let stranger = EtcdConfig { identity_file: None, ..known.clone() };
    assert!(EtcdStore::open(&stranger).unwrap().take_over(0).is_err());
    let other = Authority::open(&path("other"), now).unwrap();
    std::fs::write(path("other.pem"), &other.pem).unwrap();
    let fooled = EtcdConfig { ca_file: Some(path("other.pem")), ..known.clone() };
    assert!(EtcdStore::open(&fooled).unwrap().take_over(0).is_err());
    let missing = EtcdConfig { ca_file: Some(path("none.pem")), ..known };
    assert!(format!("{:?}", EtcdStore::open(&missing).err()).contains("none.pem"));
}
