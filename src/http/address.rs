//! Whose connection it is, for limits by address.

use std::net::{IpAddr, Ipv6Addr};

use warp::http::HeaderMap;

use super::server::Peer;

/// The client's address: as Fly's proxy tells it, on Fly only; else the peer's.
pub fn client(peer: Peer, headers: &HeaderMap, on_fly: bool) -> IpAddr {
    let told = headers.get("fly-client-ip").filter(|_| on_fly);
    let told = told.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    told.unwrap_or_else(|| peer.0.ip()).to_canonical()
}

/// What limits count as one: an IPv6 client has a /64 at least.
pub fn group(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(peer: &str, header: &str, on_fly: bool) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("fly-client-ip", header.parse().unwrap());
        group(client(Peer(peer.parse().unwrap()), &headers, on_fly)).to_string()
    }

    #[test]
    fn fly_s_word_counts_on_fly_only() {
        assert_eq!(told("10.0.0.1:1", "203.0.113.7", true), "203.0.113.7");
        assert_eq!(told("10.0.0.1:1", "203.0.113.7", false), "10.0.0.1");
        assert_eq!(told("10.0.0.1:1", "nonsense", true), "10.0.0.1");
    }

    #[test]
    fn ipv6_counts_by_its_network() {
        assert_eq!(told("[2001:db8:1:2:3:4:5:6]:1", "", false), "2001:db8:1:2::");
        assert_eq!(told("[::ffff:10.0.0.1]:1", "", false), "10.0.0.1");
    }
}
