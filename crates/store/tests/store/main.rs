//! One suite that every store has to pass, and a crash test of the one that keeps files.

mod etcd;
mod torn;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use mayfly_store::{EmbeddedStore, MemoryStore, Store, StoreError, Write};

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.to_owned(), value.as_bytes().to_vec())
}

fn keys(store: &dyn Store) -> Vec<String> {
    store
        .load()
        .unwrap()
        .into_iter()
        .map(|(key, value)| format!("{key}={}", String::from_utf8(value).unwrap()))
        .collect()
}

fn conforms(store: &mut dyn Store) {
    assert_eq!(keys(store), Vec::<String>::new());
    let first = store.take_over(0).unwrap();
    store.commit(first, &[put("b", "1"), put("a", "2"), put("b", "3")]).unwrap();
    assert_eq!(keys(store), ["a=2", "b=3"], "in the order of the keys, the last write wins");
    store.commit(first, &[Write::Delete("a".into()), Write::Delete("none".into())]).unwrap();
    store.commit(first, &[]).unwrap();
    assert_eq!(keys(store), ["b=3"]);
    let second = store.take_over(0).unwrap();
    assert_eq!(second, first + 1);
    let error = store.commit(first, &[put("c", "1")]).unwrap_err();
    assert!(matches!(error, StoreError::Fenced { own, current } if (own, current) == (first, second)), "{error}");
    store.commit(second, &[put("c", "2")]).unwrap();
    assert_eq!(keys(store), ["b=3", "c=2"]);
    assert_eq!(store.take_over(0).unwrap(), second + 1);
    assert_eq!(store.take_over(second + 10).unwrap(), second + 10, "records that move here keep their epochs");
    assert_eq!(store.take_over(1).unwrap(), second + 11);
}

#[test]
fn memory_conforms() {
    conforms(&mut MemoryStore::default());
}

#[test]
fn embedded_conforms_and_keeps_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut store = EmbeddedStore::open(&path).unwrap();
    conforms(&mut store);
    assert!(matches!(EmbeddedStore::open(&path), Err(StoreError::InUse(_))));
    drop(store);
    let mut store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(keys(&store), ["b=3", "c=2"]);
    assert!(matches!(store.commit(1, &[]), Err(StoreError::Fenced { .. })), "the fence is kept too");
}

/// Not a test by itself: the process that the next one kills.
#[test]
fn writer() {
    let Ok(path) = std::env::var("STORE_CRASH_PATH") else { return };
    let mut store = EmbeddedStore::open(path.as_ref()).unwrap();
    let epoch = store.take_over(0).unwrap();
    let start = store.load().unwrap().len().saturating_sub(1);
    for number in start.. {
        store.commit(epoch, &[put(&format!("{number:08}"), "x"), put("last", &number.to_string())]).unwrap();
        println!("acknowledged {number}");
    }
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture"])
            .env("STORE_CRASH_PATH", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let acknowledged: Vec<u64> = lines
            .map_while(Result::ok)
            .filter_map(|line| line.rsplit_once("acknowledged ").and_then(|(_, number)| number.parse().ok()))
            .take(5 + round * 3)
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let records = EmbeddedStore::open(&path).unwrap().load().unwrap();
        let last: u64 = String::from_utf8(records.iter().find(|(key, _)| key == "last").unwrap().1.clone())
            .unwrap()
            .parse()
            .unwrap();
        assert!(last >= *acknowledged.last().unwrap(), "round {round}");
        assert_eq!(records.len() as u64, last + 2, "no transaction is there by half");
    }
}
