//! A certificate signed by itself, and a server's end of TLS with it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Its files go with this value.
pub struct Certificate {
    /// To be trusted, as `SSL_CERT_FILE`: where the system's certificates are, by the convention of OpenSSL.
    pub file: String,
    pub tls: TlsAcceptor,
    directory: PathBuf,
}

impl Certificate {
    /// For a server that speaks these protocols (RFC 7301); none: whatever the client does.
    pub fn for_this_machine(protocols: &[&[u8]]) -> Self {
        Self::new("IP:127.0.0.1,DNS:backend.test", protocols)
    }

    /// For a server of other names, as a certificate lists them.
    pub fn new(names: &str, protocols: &[&[u8]]) -> Self {
        let directory = std::env::temp_dir().join(format!("alien-alert-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        let (certificate, key) = (file("certificate.pem"), file("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", "/CN=test", "-addext", &format!("subjectAltName={names}")])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out", &certificate, "-keyout", &key])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let chain = vec![CertificateDer::from_pem_file(&certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&key).unwrap();
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self { file: certificate, tls: TlsAcceptor::from(Arc::new(config)), directory }
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
