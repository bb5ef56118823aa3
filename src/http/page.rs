//! The page and its files, and the documents of the interface, inside the binary: one thing to deploy, and
//! never of another version.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::Embed;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::path::FullPath;
use warp::reply::{Reply as _, Response};
use warp::{Filter, Rejection};

#[derive(Embed)]
#[folder = "static/"]
struct Files;

/// What the routes and the socket are, for programs to read; tests hold them to the code.
#[derive(Embed)]
#[folder = "src/http/documents/"]
struct Documents;

/// The service worker, which may stand in for the page when no VM can be reached.
const WORKER: &str = "/static/worker.js";
/// Stands in it for the version of the page. A browser keeps a worker, and the offline page with it, until the
/// worker itself is another one.
const VERSION: &str = "{version}";

/// One file, ready to be sent.
struct Asset {
    content_type: HeaderValue,
    etag: HeaderValue,
    plain: Bytes,
    zipped: Bytes,
}

/// By path. Compressed beside the start, see [`prepare`].
static ASSETS: LazyLock<HashMap<String, Asset>> = LazyLock::new(|| {
    let files: Vec<_> = Files::iter()
        .filter_map(|name| {
            let path = if name == "index.html" { "/".into() } else { format!("/static/{name}") };
            Some((path, Files::get(&name)?))
        })
        .collect();
    let version = version(files.iter().map(|(_, file)| file.metadata.sha256_hash()));
    let documents = Documents::iter().filter_map(|name| Some((format!("/{name}"), Documents::get(&name)?)));
    let assets = files.into_iter().chain(documents).map(|(path, file)| {
        let asset = if path == WORKER {
            let text = String::from_utf8_lossy(&file.data).replace(VERSION, &version);
            Asset::new(&path, &version, text.into())
        } else {
            Asset::new(&path, &hex(&file.metadata.sha256_hash()), file.data.into_owned().into())
        };
        (path, asset)
    });
    assets.collect()
});

/// Compresses all of it, which takes a while and is done by the first who needs it otherwise.
pub fn prepare() {
    LazyLock::force(&ASSETS);
}

/// Of all files together, in their order: it differs where any of them does.
fn version(hashes: impl Iterator<Item = [u8; 32]>) -> String {
    let mut all = [0_u8; 32];
    for hash in hashes {
        all.iter_mut().zip(hash).for_each(|(sum, byte)| *sum = sum.rotate_left(1) ^ byte);
    }
    hex(&all)
}

fn hex(hash: &[u8; 32]) -> String {
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn routes() -> BoxedFilter<(Response,)> {
    warp::get()
        .or(warp::head())
        .unify()
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and_then(async |path: FullPath, headers: HeaderMap| {
            let asset = ASSETS.get(path.as_str()).ok_or_else(warp::reject::not_found)?;
            let mut response = asset.reply(&headers);
            if path.as_str() == WORKER {
                // Else it could serve nothing outside its own folder, and the page is at /.
                response.headers_mut().insert("service-worker-allowed", HeaderValue::from_static("/"));
            }
            Ok::<_, Rejection>(response)
        })
        .boxed()
}

impl Asset {
    fn new(path: &str, version: &str, plain: Bytes) -> Self {
        Self {
            content_type: content_type(path),
            // Weak: the same for both encodings.
            etag: HeaderValue::try_from(format!("W/\"{version}\""))
                .unwrap_or(HeaderValue::from_static("W/\"\"")),
            zipped: zip(&plain),
            plain,
        }
    }

    fn reply(&self, headers: &HeaderMap) -> Response {
        let known = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|tags| tags.to_str().ok());
        let unchanged =
            known.flat_map(|tags| tags.split(',')).any(|tag| tag.trim() == self.etag || tag.trim() == "*");
        let zipped = accepts_gzip(headers);
        let mut response = match (unchanged, zipped) {
            (true, _) => StatusCode::NOT_MODIFIED.into_response(),
            (false, true) => Response::new(self.zipped.clone().into()),
            (false, false) => Response::new(self.plain.clone().into()),
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        // To be asked again each time: after a deployment the page and its script must match.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if !unchanged {
            headers.insert(header::CONTENT_TYPE, self.content_type.clone());
            if zipped {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        response
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted =
        headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = parts.any(|weight| weight.strip_prefix("q=").and_then(|q| q.parse().ok()) == Some(0.0));
        gzip && !refused
    })
}

fn content_type(path: &str) -> HeaderValue {
    HeaderValue::from_static(match path.rsplit_once('.').map(|(_, extension)| extension) {
        // The page itself, at /.
        None | Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("ts") => "text/plain; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("webmanifest") => "application/manifest+json",
        _ => "application/octet-stream",
    })
}

fn zip(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to a Vec can't fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_where_it_is_accepted() {
        for (value, accepted) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("br", false),
            ("gzip;q=0", false),
            ("gzip; q=0.0", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(accepts_gzip(&headers), accepted, "{value}");
        }
    }

    #[test]
    fn the_worker_is_another_one_when_a_file_is() {
        let worker = std::str::from_utf8(&ASSETS[WORKER].plain).unwrap();
        assert!(!worker.contains(VERSION) && worker.contains("alien-alert offline "), "{worker}");
        let hashes = [[1; 32], [2; 32]];
        let other = [[1; 32], [3; 32]];
        assert_ne!(version(hashes.into_iter()), version(other.into_iter()));
    }

    #[test]
    fn every_file_has_a_type() {
        assert!(ASSETS.contains_key("/"));
        for (path, asset) in ASSETS.iter() {
            assert_ne!(asset.content_type, "application/octet-stream", "{path}");
        }
    }
}
