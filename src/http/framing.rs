//! Whether a request says plainly where it ends and whom it is for.
//!
//! hyper refuses most of what two readers would cut differently. What it lets pass is refused here: another
//! reader, a proxy, might see in one connection's bytes another number of requests, and one visitor's request
//! could end up in another's.

use warp::http::{HeaderMap, HeaderValue, Version, header};

/// What is not plain about a request's head, if something is not.
pub fn defect(version: Version, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    // HTTP/1.0 had none.
    let is_missing = hosts.next().is_none() && version == Version::HTTP_11;
    if is_missing || hosts.next().is_some() {
        return Some("Host: expected one");
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
            assert_eq!(defect(version, &headers).is_none(), is_plain, "{version:?} {lines:?}");
        }
    }
}
