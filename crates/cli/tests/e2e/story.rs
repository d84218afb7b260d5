//! The demo's story.

use crate::{Stage, image};

#[test]
fn a_service_of_vms_survives_the_death_of_its_host() {
    let stage = Stage::empty();
    let summary = mayfly_xtask::story::tell(&stage.fabric, &image()).unwrap();
    println!("{summary}");
}
