//! Documents tell the truth about paths, and keep their language.

use crate::{short, with_extension};

#[test]
fn paths_that_documents_name_exist() {
    let root = mayfly_xtask::workspace();
    for (path, text) in with_extension("md") {
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path =
                ["crates/", "images/", "docs/", ".ci/", ".cargo/"].iter().any(|start| quoted.starts_with(start));
            if is_path && !quoted.contains(['*', '<', ' ', '…']) {
                assert!(root.join(quoted).exists(), "{}: `{quoted}` does not exist", short(&path));
            }
        }
    }
}

#[test]
fn every_crate_is_in_the_architecture() {
    let root = mayfly_xtask::workspace();
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(text.contains(&format!("`crates/{name}`")), "ARCHITECTURE.md does not tell of crates/{name}");
    }
}

#[test]
fn the_front_matter_is_there() {
    let root = mayfly_xtask::workspace();
    for name in
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "deny.toml", ".ci/run"]
    {
        assert!(root.join(name).exists(), "{name} is missing");
    }
}
