//! Rules about source files.

use crate::{short, with_extension};

/// Rust files that are not tests.
fn product() -> Vec<(String, String)> {
    let sources = with_extension("rs").into_iter().map(|(path, text)| (short(&path), text));
    sources.filter(|(path, _)| !path.contains("/tests") && !path.ends_with("tests.rs")).collect()
}

/// The text before a file's own tests.
fn before_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn every_file_says_what_it_is() {
    for (path, text) in with_extension("rs") {
        assert!(text.starts_with("//! "), "{}: start with `//!` and what the file is", short(&path));
    }
}

#[test]
fn files_and_functions_fit_a_head() {
    for (path, text) in with_extension("rs") {
        let path = short(&path);
        let lines = before_tests(&text).lines().count();
        assert!(lines <= 600, "{path}: {lines} lines; split it by noun");
        for (name, length) in functions(&text) {
            assert!(length <= 80, "{path}: `{name}` has {length} lines; split it");
        }
    }
}

/// Functions and their lengths, by the indentation that rustfmt gives them.
fn functions(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let word = line.trim_start();
        let words = [
            "fn ",
            "pub fn ",
            "pub(crate) fn ",
            "pub(super) fn ",
            "async fn ",
            "pub async fn ",
            "pub(crate) async fn ",
            "pub(super) async fn ",
        ];
        if open.is_none() && words.iter().any(|start| word.starts_with(start)) {
            open = Some((number, indent, word.to_owned()));
        }
        if let Some((start, column, name)) = &open
            && indent == *column
            && word == "}"
        {
            found.push((name.clone(), number - start + 1));
            open = None;
        }
    }
    found
}

#[test]
fn names_mean_something() {
    for (path, _) in with_extension("rs") {
        let path = short(&path);
        let bad = path
            .split(['/', '.'])
            .find(|part| ["util", "utils", "common", "helper", "helpers", "manager", "misc"].contains(part));
        assert_eq!(bad, None, "{path}: name it after the noun it is about");
    }
}

#[test]
fn nothing_unfinished_and_no_panics_on_input() {
    for (path, text) in product() {
        let code = before_tests(&text);
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or(line);
            for word in [concat!("to", "do!("), concat!("unimplemented", "!("), concat!("dbg", "!("), ".unwrap()"] {
                assert!(!line.contains(word), "{path}:{}: `{word}`; return an error that says what to do", number + 1);
            }
        }
    }
}

/// Doors to the world: what may be used where.
#[test]
fn doors_are_where_they_belong() {
    let doors: [(&str, &[&str]); 4] = [
        ("redb::", &["crates/store/"]),
        (
            "std::process::Command",
            &[
                "crates/host/src/lib.rs",
                "crates/host/src/supervise.rs",
                "crates/host/src/vm/template.rs",
                "crates/disk/src/formatted.rs",
                "crates/cli/src/dev/",
                "crates/cli/src/vhd/convert.rs",
                "crates/bench/",
                "crates/xtask/",
                "images/",
            ],
        ),
        ("rtnetlink::", &["crates/net/"]),
        (
            "SystemTime::now",
            &[
                "crates/vhd/src/footer.rs",
                "crates/controller/src/driver.rs",
                "crates/controller/src/images/store.rs",
                "crates/identity/src/clock.rs",
                "images/hello/src/system.rs",
                "crates/host/src/clock.rs",
                "crates/disk/src/image/incident.rs",
                "crates/xtask/",
            ],
        ),
    ];
    for (path, text) in product() {
        for (door, allowed) in &doors {
            let used = before_tests(&text).contains(door);
            assert!(
                !used || allowed.iter().any(|place| path.starts_with(place)),
                "{path}: `{door}` belongs into {allowed:?}"
            );
        }
    }
}

#[test]
fn the_core_is_pure() {
    for (path, text) in product()
        .into_iter()
        .filter(|(path, _)| path.starts_with("crates/fabric/") || path.starts_with("crates/model/"))
    {
        for word in [
            "std::fs",
            "std::net::Tcp",
            "Instant::now",
            "rand::",
            "tokio",
            ".await",
            "println!",
            "tracing",
            "HashMap::new",
        ] {
            assert!(!before_tests(&text).contains(word), "{path}: `{word}`; the core has no I/O, clock or randomness");
        }
    }
}
