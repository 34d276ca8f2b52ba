//! Slows down whoever presents wrong API keys, each source by itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Wrong keys a source may present at once.
const FAILURES_MAX: u32 = 20;
/// One failure is forgiven after this time.
const FORGIVE_AFTER: Duration = Duration::from_secs(2);
/// Sources remembered at most. Beyond it the one with the least left to forgive is forgotten.
const SOURCES_MAX: usize = 4_096;

/// The failures of each source. A source that never fails is not in it, and no source's failures
/// count for another.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// When all failures of a source are forgiven.
    forgiven_at: Mutex<BTreeMap<IpAddr, Instant>>,
}

impl Throttle {
    /// Seconds `source` must wait before it may present a key again; `None` when it may now.
    pub(super) fn wait_s(&self, source: IpAddr, now: Instant) -> Option<u64> {
        let table = self.lock();
        let debt = table.get(&network(source))?.saturating_duration_since(now);
        let over = debt.checked_sub(FORGIVE_AFTER * (FAILURES_MAX - 1))?;
        (!over.is_zero()).then(|| over.as_secs() + 1)
    }

    /// Counts a wrong key of `source`.
    pub(super) fn failed(&self, source: IpAddr, now: Instant) {
        let mut table = self.lock();
        let source = network(source);
        if !table.contains_key(&source) && table.len() >= SOURCES_MAX {
            table.retain(|_, forgiven_at| *forgiven_at > now);
            if table.len() >= SOURCES_MAX
                && let Some(least) = table.iter().min_by_key(|(_, at)| **at).map(|(ip, _)| *ip)
            {
                table.remove(&least);
            }
        }
        let forgiven_at = table.entry(source).or_insert(now);
        let most = now + FORGIVE_AFTER * FAILURES_MAX;
        *forgiven_at = ((*forgiven_at).max(now) + FORGIVE_AFTER).min(most);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, Instant>> {
        self.forgiven_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Who shares an allowance: an IPv4 address, or an IPv6 network of 64 bits, which one owner has.
pub(super) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let bits = u128::from(v6) >> 64 << 64;
            IpAddr::V6(bits.into())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn a_source_that_guesses_waits_and_no_other_does() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for _ in 0..FAILURES_MAX {
            assert_eq!(throttle.wait_s(A, now), None);
            throttle.failed(A, now);
        }
        assert_eq!(throttle.wait_s(A, now), Some(3));
        assert_eq!(throttle.wait_s(B, now), None);
        assert_eq!(throttle.wait_s(A, now + FORGIVE_AFTER), None);
    }

    #[test]
    fn the_table_is_bounded_and_a_wait_is_never_endless() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for _ in 0..1_000 {
            throttle.failed(A, now);
        }
        assert_eq!(throttle.wait_s(A, now), Some(3));
        for number in 0..20_000_u32 {
            throttle.failed(IpAddr::V4(number.into()), now);
        }
        assert!(throttle.lock().len() <= SOURCES_MAX);
        assert_eq!(throttle.wait_s(A, now), Some(3), "the worst source is not forgotten");
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for number in 0..FAILURES_MAX {
            let address = u128::from(u64::from(number)) | 0x2001_0db8 << 96;
            throttle.failed(IpAddr::V6(address.into()), now);
        }
        assert!(throttle.wait_s("2001:db8::ffff".parse().unwrap(), now).is_some());
        assert!(throttle.wait_s("2001:db8:0:1::1".parse().unwrap(), now).is_none());
    }
}
