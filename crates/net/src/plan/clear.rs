//! What must not be said in the clear where hosts encrypt: a table by itself, so that it is there before anything is planned.

use mayfly_model::Transit;

use crate::address::{IMAGE_PORT, UNDERLAY_DEVICE, VXLAN_PORT};
use crate::mesh;

/// The script that makes what hosts say to each other go through the tunnel or not at all, whatever routes there are; or that
/// takes this away, for hosts that do not encrypt.
pub fn clear(transit: Transit) -> String {
    let table = "inet mayfly_clear";
    let gone = format!("add table {table}\ndelete table {table}\n");
    if !transit.encrypts() {
        return gone;
    }
    let hook = |name: &str, device: &str| {
        let clear = format!("{device} \"{UNDERLAY_DEVICE}\"");
        format!(
            " chain {name} {{\n  type filter hook {name} priority filter; policy accept;\n  \
             {clear} udp dport {{ {VXLAN_PORT}, {} }} drop\n  {clear} tcp dport {IMAGE_PORT} drop\n  \
             {clear} tcp sport {IMAGE_PORT} drop\n }}\n",
            mesh::PORT
        )
    };
    format!("{gone}table {table} {{\n{}{}}}\n", hook("input", "iifname"), hook("output", "oifname"))
}
