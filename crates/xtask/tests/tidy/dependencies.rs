//! Which crate may use which: the table of ARCHITECTURE.md, enforced.

use std::collections::{BTreeMap, BTreeSet};

use crate::{short, with_extension};

const ALL: &[&str] = &[
    "api",
    "controller",
    "disk",
    "fabric",
    "host",
    "identity",
    "model",
    "net",
    "qemu",
    "secrets",
    "service-model",
    "store",
    "vhd",
    "wire",
];

/// What each crate may use of the others.
const ALLOWED: &[(&str, &[&str])] = &[
    ("api", &["model"]),
    ("bench", &["api", "controller", "disk", "fabric", "identity", "model", "net", "sim", "store", "vhd", "xtask"]),
    ("cli", ALL),
    ("controller", &["api", "fabric", "identity", "model", "net", "secrets", "service-model", "store"]),
    ("disk", &["identity", "model", "vhd"]),
    ("fabric", &["model"]),
    ("hello", &[]),
    ("host", &["api", "disk", "identity", "model", "net", "qemu", "secrets", "wire"]),
    ("identity", &[]),
    ("model", &[]),
    ("net", &["model"]),
    ("qemu", &[]),
    ("secrets", &[]),
    ("service-model", &["model"]),
    ("sim", &["fabric", "model", "store"]),
    ("store", &[]),
    ("vhd", &[]),
    ("wire", &["model", "secrets"]),
    ("xtask", &["vhd"]),
];

#[test]
fn crates_use_only_what_they_may() {
    let mut seen = BTreeSet::new();
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in with_extension("toml").into_iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let Some(name) = text.lines().find_map(|line| line.strip_prefix("name = \"mayfly-")?.strip_suffix('"')) else {
            continue;
        };
        let folder = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(folder, name, "{}: a crate's folder has its name", short(&path));
        assert!(text.contains("[lints]\nworkspace = true"), "{}: add `[lints] workspace = true`", short(&path));
        let normal = text.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("");
        let names =
            normal.lines().filter_map(|line| Some(line.strip_prefix("mayfly-")?.split(['.', ' ']).next()?.to_owned()));
        used.insert(name.to_owned(), names.collect());
        seen.insert(name.to_owned());
    }
    for (name, others) in &used {
        let allowed = ALLOWED.iter().find(|(known, _)| known == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("`{name}` is new: add it here and to ARCHITECTURE.md"));
        for other in others {
            assert!(
                allowed.contains(&other.as_str()),
                "`{name}` may not use `{other}`; if it has to, say why in ARCHITECTURE.md"
            );
        }
        assert!(depth(name, &used) <= 4, "`{name}` stands on a chain of more than four crates");
    }
    assert_eq!(seen.len(), ALLOWED.len(), "a crate of the table is gone: {seen:?}");
}

fn depth(name: &str, used: &BTreeMap<String, BTreeSet<String>>) -> usize {
    1 + used.get(name).into_iter().flatten().map(|other| depth(other, used)).max().unwrap_or(0)
}

#[test]
fn the_lock_file_stays_within_budget() {
    let lock = std::fs::read_to_string(mayfly_xtask::workspace().join("Cargo.lock")).unwrap();
    let packages = lock.matches("[[package]]").count();
    assert!(packages <= 400, "{packages} locked packages; every one is somebody's work to watch");
}
