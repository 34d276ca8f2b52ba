//! Buckets by whom they are for: only those from which something was taken lately are remembered,
//! because a full one is like one that is not there.

use std::collections::BTreeMap;

use tirami_core::Timestamp;
use tirami_proto::TokenBucket;

/// Buckets in one table, about 100 bytes each: as many as chains that anybody opens for nothing.
/// Beyond them one that is not full is forgotten too.
const BUCKETS_MAX: usize = 16_384;

/// What a bucket gains each second, and what it holds.
pub(super) type Rate = (u32, u32);

/// Buckets by key.
#[derive(Debug, Clone)]
pub(super) struct Buckets<K>(BTreeMap<K, TokenBucket>);

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Buckets<K> {
    /// Whether `amount` could be taken out of the bucket of `key`.
    pub(super) fn has(&self, key: &K, rate: Rate, amount: u32, now: Timestamp) -> bool {
        let mut bucket = self.0.get(key).copied().unwrap_or(full(rate, now));
        bucket.take(amount, now).is_ok()
    }

    /// Takes `amount` out of the bucket of `key`; `false` when there is not enough.
    pub(super) fn take(&mut self, key: K, rate: Rate, amount: u32, now: Timestamp) -> bool {
        if self.0.len() >= BUCKETS_MAX && !self.0.contains_key(&key) {
            self.0.retain(|_, bucket| !bucket.is_full(now));
            if self.0.len() >= BUCKETS_MAX {
                self.0.pop_first();
            }
        }
        let bucket = self.0.entry(key).or_insert_with(|| full(rate, now));
        bucket.take(amount, now).is_ok()
    }
}

const fn full((per_second, burst): Rate, now: Timestamp) -> TokenBucket {
    TokenBucket::new(per_second, burst, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate_and_full_ones_are_forgotten() {
        let at = Timestamp::from_ms;
        let mut buckets = Buckets::default();
        let rate = (1, 3);
        assert!((0..3).all(|_| buckets.take(0, rate, 1, at(0))));
        assert!(!buckets.take(0, rate, 1, at(999)));
        assert!(buckets.has(&0, rate, 1, at(1_000)) && buckets.take(0, rate, 1, at(1_000)));
        assert!(buckets.has(&1, rate, 3, at(1_000)), "another one's is its own");
        assert!(!buckets.has(&1, rate, 4, at(1_000)));
        for key in 1..BUCKETS_MAX as u64 {
            assert!(buckets.take(key, rate, 1, at(1_000)));
        }
        assert_eq!(buckets.0.len(), BUCKETS_MAX);
        assert!(buckets.take(u64::MAX, rate, 1, at(2_000)));
        assert_eq!(buckets.0.len(), 2, "all but the first are full again");
        assert!(!buckets.has(&0, rate, 2, at(2_000)));
    }
}
