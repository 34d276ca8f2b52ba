//! Checkpoints' cuts: drafting them, knowing them, recomputing them (MONEY §6).

use std::collections::BTreeMap;

use tirami_core::{DocumentId, PartyId, Timestamp, Trm};

use super::Lattice;
use super::entry::Entry;
use super::event::LatticeEvent;
use super::kinds::{Change, Checkpoint, Effect, EntryKind, epoch};
use super::merkle;
use super::rejection::{AcknowledgeRefusal, CutRejection};
use super::state::{CutHead, Slot};

/// How many cuts are kept: the last one is needed to judge the next, the others answer
/// witnesses that were away.
const CUTS_MAX: usize = 16;

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
        if before.is_some_and(|(_, time)| now < time.plus_ms(charter.params.checkpoint_ms)) {
            return None;
        }
        let number = before.map_or(0, |(number, _)| number).saturating_add(1);
        if last.is_some_and(|last| !self.changed_since(clerk, (number.saturating_sub(1), last))) {
            return None;
        }
        let heads: Vec<CutHead> = self.heads().collect();
        let minted = Trm::ZERO;
        let checkpoint = Checkpoint {
            number,
            previous: last,
            time: now,
            cut: merkle::cut_root(heads.iter().copied()),
            minted,
            burned: self.burned_at(&heads),
            loss: self.loss(),
            epoch: epoch(charter.params.cap, minted),
            params: charter.params,
            decisions: merkle::root(core::iter::empty()),
        };
        self.draft(clerk, now, EntryKind::Checkpoint(checkpoint)).ok()
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
        let mut found = Vec::with_capacity(heads.len());
        for slot in heads {
            let head = self.head_at(*slot);
            found.push(head.ok_or(CutRejection::NotFinal { chain: slot.chain, seq: slot.seq })?);
        }
        let ordered = heads.windows(2).all(|pair| pair[0].chain < pair[1].chain);
        if !ordered || merkle::cut_root(found.into_iter()) != cut {
            return Err(CutRejection::WrongRoot);
        }
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
        if self.cuts.len() > CUTS_MAX {
            self.cuts.pop_first();
        }
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
                let heads: Option<Vec<_>> = slots.map(|slot| self.head_at(slot)).collect();
                (heads.ok_or(AcknowledgeRefusal::CutUnknown)?, true)
            }
            None => (self.heads().collect(), false),
        };
        if merkle::cut_root(heads.iter().copied()) != checkpoint.cut {
            return Err(AcknowledgeRefusal::CutUnknown);
        }
        self.check_not_below(checkpoint, &heads)?;
        if self.burned_at(&heads) != checkpoint.burned || self.loss() != checkpoint.loss {
            return Err(AcknowledgeRefusal::SupplyDiffers);
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
        let now: BTreeMap<PartyId, u64> =
            heads.iter().map(|head| (head.slot.chain, head.slot.seq)).collect();
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
            Some(CutHead { slot, id: chain.state.head?, balance: chain.state.balance })
        })
    }

    fn head_at(&self, slot: Slot) -> Option<CutHead> {
        let id = self.final_at(slot)?;
        Some(CutHead { slot, id, balance: self.final_entry(id)?.balance })
    }

    fn burned_at(&self, heads: &[CutHead]) -> Trm {
        let records = heads.iter().filter_map(|head| self.final_entry(head.id));
        records.fold(Trm::ZERO, |sum, record| sum.saturating_add(record.burned_so_far))
    }

    fn loss(&self) -> Trm {
        Trm::from_micro(u64::try_from(self.totals().loss.max(0)).unwrap_or(u64::MAX))
    }
}
