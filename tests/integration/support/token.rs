//! Tokens as an app's own server makes them, and key pairs of every kind to sign them with.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

pub const SECRET: &str = "a secret of the tests, of more than 32 bytes";

/// The second of the epoch that is so far from now.
pub fn at(seconds: i64) -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + seconds
}

/// Ann's good claims for an hour, but for what `change` says; null takes one away.
pub fn claims(change: Value) -> Value {
    let mut claims = json!({"sub": "ann", "exp": at(3600)});
    claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

/// By [`SECRET`].
pub fn token(claims: &Value) -> String {
    sign(claims, Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()))
}

pub fn sign(claims: &Value, algorithm: Algorithm, key: &EncodingKey) -> String {
    encode(&Header::new(algorithm), claims, key).unwrap()
}

/// A new key's two halves, in PEM.
pub struct Keys {
    pub algorithm: Algorithm,
    pub private: String,
    pub public: String,
}

impl Keys {
    /// For RS256, ES256 or EdDSA.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::RS256 => {
                let key = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
                Self::of(algorithm, &key, key.public_key())
            }
            Algorithm::ES256 => Self::ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            _ => {
                let key = Ed25519KeyPair::generate().unwrap();
                Self::of(algorithm, &key, key.public_key())
            }
        }
    }

    pub fn ec(on: &'static EcdsaSigningAlgorithm) -> Self {
        let document = EcdsaKeyPair::generate_pkcs8(on, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(on, document.as_ref()).unwrap();
        let public = key.public_key().as_der().unwrap();
        Self {
            algorithm: Algorithm::ES256,
            private: pem("PRIVATE KEY", document.as_ref()),
            public: pem("PUBLIC KEY", public.as_ref()),
        }
    }

    fn of(
        algorithm: Algorithm,
        key: &impl AsDer<Pkcs8V1Der<'static>>,
        public: &impl AsDer<PublicKeyX509Der<'static>>,
    ) -> Self {
        let (key, public) = (key.as_der().unwrap(), public.as_der().unwrap());
        let (private, public) = (pem("PRIVATE KEY", key.as_ref()), pem("PUBLIC KEY", public.as_ref()));
        Self { algorithm, private, public }
    }

    pub fn token(&self, claims: &Value) -> String {
        self.token_by(self.algorithm, claims)
    }

    /// By another algorithm that the same key is good for.
    pub fn token_by(&self, algorithm: Algorithm, claims: &Value) -> String {
        let pem = self.private.as_bytes();
        let key = match self.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem),
            _ => EncodingKey::from_ed_pem(pem),
        };
        sign(claims, algorithm, &key.unwrap())
    }
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
