//! The disk server from outside: QEMU's tools, libvhdi, hypervisors, other hosts, kills.

mod front;
mod images;
mod kills;
mod serving;
mod tool;
