//! Several clients at several controllers, whose leader is killed again and again: whatever they saw must have been
//! possible with one client at one controller that never dies.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mayfly_api::{Client, ClientError, ErrorCode};
use mayfly_model::ServiceName;
use mayfly_xtask::etcd::Cluster;
use mayfly_xtask::linear::{Operation, is_linearizable};
use serde_json::{Value, json};

const TOKEN: &str = "secret";
const CLIENTS: usize = 6;
/// Operations on one service until the next gets its turn; the search for an order has to remain small.
const EACH: u64 = 30;

/// What was done to a service, and what the answer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// Made; or it was there already.
    Create(Result<(), ErrorCode>),
    /// Deleted; or it was not there.
    Delete(Result<(), ErrorCode>),
    /// Whether it was there.
    Look(bool),
    /// Asked to be made or deleted, without an answer.
    LostCreate,
    LostDelete,
}

/// One service, in one place, one command after the other.
fn apply(exists: &bool, what: &On) -> Option<bool> {
    let expect = |then: bool, agrees: bool| agrees.then_some(then);
    match what {
        On::Create(Ok(())) => expect(true, !exists),
        On::Create(Err(code)) => expect(true, *exists && *code == ErrorCode::AlreadyExists),
        On::Delete(Ok(())) => expect(false, *exists),
        On::Delete(Err(code)) => expect(false, !exists && *code == ErrorCode::NotFound),
        On::Look(seen) => expect(*exists, seen == exists),
        On::LostCreate => Some(true),
        On::LostDelete => Some(false),
    }
}

/// Controllers, each a process; dropped, they are killed.
struct Controllers {
    configs: Vec<PathBuf>,
    users: Vec<SocketAddr>,
    running: Vec<Option<Child>>,
}

impl Controllers {
    fn start(folder: &Path, store: &Value, count: usize) -> Controllers {
        let free = || TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let mut all = Controllers { configs: vec![], users: vec![], running: vec![] };
        for number in 0..count {
            let (users, hosts) = (free(), free());
            let config = json!({
                "folder": folder.join(format!("c{number}")),
                "listen": [users],
                "listen_hosts": [hosts],
                "authority": folder.join("authority"),
                "user_token": TOKEN,
                "name": format!("http://{users}"),
                "store": store,
                "fabric": { "zone": "linear.test", "dips": ["10.0.0.0", 8], "vips": ["20.0.0.0", 8] },
            });
            let file = folder.join(format!("c{number}.json"));
            std::fs::write(&file, config.to_string()).unwrap();
            all.configs.push(file);
            all.users.push(users);
            all.running.push(None);
            all.revive(number);
        }
        all
    }

    fn revive(&mut self, number: usize) {
        let log = self.configs[number].with_extension("log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        command.args(["internal", "controller"]).arg(&self.configs[number]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.running[number] = Some(child);
    }

    fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.running[number].take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn urls(&self) -> String {
        self.users.iter().map(|address| format!("http://{address}")).collect::<Vec<_>>().join(",")
    }

    /// Who leads, by asking each.
    async fn leader(&self) -> Option<usize> {
        for (number, address) in self.users.iter().enumerate() {
            let asked = leads(address).await;
            if asked {
                return Some(number);
            }
        }
        None
    }
}

/// Whether the controller at this address answers as one that leads, at once.
async fn leads(address: &SocketAddr) -> bool {
    let client = Client::new(&format!("http://{address}"), TOKEN);
    matches!(tokio::time::timeout(Duration::from_millis(300), client.host_list()).await, Ok(Ok(_)))
}

impl Drop for Controllers {
    fn drop(&mut self) {
        (0..self.running.len()).for_each(|number| self.kill(number));
    }
}

type History = Arc<Mutex<BTreeMap<String, Vec<Operation<On>>>>>;

/// A client that does one thing after the other, and writes down what it saw.
async fn client(urls: String, turn: Arc<AtomicU64>, began: Instant, stop: Arc<AtomicBool>, history: History) {
    let client = Client::new(&urls, TOKEN);
    while !stop.load(Ordering::Relaxed) {
        let number = turn.fetch_add(1, Ordering::Relaxed);
        let name = format!("s{}", number / EACH);
        let service = ServiceName::new(name.as_str()).unwrap();
        let sent = began.elapsed().as_nanos() as u64;
        let what = match number * 7 % 5 {
            0 | 3 => told(client.service_create(&service).await).map_or(On::LostCreate, On::Create),
            1 => told(client.service_delete(&service).await).map_or(On::LostDelete, On::Delete),
            _ => match told(client.service_show(&service).await) {
                Some(Ok(_)) => On::Look(true),
                Some(Err(ErrorCode::NotFound)) => On::Look(false),
                // A look that was not answered says nothing.
                _ => continue,
            },
        };
        let answered = began.elapsed().as_nanos() as u64;
        let answered = (!matches!(what, On::LostCreate | On::LostDelete)).then_some(answered);
        history.lock().unwrap().entry(name).or_default().push(Operation { sent, answered, what });
        // While nobody answers there is little to learn.
        let pause = if answered.is_some() { 2 } else { 50 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// What the answer said; nothing if it is not known whether it was done.
fn told<T>(answer: Result<T, ClientError>) -> Option<Result<T, ErrorCode>> {
    match answer {
        Ok(value) => Some(Ok(value)),
        Err(error) => match error.code() {
            Some(code @ (ErrorCode::NotFound | ErrorCode::AlreadyExists)) => Some(Err(code)),
            None | Some(ErrorCode::Unavailable | ErrorCode::NotLeader) => None,
            Some(_) => panic!("{error}"),
        },
    }
}

/// Clients work for a while, and the leader is killed every so often.
fn record(controllers: &mut Controllers, time: Duration, every: Duration) -> BTreeMap<String, Vec<Operation<On>>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (turn, stop, history) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), History::default());
    let began = Instant::now();
    let (urls, many) = (controllers.urls(), controllers.users.len() > 1);
    let work = |_| {
        let (urls, turn, stop, history) = (urls.clone(), turn.clone(), stop.clone(), history.clone());
        runtime.spawn(client(urls, turn, began, stop, history))
    };
    let clients: Vec<_> = (0..CLIENTS).map(work).collect();
    let mut kills = 0;
    while began.elapsed() < time {
        std::thread::sleep(every);
        let leader = if many { runtime.block_on(controllers.leader()) } else { Some(0) };
        if let Some(leader) = leader {
            controllers.kill(leader);
            std::thread::sleep(Duration::from_millis(300));
            controllers.revive(leader);
            kills += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        runtime.block_on(client).unwrap();
    }
    assert!(kills >= 3, "only {kills} leaders were killed");
    std::mem::take(&mut *history.lock().unwrap())
}

fn check(history: BTreeMap<String, Vec<Operation<On>>>, least: usize) {
    let all: usize = history.values().map(Vec::len).sum();
    let lost = history.values().flatten().filter(|one| one.answered.is_none()).count();
    println!("{all} operations on {} services, {lost} of them without an answer", history.len());
    assert!(all >= least, "only {all} operations");
    for (service, mut operations) in history {
        operations.sort_by_key(|one| one.sent);
        assert!(is_linearizable(&operations, false, apply), "{service}: no order explains\n{operations:#?}");
    }
}

#[test]
fn commands_at_three_controllers_are_as_if_at_one() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&folder.path().join("etcd"), 3, None).unwrap();
    let store = json!({ "etcd": { "endpoints": cluster.endpoints(), "prefix": "linear" } });
    let mut controllers = Controllers::start(folder.path(), &store, 3);
    check(record(&mut controllers, Duration::from_secs(20), Duration::from_secs(4)), 300);
}

#[test]
fn commands_at_one_controller_that_is_killed_are_as_if_at_one_that_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut controllers = Controllers::start(folder.path(), &json!("embedded"), 1);
    check(record(&mut controllers, Duration::from_secs(6), Duration::from_millis(900)), 300);
}
