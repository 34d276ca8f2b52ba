//! Checkpoints' cuts: drafting them, knowing them, recomputing them (MONEY §6).

use std::collections::BTreeMap;

use tirami_core::{DocumentId, HOUR_MS, PartyId, Timestamp, Trm};

use super::Lattice;
use super::charter::Params;
use super::entry::Entry;
use super::event::LatticeEvent;
use super::kinds::{Change, Checkpoint, DECISIONS_MAX, Effect, EntryKind, decisions_root, epoch};
use super::merkle;
use super::rejection::{AcknowledgeRefusal, CutRejection};
use super::state::{CutHead, Slot};

/// How many cuts are kept: the last one is needed to judge the next, the others answer
/// witnesses that were away.
const CUTS_MAX: usize = 16;
/// Parties above which a charter that says the default interval means the longer one: each
/// checkpoint makes every witness look at all chains. A chain counts that has a line or a balance:
/// others cost nothing to open.
const LARGE_PARTIES: usize = 1_000;
/// That longer interval, in milliseconds.
const LARGE_CHECKPOINT_MS: u64 = HOUR_MS;

impl Lattice {
    /// The checkpoint that is due at `now`, as the clerk's next entry; `None` when none is due,
    /// nothing changed since the last one, one is pending already, or the clerk's chain cannot go
    /// on. O(chains).
    ///
    /// After signing and receiving it, [`Lattice::cut`] of it is what other witnesses need.
    pub fn draft_checkpoint(&self, now: Timestamp) -> Option<Entry> {
        let charter = self.charter();
        let clerk = charter.clerk;
        let chain = self.chain(clerk)?;
        let pending = self.pending.tail(clerk).map(|(last, _)| last.after.checkpoint);
        if pending.is_some_and(|last| last != chain.state.checkpoint) {
            return None;
        }
        let last = match chain.state.checkpoint {
            Some(own) => Some(own),
            None => self.last_checkpoint().map(|(_, id, _)| id),
        };
        let before = last.and_then(|id| match self.final_entry(id)?.effect.change {
            Change::Checkpoint { number, time, .. } => Some((number, time)),
            _ => None,
        });
        if before.is_some_and(|(_, time)| now < time.plus_ms(self.checkpoint_wait_ms(last))) {
            return None;
        }
        let number = before.map_or(0, |(number, _)| number).saturating_add(1);
        let heads: Vec<CutHead> = self.heads().collect();
        let listed = self.decisions_at(now, &covered(&heads)).ok()?;
        let changed = |last| self.changed_since(clerk, (number.saturating_sub(1), last));
        if listed.is_empty() && last.is_some_and(|last| !changed(last)) {
            return None;
        }
        let minted = Trm::ZERO;
        let checkpoint = Checkpoint {
            number,
            previous: last,
            time: now,
            cut: merkle::cut_root(heads.iter().copied()),
            minted,
            burned: self.burned_at(&heads),
            loss: self.loss_at(&heads),
            epoch: epoch(charter.params.cap, minted),
            params: charter.params,
            decisions: decisions_root(&listed),
            listed,
        };
        self.draft(clerk, now, EntryKind::Checkpoint(checkpoint)).ok()
    }

    /// The earliest time of the next checkpoint: the charter's interval after the last one (an hour
    /// where that is the default and there are more than 1 000 parties), or at once when its
    /// decisions filled it. Only the clerk goes by it: others judge what a checkpoint says.
    pub fn next_checkpoint(&self) -> Timestamp {
        self.last_checkpoint().map_or(Timestamp::default(), |(_, id, time)| {
            time.plus_ms(self.checkpoint_wait_ms(Some(id)))
        })
    }

    fn checkpoint_wait_ms(&self, last: Option<DocumentId>) -> u64 {
        let full = last
            .and_then(|id| self.final_entry(id))
            .is_some_and(|record| record.effect.decisions().len() == DECISIONS_MAX);
        if full {
            return 1;
        }
        match last.is_some() && last == self.large_cut {
            true => self.checkpoint_ms_most(),
            false => self.charter().params.checkpoint_ms,
        }
    }

    /// The interval between two checkpoints at most. Whoever holds some chains only does not know
    /// how many parties there are.
    pub(super) fn checkpoint_ms_most(&self) -> u64 {
        let asked = self.charter().params.checkpoint_ms;
        let is_default = asked == Params::default().checkpoint_ms;
        if is_default { asked.max(LARGE_CHECKPOINT_MS) } else { asked }
    }

    /// The last checkpoint if its cut is not known here: a witness or a clerk asks for it, since
    /// the next checkpoint is judged by it.
    pub fn missing_cut(&self) -> Option<DocumentId> {
        let (number, id, _) = self.last_checkpoint()?;
        (!self.cuts.contains_key(&(number, id))).then_some(id)
    }

    /// The last entry of each chain that a checkpoint covers, in the order of the chains; `None`
    /// when its cut is not known here, or not any more.
    pub fn cut(&self, checkpoint: DocumentId) -> Option<Vec<Slot>> {
        let number = self.checkpoint_number(checkpoint)?;
        let cut = self.cuts.get(&(number, checkpoint))?;
        Some(cut.iter().map(|(chain, seq)| Slot { chain: *chain, seq: *seq }).collect())
    }

    /// What learning the cut of a known checkpoint would change; changes nothing. Nothing when it
    /// is known. The root in the checkpoint proves the heads, so anybody may have sent them.
    ///
    /// # Errors
    ///
    /// The first [`CutRejection`] that applies.
    pub fn receive_cut(
        &self,
        checkpoint: DocumentId,
        heads: &[Slot],
    ) -> Result<Vec<LatticeEvent>, CutRejection> {
        let change = match (self.pending_entry(checkpoint), self.final_entry(checkpoint)) {
            (Some(pending), _) => pending.effect.change,
            (_, Some(record)) => record.effect.change,
            _ => return Err(CutRejection::NotACheckpoint),
        };
        let Change::Checkpoint { number, cut, .. } = change else {
            return Err(CutRejection::NotACheckpoint);
        };
        if self.cuts.contains_key(&(number, checkpoint)) {
            return Ok(Vec::new());
        }
        if !heads.windows(2).all(|pair| pair[0].chain < pair[1].chain) {
            return Err(CutRejection::WrongRoot);
        }
        self.heads_of(heads.iter().copied(), cut)?;
        Ok(vec![LatticeEvent::CutKnown { checkpoint, heads: heads.to_vec() }])
    }

    /// The cut of the checkpoint `id`, if this node's chains stand where it says. O(chains).
    pub(super) fn cut_now(&self, effect: &Effect, id: DocumentId) -> Option<LatticeEvent> {
        let Change::Checkpoint { number, cut, .. } = effect.change else {
            return None;
        };
        if self.cuts.contains_key(&(number, id)) || merkle::cut_root(self.heads()) != cut {
            return None;
        }
        let heads = self.heads().map(|head| head.slot).collect();
        Some(LatticeEvent::CutKnown { checkpoint: id, heads })
    }

    pub(super) fn keep_cut(&mut self, checkpoint: DocumentId, heads: &[Slot]) {
        let Some(number) = self.checkpoint_number(checkpoint) else {
            return;
        };
        let cut = heads.iter().map(|slot| (slot.chain, slot.seq)).collect();
        self.cuts.insert((number, checkpoint), cut);
        let is_last = self.cuts.last_key_value().is_some_and(|(place, _)| place.1 == checkpoint);
        if is_last {
            let parties = heads.iter().filter(|slot| self.counts_as_party(slot.chain)).count();
            self.large_cut = (parties > LARGE_PARTIES).then_some(checkpoint);
        }
        if self.cuts.len() > CUTS_MAX {
            self.cuts.pop_first();
        }
    }

    fn counts_as_party(&self, chain: PartyId) -> bool {
        let chain = self.chain(chain);
        chain.is_some_and(|chain| !chain.line().is_zero() || chain.balance() != 0)
    }

    /// What a witness checks of a pending checkpoint besides its causal past. Gives the cut when
    /// it was not known yet.
    pub(super) fn recompute_checkpoint(
        &self,
        id: DocumentId,
        checkpoint: &Checkpoint,
    ) -> Result<Option<LatticeEvent>, AcknowledgeRefusal> {
        let number = checkpoint.number;
        if self.last_checkpoint().is_some_and(|(last, ..)| number <= last) {
            return Err(super::EntryRejection::CheckpointOrder.into());
        }
        let (heads, known) = match self.cuts.get(&(number, id)) {
            Some(cut) => {
                let slots = cut.iter().map(|(chain, seq)| Slot { chain: *chain, seq: *seq });
                let heads = self.heads_of(slots, checkpoint.cut);
                (heads.map_err(|_| AcknowledgeRefusal::CutUnknown)?, true)
            }
            None => (self.heads().collect(), false),
        };
        if !known && merkle::cut_root(heads.iter().copied()) != checkpoint.cut {
            return Err(AcknowledgeRefusal::CutUnknown);
        }
        self.check_not_below(checkpoint, &heads)?;
        if self.burned_at(&heads) != checkpoint.burned || self.loss_at(&heads) != checkpoint.loss {
            return Err(AcknowledgeRefusal::SupplyDiffers);
        }
        if self.decisions_at(checkpoint.time, &covered(&heads))? != checkpoint.listed {
            return Err(AcknowledgeRefusal::DecisionsDiffer);
        }
        let heads = heads.into_iter().map(|head| head.slot).collect();
        Ok((!known).then_some(LatticeEvent::CutKnown { checkpoint: id, heads }))
    }

    fn check_not_below(
        &self,
        checkpoint: &Checkpoint,
        heads: &[CutHead],
    ) -> Result<(), AcknowledgeRefusal> {
        let Some(previous) = checkpoint.previous else {
            return Ok(());
        };
        let before = self.cuts.get(&(checkpoint.number.saturating_sub(1), previous));
        let before = before.ok_or(AcknowledgeRefusal::CutUnknown)?;
        let now = covered(heads);
        for (chain, seq) in before {
            // A frozen chain counts less than it did: its cut has to fall.
            let frozen = self.chain(*chain).is_some_and(|chain| chain.frozen.is_some());
            if !frozen && now.get(chain).is_none_or(|now| now < seq) {
                return Err(AcknowledgeRefusal::CutBelow { chain: *chain });
            }
        }
        Ok(())
    }

    /// Whether any chain went on since the checkpoint, besides by the checkpoint itself.
    fn changed_since(&self, clerk: PartyId, last: (u64, DocumentId)) -> bool {
        let Some(cut) = self.cuts.get(&last) else {
            return true;
        };
        self.heads().any(|head| {
            let covered = cut.get(&head.slot.chain).map_or(0, |seq| seq.saturating_add(1));
            let own = u64::from(head.slot.chain == clerk && head.id == last.1);
            head.slot.seq.saturating_add(1) != covered.saturating_add(own)
        })
    }

    fn checkpoint_number(&self, id: DocumentId) -> Option<u64> {
        let pending = self.pending_entry(id).map(|pending| pending.effect.change);
        let change = pending.or_else(|| self.final_entry(id).map(|record| record.effect.change));
        match change? {
            Change::Checkpoint { number, .. } => Some(number),
            _ => None,
        }
    }

    fn heads(&self) -> impl Iterator<Item = CutHead> {
        self.shared.chains.iter().filter_map(|(party, chain)| {
            let seq = chain.state.next.checked_sub(1)?;
            let slot = Slot { chain: *party, seq };
            let (balance, locked) = (chain.state.balance, chain.state.locked);
            Some(CutHead { slot, id: chain.state.head?, balance, locked })
        })
    }

    fn burned_at(&self, heads: &[CutHead]) -> Trm {
        let heads = heads.iter().filter_map(|head| self.shared.standing(head.slot, head.id));
        heads.fold(Trm::ZERO, |sum, head| sum.saturating_add(head.burned))
    }
}

/// The sequence number of each chain's head.
fn covered(heads: &[CutHead]) -> BTreeMap<PartyId, u64> {
    heads.iter().map(|head| (head.slot.chain, head.slot.seq)).collect()
}
