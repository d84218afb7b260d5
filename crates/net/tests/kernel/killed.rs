//! An agent that is killed in the middle of a change: the table is what it was before, or after, and never something between.

use std::process::{Command, Stdio};
use std::time::Duration;

use mayfly_net::{Links, Nft};

use crate::{Dice, any_plan, in_namespace, listing, make_devices, set};

const KILLS: u64 = 60;

/// Goes from one rule set to another and back, until it is killed.
#[test]
#[ignore = "runs for ever; the test below starts and kills it"]
fn change_for_ever() {
    let (one, other) = (any_plan(&mut Dice(1)), any_plan(&mut Dice(2)));
    let mut nft = Nft::load().unwrap();
    set(&mut nft, None, &one);
    println!("changing");
    loop {
        set(&mut nft, Some(&one), &other);
        set(&mut nft, Some(&other), &one);
    }
}

#[test]
fn a_change_that_is_killed_is_made_whole_or_not_at_all() {
    in_namespace(|| async {
        let mut nft = Nft::load().unwrap();
        let (one, other) = (any_plan(&mut Dice(1)), any_plan(&mut Dice(2)));
        make_devices(&Links::open().unwrap()).await;
        set(&mut nft, None, &other);
        let after = listing(&mut nft);
        set(&mut nft, None, &one);
        let before = listing(&mut nft);
        assert_ne!(before, after);
        let mut dice = Dice(3);
        let mut seen = [0, 0];
        for kill in 0..KILLS {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "killed::change_for_ever", "--ignored", "--nocapture"]);
            // It is in this thread's network namespace.
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
            assert!(lines.any(|line| line.unwrap().contains("changing")), "it did not begin");
            std::thread::sleep(Duration::from_micros(dice.below(20_000)));
            child.kill().unwrap();
            child.wait().unwrap();
            let now = listing(&mut nft);
            match [&before, &after].iter().position(|state| **state == now) {
                Some(which) => seen[which] += 1,
                None => panic!("kill {kill}: neither before nor after: {now:?}"),
            }
            // Whatever it was, the next agent sets everything anew.
            set(&mut nft, None, &one);
            assert_eq!(listing(&mut nft), before);
        }
        assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    });
}
