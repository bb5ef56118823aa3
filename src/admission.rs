//! Who may open a socket now: how many there are in all, how many of this address, how fast. And what that
//! takes, for others who must know how fast an address is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::{Limits, Rate};

/// An address of which a socket was cut off for flooding gets no new one for so long: each would come
/// with a burst of its own.
const FLOOD_PAUSE: Duration = Duration::from_secs(10);

/// The rate limit forgets addresses whose time is over after so many requests: meanwhile it grows by
/// that many at most, of 100 bytes or so.
const SWEEP_EVERY: u64 = 10_000;

pub struct Admission {
    limits: Limits,
    upgrades: Pace,
    flooded: Pauses,
    sockets: Mutex<Sockets>,
}

#[derive(Default)]
struct Sockets {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// How often each address may do something.
pub struct Pace {
    rate: DefaultKeyedRateLimiter<IpAddr>,
    asked: AtomicU64,
    clock: DefaultClock,
}

/// Addresses that are to wait, and until when.
#[derive(Default)]
pub struct Pauses(Mutex<HashMap<IpAddr, Instant>>);

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This VM has all it can take.
    Full,
    /// This address has.
    TooMany,
    /// This address has flooded; the seconds to wait.
    Flooded(u64),
    /// This address is too fast; the seconds to wait.
    TooFast(u64),
}

/// One socket's place, free again when dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    /// The visitor's, all of it.
    pub address: IpAddr,
}

impl Admission {
    pub fn new(limits: Limits) -> Arc<Self> {
        let (upgrades, flooded) = (Pace::new(limits.upgrades), Pauses::default());
        Arc::new(Self { limits, upgrades, flooded, sockets: Mutex::default() })
    }

    /// # Errors
    /// A bound is reached.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refusal> {
        if let Some(wait) = self.flooded.left(address) {
            return Err(Refusal::Flooded(wait));
        }
        self.upgrades.check(address).map_err(Refusal::TooFast)?;
        let mut sockets = self.sockets();
        if sockets.all >= self.limits.connections {
            return Err(Refusal::Full);
        }
        let of_address = sockets.by_address.entry(group(address)).or_default();
        if *of_address >= self.limits.connections_per_address {
            return Err(Refusal::TooMany);
        }
        *of_address += 1;
        sockets.all += 1;
        Ok(Place { admission: Arc::clone(self), address })
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace {
    pub fn new(rate: Rate) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        Self { rate: RateLimiter::keyed(quota), asked: AtomicU64::new(1), clock: DefaultClock::default() }
    }

    /// # Errors
    /// This address is too fast; the seconds to wait.
    pub fn check(&self, address: IpAddr) -> Result<(), u64> {
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP_EVERY) {
            self.rate.retain_recent();
        }
        let checked = self.rate.check_key(&group(address));
        checked.map_err(|not_until| not_until.wait_time_from(self.clock.now()).as_secs() + 1)
    }
}

impl Pauses {
    /// Few come here; those whose time is over are forgotten then.
    pub fn pause(&self, address: IpAddr, time: Duration) {
        let now = Instant::now();
        let mut until = self.until();
        until.retain(|_, until| *until > now);
        until.insert(group(address), now + time);
    }

    /// The seconds that it is still to wait.
    pub fn left(&self, address: IpAddr) -> Option<u64> {
        let left = self.until().get(&group(address))?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| left.as_secs() + 1)
    }

    fn until(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Place {
    /// Its socket is cut off for flooding.
    pub fn flooded(&self) {
        self.admission.flooded.pause(self.address, FLOOD_PAUSE);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sockets = self.admission.sockets();
        sockets.all -= 1;
        let group = group(self.address);
        if let Some(of_address) = sockets.by_address.get_mut(&group) {
            *of_address -= 1;
            if *of_address == 0 {
                sockets.by_address.remove(&group);
            }
        }
    }
}

/// What counts as one address: an IPv6 client has a /64 at least.
fn group(address: IpAddr) -> IpAddr {
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
    use crate::config::Config;

    fn admission(vars: &[(&str, &str)]) -> Arc<Admission> {
        let vars = vars.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Admission::new(Config::from_vars(vars).unwrap().limits)
    }

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn places_are_counted_and_given_back() {
        let admission = admission(&[("MAX_CONNECTIONS", "3"), ("MAX_CONNECTIONS_PER_ADDRESS", "2")]);
        let first = admission.admit(A).unwrap();
        let _second = admission.admit(A).unwrap();
        assert_eq!(admission.admit(A).unwrap_err(), Refusal::TooMany);
        let _third = admission.admit(B).unwrap();
        assert_eq!(admission.admit(B).unwrap_err(), Refusal::Full);
        drop(first);
        assert!(admission.admit(A).is_ok());
        assert_eq!(admission.sockets().by_address.len(), 2);
    }

    #[test]
    fn ipv6_counts_by_its_network() {
        let admission = admission(&[("MAX_CONNECTIONS_PER_ADDRESS", "1")]);
        let admit = |address: &str| admission.admit(address.parse().unwrap());
        let place = admit("2001:db8:1:2:3:4:5:6").unwrap();
        assert_eq!(admit("2001:db8:1:2::1").unwrap_err(), Refusal::TooMany);
        assert!(admit("2001:db8:1:3::1").is_ok());
        place.flooded();
        drop(place);
        assert_eq!(admit("2001:db8:1:2::1").unwrap_err(), Refusal::Flooded(FLOOD_PAUSE.as_secs()));
        assert!(admission.sockets().by_address.is_empty());
    }

    #[test]
    fn who_flooded_waits_alone() {
        let admission = admission(&[]);
        let place = admission.admit(A).unwrap();
        place.flooded();
        assert_eq!(admission.admit(A).unwrap_err(), Refusal::Flooded(FLOOD_PAUSE.as_secs()));
        assert!(admission.admit(B).is_ok());
        admission.flooded.pause(A, Duration::ZERO);
        assert!(admission.admit(A).is_ok());
    }

    #[test]
    fn who_flooded_is_forgotten_when_it_need_not_wait_any_longer() {
        let pauses = Pauses::default();
        pauses.pause(A, Duration::ZERO);
        pauses.pause(B, FLOOD_PAUSE);
        assert!(pauses.until().keys().eq([&B]));
        pauses.pause(A, FLOOD_PAUSE);
        assert!(pauses.left(A).is_some() && pauses.left(B).is_some(), "one's pause ends no other's");
    }

    #[test]
    fn one_address_s_haste_is_its_own() {
        let admission = admission(&[("UPGRADE_RATE", "1"), ("UPGRADE_BURST", "2")]);
        assert!(admission.admit(A).is_ok() && admission.admit(A).is_ok());
        assert_eq!(admission.admit(A).unwrap_err(), Refusal::TooFast(1));
        assert!(admission.admit(B).is_ok());
    }

    #[test]
    fn a_flood_of_addresses_is_forgotten() {
        // An address may come again after a microsecond: its time is over by the next sweep.
        let admission = admission(&[("UPGRADE_RATE", "1000000"), ("UPGRADE_BURST", "1")]);
        let mut most = 0;
        for number in 0..10 * u32::try_from(SWEEP_EVERY).unwrap() {
            drop(admission.admit(IpAddr::V4(number.into())));
            most = most.max(admission.upgrades.rate.len());
        }
        assert!((5_000..=10_100).contains(&most), "{most} remembered");
        assert!(admission.sockets().by_address.is_empty());
    }
}
