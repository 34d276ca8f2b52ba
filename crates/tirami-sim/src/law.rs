//! What must hold between parties: one certificate and one honest promise for each slot.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DocumentId, PartyId, PublicKey};
use tirami_ledger::lattice::Slot;

/// What left any node, for ever.
#[derive(Debug, Default)]
pub(crate) struct Law {
    finals: BTreeMap<Slot, BTreeSet<DocumentId>>,
    promised: BTreeMap<(PublicKey, Slot), DocumentId>,
    signed: BTreeMap<Slot, DocumentId>,
    /// Entries that no rule admits.
    pub(crate) forged: BTreeSet<DocumentId>,
    /// Owners whose key signs elsewhere too.
    pub(crate) double_signers: BTreeSet<PartyId>,
    /// Witnesses that promise anything.
    pub(crate) liars: BTreeSet<PublicKey>,
    /// Whether the charter tolerates that many liars.
    pub(crate) within: bool,
}

impl Law {
    /// An entry is final somewhere.
    ///
    /// # Errors
    ///
    /// When another is final in its slot though few enough witnesses lie, or when it is forged.
    pub(crate) fn is_final(&mut self, slot: Slot, entry: DocumentId) -> Result<(), String> {
        if self.forged.contains(&entry) {
            return Err(format!("a forged entry became final: {entry}"));
        }
        let finals = self.finals.entry(slot).or_default();
        finals.insert(entry);
        if self.within && finals.len() > 1 {
            return Err(format!("two entries are final in slot {} of {}", slot.seq, slot.chain));
        }
        Ok(())
    }

    /// A witness's acknowledgement left its node.
    ///
    /// # Errors
    ///
    /// When an honest witness promised the slot to another entry before.
    pub(crate) fn promised(
        &mut self,
        witness: PublicKey,
        slot: Slot,
        entry: DocumentId,
    ) -> Result<(), String> {
        if self.liars.contains(&witness) {
            return Ok(());
        }
        let first = *self.promised.entry((witness, slot)).or_insert(entry);
        if first == entry {
            return Ok(());
        }
        Err(format!("witness {witness} promised slot {} of {} twice", slot.seq, slot.chain))
    }

    /// A node sent an entry of its own chain.
    ///
    /// # Errors
    ///
    /// When it sent another for the slot before.
    pub(crate) fn signed(&mut self, slot: Slot, entry: DocumentId) -> Result<(), String> {
        if self.double_signers.contains(&slot.chain) {
            return Ok(());
        }
        let first = *self.signed.entry(slot).or_insert(entry);
        if first == entry {
            return Ok(());
        }
        Err(format!("an honest node signed slot {} of {} twice", slot.seq, slot.chain))
    }

    /// Slots with more than one final entry.
    pub(crate) fn contradictions(&self) -> usize {
        self.finals.values().filter(|finals| finals.len() > 1).count()
    }
}

#[cfg(test)]
mod tests {
    use tirami_core::SecretKey;

    use super::*;

    #[test]
    fn a_second_promise_signature_or_certificate_for_a_slot_is_missed() {
        let key = SecretKey::from_seed([1; 32]).public();
        let slot = Slot { chain: key.party(), seq: 3 };
        let [one, other] = [1, 2].map(|byte| DocumentId::from_bytes([byte; 32]));
        let mut law = Law { within: true, ..Law::default() };
        for _ in 0..2 {
            assert_eq!(law.promised(key, slot, one), Ok(()));
            assert_eq!(law.signed(slot, one), Ok(()));
            assert_eq!(law.is_final(slot, one), Ok(()));
        }
        assert!(law.promised(key, slot, other).is_err_and(|what| what.contains("twice")));
        assert!(law.signed(slot, other).is_err_and(|what| what.contains("twice")));
        assert!(law.is_final(slot, other).is_err_and(|what| what.contains("two entries")));
        law.forged.insert(one);
        assert!(law.is_final(slot, one).is_err_and(|what| what.contains("forged")));
    }
}
