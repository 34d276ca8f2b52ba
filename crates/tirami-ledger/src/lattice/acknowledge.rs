//! What a witness may sign: one entry for each slot (MONEY §4).

use tirami_core::{DocumentId, PublicKey, SecretKey, Timestamp};

use super::certificate::Acknowledgement;
use super::entry::Entry;
use super::event::LatticeEvent;
use super::kinds::EntryKind;
use super::locks::WELCOMES_MAX;
use super::rejection::AcknowledgeRefusal;
use super::state::{ChainState, Slot};
use super::{Lattice, SignedEntry};

/// How far a checkpoint's time may be ahead of a witness's clock, in milliseconds (MONEY §6).
const AHEAD_MAX_MS: u64 = 60_000;

/// So many chains are opened before a witness acknowledges an `open` only with a grant: a chain
/// costs nothing to open and about 2 KiB to keep.
pub const FREE_CHAINS_MAX: usize = 16_384;

impl Lattice {
    /// Acknowledges a pending entry as `witness`; changes nothing. The events have to be durable
    /// before the acknowledgement is sent. For an entry acknowledged before there are none, and
    /// the acknowledgement is the same again.
    ///
    /// # Errors
    ///
    /// The first [`AcknowledgeRefusal`] that applies. All but `SlotTaken` may pass with time.
    pub fn acknowledge(
        &self,
        now: Timestamp,
        witness: &SecretKey,
        entry: DocumentId,
    ) -> Result<(Vec<LatticeEvent>, Acknowledgement), AcknowledgeRefusal> {
        let key = witness.public();
        let record = self.current();
        let version = record.charter.version;
        record.charter.witness_bit(&key).ok_or(AcknowledgeRefusal::NotAWitness)?;
        if self.approved.contains_key(&(key, version)) {
            return Err(AcknowledgeRefusal::Retired);
        }
        if self.shared.finals.contains_key(&entry) {
            return Err(AcknowledgeRefusal::Final);
        }
        let pending = self.pending.entries.get(&entry).ok_or(AcknowledgeRefusal::Unknown)?;
        let body = pending.entry.entry();
        let slot = body.slot();
        self.check_slot_free(key, slot, entry)?;
        let sign = || Acknowledgement::sign(self.mesh, version, entry, witness);
        if self.own_acks.get(&(slot, key)) == Some(&(entry, version)) {
            return Ok((Vec::new(), sign()));
        }
        let state = self.state_at(body)?;
        self.check_not_carried(body, entry, &state)?;
        if !self.predecessor_stands(key, body, version) {
            return Err(AcknowledgeRefusal::PredecessorOpen);
        }
        self.effect(body, &state, (&record.charter, false))?;
        self.check_policy(&body.kind)?;
        let mut events = Vec::with_capacity(2);
        if let EntryKind::Checkpoint(checkpoint) = &body.kind {
            let ahead_ms = checkpoint.time.since_ms(now);
            if ahead_ms > AHEAD_MAX_MS {
                return Err(AcknowledgeRefusal::CheckpointAhead { ahead_ms });
            }
            events.extend(self.recompute_checkpoint(entry, checkpoint)?);
        }
        let acknowledgement = sign();
        events.push(LatticeEvent::AcknowledgementMade { acknowledgement, slot });
        Ok((events, acknowledgement))
    }

    /// Whether no entry can become final in `slot` by the acknowledgements known here: its rivals
    /// have split the witnesses.
    pub fn is_closed(&self, slot: Slot) -> bool {
        let record = self.current();
        let version = record.charter.version;
        let counts: Vec<usize> = self
            .pending
            .rivals(slot)
            .filter_map(|id| self.pending.entries.get(&id))
            .map(|pending| pending.acknowledged_by(version).count())
            .collect();
        let left = record.charter.witnesses.len().saturating_sub(counts.iter().sum());
        let quorum = usize::from(record.charter.quorum);
        let open = counts.is_empty() || counts.iter().any(|count| count + left >= quorum);
        self.final_at(slot).is_none() && (!open || self.carried_rivals(slot))
    }

    /// The highest slot of `chain` that this node's witness `witness` acknowledged or knows to be
    /// final: what a node that was restored from a backup asks for before it signs.
    pub fn highest_acknowledged(
        &self,
        witness: PublicKey,
        chain: tirami_core::PartyId,
    ) -> Option<(u64, DocumentId)> {
        let last = (Slot { chain, seq: u64::MAX }, PublicKey::from_bytes([255; 32]));
        let first = (Slot { chain, seq: 0 }, PublicKey::from_bytes([0; 32]));
        let own = self
            .own_acks
            .range(first..=last)
            .rev()
            .find(|((_, key), _)| *key == witness)
            .map(|((slot, _), (id, _))| (slot.seq, *id));
        let head = self
            .chain(chain)
            .and_then(|chain| Some((chain.next_seq().checked_sub(1)?, chain.head()?)));
        own.max(head)
    }

    fn check_slot_free(
        &self,
        key: PublicKey,
        slot: Slot,
        entry: DocumentId,
    ) -> Result<(), AcknowledgeRefusal> {
        if self.chain(slot.chain).is_some_and(|chain| chain.frozen.is_some()) {
            return Err(AcknowledgeRefusal::Frozen);
        }
        let promised = self.own_acks.get(&(slot, key)).map(|(id, _)| *id);
        let promised = promised.or_else(|| self.heard_promise(key, slot));
        match self.final_at(slot).or(promised) {
            Some(taken) if taken != entry => {
                Err(AcknowledgeRefusal::SlotTaken { seq: slot.seq, taken })
            }
            _ => Ok(()),
        }
    }

    /// What this witness lets wait although it is valid: so much would be kept for nothing.
    fn check_policy(&self, kind: &EntryKind) -> Result<(), AcknowledgeRefusal> {
        match kind {
            EntryKind::Open(open)
                if open.enrol.is_none()
                    && open.sponsor.is_none()
                    && self.shared.chains.len() >= FREE_CHAINS_MAX =>
            {
                Err(AcknowledgeRefusal::TooManyChains { max: FREE_CHAINS_MAX })
            }
            EntryKind::Sponsor(_) if self.shared.active.len() >= WELCOMES_MAX => {
                Err(AcknowledgeRefusal::TooManyWelcomes { max: WELCOMES_MAX })
            }
            _ => Ok(()),
        }
    }

    /// What this witness acknowledged in `slot` as others heard it: after a backup was restored
    /// it does not know it itself.
    fn heard_promise(&self, key: PublicKey, slot: Slot) -> Option<DocumentId> {
        self.pending.rivals(slot).find(|id| {
            let acks = self.pending.entries.get(id).map(|pending| &pending.acks);
            acks.is_some_and(|acks| acks.keys().any(|(_, witness)| *witness == key))
        })
    }

    /// A certificate stands for all before it, so the entry before must stand first.
    fn predecessor_stands(&self, key: PublicKey, entry: &Entry, version: u32) -> bool {
        let (Some(prev), Some(seq)) = (entry.prev, entry.seq.checked_sub(1)) else {
            return true;
        };
        let slot = Slot { chain: entry.chain, seq };
        let acknowledged = self.own_acks.get(&(slot, key)) == Some(&(prev, version));
        acknowledged || self.final_at(slot) == Some(prev)
    }

    /// After a charter change, no rival of an entry that old witnesses had acknowledged.
    fn check_not_carried(
        &self,
        entry: &Entry,
        id: DocumentId,
        state: &ChainState,
    ) -> Result<(), AcknowledgeRefusal> {
        let rival = self
            .carried_in(entry.slot())
            .any(|(carried, signed)| carried != id && self.is_genuine_rival(signed, entry, state));
        if rival { Err(AcknowledgeRefusal::Closed { seq: entry.seq }) } else { Ok(()) }
    }

    /// Whether the chain's owner signed `carried`, or that cannot be told yet. An old witness may
    /// have attached anything.
    fn is_genuine_rival(&self, carried: &SignedEntry, entry: &Entry, state: &ChainState) -> bool {
        if carried.entry().prev != entry.prev {
            // Another predecessor can only matter while this one is not final.
            return !self.shared.follows_final(entry);
        }
        let other = carried.entry().kind.rules().other_signer(state);
        carried.is_signed_by(self.mesh, state.key)
            || other.is_some_and(|key| carried.is_signed_by(self.mesh, key))
    }
}
