//! A node that keeps only the chains it has to do with (MONEY §11): which they are, how it hears
//! of them, and how it learns of money from parties it has nothing to do with yet.
//!
//! A chain comes to be held because the node *follows* it: its own, those of clerks and
//! registrars, of whoever orders here, answers for it, pays it, sponsors it or is sponsored by it.
//! It is followed no longer once nothing of this node rests on it: no job, nothing owed either
//! way, nothing to collect, no welcome line. What is held of it stays, for the own entries name
//! it, and goes on from there when it is needed again. So nothing here is durable: at a start the
//! node follows what something rests on, and finds the rest when it meets it. Nobody but a witness
//! can make a node follow a chain, and only the own witnesses' word says that a head is the last
//! one.

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{DocumentId, PartyId, Timestamp};
use tirami_ledger::event::BookEvent;
use tirami_ledger::lattice::Keep;
use tirami_proto::{
    Fault, Head, KEPT_PER_FRAME_MAX, Message, PLACES_ASKED_MAX, PLACES_MAX, WirePlace,
};

use super::peer::AHEAD_MAX;
use super::sync::HEAD_BYTES;
use crate::kernel::{Effects, Kernel};

/// Chains that a node follows which does not keep all; its own and those of offices come on top.
pub const FOLLOWED_MAX: usize = 4_096;
/// Of them, those of which nothing has come yet.
pub const WISHED_MAX: usize = 256;
/// Chains of which such a node holds something at most, whether it follows them or not.
pub const HELD_MAX: usize = 1 << 16;
/// How long a chain is followed after the last time that something of this node rested on it.
pub const FOLLOWED_MS: u64 = 120_000;
/// Chains up to which strangers that order here are followed: the rest is kept free for whoever
/// this node orders from, or is paid by.
pub const FIRST_CONTACT_MAX: usize = FOLLOWED_MAX / 2;
/// How long a chain is wished for of which nothing comes.
const WISH_MS: u64 = 60_000;
/// How often a witness is asked what goes beyond the chains kept, each time another one.
const ASK_MS: u64 = 3_000;
/// Questions to one peer that may be open.
const OPEN_MAX: usize = 2 * FOLLOWED_MAX / KEPT_PER_FRAME_MAX;
/// Locks of sponsors whose chains are asked for next.
const LOCKS_MAX: usize = PLACES_ASKED_MAX;
const ZERO: DocumentId = DocumentId::from_bytes([0; 32]);

/// What a node knows that keeps some chains.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    /// Chains that are followed, and when something of this node last called for them.
    followed: BTreeMap<PartyId, Timestamp>,
    /// Chains to be followed of which nothing is held yet, since when.
    wished: BTreeMap<PartyId, Timestamp>,
    /// When a witness last said that nothing goes beyond what is held of a chain.
    checked: BTreeMap<PartyId, Timestamp>,
    /// Locks of sponsors that newcomers held here were opened with.
    locks: BTreeSet<DocumentId>,
    asked_at: Option<Timestamp>,
    numbered: u32,
}

impl Kept {
    fn count(&self) -> usize {
        self.followed.len().saturating_add(self.wished.len())
    }

    /// Nothing goes beyond what is held of `chain`, says a witness.
    pub(super) fn is_level(&mut self, chain: PartyId, at: Timestamp) {
        self.checked.insert(chain, at);
    }

    pub(super) fn checked_at(&self, chain: PartyId) -> Option<Timestamp> {
        self.checked.get(&chain).copied()
    }

    /// A newcomer's chain began with a lock that is not held.
    pub(super) fn wants_lock(&mut self, lock: DocumentId) {
        if self.locks.len() < LOCKS_MAX {
            self.locks.insert(lock);
        }
    }
}

/// What a peer that keeps all was asked about kept chains.
#[derive(Debug, Clone, Default)]
pub(crate) struct Questions {
    asked_at: Option<Timestamp>,
    /// The chains of each question that is open.
    open: BTreeMap<u32, Vec<PartyId>>,
    /// Questions for places that are open.
    places: u32,
}

impl Kernel {
    /// Which chains this node keeps under the charter in force.
    pub fn keeps(&self) -> Keep {
        self.ledger.lattice().keeps()
    }

    pub(super) fn keeps_own(&self) -> bool {
        self.keeps() == Keep::Own
    }

    /// What this node says of itself, as a bit set.
    pub(super) fn features(&self) -> u64 {
        if self.keeps_own() { tirami_proto::FEATURE_KEEPS_OWN } else { 0 }
    }

    /// Whether this node goes on fetching a chain.
    pub fn follows(&self, chain: PartyId) -> bool {
        let lattice = self.ledger.lattice();
        !self.keeps_own()
            || chain == self.ledger.party()
            || self.mesh.kept.followed.contains_key(&chain)
            || self.mesh.kept.wished.contains_key(&chain)
            || lattice.offices().contains(&chain)
    }

    /// Whether all is known of `consumer` that an order of it is judged by: where its chain
    /// stands, not long ago, and how much its sponsor lent it.
    pub fn knows_consumer(&self, consumer: PartyId) -> bool {
        if !self.keeps_own() {
            return true;
        }
        let fresh_ms = self.ledger.book().serving().fresh_ms;
        let known = self.ledger.lattice().chain(consumer);
        let fresh = self.head_at(consumer).is_some_and(|at| self.clock < at.plus_ms(fresh_ms));
        fresh && known.is_some_and(|chain| !chain.state().unproven)
    }

    /// Follows a chain from now on, if there is room.
    pub(super) fn follow(&mut self, chain: PartyId) -> bool {
        let (now, lattice) = (self.clock, self.ledger.lattice());
        if let Some(needed_at) = self.mesh.kept.followed.get_mut(&chain) {
            *needed_at = now;
            return true;
        }
        if self.follows(chain) {
            return true;
        }
        let (is_held, held) = (lattice.chain(chain).is_some(), lattice.chain_count());
        let kept = &mut self.mesh.kept;
        if kept.count() >= FOLLOWED_MAX {
            return false;
        }
        if is_held {
            kept.followed.insert(chain, now);
            return true;
        }
        if kept.wished.len() >= WISHED_MAX || held.saturating_add(kept.wished.len()) >= HELD_MAX {
            return false;
        }
        kept.wished.insert(chain, now);
        true
    }

    /// Somebody wants something of this node whose chain it has to know first.
    pub(crate) fn first_contact(&mut self, party: PartyId, effects: &mut Effects) {
        let full = self.mesh.kept.count() >= FIRST_CONTACT_MAX;
        if !self.keeps_own() || (full && !self.follows(party)) || !self.follow(party) {
            return;
        }
        for witness in self.open_witnesses().into_iter().take(2) {
            self.ask_beyond(witness, &[party], effects);
        }
        let lock = self.ledger.lattice().unseen_lock(party);
        if let Some(lock) = lock {
            self.mesh.kept.wants_lock(lock);
        }
        self.ask_locks(effects);
    }

    /// A job between this node and another: the chains of both sides are kept.
    pub(super) fn follow_trade(&mut self, event: &BookEvent) {
        if self.keeps_own()
            && let BookEvent::HoldOpened(hold) = event
            && let Some(remote) = &hold.remote
        {
            self.follow(remote.provider);
        }
    }

    /// Asks a peer that keeps all what goes beyond the chains kept here, and a witness what is
    /// due to this node.
    pub(super) fn ask_kept(&mut self, to: PartyId, effects: &mut Effects) {
        let (own, lattice) = (self.ledger.party(), self.ledger.lattice());
        let (followed, wished) = (self.mesh.kept.followed.keys(), self.mesh.kept.wished.keys());
        let mut rest: BTreeSet<PartyId> = followed.chain(wished).copied().collect();
        let first: Vec<PartyId> = lattice.offices().into_iter().chain([own]).collect();
        for chain in &first {
            rest.remove(chain);
        }
        let first: BTreeSet<PartyId> = first.into_iter().collect();
        if let Some(peer) = self.mesh.peers.get_mut(&to) {
            peer.questions.asked_at = Some(self.clock);
            peer.questions.places = 0;
        }
        // What everybody keeps comes first: others rest on it.
        self.ask_beyond(to, &first.into_iter().collect::<Vec<_>>(), effects);
        let rest: Vec<PartyId> = rest.into_iter().take(FOLLOWED_MAX).collect();
        for page in rest.chunks(KEPT_PER_FRAME_MAX) {
            self.ask_beyond(to, page, effects);
        }
        if self.is_witness(to) {
            self.ask_places(to, Message::WantMine { after: None }, effects);
        }
    }

    fn ask_beyond(&mut self, to: PartyId, chains: &[PartyId], effects: &mut Effects) {
        let lattice = self.ledger.lattice();
        let heads = chains.iter().map(|chain| {
            let known = lattice.chain(*chain);
            let (next_seq, head) = known.map_or((0, None), |own| (own.next_seq(), own.head()));
            Head { chain: *chain, next_seq, head: head.unwrap_or(ZERO) }
        });
        let heads: Vec<Head> = heads.collect();
        let Some(peer) = self.mesh.peers.get_mut(&to) else { return };
        self.mesh.kept.numbered = self.mesh.kept.numbered.wrapping_add(1);
        let number = self.mesh.kept.numbered;
        while peer.questions.open.len() >= OPEN_MAX {
            peer.questions.open.pop_first();
        }
        peer.questions.open.insert(number, chains.to_vec());
        effects.send.push((to, Message::Kept { number, heads }));
    }

    /// Answers a node that keeps some chains: which of them stand otherwise here. Where it holds
    /// more, which may be of its own chain only, this node asks for that.
    pub(super) fn tell_beyond(
        &mut self,
        to: PartyId,
        (number, asked): (u32, &[Head]),
        effects: &mut Effects,
    ) {
        if !asked.is_sorted_by(|left, right| left.chain < right.chain) {
            self.fault(to, Fault::Invalid, effects);
            return;
        }
        if !self.may_answer(to, HEAD_BYTES.saturating_mul(asked.len() as u32 + 1)) {
            return;
        }
        let lattice = self.ledger.lattice();
        let beyond = asked.iter().filter_map(|asked| {
            let known = lattice.chain(asked.chain)?;
            let (next_seq, head) = (known.next_seq(), known.head()?);
            let other = next_seq == asked.next_seq && head != asked.head;
            let is_beyond = next_seq > asked.next_seq || other || known.frozen().is_some();
            is_beyond.then_some(Head { chain: asked.chain, next_seq, head })
        });
        let heads = beyond.collect();
        effects.send.push((to, Message::Beyond { number, heads }));
        let more = asked.iter().filter(|asked| asked.next_seq > self.next_seq(asked.chain));
        let more: Vec<Head> = more.copied().collect();
        if !more.is_empty() {
            self.take_heads(to, &more, effects);
        }
    }

    /// What goes beyond the chains kept here is fetched; the rest is known to be level.
    pub(super) fn take_beyond(
        &mut self,
        from: PartyId,
        (number, heads): (u32, &[Head]),
        effects: &mut Effects,
    ) {
        let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
        // An answer that comes twice, or too late, says nothing.
        let Some(asked) = peer.questions.open.remove(&number) else { return };
        let beyond: BTreeSet<PartyId> = heads.iter().map(|head| head.chain).collect();
        if !beyond.iter().all(|chain| asked.contains(chain)) {
            self.fault(from, Fault::Invalid, effects);
            return;
        }
        if self.is_witness(from) {
            let lattice = self.ledger.lattice();
            for chain in asked {
                if !beyond.contains(&chain) && lattice.chain(chain).is_some() {
                    self.mesh.kept.is_level(chain, self.clock);
                }
            }
        }
        self.take_heads(from, heads, effects);
    }

    fn ask_places(&mut self, to: PartyId, question: Message, effects: &mut Effects) {
        if let Some(peer) = self.mesh.peers.get_mut(&to) {
            peer.questions.places = peer.questions.places.saturating_add(1);
            effects.send.push((to, question));
        }
    }

    /// Asks a witness for the sponsors of newcomers held here.
    pub(super) fn ask_locks(&mut self, effects: &mut Effects) {
        if self.mesh.kept.locks.is_empty() {
            return;
        }
        let Some(witness) = self.open_witnesses().into_iter().next() else { return };
        let entries = core::mem::take(&mut self.mesh.kept.locks).into_iter().collect();
        self.ask_places(witness, Message::WantPlaces { entries }, effects);
    }

    /// Tells where entries stand.
    pub(super) fn tell_places(
        &mut self,
        to: PartyId,
        entries: &[DocumentId],
        effects: &mut Effects,
    ) {
        if self.may_answer(to, HEAD_BYTES.saturating_mul(entries.len() as u32 + 1)) {
            let lattice = self.ledger.lattice();
            let places = entries.iter().filter_map(|entry| lattice.place_of(*entry));
            let places = places.map(wire_place).collect();
            effects.send.push((to, Message::Places { places, more: false }));
        }
    }

    /// Tells a party what concerns it on other chains.
    pub(super) fn tell_mine(
        &mut self,
        to: PartyId,
        after: Option<DocumentId>,
        effects: &mut Effects,
    ) {
        if self.may_answer(to, HEAD_BYTES.saturating_mul(PLACES_MAX as u32)) {
            let mut mine = self.ledger.lattice().places_for(to, after);
            let places: Vec<WirePlace> = mine.by_ref().take(PLACES_MAX).map(wire_place).collect();
            let more = mine.next().is_some();
            effects.send.push((to, Message::Places { places, more }));
        }
    }

    /// Follows the chains that a witness says concern this node.
    pub(super) fn take_places(
        &mut self,
        from: PartyId,
        (places, more): (&[WirePlace], bool),
        effects: &mut Effects,
    ) {
        let is_witness = self.is_witness(from);
        let asked = self.mesh.peers.get_mut(&from).is_some_and(|peer| {
            let asked = peer.questions.places > 0;
            peer.questions.places = peer.questions.places.saturating_sub(1);
            asked
        });
        if !asked || !is_witness || !self.keeps_own() {
            return;
        }
        for place in places {
            let lacks = self.next_seq(place.chain) <= place.seq;
            if place.chain == self.ledger.party() || !self.follow(place.chain) || !lacks {
                continue;
            }
            let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
            if peer.ahead.len() < AHEAD_MAX || peer.ahead.contains_key(&place.chain) {
                let ahead = peer.ahead.entry(place.chain).or_default();
                *ahead = (*ahead).max(place.seq.saturating_add(1));
            }
        }
        if let Some(last) = places.last().filter(|_| more) {
            let after = Some(last.entry);
            self.ask_places(from, Message::WantMine { after }, effects);
        }
        self.fetch_more(effects);
    }

    /// Forgets wishes that brought nothing, and asks the next witness.
    pub(super) fn beat_kept(&mut self, now: Timestamp, effects: &mut Effects) {
        if !self.keeps_own() {
            return;
        }
        let (lattice, kept) = (self.ledger.lattice(), &mut self.mesh.kept);
        kept.wished.retain(|chain, since| {
            let is_held = lattice.chain(*chain).is_some();
            if is_held {
                kept.followed.insert(*chain, now);
            }
            !is_held && now < since.plus_ms(WISH_MS)
        });
        if kept.asked_at.is_some_and(|at| now < at.plus_ms(ASK_MS)) {
            return;
        }
        self.follow_needed(now);
        let open = self.mesh.peers.iter().filter(|(_, peer)| peer.is_open() && !peer.keeps_own);
        let turn = |(party, peer): &(&PartyId, &super::Peer)| {
            (!self.is_witness(**party), peer.questions.asked_at, **party)
        };
        let Some(to) = open.min_by_key(turn).map(|(party, _)| *party) else { return };
        self.mesh.kept.asked_at = Some(now);
        let followed = self.mesh.kept.followed.keys();
        let followed = followed.filter_map(|chain| self.ledger.lattice().chain(*chain));
        let unproven = followed.filter(|chain| chain.state().unproven);
        let locks: Vec<DocumentId> =
            unproven.filter_map(|chain| chain.state().sponsor).take(LOCKS_MAX).collect();
        for lock in locks {
            self.mesh.kept.wants_lock(lock);
        }
        self.ask_kept(to, effects);
        self.ask_locks(effects);
    }

    /// Goes on following what something of this node rests on, and ends with the rest after a
    /// while.
    fn follow_needed(&mut self, now: Timestamp) {
        for chain in self.needed() {
            self.follow(chain);
        }
        let kept = &mut self.mesh.kept;
        let past = kept.followed.iter().filter(|(_, at)| now >= at.plus_ms(FOLLOWED_MS));
        for chain in past.map(|(chain, _)| *chain).collect::<Vec<_>>() {
            kept.followed.remove(&chain);
            for peer in self.mesh.peers.values_mut() {
                peer.ahead.remove(&chain);
            }
        }
        let offices = self.ledger.lattice().offices();
        let own = self.ledger.party();
        let Kept { followed, checked, .. } = &mut self.mesh.kept;
        checked.retain(|chain, _| {
            followed.contains_key(chain) || offices.contains(chain) || *chain == own
        });
    }

    /// The chains that something of this node rests on: jobs either way, what is owed either way,
    /// what it may collect, welcome lines it gave or was given.
    fn needed(&self) -> BTreeSet<PartyId> {
        let (own, lattice, book) = (self.ledger.party(), self.ledger.lattice(), self.ledger.book());
        let asked = book.holds().values().filter_map(|hold| Some(hold.remote.as_ref()?.provider));
        let debts = book.debts().values().map(|debt| debt.provider);
        let owing = book.consumers().iter().filter(|(_, known)| !known.owed.is_zero());
        let items = lattice.uncollected(own).filter_map(|(item, _)| lattice.place_of(item));
        let gave = lattice.sponsored(own).map(|welcome| welcome.newcomer);
        let given = lattice.welcome(own).map(|welcome| welcome.sponsor);
        let owing = owing.map(|(consumer, _)| *consumer);
        let items = items.map(|place| place.slot.chain);
        let all = asked.chain(debts).chain(owing).chain(items).chain(gave).chain(given);
        all.filter(|chain| *chain != own).collect()
    }
}

fn wire_place(place: tirami_ledger::lattice::Place) -> WirePlace {
    WirePlace { entry: place.entry, chain: place.slot.chain, seq: place.slot.seq }
}
