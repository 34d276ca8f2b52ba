//! The lattice: all chains of a mesh, what is final of them, and what a witness may sign.
//!
//! The state has three parts. *Shared* state is a pure function of the set of final entries and
//! is the same on every node that knows the same set; [`Lattice::state_hash`] covers it and
//! nothing else. *Held* entries are valid but not final, or wait for something they rest on.
//! *Own* state is what this node's witness signed.
//!
//! Change has one door: a `receive_…` method, [`Lattice::acknowledge`], or
//! [`Lattice::propose_charter`] decides into [`LatticeEvent`]s and changes nothing;
//! [`Lattice::apply`] applies one event and cannot fail. What an event makes possible (a parked
//! entry whose dependency came, a pending entry whose certificate is complete) is decided by
//! [`Lattice::resume`]: after applying events call it until it returns none, or let
//! [`Lattice::absorb`] do both.
//!
//! Memory: about 620 bytes for each final entry that is among the newest [`RECENT_MAX`] or that
//! may still be named, and 60 for each older one; 32 or 8 more for each item that a `collect`
//! names, 100 for each payment not collected, 900 for each chain, 500 for each sponsor's lock. What
//! is not final is bounded by [`HELD_MAX`] entries of at most 16 KiB. The bytes of final entries
//! are in the store only.

mod acknowledge;
mod apply;
mod certificate;
mod charter;
mod cuts;
mod entry;
mod event;
mod history;
mod invariants;
mod kinds;
mod locks;
mod loss;
mod merkle;
mod partial;
mod pending;
mod receive;
mod rejection;
mod room;
mod shared;
mod state;
mod succession;
mod sync;
mod trail;

use std::borrow::Cow;
use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use tirami_core::{
    Digest, DocumentId, MeshId, PartyId, PublicKey, Signature, Signed, Timestamp, Trm,
    signing_message,
};

pub use acknowledge::FREE_CHAINS_MAX;
pub use certificate::{Acknowledgement, Certificate};
pub use charter::{
    AUDITORS_MAX, Charter, CharterApproval, CharterError, NAME_BYTES_MAX, Params, REOPENED_MAX,
    WITNESSES_MAX,
};
pub use entry::{Entry, SignedEntry};
pub use event::LatticeEvent;
pub use history::{ATTACHED_BYTES_MAX, CharterChange, CharterProof};
pub use kinds::{
    Change, Checkpoint, Collect, Decision, Effect, Ending, Enrol, EntryKind, Extra, Line, Open,
    Pay, PayItem, Payout, Rekey, Settle, Sponsor, Transfer, Unsponsor,
};
pub use locks::{Grant, WELCOMES_MAX, Welcome};
pub use partial::{Keep, Place};
pub use pending::{
    CHAIN_HELD_MAX, HELD_MAX, OWN_HELD_MAX, PARKED_PER_CHAIN_MAX, PARKED_UNPROVEN_MAX, RIVALS_MAX,
};
pub use rejection::{AcknowledgeRefusal, CutRejection, EntryRejection};
pub use state::{
    Chain, ChainState, Contradiction, CutHead, Dependency, DoubleSignProof, FinalEntry,
    ParkedEntry, PendingEntry, Slot, Totals,
};

pub use sync::{Head, Summary};
pub use trail::RECENT_MAX;

use history::Proposal;
use pending::{Parking, Pending};
use shared::Shared;

/// All chains of a mesh as this node knows them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Lattice {
    #[n(0)]
    mesh: MeshId,
    /// Every version of the charter; the last one is in force.
    #[n(1)]
    charters: BTreeMap<u32, CharterRecord>,
    #[n(2)]
    shared: Shared,
    #[n(3)]
    pending: Pending,
    #[n(4)]
    parking: Parking,
    /// What this node's witness acknowledged in slots that are not final, and under which charter.
    #[n(5)]
    own_acks: BTreeMap<(Slot, PublicKey), (DocumentId, u32)>,
    /// The successor that this node's witness signed, by the version it follows.
    #[n(6)]
    approved: BTreeMap<(PublicKey, u32), DocumentId>,
    /// What the witnesses before the last charter change had acknowledged.
    #[n(7)]
    carried: BTreeMap<(Slot, DocumentId), SignedEntry>,
    /// The first proof of signing twice for each party.
    #[n(8)]
    proofs: BTreeMap<PartyId, DoubleSignProof>,
    /// The heads covered by the newest checkpoints, by number and id.
    #[n(9)]
    cuts: BTreeMap<(u64, DocumentId), BTreeMap<PartyId, u64>>,
    /// Successors of the charter in force that some of its witnesses approved.
    #[cbor(n(10), default)]
    proposals: BTreeMap<DocumentId, Proposal>,
    /// How long the node's own chain is known to be elsewhere.
    #[cbor(n(11), default)]
    noted: BTreeMap<PartyId, u64>,
    /// Whether the node asks others how long its own chain is, and signs nothing meanwhile.
    #[cbor(n(12), default)]
    asking: bool,
    /// Whose node holds this lattice: its own entries always have room.
    #[cbor(skip)]
    own: Option<PartyId>,
    /// Which chains the node keeps: a setting, which says how entries are judged that come.
    #[cbor(skip)]
    keeps: Keep,
    /// The newest cut, if it has so many parties that the next one comes later. After a start it is
    /// not known until the next cut is: the clerk alone goes by it, and may come sooner.
    #[cbor(skip)]
    large_cut: Option<DocumentId>,
}

/// A version of the charter.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct CharterRecord {
    #[n(0)]
    id: DocumentId,
    #[n(1)]
    charter: Charter,
    /// The charter's bytes, verbatim.
    #[cbor(n(2), with = "minicbor::bytes")]
    bytes: Vec<u8>,
    /// The founder's signature, of version 1.
    #[n(3)]
    signature: Option<Signature>,
    /// The approvals of the witnesses before, of later versions.
    #[n(4)]
    approvals: Vec<CharterApproval>,
}

impl Lattice {
    /// The empty lattice of the mesh that `charter` founds. The mesh's id is the charter's.
    ///
    /// # Errors
    ///
    /// [`CharterError`] when the charter is not valid, is no first version, or is not signed by
    /// its first witness, for the mesh of [`Charter::founding_mesh`].
    pub fn found(charter: &Signed<Charter>) -> Result<Self, CharterError> {
        let body = charter.body();
        body.validate()?;
        if body.version != 1 || body.previous.is_some() || !body.reopens.is_empty() {
            return Err(CharterError::NotFirst);
        }
        let founder = body.witnesses.first().ok_or(CharterError::Witnesses { count: 0 })?;
        let message = signing_message(
            <Charter as tirami_core::Document>::KIND,
            Charter::founding_mesh(),
            charter.bytes(),
        );
        founder.verify(&message, &charter.signature())?;
        let record = CharterRecord {
            id: charter.id(),
            charter: body.clone(),
            bytes: charter.bytes().to_vec(),
            signature: Some(charter.signature()),
            approvals: Vec::new(),
        };
        Ok(Self {
            mesh: MeshId::from_bytes(*charter.id().as_bytes()),
            charters: BTreeMap::from([(1, record)]),
            shared: Shared::default(),
            pending: Pending::default(),
            parking: Parking::default(),
            own_acks: BTreeMap::new(),
            approved: BTreeMap::new(),
            carried: BTreeMap::new(),
            proofs: BTreeMap::new(),
            cuts: BTreeMap::new(),
            proposals: BTreeMap::new(),
            noted: BTreeMap::new(),
            asking: false,
            own: None,
            keeps: Keep::All,
            large_cut: None,
        })
    }

    /// The lattice as the node of `party` holds it. Not part of the bytes of a snapshot.
    pub(crate) fn held_by(mut self, party: PartyId) -> Self {
        self.own = Some(party);
        self
    }

    /// The mesh.
    pub const fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// The charter in force.
    pub fn charter(&self) -> &Charter {
        &self.current().charter
    }

    /// The id of the charter in force.
    pub fn charter_id(&self) -> DocumentId {
        self.current().id
    }

    /// A party's chain as far as it is final and counts; `None` before its first final entry.
    pub fn chain(&self, party: PartyId) -> Option<&Chain> {
        self.shared.chains.get(&party).map(|chain| &**chain)
    }

    /// All chains, in the order of their parties.
    pub fn chains(&self) -> impl Iterator<Item = (PartyId, &Chain)> {
        self.shared.chains.iter().map(|(party, chain)| (*party, &**chain))
    }

    /// The sequence number that the next entry of `party` has after all that are known, pending
    /// ones included.
    pub fn next_signed_seq(&self, party: PartyId) -> u64 {
        let pending = self.pending.tail(party).map_or(0, |(pending, _)| pending.after.next);
        self.chain(party).map_or(0, Chain::next_seq).max(pending)
    }

    /// How many entries `party` is known to have signed that are not known here: above zero, its
    /// node was set back and has to fetch them before it signs.
    pub fn missing_own(&self, party: PartyId) -> u64 {
        let noted = self.noted.get(&party).copied().unwrap_or_default();
        noted.saturating_sub(self.next_signed_seq(party))
    }

    /// Whether the node asks others how long its own chain is: until then it signs nothing.
    pub const fn is_asking(&self) -> bool {
        self.asking
    }

    /// The free balance after the last entry that `party` signed and this node knows to be valid,
    /// pending ones included, in µTRM.
    pub fn signed_balance(&self, party: PartyId) -> i64 {
        match self.pending.tail(party) {
            Some((pending, _)) => pending.after.balance,
            None => self.chain(party).map_or(0, Chain::balance),
        }
    }

    /// How far below zero the final balance of `party` may go.
    pub fn line(&self, party: PartyId) -> Trm {
        self.chain(party).map_or(Trm::ZERO, Chain::line)
    }

    /// The final payments to `party` that it has not collected: the entry that paid, the amount.
    ///
    /// An item that a pending `collect` of the party names is still among them.
    pub fn uncollected(&self, party: PartyId) -> impl Iterator<Item = (DocumentId, Trm)> {
        let first = (party, DocumentId::from_bytes([0; 32]));
        let last = (party, DocumentId::from_bytes([255; 32]));
        self.shared.payable.range(first..=last).map(|((_, id), amount)| (*id, *amount))
    }

    /// Those of [`Lattice::uncollected`] that no pending `collect` names and that are not out of a
    /// welcome line: what a `collect` without a checkpoint may name next.
    pub fn collectable(&self, party: PartyId) -> impl Iterator<Item = (DocumentId, Trm)> {
        self.unclaimed(party).filter(|(id, _)| self.out_of_welcome(*id).is_none())
    }

    /// Those of [`Lattice::uncollected`] that no pending `collect` names.
    fn unclaimed(&self, party: PartyId) -> impl Iterator<Item = (DocumentId, Trm)> {
        self.uncollected(party).filter(|(id, _)| !self.pending.claims.contains_key(id))
    }

    /// The sum of [`Lattice::uncollected`] in µTRM. Does not walk them.
    pub fn uncollected_sum(&self, party: PartyId) -> i128 {
        self.shared.payable_sums.get(&party).map_or(0, |sum| sum.0)
    }

    /// Where all TRM of the mesh are.
    pub const fn totals(&self) -> Totals {
        self.shared.totals
    }

    /// A final entry that is recent or that a later one may name, whether it counts or not.
    pub fn final_entry(&self, id: DocumentId) -> Option<&FinalEntry> {
        self.shared.finals.get(&id).map(|record| &**record)
    }

    /// All final entries, whether they count or not. O(everything).
    pub fn final_entries(&self) -> impl Iterator<Item = (DocumentId, Cow<'_, FinalEntry>)> {
        self.shared.records()
    }

    /// Whether the entry `id`, whose place is `slot`, is final, whether it counts or not.
    pub fn is_final(&self, id: DocumentId, slot: Slot) -> bool {
        self.shared.is_final_at(id, slot)
    }

    /// The final entry that counts at a place.
    pub fn final_at(&self, slot: Slot) -> Option<DocumentId> {
        self.shared.counted_at(slot)
    }

    /// How many entries are final.
    pub fn final_count(&self) -> usize {
        let without = usize::try_from(self.shared.aging.without_record).unwrap_or(usize::MAX);
        self.shared.finals.len().saturating_add(without)
    }

    /// The lattice with so many recent entries kept as records, instead of [`RECENT_MAX`]. The
    /// same for all that is ever applied to it.
    #[must_use]
    pub const fn with_recent(mut self, max: u32) -> Self {
        self.shared.aging.set_recent_max(max);
        self
    }

    /// A valid entry that is not final.
    pub fn pending_entry(&self, id: DocumentId) -> Option<&PendingEntry> {
        self.pending.entries.get(&id)
    }

    /// The entries of `party` that may still become final, in the order of the chain.
    pub fn pending_of(&self, party: PartyId) -> impl Iterator<Item = &PendingEntry> {
        let first = (Slot { chain: party, seq: 0 }, DocumentId::from_bytes([0; 32]));
        let last = (Slot { chain: party, seq: u64::MAX }, DocumentId::from_bytes([255; 32]));
        let ids = self.pending.live.range(first..=last);
        ids.filter_map(|(_, id)| self.pending.entries.get(id))
    }

    /// How many entries are held that are not final: valid ones, and parked ones.
    pub fn held(&self) -> (usize, usize) {
        (self.pending.entries.len(), self.parking.entries.len())
    }

    /// What parked entries wait for, so that it can be fetched.
    pub fn missing(&self) -> impl Iterator<Item = Dependency> {
        let parked = self.parking.entries.values();
        parked.filter(|parked| !self.parking.ready.contains(&parked.number)).map(|p| p.waits)
    }

    /// Proofs that a party signed two entries for one slot: the first one known of each party.
    pub fn double_sign_proofs(&self) -> impl Iterator<Item = &DoubleSignProof> {
        self.proofs.values()
    }

    /// The proof that `party` signed two entries for one slot.
    pub fn double_sign_proof(&self, party: PartyId) -> Option<&DoubleSignProof> {
        self.proofs.get(&party)
    }

    /// The chains that are frozen, why, and the witnesses found in more than one certificate.
    pub fn contradictions(
        &self,
    ) -> impl Iterator<Item = (PartyId, &Contradiction, Vec<PublicKey>)> {
        self.shared.chains.iter().filter_map(|(party, chain)| {
            let frozen = chain.frozen.as_ref()?;
            Some((*party, frozen, self.guilty(frozen)))
        })
    }

    /// The last checkpoint: its number, id and time.
    pub fn last_checkpoint(&self) -> Option<(u64, DocumentId, Timestamp)> {
        let ((number, id), time) = self.shared.checkpoints.last_key_value()?;
        Some((*number, *id, *time))
    }

    /// The hash of shared state: every chain's head, what froze chains, and the totals. The same
    /// on all nodes that hold the same chains.
    ///
    /// A head's id stands for its whole chain. O(chains). Call [`Lattice::resume`] until it
    /// returns nothing first: what is ready but not applied is not in it.
    pub fn state_hash(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tirami/state/1");
        hasher.update(self.mesh.as_bytes());
        for (party, chain) in &self.shared.chains {
            hasher.update(party.as_bytes());
            hasher.update(&chain.state.next.to_be_bytes());
            hasher.update(chain.state.head.map_or([0; 32], |head| *head.as_bytes()).as_slice());
            hasher.update(&chain.state.balance.to_be_bytes());
            hasher.update(&self.uncollected_sum(*party).to_be_bytes());
            let rivals = chain.frozen.iter().flat_map(|frozen| &frozen.entries);
            hasher.update(&(rivals.clone().count() as u64).to_be_bytes());
            for rival in rivals {
                hasher.update(rival.as_bytes());
            }
        }
        for (id, lock) in &self.shared.locks {
            hasher.update(id.as_bytes());
            hasher.update(&[u8::from(lock.is_counted()), lock.ended()]);
        }
        let Totals { free, locked, transit, minted, burned, loss, outside } = self.shared.totals;
        for total in [free, locked, transit, minted, burned, loss] {
            hasher.update(&total.to_be_bytes());
        }
        if outside != 0 {
            hasher.update(&outside.to_be_bytes());
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    fn current(&self) -> &CharterRecord {
        // `found` puts version 1 in and nothing is ever taken out.
        #[expect(clippy::expect_used, reason = "a lattice without a charter cannot be built")]
        self.charters.values().next_back().expect("a lattice has a charter")
    }

    /// Witnesses that signed more than one of the entries that contradict each other.
    fn guilty(&self, frozen: &Contradiction) -> Vec<PublicKey> {
        let mut times = BTreeMap::<PublicKey, usize>::new();
        for record in frozen.entries.iter().filter_map(|id| self.shared.finals.get(id)) {
            if let Some(charter) = self.charters.get(&record.charter_version) {
                for witness in charter.charter.witnesses_in(record.signers) {
                    *times.entry(witness).or_default() += 1;
                }
            }
        }
        times.into_iter().filter(|(_, times)| *times > 1).map(|(witness, _)| witness).collect()
    }

    /// Whether `item` was collected on `chain` at or before `prev`.
    fn was_collected(&self, item: DocumentId, chain: PartyId, prev: Option<DocumentId>) -> bool {
        if !self.shared.payable.contains_key(&(chain, item)) {
            return self.collected_in_counted_past(item, chain, prev);
        }
        let claims = [self.shared.claims.get(&item), self.pending.claims.get(&item)];
        claims.into_iter().flatten().flatten().any(|claimant| self.is_before(*claimant, prev))
    }

    /// The counted `collect` of `item` is in the past of `prev`, unless `prev` is the branch of a
    /// certified rival below it. Only then is the chain looked at from there on.
    fn collected_in_counted_past(
        &self,
        item: DocumentId,
        chain: PartyId,
        prev: Option<DocumentId>,
    ) -> bool {
        let Some(prev) = prev else {
            return self.chain(chain).and_then(Chain::head).is_none();
        };
        let Some(seq) = self.counted_seq(chain, prev) else {
            return true;
        };
        let after = Slot { chain, seq: seq.saturating_add(1) };
        let later = self.shared.slots.range(after..=Slot { chain, seq: u64::MAX });
        let mut later = later.filter_map(|(_, id)| self.shared.finals.get(id));
        !later.any(|record| record.effect.collected.contains(&item))
    }

    /// Where the entry `id` counts on `chain`: its last one, the last that a step stands for, or
    /// one since.
    fn counted_seq(&self, chain: PartyId, id: DocumentId) -> Option<u64> {
        let known = self.chain(chain)?;
        let mut ends = [Some(known.state()), known.trail.state()].into_iter().flatten();
        if let Some(end) = ends.find(|state| state.head == Some(id)) {
            return end.next.checked_sub(1);
        }
        let slot = self.shared.finals.get(&id)?.slot;
        (slot.chain == chain && self.final_at(slot) == Some(id)).then_some(slot.seq)
    }

    /// Whether the entry `earlier` is `tip` or before it on its branch.
    fn is_before(&self, earlier: DocumentId, tip: Option<DocumentId>) -> bool {
        let Some((lowest, _)) = self.place(earlier) else {
            return false;
        };
        let mut at = tip;
        while let Some(id) = at {
            // What counts is one line.
            if let Some(seq) = self.counted_seq(lowest.chain, id) {
                return lowest.seq <= seq && self.final_at(lowest) == Some(earlier);
            }
            let Some((slot, prev)) = self.place(id) else {
                return false;
            };
            if slot.chain != lowest.chain || slot.seq < lowest.seq {
                return false;
            }
            if id == earlier {
                return true;
            }
            at = prev;
        }
        false
    }

    fn place(&self, id: DocumentId) -> Option<(Slot, Option<DocumentId>)> {
        if let Some(record) = self.shared.finals.get(&id) {
            return Some((record.slot, record.prev));
        }
        let entry = self.pending.entries.get(&id)?.entry.entry();
        Some((entry.slot(), entry.prev))
    }
}
