//! The listening sockets: several on one port, so that all who come back at once after a deployment find
//! room to wait. The system lets only `net.core.somaxconn` wait at each, 4,096 mostly, and one that finds no
//! room tries again a second later, then two.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Together they hold nearly as many as a VM takes sockets.
const LISTENERS: usize = 4;

/// The system's own limit is lower.
const WAITING: u32 = 1 << 16;

/// Listens on an address; port 0 is a free one.
///
/// # Errors
/// The system's; among them that another program listens there.
pub fn listen(address: SocketAddr) -> io::Result<Vec<TcpListener>> {
    // Alone first: those who share a port would share it with another copy of this program too.
    let address = bind(address, false)?.listen(1)?.local_addr()?;
    (0..LISTENERS).map(|_| bind(address, true)?.listen(WAITING)).collect()
}

fn bind(address: SocketAddr, shares: bool) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A VM that starts again must not wait for its old connections' end.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shares)?;
    // An alert is one small write: it must not wait for another to fill a packet. Connections inherit it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv4Addr;
    use std::process::Command;

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_port_is_shared_within_the_program_only() {
        let listeners = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
        assert_eq!(listen(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        listen(address).unwrap();
    }

    #[tokio::test]
    async fn as_many_may_wait_at_each_as_the_system_lets() {
        let listeners = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = listeners[0].local_addr().unwrap().port();
        let told = Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        // Of one that listens it tells how many wait, and how many may.
        let room: Vec<_> = told.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
        let most = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        assert_eq!(room, [most.trim(); LISTENERS]);
    }

    #[tokio::test]
    async fn connections_inherit_that_small_writes_go_at_once() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into(), true).unwrap().listen(1).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        assert!(accepted.unwrap().0.nodelay().unwrap() && !client.unwrap().nodelay().unwrap());
    }
}
