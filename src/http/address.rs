//! Whose connection it is.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warp::http::HeaderMap;

use super::server::Peer;
use crate::relay::Relay;

/// The address of who asks this VM.
pub fn visitor(relay: &Relay, peer: Peer, headers: &HeaderMap) -> IpAddr {
    client(peer, headers, relay.identity().on_fly(), &relay.config.trusted_proxies)
}

/// The client's address: as Fly's proxy tells it, on Fly only; else the peer's; or who a trusted proxy
/// says was in front of it.
fn client(peer: Peer, headers: &HeaderMap, on_fly: bool, proxies: &[IpNet]) -> IpAddr {
    let fly = headers.get("fly-client-ip").filter(|_| on_fly);
    let fly = fly.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let mut address: IpAddr = fly.unwrap_or_else(|| peer.0.ip()).to_canonical();
    // Each proxy adds at the end whom it was asked by. What stands before the first one that is not
    // trusted is anybody's word.
    let told = headers.get_all("x-forwarded-for").into_iter().rev();
    let mut told = told.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
    while proxies.iter().any(|proxy| proxy.contains(&address)) {
        let Some(next) = told.next().and_then(|hop| parse(hop.trim())) else { break };
        address = next.to_canonical();
    }
    address
}

/// Some proxies name the port too.
fn parse(hop: &str) -> Option<IpAddr> {
    hop.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warp::http::HeaderName;

    fn told(peer: &str, header: &str, on_fly: bool) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("fly-client-ip", header.parse().unwrap());
        client(Peer(peer.parse().unwrap()), &headers, on_fly, &[]).to_string()
    }

    /// Behind proxies of 10.0.0.0/8 and 2001:db8:ffff::/48.
    fn forwarded(peer: &str, lines: &[&str]) -> String {
        let proxies = ["10.0.0.0/8", "2001:db8:ffff::/48"].map(|network| network.parse().unwrap());
        let headers =
            lines.iter().map(|line| (HeaderName::from_static("x-forwarded-for"), line.parse().unwrap()));
        client(Peer(peer.parse().unwrap()), &headers.collect(), false, &proxies).to_string()
    }

    #[test]
    fn fly_s_word_counts_on_fly_only() {
        assert_eq!(told("10.0.0.1:1", "203.0.113.7", true), "203.0.113.7");
        assert_eq!(told("10.0.0.1:1", "203.0.113.7", false), "10.0.0.1");
        assert_eq!(told("10.0.0.1:1", "nonsense", true), "10.0.0.1");
    }

    #[test]
    fn an_ipv4_address_is_one_in_either_form() {
        assert_eq!(told("[::ffff:10.0.0.1]:1", "", false), "10.0.0.1");
    }

    #[test]
    fn forwarded_for_counts_from_trusted_proxies_only() {
        for (peer, lines, client) in [
            ("192.0.2.1:1", &["203.0.113.7"][..], "192.0.2.1"),
            ("10.0.0.1:1", &["203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1:1", &["1.1.1.1, 203.0.113.7,10.0.0.2"], "203.0.113.7"),
            ("10.0.0.1:1", &["1.1.1.1", "203.0.113.7:80", "10.0.0.2"], "203.0.113.7"),
            ("[::ffff:10.0.0.1]:1", &["2001:db8:1:2:3::4, 2001:db8:ffff::1"], "2001:db8:1:2:3::4"),
            ("10.0.0.1:1", &["203.0.113.7, unknown"], "10.0.0.1"),
            ("10.0.0.1:1", &["10.0.0.9, 10.0.0.2"], "10.0.0.9"),
            ("10.0.0.1:1", &[], "10.0.0.1"),
        ] {
            assert_eq!(forwarded(peer, lines), client, "{peer} {lines:?}");
        }
    }
}
