//! Whether a request says plainly where it ends and whom it is for.
//!
//! hyper refuses most of what two readers would cut differently, and ends a connection after a length beside
//! chunks. What else it lets pass is refused here: another reader, a proxy, might see in one connection's bytes
//! another number of requests, and one visitor's request could end up in another's.

use warp::http::uri::Authority;
use warp::http::{HeaderMap, HeaderValue, Uri, Version, header};

/// What is not plain about a request's head, if something is not.
pub fn defect(version: Version, target: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let is_fine = match hosts.next() {
        // HTTP/1.0 had none.
        None => version != Version::HTTP_11,
        Some(host) => {
            Authority::try_from(host).is_ok_and(|host| target.authority().is_none_or(|one| *one == host))
        }
    };
    if !is_fine || hosts.next().is_some() {
        return Some("Host: expected one, and that of the target");
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes);
    let is_plain = encodings.next().is_none_or(|first| first.eq_ignore_ascii_case(b"chunked"));
    if !is_plain || encodings.next().is_some() {
        return Some("Transfer-Encoding: expected chunked, once and alone");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_host_and_at_most_one_encoding() {
        for (version, lines, is_plain) in [
            (Version::HTTP_11, &[("host", "vm")][..], true),
            (Version::HTTP_11, &[("host", "VM:80")], true),
            (Version::HTTP_11, &[("host", "vm, other")], false),
            (Version::HTTP_11, &[("host", "")], false),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_10, &[("host", "vm"), ("host", "vm")], false),
            (Version::HTTP_11, &[("host", "vm"), ("host", "other")], false),
            (Version::HTTP_11, &[("host", "vm"), ("transfer-encoding", "Chunked")], true),
            (Version::HTTP_11, &[("host", "vm"), ("transfer-encoding", "gzip, chunked")], false),
            (Version::HTTP_11, &[("host", "vm"), ("transfer-encoding", "chunked, chunked")], false),
            (
                Version::HTTP_11,
                &[("host", "vm"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                false,
            ),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let target = Uri::from_static("/");
            assert_eq!(defect(version, &target, &headers).is_none(), is_plain, "{version:?} {lines:?}");
        }
    }

    #[test]
    fn a_target_s_host_is_the_host() {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("vm:80"))]);
        for (target, is_plain) in
            [("http://VM:80/", true), ("http://vm/", false), ("http://other:80/", false)]
        {
            let target = target.parse().unwrap();
            assert_eq!(defect(Version::HTTP_11, &target, &headers).is_none(), is_plain, "{target}");
        }
    }
}
