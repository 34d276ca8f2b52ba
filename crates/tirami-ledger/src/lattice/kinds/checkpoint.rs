//! `checkpoint`: the clerk states time, heads and supply (MONEY §6).

use std::borrow::Cow;

use minicbor::{Decode, Encode};
use tirami_core::{Digest, DocumentId, Timestamp, Trm};

use super::decision::{DECISIONS_MAX, decisions_root};
use super::{Change, Decision, Ending, Extra, Outcome, Past, Rules};
use crate::lattice::charter::Params;
use crate::lattice::rejection::EntryRejection;

/// The mesh's clock. Its cut names by one root the last entry covered of every chain.
///
/// What can be judged from its causal past is its place, time and parameters. That its cut and
/// supply recompute is what each witness checks before it acknowledges it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Checkpoint {
    /// One more than the checkpoint before, from 1.
    #[n(0)]
    pub number: u64,
    /// The checkpoint before, of whichever clerk; none for the first.
    #[n(1)]
    pub previous: Option<DocumentId>,
    /// The time, after that of the checkpoint before.
    #[n(2)]
    pub time: Timestamp,
    /// Merkle root of `(chain, seq, id, balance)` of the chains covered, in order of the chains.
    #[n(3)]
    pub cut: Digest,
    /// TRM minted up to the cut.
    #[n(4)]
    pub minted: Trm,
    /// TRM burned up to the cut.
    #[n(5)]
    pub burned: Trm,
    /// TRM collected from frozen parts of chains, as known to the witnesses.
    #[n(6)]
    pub loss: Trm,
    /// The largest e ≤ 32 with `(cap − minted) << e ≤ cap`.
    #[n(7)]
    pub epoch: u8,
    /// The parameters from here on.
    #[n(8)]
    pub params: Params,
    /// Merkle root of the decisions listed.
    #[n(9)]
    pub decisions: Digest,
    /// The decisions, at most 256, in the order of their locks.
    #[cbor(n(10), default, skip_if = "Vec::is_empty")]
    pub listed: Vec<Decision>,
}

impl Checkpoint {
    /// Whether each lock listed is one, is listed once, and pays out no more than it holds.
    fn is_listing_sound(&self, past: &Past<'_>) -> Result<bool, EntryRejection> {
        let ascending = self.listed.windows(2).all(|pair| pair[0].lock < pair[1].lock);
        if self.listed.len() > DECISIONS_MAX || !ascending {
            return Ok(false);
        }
        for decision in &self.listed {
            let Some(lock) = past.vouched(decision.lock)? else {
                continue;
            };
            let fits = match (lock.effect.change, decision.end) {
                (Change::Sponsored { amount, .. }, Some(Ending::Defaulted { owed })) => {
                    owed <= amount
                }
                (change, _) => matches!(change, Change::Sponsored { .. }),
            };
            if !fits {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The epoch in which `minted` of `cap` exist.
pub(in crate::lattice) fn epoch(cap: Trm, minted: Trm) -> u8 {
    let left = u128::from(cap.saturating_sub(minted).micro());
    let fits = |e: &u8| left << *e <= u128::from(cap.micro());
    (0..=32).rev().find(fits).unwrap_or(0)
}

impl Rules for Checkpoint {
    fn names(&self) -> Cow<'_, [DocumentId]> {
        let locks = self.listed.iter().map(|decision| decision.lock);
        Cow::Owned(self.previous.into_iter().chain(locks).collect())
    }

    fn needs(&self) -> Cow<'_, [DocumentId]> {
        Cow::Owned(self.previous.into_iter().collect())
    }

    fn outcome(&self, past: &Past<'_>) -> Result<Outcome, EntryRejection> {
        if past.chain != past.charter.clerk {
            return Err(EntryRejection::NotClerk);
        }
        let before = match self.previous {
            None => None,
            Some(id) => match past.named(id)?.effect.change {
                Change::Checkpoint { number, time, .. } => Some((number, time)),
                _ => return Err(EntryRejection::CheckpointOrder),
            },
        };
        // A clerk's own checkpoints form one line; only its first may follow another clerk's.
        let own = past.state.checkpoint;
        let follows_own = own.is_none() || own == self.previous;
        if !follows_own || self.number != before.map_or(0, |(number, _)| number).saturating_add(1) {
            return Err(EntryRejection::CheckpointOrder);
        }
        if let Some((_, after)) = before
            && self.time <= after
        {
            return Err(EntryRejection::CheckpointTime { after });
        }
        // No kind that mints is in the table, so nothing is minted.
        if self.params != past.charter.params
            || !self.minted.is_zero()
            || self.epoch != epoch(self.params.cap, self.minted)
            || self.decisions != decisions_root(&self.listed)
            || !self.is_listing_sound(past)?
        {
            return Err(EntryRejection::CheckpointContent);
        }
        let (number, time, cut, epoch) = (self.number, self.time, self.cut, self.epoch);
        let change = Change::Checkpoint { number, time, cut, epoch };
        let mut outcome = Outcome::change(past, change);
        if !self.listed.is_empty() {
            outcome.effect.extra = Some(Box::new(Extra::Decided(self.listed.clone())));
        }
        Ok(outcome)
    }
}
