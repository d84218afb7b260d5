//! The command line's own words.

use std::process::Command;

#[test]
fn help_is_what_it_was() {
    for (arguments, golden) in [
        (&["--help"][..], include_str!("../golden/help.txt")),
        (&["service", "--help"], include_str!("../golden/help-service.txt")),
        (&["dev", "--help"], include_str!("../golden/help-dev.txt")),
        (&["vhd", "--help"], include_str!("../golden/help-vhd.txt")),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_mayfly")).args(arguments).env("HOME", "/home/user").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // The default folder depends on who asks.
        let text =
            text.lines().filter(|line| !line.contains("[default: /")).map(|line| line.trim_end().to_owned() + "\n");
        let text: String = text.collect();
        assert_eq!(text, golden, "if this is meant, write it to the golden file of {arguments:?}:\n{text}");
    }
}

#[test]
fn without_a_fabric_every_command_says_how_to_get_one() {
    for arguments in [&["service", "list"][..], &["image", "list"], &["dev", "status"], &["dev", "kill", "host-1"]] {
        let folder = tempfile::tempdir().unwrap();
        let said = crate::fabric_in(&folder.path().join("none")).try_run(arguments).unwrap();
        assert!(crate::refused(said, arguments).contains("mayfly dev up"));
    }
}
