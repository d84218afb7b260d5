//! A data centre on one machine without guests: hosts, native backends in place of guests, and clients, each in a network
//! namespace of its own. Hosts are set up by the code that sets up real ones.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use mayfly_model::{
    Backend, Distribution, Egress, EndpointGoal, HostName, Ipv6Prefix, NetworkGoal, PeerGoal, RoleName, RouteGoal,
    Subnet, Transit, TunnelKey, VipGoal, VmId,
};
use mayfly_net::address::{GATEWAY, TAP_GATEWAY, UNDERLAY_DEVICE};
use mayfly_net::plan::{Health, Inputs, LocalGuest, Plan, clear, plan};
use mayfly_net::{Links, Nft, Tunnel, forget_strays, prepare_host, prepare_ipv6, prepare_tap};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::Runtime;

/// What is at hand inside a namespace.
pub struct Kit {
    pub runtime: Runtime,
    pub links: Links,
    pub handle: Handle,
    pub nft: Nft,
    /// The host's end of the encrypted tunnels, if it has one.
    pub tunnel: Option<Tunnel>,
}

type Job = Box<dyn FnOnce(&mut Kit) + Send>;

/// A network namespace: a thread that lives in it. It ends with the thread, and processes that the thread starts are in it.
pub struct Namespace {
    /// The thread's id, by which the kernel finds the namespace.
    pub thread_id: u32,
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub fn new() -> Namespace {
        let (jobs, queue) = channel::<Job>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this needs root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (links, handle) = runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                let links = Links::open().unwrap();
                links.up("lo").await.unwrap();
                (links, handle)
            });
            let mut kit = Kit { runtime, links, handle, nft: Nft::load().unwrap(), tunnel: None };
            tell.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            while let Ok(job) = queue.recv() {
                job(&mut kit);
            }
        });
        Namespace { thread_id: told.recv().unwrap(), jobs: Mutex::new(Some(jobs)), thread: Some(thread) }
    }

    /// Does something inside, and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Kit) -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job: Job = Box::new(move |kit| drop(tell.send(job(kit))));
        self.jobs.lock().unwrap().as_ref().unwrap().send(job).unwrap();
        told.recv().expect("what ran in the namespace panicked")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.lock().unwrap().take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A host.
pub struct LabHost {
    pub name: HostName,
    pub namespace: Namespace,
    pub guests: Vec<LocalGuest>,
    /// Whether it hands on what comes in, so that hosts answer their guests' clients themselves.
    pub direct_return: bool,
    /// The hosts' own network, if guests may leave the fabric.
    pub egress: Option<&'static str>,
    /// Networks that are closed to them all the same.
    pub closed: Vec<Subnet>,
    /// What its kernel holds.
    pub applied: Option<Plan>,
}

impl LabHost {
    /// What its plan is made of.
    fn inputs<'a>(
        &'a self,
        goal: &'a NetworkGoal,
        (health, live): (&'a Health, &'a BTreeSet<HostName>),
        transit: Transit,
    ) -> Inputs<'a> {
        Inputs {
            host: &self.name,
            goal,
            guests: &self.guests,
            health,
            live,
            underlay: self.egress,
            underlay6: None,
            closed: &self.closed,
            transit,
            direct_return: self.direct_return,
        }
    }
}

/// The data centre.
pub struct Lab {
    pub hosts: Vec<LabHost>,
    pub backends: Vec<Namespace>,
    pub clients: Vec<Namespace>,
    pub goal: NetworkGoal,
    pub transit: Transit,
    /// Each host's, where tunnels are encrypted.
    keys: Vec<Option<TunnelKey>>,
    // The hosts' legs are on its bridge.
    _centre: Namespace,
}

/// The public address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// The port on it and in the backends.
pub const PORT: u16 = 80;

/// The address of a host, counted from 1.
pub fn underlay(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number as u8)
}

/// The address of a backend, counted from 1.
pub fn dip(number: usize) -> Ipv4Addr {
    let [_, _, high, low] = (number as u32 + 1).to_be_bytes();
    Ipv4Addr::new(10, 80, high, low)
}

/// An address in the hosts' own IPv6 network.
fn underlay6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, last)
}

fn overlay(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, 0, number as u8)
}

fn guest(number: usize) -> LocalGuest {
    let [a, b, c, d] = dip(number).octets();
    LocalGuest {
        tap: format!("mft{number}"),
        dip: dip(number),
        ipv6: false,
        mac: [2, 0, a, b, c, d],
        deployment_id: "d".to_owned(),
        egress: Egress::Allow,
    }
}

impl Lab {
    /// So many hosts with one backend each, behind [`VIP`], which the first host has; and so many clients.
    pub fn new(hosts: usize, clients: usize, transit: Transit) -> Lab {
        Lab::with(hosts, clients, transit, None)
    }

    /// The same; with a prefix, all have IPv6 besides.
    pub fn with(hosts: usize, clients: usize, transit: Transit, ipv6: Option<Ipv6Prefix>) -> Lab {
        let centre = Namespace::new();
        centre.run(|kit| {
            let bridge = kit.links.create_bridge("dc", [2, 0, 0, 0, 0, 1], "mayfly lab");
            kit.runtime.block_on(bridge).unwrap();
            for family in ["iptables", "ip6tables", "arptables"] {
                // A switch does not look into what it carries; where the kernel cannot either, there is nothing to switch off.
                let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "0");
            }
        });
        let leg = |name: String, thread_id: u32| {
            centre.run(move |kit| kit.runtime.block_on(kit.links.create_leg(&name, "dc", thread_id)).unwrap());
        };
        let mut lab = Lab {
            hosts: Vec::new(),
            backends: Vec::new(),
            clients: Vec::new(),
            goal: NetworkGoal { zone: "z".to_owned(), ipv6, ..NetworkGoal::default() },
            transit,
            keys: Vec::new(),
            _centre: Namespace::new(),
        };
        for number in 1..=hosts {
            let (namespace, backend) = (Namespace::new(), Namespace::new());
            leg(format!("h{number}"), namespace.thread_id);
            let guest = LocalGuest { ipv6: ipv6.is_some(), ..guest(number) };
            connect(&namespace, &backend, number, (guest.clone(), ipv6), transit.guest_mtu(1500));
            lab.keys.push(transit.encrypts().then(|| open_tunnel(&namespace, number)));
            lab.backends.push(backend);
            let name = HostName::new(format!("host-{number}")).unwrap();
            lab.hosts.push(LabHost {
                name,
                namespace,
                guests: vec![guest],
                direct_return: true,
                egress: None,
                closed: vec![],
                applied: None,
            });
        }
        for number in 1..=clients {
            let namespace = Namespace::new();
            leg(format!("c{number}"), namespace.thread_id);
            namespace.run(move |kit| {
                kit.runtime.block_on(async {
                    let last = 200 + number as u8;
                    kit.links.add_address(UNDERLAY_DEVICE, Ipv4Addr::new(10, 77, 0, last), 24).await.unwrap();
                    kit.links.up(UNDERLAY_DEVICE).await.unwrap();
                    reach_public(&kit.links, &kit.handle).await;
                    let Some(prefix) = ipv6 else { return };
                    let index = kit.links.index(UNDERLAY_DEVICE).await.unwrap();
                    kit.links.add_address(UNDERLAY_DEVICE, underlay6(last.into()), 64).await.unwrap();
                    let public = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(prefix.embed(VIP), 128);
                    kit.handle.route().add(public.output_interface(index).build()).execute().await.unwrap();
                });
            });
            lab.clients.push(namespace);
        }
        lab._centre = centre;
        lab.goal = lab.first_goal();
        lab.follow(&lab.all());
        lab.settle();
        lab
    }

    /// Waits until nobody looks any more whether an IPv6 address of its own is taken: until then it asks for no others.
    fn settle(&self) {
        const TENTATIVE: u32 = 0x40;
        let is_settled = |_: &mut Kit| {
            let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
            let flags = table.lines().filter_map(|line| u32::from_str_radix(line.split_whitespace().nth(4)?, 16).ok());
            flags.into_iter().all(|flags| flags & TENTATIVE == 0)
        };
        let all = || self.hosts.iter().map(|host| &host.namespace).chain(&self.clients).chain(&self.backends);
        while !all().all(|namespace| namespace.run(is_settled)) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn first_goal(&self) -> NetworkGoal {
        let names: Vec<HostName> = self.hosts.iter().map(|host| host.name.clone()).collect();
        let numbered = || names.iter().cloned().zip(1..);
        let backends = numbered().map(|(host, number): (HostName, usize)| Backend {
            vm: VmId(number as u64),
            dip: dip(number),
            host,
            probe: None,
            always: false,
        });
        let endpoint = EndpointGoal {
            udp: false,
            port: PORT,
            local_port: PORT,
            backends: backends.collect(),
            instances: 0,
            access: vec![],
            distribution: Distribution::Connection,
            name: "web/http".to_owned(),
        };
        NetworkGoal {
            zone: "z".to_owned(),
            ipv6: self.goal.ipv6,
            peers: numbered()
                .map(|(host, number)| PeerGoal {
                    host,
                    address: underlay(number),
                    overlay: overlay(number),
                    mac: [2, 0x6d, 0x66, 0, 0, number as u8],
                    voter: true,
                    tunnel_key: self.keys[number - 1],
                })
                .collect(),
            routes: numbered()
                .map(|(host, number)| RouteGoal {
                    dip: dip(number),
                    host,
                    deployment_id: "d".to_owned(),
                    role: RoleName::new("web").unwrap(),
                    index: 0,
                    update_domain: 0,
                    ipv6: self.goal.ipv6.is_some(),
                    vm: None,
                    leaving: false,
                })
                .collect(),
            vips: vec![VipGoal {
                vip: VIP,
                endpoints: vec![endpoint],
                owners: names.clone(),
                ipv6: self.goal.ipv6.is_some(),
            }],
            ..NetworkGoal::default()
        }
    }

    /// Lets a client reach the backends' own addresses through their hosts, which the rules do not allow to anybody.
    pub fn open_directly(&self, client: usize) {
        let source = format!("10.77.0.{}", 201 + client);
        for host in &self.hosts {
            let rule = format!("insert rule inet mayfly forward ip saddr {source} accept");
            host.namespace.run(move |kit| kit.nft.apply(&rule).unwrap());
        }
        let backends = self.hosts.len();
        self.clients[client].run(move |kit| {
            for number in 1..=backends {
                let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(dip(number), 32);
                let route = route.gateway(underlay(number)).build();
                kit.runtime.block_on(kit.handle.route().add(route).execute()).unwrap();
            }
        });
    }

    /// All backends.
    pub fn all(&self) -> BTreeSet<u64> {
        (1..=self.hosts.len() as u64).collect()
    }

    /// Does something with what a host's plan is made of, all backends being healthy.
    pub fn inputs<T>(&self, number: usize, act: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let live = self.hosts.iter().map(|host| host.name.clone()).collect();
        let health = self.all().into_iter().map(|vm| (VmId(vm), None)).collect();
        act(&self.hosts[number - 1].inputs(&self.goal, (&health, &live), self.transit))
    }

    /// Makes every host follow the goal, with these backends healthy.
    pub fn follow(&mut self, healthy: &BTreeSet<u64>) {
        let live: BTreeSet<HostName> = self.hosts.iter().map(|host| host.name.clone()).collect();
        let health = healthy.iter().map(|vm| (VmId(*vm), None)).collect();
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let wanted = plan(&host.inputs(&self.goal, (&health, &live), self.transit));
            let before = host.applied.replace(wanted.clone());
            let addresses = |guest: &LocalGuest| {
                let newer = wanted.ipv6.filter(|_| guest.ipv6).map(|prefix| IpAddr::V6(prefix.embed(guest.dip)));
                [Some(IpAddr::V4(guest.dip)), newer]
            };
            let dips: Vec<IpAddr> = host.guests.iter().flat_map(addresses).flatten().collect();
            let own = self.goal.peers[number].clone();
            let (number, transit) = (number + 1, self.transit);
            host.namespace.run(move |kit| apply(kit, number, before.as_ref(), &wanted, (&dips, &own, transit)));
        }
    }
}

/// Makes the public address be on the wire.
pub async fn reach_public(links: &Links, handle: &Handle) {
    let index = links.index(UNDERLAY_DEVICE).await.unwrap();
    let public = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(VIP, 32).output_interface(index);
    handle.route().add(public.scope(RouteScope::Link).build()).execute().await.unwrap();
}

/// Does what the host agent does.
fn apply(
    kit: &mut Kit,
    number: usize,
    before: Option<&Plan>,
    wanted: &Plan,
    (dips, own, transit): (&[IpAddr], &PeerGoal, Transit),
) {
    if before.is_none() && transit.has_overlay() {
        if let Some(tunnel) = &kit.tunnel {
            kit.runtime.block_on(tunnel.lead_to(&wanted.tunnels)).unwrap();
        }
        let mac = [2, 0x6d, 0x66, 0, 0, number as u8];
        kit.runtime.block_on(kit.links.create_overlay(overlay(number), mac, (underlay(number), transit))).unwrap();
    }
    if let Some(before) = before {
        kit.nft.give_up(before, wanted).unwrap();
    }
    let script = kit.nft.script(before, wanted).unwrap();
    kit.nft.apply(&script).unwrap_or_else(|error| panic!("{error}\n{script}"));
    if let Some(flows) = &wanted.flows {
        let before = before.and_then(|before| before.flows.as_ref());
        if before.is_none_or(|before| flows.may_have_strays(before)) {
            kit.runtime.block_on(forget_strays(flows, before)).unwrap();
        }
    }
    if before.is_none_or(|before| before.arp != wanted.arp) {
        kit.nft.apply(&wanted.arp).unwrap();
        kit.nft.lease(dips, &wanted.vips, 3_600_000).unwrap();
    }
    if before.is_some() {
        return;
    }
    kit.runtime.block_on(async {
        if let Some(prefix) = wanted.ipv6 {
            prepare_ipv6(&kit.links, prefix, own, (transit, 24)).await.unwrap();
            kit.links.add_address(UNDERLAY_DEVICE, underlay6(10 + number as u16), 64).await.unwrap();
        }
        if transit.has_overlay() {
            kit.links.set_peers(&wanted.peers, wanted.ipv6).await.unwrap();
        }
        kit.links.set_routes(&wanted.routes).await.unwrap();
        let is_public = |address| match address {
            IpAddr::V4(address) => address == VIP,
            IpAddr::V6(address) => wanted.ipv6.and_then(|prefix| prefix.embedded(address)) == Some(VIP),
        };
        kit.links.set_vips(&wanted.vips, is_public).await.unwrap();
    });
}

/// Sets up a host's end of the encrypted tunnels.
fn open_tunnel(host: &Namespace, number: usize) -> TunnelKey {
    host.run(move |kit| {
        let opened = Tunnel::open(&kit.links, underlay(number), [number as u8; 32]);
        let tunnel = kit.runtime.block_on(opened).unwrap();
        let key = kit.runtime.block_on(tunnel.key()).unwrap();
        kit.tunnel = Some(tunnel);
        kit.nft.apply(&clear(Transit::Wireguard)).unwrap();
        key
    })
}

/// Sets up a host, and a backend on a wire that is called as a tap would be.
fn connect(
    host: &Namespace,
    backend: &Namespace,
    number: usize,
    (guest, ipv6): (LocalGuest, Option<Ipv6Prefix>),
    mtu: u16,
) {
    let (far, thread_id) = (format!("far{number}"), backend.thread_id);
    let (tap, own) = (guest.tap.clone(), guest.clone());
    let near = far.clone();
    host.run(move |kit| {
        kit.runtime.block_on(async {
            kit.links.add_address(UNDERLAY_DEVICE, underlay(number), 24).await.unwrap();
            kit.links.up(UNDERLAY_DEVICE).await.unwrap();
            prepare_host(&kit.links).await.unwrap();
            kit.handle.link().add(LinkVeth::new(&tap, &near).build()).execute().await.unwrap();
            let moved = LinkUnspec::new_with_name(&near).setns_by_pid(thread_id).build();
            kit.handle.link().set(moved).execute().await.unwrap();
            prepare_tap(&kit.links, &tap, ipv6.is_some()).await.unwrap();
            kit.links.up_with_mtu(&tap, mtu).await.unwrap();
            kit.links.pin_neighbour(&tap, own.dip, own.mac).await.unwrap();
            if let Some(prefix) = ipv6 {
                kit.links.pin_neighbour(&tap, prefix.embed(own.dip), own.mac).await.unwrap();
            }
        });
    });
    backend.run(move |kit| {
        kit.runtime.block_on(async {
            let index = kit.links.index(&far).await.unwrap();
            let card = LinkUnspec::new_with_index(index).name(UNDERLAY_DEVICE).address(guest.mac.to_vec()).build();
            kit.handle.link().set(card).execute().await.unwrap();
            kit.links.add_address(UNDERLAY_DEVICE, guest.dip, 16).await.unwrap();
            kit.links.up_with_mtu(UNDERLAY_DEVICE, mtu).await.unwrap();
            kit.links.add_default_route(GATEWAY).await.unwrap();
            let Some(prefix) = ipv6 else { return };
            kit.links.add_address(UNDERLAY_DEVICE, prefix.embed(guest.dip), 128).await.unwrap();
            let way = RouteMessageBuilder::<Ipv6Addr>::new().gateway(TAP_GATEWAY).output_interface(index);
            kit.handle.route().add(way.build()).execute().await.unwrap();
        });
    });
}
