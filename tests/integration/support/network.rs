//! A network of its own, which loses, delays, reorders and partitions real packets, so that the kernels' TCP
//! has to bear it: it repeats, backs off and gives up, as between regions.
//!
//! Each place is a network namespace with a TUN device. This process holds the other ends of all devices and
//! is the network between them. `tc netem` would be one, too, but not every kernel has it; this one is the
//! same everywhere. A namespace lasts as long as something is in it, and what is in it ends with the test.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_tun::Tun;

/// A device's largest packet.
const MTU: usize = 1_500;

/// By how much a packet that is reordered comes after its time: others overtake it.
const LATE: Duration = Duration::from_millis(30);

/// What a link does to the packets of either direction; by default it carries all of them at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    pub delay: Duration,
    /// The share that is lost, and the share that comes late.
    pub lost: f64,
    pub late: f64,
}

impl Link {
    /// Nothing comes through.
    pub const CUT: Self = Self { delay: Duration::ZERO, lost: 1.0, late: 0.0 };
}

/// The places and the links between them.
#[derive(Default)]
pub struct Network(Arc<Shared>);

#[derive(Default)]
struct Shared {
    devices: Mutex<HashMap<Ipv4Addr, Arc<Tun>>>,
    /// Those that are not as by default, by both directions.
    links: Mutex<HashMap<(Ipv4Addr, Ipv4Addr), Link>>,
    lost: AtomicU64,
}

/// A namespace and its device; gone with this value, once its processes are.
pub struct Place {
    pub address: Ipv4Addr,
    /// Ends when its input does, also where this process is killed.
    keeper: Child,
    carrying: JoinHandle<()>,
}

impl Network {
    /// Makes one more place, whose links are perfect.
    pub fn place(&self) -> Place {
        let number = self.0.devices.lock().unwrap().len() as u8 + 1;
        let address = Ipv4Addr::new(10, 7, 0, number);
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo there && exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut there = [0; 6];
        let read = keeper.stdout.as_mut().unwrap().read_exact(&mut there);
        read.expect("network namespaces can be made by root alone, and iproute2 is needed in them");
        let runtime = Handle::current();
        let device = within(&keeper, || {
            let _guard = runtime.enter();
            let device =
                Tun::builder().mtu(MTU as i32).address(address).netmask(Ipv4Addr::new(255, 255, 255, 0));
            device.up().build().expect("/dev/net/tun is needed, which is for root alone").remove(0)
        });
        let device = Arc::new(device);
        self.0.devices.lock().unwrap().insert(address, Arc::clone(&device));
        let carrying = tokio::spawn(carry(device, Arc::clone(&self.0)));
        Place { address, keeper, carrying }
    }

    pub fn link(&self, a: &Place, b: &Place, link: Link) {
        let mut links = self.0.links.lock().unwrap();
        links.insert((a.address, b.address), link);
        links.insert((b.address, a.address), link);
    }

    /// Packets lost so far.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Place {
    /// What makes a command run here, before its own words.
    pub fn enter(&self) -> [OsString; 2] {
        ["nsenter".into(), format!("--net=/proc/{}/ns/net", self.keeper.id()).into()]
    }

    /// A connection from here.
    ///
    /// # Errors
    /// The system's.
    pub async fn connect(&self, ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        // A socket stays where it was made, whoever uses it.
        let socket = within(&self.keeper, TcpSocket::new_v4)?;
        socket.connect(SocketAddr::from((ip, port))).await
    }

    /// Segments that the kernel has sent again from here.
    pub fn sent_again(&self) -> u64 {
        let told = fs::read_to_string(format!("/proc/{}/net/snmp", self.keeper.id())).unwrap();
        let mut tcp = told.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (tcp.next().unwrap().split(' '), tcp.next().unwrap().split(' '));
        names.zip(values).find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.carrying.abort();
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Does something in a namespace, on a thread that is not needed for anything else.
fn within<T: Send>(keeper: &Child, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{}/ns/net", keeper.id())).unwrap();
    thread::scope(|scope| {
        let acting = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act()
        });
        acting.join().unwrap()
    })
}

/// Carries what a place sends to where it is for.
async fn carry(from: Arc<Tun>, network: Arc<Shared>) {
    let mut buffer = [0; MTU];
    while let Ok(length) = from.recv(&mut buffer).await {
        let packet = &buffer[..length];
        // IPv6's search for routers is for nobody.
        let Some((source, target)) = addresses(packet) else { continue };
        let Some(to) = network.devices.lock().unwrap().get(&target).cloned() else { continue };
        let link = network.links.lock().unwrap().get(&(source, target)).copied().unwrap_or_default();
        if fastrand::f64() < link.lost {
            network.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let late = if fastrand::f64() < link.late { LATE } else { Duration::ZERO };
        let delay = link.delay + late;
        // A place that is gone takes nothing.
        if delay.is_zero() {
            let _ = to.send(packet).await;
            continue;
        }
        let packet = packet.to_vec();
        tokio::spawn(async move {
            sleep(delay).await;
            let _ = to.send(&packet).await;
        });
    }
}

/// From where and to where, of IPv4.
fn addresses(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
    if packet.first()? >> 4 != 4 {
        return None;
    }
    Some((address(12)?, address(16)?))
}
