//! Requests, connections and transfers through a public address with three backends on three hosts.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use mayfly_model::Transit;

use super::lab::{Lab, Namespace, PORT, VIP, dip, underlay};
use crate::peers::Running;
use crate::report::{Comparison, Report};

const BACKENDS: usize = 3;
/// Where HAProxy listens, on the host that has the public address.
const PROXY_PORT: u16 = 81;
/// The client that goes to the backends' hosts by itself.
const DIRECT: usize = 2;

/// Starts a process in a namespace.
fn spawn(namespace: &Namespace, program: &'static str, arguments: Vec<String>) -> anyhow::Result<Running> {
    let child = namespace.run(move |_| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    Ok(Running::new(child.with_context(|| format!("cannot run {program}; `cargo xtask bench` installs it"))?))
}

/// A way to the backends.
struct Way {
    client: usize,
    url: String,
    /// Where each thread of the client connects to, if not where the address says.
    direct: bool,
}

/// Hosts, backends and proxy, ready to be asked.
struct Bed {
    ways: [Way; 3],
    _servers: Vec<Running>,
    lab: Lab,
}

impl Bed {
    fn new(work: &Path, transit: Transit) -> anyhow::Result<Bed> {
        let lab = Lab::new(BACKENDS, 3, transit);
        let mut servers = Vec::new();
        for (number, backend) in lab.backends.iter().enumerate() {
            servers.push(web_server(backend, &work.join(format!("nginx-{number}")))?);
        }
        servers.push(proxy(&lab.hosts[0].namespace, work)?);
        lab.open_directly(DIRECT);
        // One client stands for many, so it gets all the ports that there are; as does the proxy.
        for namespace in lab.clients.iter().chain(lab.hosts.iter().map(|host| &host.namespace)) {
            namespace.run(|_| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535"))?;
        }
        let ways = [
            Way { client: 0, url: format!("http://{VIP}:{PORT}"), direct: false },
            Way { client: 1, url: format!("http://{}:{PROXY_PORT}", underlay(1)), direct: false },
            Way { client: DIRECT, url: format!("http://{}:{PORT}", dip(1)), direct: true },
        ];
        for way in &ways {
            wait_for(&lab.clients[way.client], way)?;
        }
        Ok(Bed { ways, _servers: servers, lab })
    }
}

pub fn measure(
    report: &mut Report,
    work: &Path,
    (pairs, seconds): (usize, u32),
    transit: Transit,
) -> anyhow::Result<()> {
    let script = work.join("direct.lua");
    std::fs::write(&script, direct_script())?;
    let kinds: [(&str, &str, &[&str], [f64; 2]); 3] = [
        ("requests a second, keep-alive", "/", &[], [1.4, 0.0]),
        ("new connections a second", "/", &["-H", "Connection: close"], [1.8, 0.0]),
        ("transfers of 64 KiB a second", "/large", &[], [1.0, 0.95]),
    ];
    let mut results = Vec::new();
    for (what, path, options, goals) in kinds {
        let mut figures = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..pairs {
            // Everything anew each time: one client address has only so many ports, and those of connections that are over
            // are in the way of the next ones for a minute.
            let bed = Bed::new(work, transit)?;
            for (way, figures) in bed.ways.iter().zip(&mut figures) {
                figures.push(rate(&bed.lab.clients[way.client], way, path, options, &script, seconds)?);
            }
        }
        results.push((what, figures, goals));
    }
    let between = match transit {
        Transit::Routed => "packets routed between hosts",
        Transit::Vxlan => "packets in VXLAN between hosts",
        Transit::Wireguard => "packets in VXLAN in WireGuard between hosts",
    };
    report.table(
        &format!("Through a public address, three backends on three hosts, {between}"),
        "HAProxy, mode tcp, on the same host",
    );
    for (what, [ours, proxy, _], [goal, _]) in &results {
        report.compare(&Comparison { what, ours, peer: proxy, is_time: false, unit: "/s", goal: *goal });
    }
    report.end();
    report.table(&format!("Beside connections straight to the backends' hosts, {between}"), "direct");
    for (what, [ours, _, direct], [_, goal]) in &results {
        report.compare(&Comparison { what, ours, peer: direct, is_time: false, unit: "/s", goal: *goal });
    }
    report.end();
    Ok(())
}

/// What the figures mean.
pub fn explain(report: &mut Report) {
    report.say(
        "Client, hosts and backends (nginx, a worker each) share the machine's processors, and of two thirds of the \
         balanced connections, what the client says passes through two hosts instead of one; so the comparison with \
         direct connections is that of everything, not of the balancer alone. Only 64 KiB transfers have a goal there.",
    );
}

fn web_server(namespace: &Namespace, folder: &Path) -> anyhow::Result<Running> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("large"), vec![b'x'; 64 << 10])?;
    let root = folder.display();
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log {root}/error.log;\nevents {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 100000000; server {{ listen 80 backlog=4096; \
         location = / {{ return 200 ok; }} location / {{ root {root}; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let words = ["-p".to_owned(), root.to_string(), "-c".to_owned(), file.display().to_string()];
    spawn(namespace, "/usr/sbin/nginx", words.to_vec())
}

fn proxy(namespace: &Namespace, work: &Path) -> anyhow::Result<Running> {
    let servers: String = (1..=BACKENDS).map(|number| format!(" server s{number} {}:{PORT}\n", dip(number))).collect();
    let configuration = format!(
        "global\n nbthread 2\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         listen front\n bind {}:{PROXY_PORT}\n balance roundrobin\n{servers}",
        underlay(1)
    );
    let file = work.join("haproxy.cfg");
    std::fs::write(&file, configuration)?;
    spawn(namespace, "/usr/sbin/haproxy", vec!["-db".to_owned(), "-f".to_owned(), file.display().to_string()])
}

/// Gives each thread of the client a backend of its own.
fn direct_script() -> String {
    let addresses: Vec<String> = (1..=BACKENDS).map(|number| format!("\"{}\"", dip(number))).collect();
    format!(
        "local hosts = {{ {} }}\nlocal next = 0\nfunction setup(thread)\n next = next % {BACKENDS} + 1\n \
         thread.addr = wrk.lookup(hosts[next], {PORT})[1]\nend\n",
        addresses.join(", ")
    )
}

fn wait_for(client: &Namespace, way: &Way) -> anyhow::Result<()> {
    let address = way.url.trim_start_matches("http://").to_owned();
    let connected = client.run(move |_| {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(25));
            std::net::TcpStream::connect(&address).is_ok()
        })
    });
    ensure!(connected, "nobody answers at {}", way.url);
    Ok(())
}

fn rate(
    client: &Namespace,
    way: &Way,
    path: &str,
    options: &[&str],
    script: &Path,
    seconds: u32,
) -> anyhow::Result<f64> {
    let mut words = vec!["-t3".to_owned(), "-c33".to_owned(), format!("-d{seconds}s")];
    words.extend(options.iter().map(|option| (*option).to_owned()));
    if way.direct {
        words.extend(["-s".to_owned(), script.display().to_string()]);
    }
    words.push(format!("{}{path}", way.url));
    let output = client.run(move |_| Command::new("/usr/bin/wrk").args(words).output()).context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.contains("Non-2xx"), "{}: {text}", way.url);
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|rate| rate.trim().parse().ok()).with_context(|| format!("wrk said: {text}"))
}
