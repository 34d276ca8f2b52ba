//! Proofs that a party signed two entries for one slot: everybody hears of one, also who connects
//! later, and nobody serves that party (MONEY §4, §9).

use std::collections::BTreeMap;

use tirami_core::{DocumentId, PartyId, Timestamp, decode_body};
use tirami_ledger::lattice::{DoubleSignProof, Entry, Lattice, SignedEntry};
use tirami_proto::{Fault, Message, WireEntry};

use super::sync::fault_of;
use super::witness::{PENDING_PER_CHAIN_MAX, wire_entry};
use crate::kernel::{Effects, Kernel};

/// Second entries kept since the start, to be told: of most parties they are in nobody's chain, so
/// nothing else brings them. At most 16 KiB each.
const RIVALS_KEPT_MAX: usize = 256;
/// Bytes of proofs told to a peer at once.
const PROOFS_BYTES_MAX: usize = 256 * 1024;
/// When a peer is told again, which may have lacked the chains when it came.
pub(super) const PROOFS_AGAIN_MS: u64 = 60_000;

/// The entry that proves it, by the party that signed it.
pub(crate) type Rivals = BTreeMap<PartyId, SignedEntry>;

impl Kernel {
    /// Tells of a party that signed twice; whoever hears of it for the first time tells others.
    pub(super) fn spread_proof(&mut self, rival: &SignedEntry, effects: &mut Effects) {
        self.keep_rival(rival);
        let proof = self.ledger.lattice().double_sign_proof(rival.entry().chain);
        let pair = proof.and_then(|proof| self.shown(proof));
        let [first, second] = pair.unwrap_or_else(|| [wire_entry(rival), wire_entry(rival)]);
        let mut peers = self.mesh.news_peers(self.ledger.party(), |_| true);
        peers.retain(|to| Some(*to) != self.mesh.source);
        for to in peers {
            let (first, second) = (first.clone(), second.clone());
            effects.send.push((to, Message::DoubleSign { first, second }));
        }
    }

    /// Tells a peer what is known of parties that signed twice and could still pay for jobs:
    /// nobody serves the others anyway. Each peer is told of others first, and then of those that
    /// come next, so that nobody's low keys keep the rest from being told.
    pub(super) fn tell_proofs(&mut self, to: PartyId, effects: &mut Effects) {
        let lattice = self.ledger.lattice();
        let proofs = lattice.double_sign_proofs();
        let proofs = proofs.filter(|proof| could_pay(lattice, proof.slot.chain));
        let mut proofs: Vec<&DoubleSignProof> = proofs.collect();
        let after = self.mesh.peers.get(&to).and_then(|peer| peer.proofs_told).unwrap_or(to);
        proofs.sort_by_key(|proof| (proof.slot.chain <= after, proof.slot.chain));
        let mut bytes = 0;
        let pairs: Vec<(PartyId, [WireEntry; 2])> = proofs
            .into_iter()
            .filter_map(|proof| Some((proof.slot.chain, self.shown(proof)?)))
            .take_while(|(_, pair)| {
                bytes += pair.iter().map(|entry| entry.bytes.len() + 80).sum::<usize>();
                bytes <= PROOFS_BYTES_MAX
            })
            .collect();
        let bytes = bytes.min(PROOFS_BYTES_MAX) as u32;
        if !pairs.is_empty() && self.may_answer(to, bytes) {
            if let Some(peer) = self.mesh.peers.get_mut(&to) {
                peer.proofs_told = pairs.last().map(|(party, _)| *party);
            }
            for (_, [first, second]) in pairs {
                effects.send.push((to, Message::DoubleSign { first, second }));
            }
        }
    }

    /// Tells peers again that connected a while ago.
    pub(super) fn beat_proofs(&mut self, now: Timestamp, effects: &mut Effects) {
        let due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let mut peers = Vec::new();
        for (party, peer) in &mut self.mesh.peers {
            if due(peer.proofs_again_at) {
                peer.proofs_again_at = None;
                peers.push(*party);
            }
        }
        for to in peers {
            self.tell_proofs(to, effects);
        }
    }

    /// Takes two entries of one slot. Nothing of a chain that is not known here, already proven
    /// or has as many entries under way as one may have: a proof is no way around those bounds.
    pub(super) fn take_proof(
        &mut self,
        from: PartyId,
        pair: [WireEntry; 2],
        effects: &mut Effects,
    ) {
        let slot = |entry: &WireEntry| {
            let entry = decode_body::<Entry>(&entry.bytes).ok()?;
            Some((entry.chain, entry.seq))
        };
        let slots = [slot(&pair[0]), slot(&pair[1])];
        let [Some((chain, seq)), second] = slots else {
            return self.fault(from, Fault::Invalid, effects);
        };
        if second != Some((chain, seq)) {
            return self.fault(from, Fault::Invalid, effects);
        }
        let lattice = self.ledger.lattice();
        let many = lattice.pending_of(chain).count() >= PENDING_PER_CHAIN_MAX;
        if lattice.chain(chain).is_none() || lattice.double_sign_proof(chain).is_some() || many {
            return;
        }
        for WireEntry { bytes, signature } in pair {
            if let Err(rejection) = self.take_entry(bytes, signature, effects)
                && let Some(fault) = fault_of(&rejection)
            {
                self.fault(from, fault, effects);
                return;
            }
        }
    }

    fn keep_rival(&mut self, rival: &SignedEntry) {
        let (lattice, rivals) = (self.ledger.lattice(), &mut self.mesh.rivals);
        if rivals.len() >= RIVALS_KEPT_MAX {
            rivals.retain(|chain, _| could_pay(lattice, *chain));
        }
        if rivals.len() < RIVALS_KEPT_MAX {
            rivals.insert(rival.entry().chain, rival.clone());
        }
    }

    /// The two entries, as far as they are held. Where one of them is not it is final, and
    /// everybody has it, or will: then the other alone proves it.
    fn shown(&self, proof: &DoubleSignProof) -> Option<[WireEntry; 2]> {
        let lattice = self.ledger.lattice();
        let rival = self.mesh.rivals.get(&proof.slot.chain);
        let held = |id: DocumentId| {
            let pending = lattice.pending_entry(id).map(|pending| pending.entry());
            pending.or_else(|| rival.filter(|rival| rival.id() == id))
        };
        let (known, second) = (held(proof.known), held(proof.rival));
        Some([wire_entry(known.or(second)?), wire_entry(second.or(known)?)])
    }
}

/// Whether a party's chain has anything to pay with.
pub(super) fn could_pay(lattice: &Lattice, party: PartyId) -> bool {
    let balance = lattice.chain(party).map_or(0, |chain| chain.balance());
    i128::from(balance) + lattice.floor(party).signed() > 0
}
