//! Ten thousand changes of membership under load: connections to healthy backends live on, new ones succeed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mayfly_model::Transit;

use crate::Dice;
use crate::lab::{Lab, PORT, VIP};

const CHANGES: u32 = 10_000;
const BACKENDS: usize = 3;
/// Connections that are held open through all changes.
const HELD: usize = 60;
/// Between two visits.
const PACE: Duration = Duration::from_millis(4);

/// Answers each byte with the backend's number.
pub fn echo(number: u8) {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&[number]).is_ok() {}
            });
        }
    });
}

pub fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
    let mut byte = [0];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

pub fn open() -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, PORT)), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[test]
fn connections_survive_ten_thousand_changes_of_membership() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let mut lab = Lab::new(BACKENDS, 2, Transit::Vxlan);
    for (number, backend) in (1..).zip(&lab.backends) {
        backend.run(move |_| echo(number));
    }
    let client = lab.clients.remove(0);
    let mut held: Vec<(TcpStream, u8)> = client.run(|_| {
        let open = |_| open().and_then(|mut stream| ask(&mut stream).map(|number| (stream, number))).unwrap();
        (0..HELD).map(open).collect()
    });
    let spread: BTreeSet<u8> = held.iter().map(|(_, number)| *number).collect();
    assert_eq!(spread.len(), BACKENDS, "each backend has some of them");
    // Somebody connects all the time, also in the very moment of a change.
    let (busy, stop) = (lab.clients.remove(0), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&stop);
    let visitor = std::thread::spawn(move || {
        busy.run(move |_| {
            let mut visits = 0;
            while !told.load(Relaxed) {
                open().unwrap_or_else(|error| panic!("connection {visits} beside the changes: {error}"));
                visits += 1;
                // A port is not free again for a minute.
                std::thread::sleep(PACE);
            }
            visits
        })
    });
    let (mut dice, all) = (Dice(11), lab.all());
    for change in 0..CHANGES {
        // Any backend may be out, but not all of them.
        let mut healthy: BTreeSet<u64> = all.iter().copied().filter(|_| dice.below(3) > 0).collect();
        healthy.insert(1 + dice.below(BACKENDS as u64));
        lab.follow(&healthy);
        let which = dice.below(HELD as u64) as usize;
        let (stream, number) = &mut held[which];
        assert_eq!(ask(stream).ok(), Some(*number), "change {change}: a held connection");
        if change % 10 == 0 {
            let answered = client.run(|_| open().and_then(|mut stream| ask(&mut stream)));
            let answered = answered.unwrap_or_else(|error| panic!("change {change}: a new connection: {error}"));
            assert!(healthy.contains(&u64::from(answered)), "change {change}: sent to {answered}, which was out");
        }
    }
    stop.store(true, Relaxed);
    assert!(visitor.join().unwrap() > 1000);
    for (stream, number) in &mut held {
        assert_eq!(ask(stream).ok(), Some(*number));
    }
}
