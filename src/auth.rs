//! Who gets in: the tokens of visitors, and the keys of the backend.
//!
//! Checks over plain text: nothing here knows HTTP or the hub. What is refused says why, and never
//! holds anything of the token, the key or the secret.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation, decode};
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq as _};

use crate::admission::{Pace, Pauses};
use crate::channel::USER;
use crate::config::{ConfigError, Env, Rate};

/// So far may the clock of who signs tokens be from this VM's.
const LEEWAY: Duration = Duration::from_secs(2);

/// A shorter secret than its hash is the weakest part (RFC 7518, 3.2).
const MIN_SECRET: usize = 32;

/// An RSA key of 2,048 bits, in DER.
const MIN_RSA_KEY: usize = 256;

/// A point of P-256, uncompressed.
const P256_POINT: usize = 65;

const MAX_USER: usize = 64;
const MAX_API_KEYS: usize = 2;
const MIN_API_KEY: usize = 16;

/// Who is at the other end of a socket, and where they may be.
#[derive(Clone, Debug, Default)]
pub struct Visitor {
    pub user: Option<Arc<str>>,
    /// When the socket is to end.
    pub expires: Option<SystemTime>,
    /// The channels to join, each by its name or by what comes before a `*`; all when it is not said.
    pub channels: Option<Arc<[String]>>,
}

impl Visitor {
    /// Whether it may hear that channel and speak in it.
    pub fn may_join(&self, channel: &str) -> bool {
        if let Some(owner) = channel.strip_prefix(USER) {
            return self.user.as_deref() == Some(owner);
        }
        let Some(allowed) = &self.channels else { return true };
        allowed.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(prefix) => channel.starts_with(prefix),
            None => channel == allowed,
        })
    }

    /// The channel that is this user's alone.
    pub fn own_channel(&self) -> Option<String> {
        self.user.as_ref().map(|user| format!("{USER}{user}"))
    }
}

/// Whether that can be a user's name.
pub fn is_user(name: &str) -> bool {
    (1..=MAX_USER).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// How tokens are checked: by one key, and by the one algorithm that is the key's.
#[derive(Clone, Debug)]
pub struct Tokens {
    key: DecodingKey,
    validation: Validation,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    /// In seconds, of which RFC 7519 allows fractions.
    #[serde(default)]
    exp: f64,
    #[serde(default)]
    channels: Vec<String>,
}

/// Why a token does not let its bearer in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadToken {
    Missing,
    Malformed,
    Algorithm,
    Signature,
    Expired,
    NotYetValid,
    Audience,
    Issuer,
    Subject,
    Expiry,
}

impl Tokens {
    /// What the environment says of tokens; none when everyone may come in.
    ///
    /// # Errors
    /// A key that can't be used, or settings that contradict one another.
    pub fn find(env: &Env) -> Result<Option<Self>, ConfigError> {
        let (key, algorithm) = match (&env.auth_secret, &env.auth_public_key) {
            (Some(_), Some(_)) => {
                let why = "AUTH_SECRET and AUTH_PUBLIC_KEY are both set: expected one of them";
                return Err(ConfigError::new(why));
            }
            (Some(secret), None) => (secret_key(secret)?, Algorithm::HS256),
            (None, Some(pem)) => public_key(pem)?,
            (None, None) => {
                let unused = [("AUTH_AUDIENCE", &env.auth_audience), ("AUTH_ISSUER", &env.auth_issuer)];
                return match unused.into_iter().find(|(_, value)| value.is_some()) {
                    Some((name, _)) => Err(ConfigError::new(format!(
                        "{name} is set but no token is asked for: set AUTH_SECRET or AUTH_PUBLIC_KEY as well"
                    ))),
                    None => Ok(None),
                };
            }
        };
        let mut validation = Validation::new(algorithm);
        let mut required = vec!["exp", "sub"];
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        // Without a claim its check would be passed, hence required as well.
        if let Some(audience) = &env.auth_audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &env.auth_issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Ok(Some(Self { key, validation }))
    }

    /// Whom a token names.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn check(&self, token: Option<&str>) -> Result<Visitor, BadToken> {
        let token = token.filter(|token| !token.is_empty()).ok_or(BadToken::Missing)?;
        let TokenData { header, claims } = decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| BadToken::from(error.kind()))?;
        // Who marks a header as critical wants it understood, and none is here (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(BadToken::Malformed);
        }
        if !is_user(&claims.sub) {
            return Err(BadToken::Subject);
        }
        let lifetime = Duration::try_from_secs_f64(claims.exp).map_err(|_| BadToken::Expiry)?;
        Ok(Visitor {
            user: Some(claims.sub.into()),
            expires: Some(UNIX_EPOCH.checked_add(lifetime + LEEWAY).ok_or(BadToken::Expiry)?),
            channels: Some(claims.channels.into()),
        })
    }
}

fn secret_key(secret: &str) -> Result<DecodingKey, ConfigError> {
    if secret.len() < MIN_SECRET {
        return Err(ConfigError::new(format!(
            "AUTH_SECRET: expected {MIN_SECRET} bytes or more, as of `openssl rand -hex {MIN_SECRET}`"
        )));
    }
    Ok(DecodingKey::from_secret(secret.as_bytes()))
}

/// The key, and the one algorithm that is accepted with it.
fn public_key(pem: &str) -> Result<(DecodingKey, Algorithm), ConfigError> {
    // Some places keep a variable on one line.
    let pem = pem.replace("\\n", "\n");
    let pem = pem.trim();
    // A private key or a certificate would be read too, but is a mistake.
    let public = ["-----BEGIN PUBLIC KEY-----", "-----BEGIN RSA PUBLIC KEY-----"];
    let known = public.iter().any(|begin| pem.starts_with(begin)).then_some(pem.as_bytes());
    let rsa = |pem| DecodingKey::from_rsa_pem(pem).map(|key| (key, Algorithm::RS256, MIN_RSA_KEY..));
    let ec = |pem| DecodingKey::from_ec_pem(pem).map(|key| (key, Algorithm::ES256, P256_POINT..));
    let ed = |pem| DecodingKey::from_ed_pem(pem).map(|key| (key, Algorithm::EdDSA, 0..));
    let key = known.and_then(|pem| rsa(pem).or_else(|_| ec(pem)).or_else(|_| ed(pem)).ok());
    key.filter(|(key, algorithm, length)| {
        let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
        length.contains(&bytes) && (*algorithm != Algorithm::ES256 || bytes == P256_POINT)
    })
    .map(|(key, algorithm, _)| (key, algorithm))
    .ok_or_else(|| {
        ConfigError::new(
            "AUTH_PUBLIC_KEY: expected a public key in PEM (-----BEGIN PUBLIC KEY-----): \
             RSA of 2048 bits or more, EC on P-256, or Ed25519",
        )
    })
}

impl From<&ErrorKind> for BadToken {
    fn from(kind: &ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::InvalidAlgorithm => Self::Algorithm,
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYetValid,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "aud" => Self::Audience,
                "iss" => Self::Issuer,
                "sub" => Self::Subject,
                _ => Self::Expiry,
            },
            _ => Self::Malformed,
        }
    }
}

impl BadToken {
    /// The word for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Malformed => "token_malformed",
            Self::Algorithm => "token_algorithm",
            Self::Signature => "token_signature",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Audience => "token_audience",
            Self::Issuer => "token_issuer",
            Self::Subject => "token_subject",
            Self::Expiry => "token_expiry",
        }
    }
}

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "a token is needed: ?token=<JWT>, or the subprotocols alien-alert and <JWT>",
            Self::Malformed => {
                "the token is not understood: no JWT, of an unknown algorithm, or with a claim of another type"
            }
            Self::Algorithm => "the token is signed by another algorithm than this server's key is for",
            Self::Signature => "the token's signature is not by this server's key",
            Self::Expired => "the token has expired (exp)",
            Self::NotYetValid => "the token is not yet valid (nbf)",
            Self::Audience => "the token is for another audience (aud) than this server's AUTH_AUDIENCE",
            Self::Issuer => "the token is by another issuer (iss) than this server's AUTH_ISSUER",
            Self::Subject => "sub: expected 1 to 64 visible characters of ASCII (no spaces)",
            Self::Expiry => "exp: expected the second since 1970 at which the token expires",
        })
    }
}

/// The backend's keys: one, or two while they are changed.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// # Errors
    /// Too many keys, or one that is too easily guessed.
    pub fn find(env: &Env) -> Result<Self, ConfigError> {
        let list = env.api_key.as_deref().unwrap_or_default();
        let keys: Vec<_> = list.split(',').map(str::trim).filter(|key| !key.is_empty()).collect();
        let sound = |key: &&str| key.len() >= MIN_API_KEY && key.bytes().all(|byte| byte.is_ascii_graphic());
        if keys.len() > MAX_API_KEYS || !keys.iter().all(sound) || (keys.is_empty() && !list.is_empty()) {
            return Err(ConfigError::new(format!(
                "API_KEY: expected one key or two by comma, of {MIN_API_KEY} characters or more each, \
                 without spaces"
            )));
        }
        Ok(Self(keys.into_iter().map(str::to_owned).collect()))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// An address may try so many wrong keys; then its requests are not looked at for a while, or a guess would
/// cost nothing.
const GUESSES: Rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::MIN.saturating_add(19) };
const GUESS_PAUSE: Duration = Duration::from_secs(10);

/// Who may ask as the backend does, and how fast by each key.
pub struct Backend {
    keys: ApiKeys,
    rates: Vec<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    guesses: Pace,
    guessed: Pauses,
}

/// Why a request is not taken as the backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiRefusal {
    NotConfigured,
    Missing,
    Wrong,
    /// This key is used too fast; the seconds to wait.
    TooFast(u64),
    /// This address has tried too many wrong keys; the seconds to wait.
    Guessing(u64),
}

impl Backend {
    pub fn new(keys: ApiKeys, rate: Rate) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let rates = keys.0.iter().map(|_| RateLimiter::direct(quota)).collect();
        let (guesses, guessed) = (Pace::new(GUESSES), Pauses::default());
        Self { keys, rates, clock: DefaultClock::default(), guesses, guessed }
    }

    /// Whether a request with this `Authorization` header, from this address, is the backend's.
    ///
    /// # Errors
    /// It is not, or there are too many of them.
    pub fn admit(&self, authorization: Option<&[u8]>, address: IpAddr) -> Result<(), ApiRefusal> {
        if self.keys.0.is_empty() {
            return Err(ApiRefusal::NotConfigured);
        }
        if let Some(wait) = self.guessed.left(address) {
            return Err(ApiRefusal::Guessing(wait));
        }
        let (scheme, key) = authorization
            .and_then(|value| value.split_at_checked("Bearer ".len()))
            .ok_or(ApiRefusal::Missing)?;
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return Err(ApiRefusal::Missing);
        }
        // Each is compared, and to its end, so that the time tells nothing of how near a guess is.
        let equal: Vec<Choice> = self.keys.0.iter().map(|known| known.as_bytes().ct_eq(key)).collect();
        let Some(used) = equal.into_iter().position(bool::from) else {
            if self.guesses.check(address).is_err() {
                self.guessed.pause(address, GUESS_PAUSE);
            }
            return Err(ApiRefusal::Wrong);
        };
        self.rates[used].check().map_err(|not_until| {
            ApiRefusal::TooFast(not_until.wait_time_from(self.clock.now()).as_secs() + 1)
        })
    }
}

impl ApiRefusal {
    /// The word for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotConfigured => "not_configured",
            Self::Missing => "key_missing",
            Self::Wrong => "key_wrong",
            Self::TooFast(_) => "key_rate",
            Self::Guessing(_) => "address_guesses",
        }
    }
}

impl fmt::Display for ApiRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotConfigured => "no API_KEY is configured on this server, so nobody may ask this",
            Self::Missing => "a key is needed: Authorization: Bearer <API_KEY>",
            Self::Wrong => "the key is not one of this server's",
            Self::TooFast(_) => "too many requests with this key",
            Self::Guessing(_) => "too many wrong keys from this address",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn visitor(user: Option<&str>, channels: Option<&[&str]>) -> Visitor {
        let channels = channels.map(|names| names.iter().map(|name| name.to_string()).collect());
        Visitor { user: user.map(Arc::from), expires: None, channels }
    }

    #[test]
    fn channels_are_joined_by_claim_and_users_by_none() {
        let anyone = visitor(None, None);
        assert!(anyone.may_join("room"));
        assert!(!anyone.may_join("user:ann") && !anyone.may_join("user:"));

        let ann = visitor(Some("ann"), Some(&["room", "environment:*", "use*", "user:bob"]));
        for (channel, may) in [
            ("user:ann", true),
            ("user:ann2", false),
            ("user:bob", false),
            ("room", true),
            ("room2", false),
            ("environment:", true),
            ("environment:42", true),
            ("environment", false),
            ("users", true),
        ] {
            assert_eq!(ann.may_join(channel), may, "{channel}");
        }
        let all = visitor(Some("ann"), Some(&["*"]));
        assert!(all.may_join("room") && !all.may_join("user:bob"));
        assert!(!visitor(Some("ann"), Some(&[])).may_join("room"));
    }

    fn backend(keys: &str, burst: u32) -> Backend {
        let env = Env { api_key: Some(keys.into()), ..Env::default() };
        let rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::new(burst).unwrap() };
        Backend::new(ApiKeys::find(&env).unwrap(), rate)
    }

    #[test]
    fn the_backend_is_known_by_either_key() {
        let backend = backend("0123456789abcdef, fedcba9876543210", 100);
        for (header, answer) in [
            (Some("Bearer 0123456789abcdef"), Ok(())),
            (Some("bearer fedcba9876543210"), Ok(())),
            (Some("Bearer 0123456789abcdeF"), Err(ApiRefusal::Wrong)),
            (Some("Bearer 0123456789abcdef, fedcba9876543210"), Err(ApiRefusal::Wrong)),
            (Some("Bearer "), Err(ApiRefusal::Wrong)),
            (Some("Basic 0123456789abcdef"), Err(ApiRefusal::Missing)),
            (Some("Bearer"), Err(ApiRefusal::Missing)),
            (None, Err(ApiRefusal::Missing)),
        ] {
            assert_eq!(backend.admit(header.map(str::as_bytes), HERE), answer, "{header:?}");
        }
        let nobody = Backend { keys: ApiKeys::default(), ..backend };
        assert_eq!(nobody.admit(Some(b"Bearer "), HERE), Err(ApiRefusal::NotConfigured));
    }

    #[test]
    fn one_key_s_haste_is_its_own() {
        let backend = backend("0123456789abcdef,fedcba9876543210", 2);
        let [one, other] = ["Bearer 0123456789abcdef", "Bearer fedcba9876543210"].map(str::as_bytes);
        assert!(backend.admit(Some(one), HERE).is_ok() && backend.admit(Some(one), HERE).is_ok());
        assert_eq!(backend.admit(Some(one), HERE), Err(ApiRefusal::TooFast(1)));
        assert!(backend.admit(Some(other), HERE).is_ok());
    }

    #[test]
    fn who_guesses_keys_is_not_looked_at_for_a_while_and_nobody_else_waits() {
        let backend = backend("0123456789abcdef", 100);
        let [right, wrong] = ["Bearer 0123456789abcdef", "Bearer fedcba9876543210"].map(str::as_bytes);
        let wait = GUESS_PAUSE.as_secs();
        let tried =
            (0..100).take_while(|_| backend.admit(Some(wrong), HERE) == Err(ApiRefusal::Wrong)).count();
        assert_eq!(tried, GUESSES.burst.get() as usize + 1);
        assert_eq!(backend.admit(Some(right), HERE), Err(ApiRefusal::Guessing(wait)), "nor is a right one");
        let elsewhere = [192, 0, 2, 1].into();
        assert!(backend.admit(Some(right), elsewhere).is_ok());
        backend.guessed.pause(HERE, Duration::ZERO);
        assert!(backend.admit(Some(right), HERE).is_ok());
        for _ in 0..100 {
            assert_eq!(backend.admit(None, elsewhere), Err(ApiRefusal::Missing), "no key is no guess");
        }
    }
}
