//! Meters: what a key, an agent or the node has spent or set aside in each period.
//!
//! A sliding window is cut into buckets. A bucket counts in full until it has wholly left the
//! window, so a window never shows less than what was spent in it: a budget is never overrun, and
//! at worst one bucket's worth of time passes before room is given back.

use std::collections::VecDeque;

use minicbor::{Decode, Encode};
use tirami_core::{HOUR_MS, MINUTE_MS, Timestamp, Trm};

use super::{Level, Limits, Period};
use crate::Rejection;

/// How a window is cut: `buckets` buckets of `bucket_ms` each.
#[derive(Debug, Clone, Copy)]
struct Span {
    bucket_ms: u64,
    buckets: u64,
}

const MINUTE: Span = Span { bucket_ms: 1_000, buckets: 60 };
const HOUR: Span = Span { bucket_ms: MINUTE_MS, buckets: 60 };
const DAY: Span = Span { bucket_ms: HOUR_MS, buckets: 24 };

impl Span {
    const fn bucket(self, at: Timestamp) -> u64 {
        at.ms() / self.bucket_ms
    }

    /// The oldest bucket that still reaches into the window ending at `now`.
    const fn oldest(self, now: Timestamp) -> u64 {
        self.bucket(now).saturating_sub(self.buckets)
    }
}

/// What was counted in one bucket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Slot {
    #[n(0)]
    bucket: u64,
    #[n(1)]
    count: u64,
}

/// A sliding sum. It keeps only buckets in which something happened, at most one more than its
/// span has. Sums saturate at 2⁶⁴ − 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
struct Window {
    #[n(0)]
    slots: VecDeque<Slot>,
    #[n(1)]
    sum: u64,
}

impl Window {
    fn used(&self, span: Span, now: Timestamp) -> u64 {
        let oldest = span.oldest(now);
        let gone = self.slots.iter().take_while(|slot| slot.bucket < oldest);
        gone.fold(self.sum, |sum, slot| sum.saturating_sub(slot.count))
    }

    /// When no more than `most` of what is in it is left, if nothing is added.
    fn at_most(&self, span: Span, now: Timestamp, most: u64) -> Timestamp {
        let mut used = self.used(span, now);
        let oldest = span.oldest(now);
        for slot in self.slots.iter().filter(|slot| slot.bucket >= oldest) {
            used = used.saturating_sub(slot.count);
            if used <= most {
                let gone = slot.bucket.saturating_add(span.buckets).saturating_add(1);
                return Timestamp::from_ms(gone.saturating_mul(span.bucket_ms));
            }
        }
        now
    }

    fn add(&mut self, span: Span, at: Timestamp, count: u64) {
        let oldest = span.oldest(at);
        while let Some(front) = self.slots.front()
            && front.bucket < oldest
        {
            self.sum = self.sum.saturating_sub(front.count);
            self.slots.pop_front();
        }
        let bucket = span.bucket(at);
        self.sum = self.sum.saturating_add(count);
        match self.slots.back_mut() {
            Some(back) if back.bucket >= bucket => back.count = back.count.saturating_add(count),
            _ => self.slots.push_back(Slot { bucket, count }),
        }
    }

    /// Takes `count` out of the bucket of `at`, if that is still kept.
    fn give_back(&mut self, span: Span, at: Timestamp, count: u64) {
        let bucket = span.bucket(at);
        if let Ok(index) = self.slots.binary_search_by_key(&bucket, |slot| slot.bucket) {
            let slot = &mut self.slots[index];
            let count = count.min(slot.count);
            slot.count -= count;
            self.sum = self.sum.saturating_sub(count);
        }
    }

    fn is_consistent(&self, span: Span) -> bool {
        let rising = self.slots.iter().zip(self.slots.iter().skip(1));
        let sum = self.slots.iter().fold(0_u64, |sum, slot| sum.saturating_add(slot.count));
        rising.clone().all(|(before, after)| before.bucket < after.bucket)
            && self.slots.len() as u64 <= span.buckets + 1
            && sum == self.sum
    }
}

/// Spent and set aside, in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In the last 60 seconds; up to one second more is counted.
    pub minute: Trm,
    /// In the last 60 minutes; up to one minute more is counted.
    pub hour: Trm,
    /// In the last 24 hours; up to one hour more is counted.
    pub day: Trm,
    /// Ever.
    pub lifetime: Trm,
}

/// Counts what was posted and what is held, by the time the hold was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Meter {
    #[n(0)]
    minute: Window,
    #[n(1)]
    hour: Window,
    #[n(2)]
    day: Window,
    #[n(3)]
    lifetime: Trm,
}

impl Meter {
    /// Counts a hold of `max`.
    pub(super) fn hold(&mut self, at: Timestamp, max: Trm) {
        self.minute.add(MINUTE, at, max.micro());
        self.hour.add(HOUR, at, max.micro());
        self.day.add(DAY, at, max.micro());
        self.lifetime = self.lifetime.saturating_add(max);
    }

    /// Gives back what a hold opened at `at` did not use.
    pub(super) fn give_back(&mut self, at: Timestamp, rest: Trm) {
        self.minute.give_back(MINUTE, at, rest.micro());
        self.hour.give_back(HOUR, at, rest.micro());
        self.day.give_back(DAY, at, rest.micro());
        self.lifetime = self.lifetime.saturating_sub(rest);
    }

    pub(super) fn used(&self, period: Period, now: Timestamp) -> Trm {
        match period {
            Period::Minute => Trm::from_micro(self.minute.used(MINUTE, now)),
            Period::Hour => Trm::from_micro(self.hour.used(HOUR, now)),
            Period::Day => Trm::from_micro(self.day.used(DAY, now)),
            Period::Lifetime => self.lifetime,
        }
    }

    /// When no more than `most` is used in the period, if nothing else is spent; never of what is
    /// counted for ever.
    fn at_most(&self, period: Period, now: Timestamp, most: Trm) -> Option<Timestamp> {
        match period {
            Period::Minute => Some(self.minute.at_most(MINUTE, now, most.micro())),
            Period::Hour => Some(self.hour.at_most(HOUR, now, most.micro())),
            Period::Day => Some(self.day.at_most(DAY, now, most.micro())),
            Period::Lifetime => None,
        }
    }

    pub(super) fn usage(&self, now: Timestamp) -> Usage {
        Usage {
            minute: self.used(Period::Minute, now),
            hour: self.used(Period::Hour, now),
            day: self.used(Period::Day, now),
            lifetime: self.lifetime,
        }
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.minute.is_consistent(MINUTE)
            && self.hour.is_consistent(HOUR)
            && self.day.is_consistent(DAY)
    }
}

/// The jobs started within a sliding minute, for the circuit breaker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct SpendCount(#[n(0)] Window);

impl SpendCount {
    pub(super) fn count(&mut self, at: Timestamp) {
        self.0.add(MINUTE, at, 1);
    }

    pub(super) fn in_last_minute(&self, now: Timestamp) -> u64 {
        self.0.used(MINUTE, now)
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.0.is_consistent(MINUTE)
    }
}

/// What was taken within a sliding day and not given back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct DaySum(#[n(0)] Window);

impl DaySum {
    pub(super) fn add(&mut self, at: Timestamp, amount: Trm) {
        self.0.add(DAY, at, amount.micro());
    }

    pub(super) fn give_back(&mut self, at: Timestamp, amount: Trm) {
        self.0.give_back(DAY, at, amount.micro());
    }

    pub(super) fn used(&self, now: Timestamp) -> Trm {
        Trm::from_micro(self.0.used(DAY, now))
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.0.is_consistent(DAY)
    }
}

/// A level's limits beside what was used of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget<'a> {
    pub(super) level: Level,
    pub(super) limits: &'a Limits,
    pub(super) meter: &'a Meter,
}

impl Budget<'_> {
    pub(super) fn check_request(&self, needed: Trm) -> Result<(), Rejection> {
        match self.limits.request_max {
            Some(max) if needed > max => {
                Err(Rejection::RequestLimit { level: self.level, max, needed })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check(
        &self,
        period: Period,
        now: Timestamp,
        needed: Trm,
    ) -> Result<(), Rejection> {
        let Some(max) = self.limits.of(period) else {
            return Ok(());
        };
        let used = self.meter.used(period, now);
        match used.checked_add(needed) {
            Some(sum) if sum <= max => Ok(()),
            _ => {
                let most = max.checked_sub(needed);
                let room_at = most.and_then(|most| self.meter.at_most(period, now, most));
                let level = self.level;
                Err(Rejection::BudgetLimit { level, period, max, used, needed, room_at })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    #[test]
    fn a_bucket_counts_until_it_has_wholly_left_the_window() {
        let mut meter = Meter::default();
        meter.hold(at(10_999), Trm::from_micro(5));
        for (now, minute) in [(10_999, 5), (70_998, 5), (70_999, 5), (71_000, 0), (99_000, 0)] {
            assert_eq!(meter.usage(at(now)).minute.micro(), minute, "{now}");
        }
        assert_eq!(meter.usage(at(10_000 + HOUR_MS)).hour.micro(), 5);
        assert_eq!(meter.usage(at(61 * MINUTE_MS)).hour.micro(), 0);
        assert_eq!(meter.usage(at(25 * HOUR_MS)).day.micro(), 0);
        assert_eq!(meter.usage(at(25 * HOUR_MS)).lifetime.micro(), 5);
    }

    #[test]
    fn what_was_not_used_goes_back_to_the_bucket_it_was_counted_in() {
        let mut meter = Meter::default();
        meter.hold(at(1_000), Trm::from_micro(10));
        meter.hold(at(5_000), Trm::from_micro(7));
        meter.give_back(at(1_000), Trm::from_micro(4));
        assert_eq!(meter.usage(at(5_000)).minute.micro(), 13);
        assert_eq!(meter.usage(at(62_000)).minute.micro(), 7);
        meter.give_back(at(5_000), Trm::from_micro(7));
        assert_eq!(meter.usage(at(62_000)).minute.micro(), 0);
        assert_eq!(meter.usage(at(62_000)).lifetime.micro(), 6);
        assert!(meter.is_consistent());
    }

    #[test]
    fn the_time_when_there_is_room_is_when_the_window_shows_it() {
        let mut meter = Meter::default();
        meter.hold(at(5 * MINUTE_MS), Trm::from_micro(10));
        meter.hold(at(20 * MINUTE_MS), Trm::from_micro(7));
        let now = at(30 * MINUTE_MS);
        for (most, minutes) in [(16, 66), (7, 66), (6, 81), (0, 81)] {
            let most = Trm::from_micro(most);
            let room = meter.at_most(Period::Hour, now, most).unwrap();
            assert_eq!(room, at(minutes * MINUTE_MS), "{most}");
            assert!(meter.used(Period::Hour, room) <= most);
            assert!(meter.used(Period::Hour, at(room.ms() - 1)) > most);
        }
        assert_eq!(meter.at_most(Period::Lifetime, now, Trm::ZERO), None);
    }

    #[test]
    fn a_window_keeps_a_bounded_number_of_buckets() {
        let mut meter = Meter::default();
        for second in 0..100_000 {
            meter.hold(at(second * 1_000), Trm::from_micro(1));
        }
        assert_eq!(meter.minute.slots.len(), 61);
        assert_eq!(meter.hour.slots.len(), 61);
        assert_eq!(meter.day.slots.len(), 25);
        assert!(meter.is_consistent());
    }

    #[test]
    fn a_clock_that_went_back_counts_at_the_newest_time() {
        let mut meter = Meter::default();
        meter.hold(at(50_000), Trm::from_micro(1));
        meter.hold(at(40_000), Trm::from_micro(1));
        assert_eq!(meter.usage(at(105_000)).minute.micro(), 2);
        assert!(meter.is_consistent());
    }
}
