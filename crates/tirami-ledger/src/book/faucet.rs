//! What the node's faucet gave away lately: the bounds an owner sets for sponsoring strangers are
//! kept across restarts.

use std::collections::VecDeque;

use minicbor::{Decode, Encode};
use tirami_core::{DAY_MS, Timestamp, Trm};

use crate::command::FaucetBounds;
use crate::refusal::FaucetRefusal;

/// Newcomers that a faucet sponsors within a day at most, whatever its owner sets. About 32 bytes
/// each.
pub const FAUCET_DAY_MAX: usize = 4_096;

/// One newcomer sponsored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct Given {
    #[n(0)]
    at: Timestamp,
    #[n(1)]
    amount: Trm,
    #[n(2)]
    source: u64,
}

/// The newcomers sponsored within the last day, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Faucet {
    #[n(0)]
    given: VecDeque<Given>,
}

impl Faucet {
    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    fn lately(&self, now: Timestamp) -> impl Iterator<Item = &Given> {
        self.given.iter().filter(move |given| now < given.at.plus_ms(DAY_MS))
    }

    /// What was given within the day before `now`.
    pub(super) fn given(&self, now: Timestamp) -> Trm {
        self.lately(now).fold(Trm::ZERO, |sum, given| sum.saturating_add(given.amount))
    }

    pub(super) fn check(
        &self,
        now: Timestamp,
        (amount, source): (Trm, u64),
        bounds: &FaucetBounds,
    ) -> Result<(), FaucetRefusal> {
        let given = self.given(now);
        let full = self.lately(now).count() >= FAUCET_DAY_MAX;
        if full || given.saturating_add(amount) > bounds.day_max {
            return Err(FaucetRefusal::Day { given, max: bounds.day_max });
        }
        let of_source = self.lately(now).filter(|given| given.source == source).count();
        if of_source >= bounds.source_max as usize {
            return Err(FaucetRefusal::Source { max: bounds.source_max });
        }
        Ok(())
    }

    pub(super) fn give(&mut self, now: Timestamp, amount: Trm, source: u64) {
        while self.given.front().is_some_and(|first| first.at.plus_ms(DAY_MS) <= now) {
            self.given.pop_front();
        }
        if self.given.len() >= FAUCET_DAY_MAX {
            self.given.pop_front();
        }
        self.given.push_back(Given { at: now, amount, source });
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.given.len() <= FAUCET_DAY_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_and_each_source_have_their_bounds_and_a_day_later_they_are_free_again() {
        let bounds = FaucetBounds { day_max: Trm::from_micro(30), source_max: 2 };
        let (amount, now) = (Trm::from_micro(10), Timestamp::from_ms(1_000));
        let mut faucet = Faucet::default();
        for _ in 0..2 {
            assert_eq!(faucet.check(now, (amount, 7), &bounds), Ok(()));
            faucet.give(now, amount, 7);
        }
        let source = Err(FaucetRefusal::Source { max: 2 });
        assert_eq!(faucet.check(now, (amount, 7), &bounds), source);
        assert_eq!(faucet.check(now, (amount, 8), &bounds), Ok(()));
        faucet.give(now, amount, 8);
        let day = Err(FaucetRefusal::Day { given: Trm::from_micro(30), max: bounds.day_max });
        assert_eq!(faucet.check(now, (amount, 9), &bounds), day);
        let later = now.plus_ms(DAY_MS);
        assert_eq!(faucet.check(later, (amount, 7), &bounds), Ok(()));
        faucet.give(later, amount, 7);
        assert_eq!(faucet.given.len(), 1, "what counts no more is forgotten");
    }
}
