//! Synchronising chains: compare summaries, learn heads, take in ranges of final entries. Which
//! ranges are asked of whom is in `fetch.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tirami_core::{BUCKETS, Digest, DocumentId, PartyId, Signature, Timestamp, bucket_of};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{
    Certificate, CutRejection, Dependency, Entry, EntryRejection, Slot, Summary,
};
use tirami_proto::{Fault, FinalEntry, Head, Message, WireSlot};

use super::{NEWS_PEERS_MAX, Peer, Serve, peer::AHEAD_MAX, witness::SHOWN_BYTES};
use crate::kernel::{Effects, Kernel};

/// Final entries that are served at once, whatever was asked for.
pub const SERVE_MAX: u32 = 1_024;
/// About the bytes of a final entry, and of a head, on the wire.
const FINAL_BYTES: u32 = 600;
pub(super) const HEAD_BYTES: u32 = 80;
/// How long a chain rests whose page could not be used yet.
const STALLED_MS: u64 = 1_000;
/// How often a peer is told what this node holds when nothing happens: each of a few, of many
/// only the witnesses, whose answers say how fresh a balance is.
const SUMMARY_EVERY_MS: u64 = 30_000;
/// How often one of the peers is told so, whichever heard it longest ago: news that passed this
/// node by are found within this time.
const SUMMARY_ANY_MS: u64 = 3_000;
/// The least time between two summaries to one peer.
const SUMMARY_MS_MIN: u64 = 1_000;
/// How long news may be on their way before heads are asked for because of them.
const DOUBT_MS: u64 = 1_000;
/// Digests remembered of each bucket: what it held after the latest changes.
const PAST_MAX: usize = 16;

/// What the buckets of chains hold here, and held lately.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    /// The summary of the chains, and how many entries were final then.
    summary: Option<(usize, Summary)>,
    /// Buckets of chains that went on in this input.
    changed: BTreeSet<u8>,
    /// The digests that each bucket had lately, the present one last. A peer that shows one of
    /// them holds nothing of the bucket that this node lacks: what is final stays final.
    past: BTreeMap<u8, VecDeque<Digest>>,
}

impl Held {
    /// A chain went on.
    pub(super) fn went_on(&mut self, chain: PartyId) {
        self.changed.insert(bucket_of(chain));
    }

    fn remember(&mut self, bucket: u8, digest: Digest) {
        let past = self.past.entry(bucket).or_default();
        if past.back() != Some(&digest) {
            past.push_back(digest);
        }
        if past.len() > PAST_MAX {
            past.pop_front();
        }
    }

    fn had(&self, bucket: u8, digest: &Digest) -> bool {
        self.past.get(&bucket).is_some_and(|past| past.contains(digest))
    }
}

impl Kernel {
    /// Final entries that some peer is known to hold and this node lacks, at least.
    pub fn entries_behind(&self) -> u64 {
        let mut ahead = BTreeMap::<PartyId, u64>::new();
        for (chain, next_seq) in self.mesh.peers.values().flat_map(|peer| &peer.ahead) {
            let most = ahead.entry(*chain).or_default();
            *most = (*next_seq).max(*most);
        }
        let behind = ahead.iter().map(|(chain, next)| next.saturating_sub(self.next_seq(*chain)));
        behind.fold(0, u64::saturating_add)
    }

    /// When it was last known that no witness holds more of `chain` than this node does; the
    /// latest time seen when this node is a witness itself.
    pub fn head_at(&self, chain: PartyId) -> Option<Timestamp> {
        if self.is_witness(self.keys.node.public().party()) {
            return Some(self.clock);
        }
        if self.keeps_own() {
            return self.mesh.kept.checked_at(chain);
        }
        let witnesses = self.mesh.peers.iter().filter(|(party, _)| self.is_witness(**party));
        let level = witnesses.filter(|(_, peer)| !peer.ahead.contains_key(&chain));
        level.filter_map(|(_, peer)| peer.synced_at).chain(self.mesh.fetch.level_at).max()
    }

    /// The sequence number after the last final entry of `chain` here.
    pub(super) fn next_seq(&self, chain: PartyId) -> u64 {
        self.ledger.lattice().chain(chain).map_or(0, |chain| chain.next_seq())
    }

    /// What this node says of its chains, which is the same as long as nothing becomes final.
    fn summary(&mut self) -> Summary {
        let (count, lattice) = (self.ledger.lattice().final_count(), self.ledger.lattice());
        let kept = self.mesh.held.summary.take().filter(|(of, _)| *of == count);
        let (_, summary) = kept.unwrap_or_else(|| (count, lattice.summary()));
        for (bucket, digest) in (0_u8..).zip(&summary.buckets) {
            self.mesh.held.remember(bucket, *digest);
        }
        self.mesh.held.summary = Some((count, summary.clone()));
        summary
    }

    /// Remembers what the buckets of the chains that went on hold now.
    pub(super) fn remember_buckets(&mut self) {
        for bucket in core::mem::take(&mut self.mesh.held.changed) {
            let digest = self.ledger.lattice().bucket_digest(bucket);
            self.mesh.held.remember(bucket, digest);
        }
    }

    /// Tells a peer what this node holds, if both keep all chains.
    pub(super) fn send_summary(&mut self, to: PartyId, effects: &mut Effects) {
        let now = self.clock;
        let peer_keeps_own = self.mesh.peers.get(&to).is_some_and(|peer| peer.keeps_own);
        if peer_keeps_own || self.keeps_own() {
            return;
        }
        let summary = self.summary();
        let Some(peer) = self.mesh.peers.get_mut(&to) else { return };
        peer.summary_at = Some(now);
        let message = Message::Summary { state: summary.root, buckets: summary.buckets };
        effects.send.push((to, message));
    }

    /// Asks a peer to say what it holds, by saying what this node holds; not too often.
    pub(super) fn compare_with(&mut self, peer: PartyId, effects: &mut Effects) {
        let keeps_own = self.keeps_own();
        let Some(known) = self.mesh.peers.get_mut(&peer) else { return };
        if known.summary_at.is_some_and(|last| self.clock < last.plus_ms(SUMMARY_MS_MIN)) {
            return;
        }
        if keeps_own {
            let keeps_all = known.is_open() && !known.keeps_own;
            known.summary_at = Some(self.clock);
            if keeps_all {
                self.ask_kept(peer, effects);
            }
        } else {
            self.send_summary(peer, effects);
        }
    }

    pub(super) fn take_summary(
        &mut self,
        from: PartyId,
        (state, buckets): (Digest, &[Digest]),
        effects: &mut Effects,
    ) {
        if buckets.len() != usize::from(BUCKETS) {
            self.fault(from, Fault::Invalid, effects);
            return;
        }
        if let Some(peer) = self.mesh.peers.get_mut(&from) {
            // Only who keeps all says so: it may have got an office since its hello.
            peer.keeps_own = false;
        }
        if self.keeps_own() {
            return;
        }
        let own = self.summary();
        let held = &self.mesh.held;
        let doubts = (0_u8..).zip(buckets).filter(|(bucket, theirs)| !held.had(*bucket, theirs));
        let doubts: BTreeMap<u8, Digest> =
            doubts.map(|(bucket, theirs)| (bucket, *theirs)).collect();
        let now = self.clock;
        let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
        if doubts.is_empty() {
            // It holds what this node holds, or did a while ago.
            peer.ahead.clear();
            peer.synced_at = Some(now);
            peer.doubts_at = None;
        } else {
            peer.doubts_at.get_or_insert(now);
        }
        peer.doubts = doubts;
        // Later on most differences are news on their way; a first one may be a long absence.
        if !core::mem::replace(&mut peer.is_compared, true) {
            self.ask_heads(from, effects);
        }
        if own.root != state {
            self.compare_with(from, effects);
        }
    }

    /// Asks a peer for the heads of those buckets that news did not explain: of those first where
    /// the offices' chains are, so that these are fetched first.
    fn ask_heads(&mut self, from: PartyId, effects: &mut Effects) {
        let offices: BTreeSet<u8> =
            self.ledger.lattice().offices().into_iter().map(bucket_of).collect();
        let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
        peer.doubts_at = None;
        let doubts = core::mem::take(&mut peer.doubts);
        let (first, rest): (Vec<_>, Vec<_>) =
            doubts.into_iter().partition(|(bucket, _)| offices.contains(bucket));
        for (bucket, theirs) in first.into_iter().chain(rest) {
            if !self.mesh.held.had(bucket, &theirs) {
                effects.send.push((from, Message::WantHeads { bucket }));
            }
        }
    }

    pub(super) fn tell_heads(&mut self, to: PartyId, bucket: u8, effects: &mut Effects) {
        let count = self.ledger.lattice().bucket_heads(bucket).count();
        if !self.may_answer(to, HEAD_BYTES.saturating_mul(count as u32 + 1)) {
            return;
        }
        let heads = self.ledger.lattice().bucket_heads(bucket);
        let heads =
            heads.map(|head| Head { chain: head.chain, next_seq: head.next_seq, head: head.head });
        let heads: Vec<Head> = heads.take(tirami_proto::HEADS_PER_FRAME_MAX).collect();
        effects.send.push((to, Message::Heads { bucket, heads }));
    }

    pub(super) fn take_heads(&mut self, from: PartyId, heads: &[Head], effects: &mut Effects) {
        if !heads.is_sorted_by(|left, right| left.chain < right.chain) {
            self.fault(from, Fault::Invalid, effects);
            return;
        }
        let now = self.clock;
        let mut wanted = false;
        for Head { chain, next_seq, head } in heads.iter().copied() {
            if !self.follows(chain) {
                continue;
            }
            let own = self.ledger.lattice().chain(chain);
            let (own_next, own_head) = own.map_or((0, None), |own| (own.next_seq(), own.head()));
            let frozen = own.and_then(|own| own.frozen().map(|frozen| frozen.seq));
            let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
            peer.knows(chain, next_seq);
            if peer.pages.rests(now) {
                continue;
            }
            if let Some(from_seq) = frozen {
                // The peer may not know that two entries are final in one slot.
                if own_head != Some(head) && self.may_answer(from, SHOWN_BYTES) {
                    effects.serve.push(Serve { peer: from, chain, from_seq, max: 1 });
                }
            } else if next_seq > own_next {
                if peer.ahead.len() < AHEAD_MAX || peer.ahead.contains_key(&chain) {
                    peer.ahead.insert(chain, next_seq);
                    wanted |= !self.mesh.fetch.is_asked(chain);
                }
            } else if next_seq == own_next && own_head.is_some_and(|own| own != head) {
                // Both are final: the peer's branch has to be known here too.
                let from_seq = next_seq.saturating_sub(1);
                effects.send.push((from, Message::WantRange { chain, from_seq, max: 1 }));
            }
        }
        let peer = self.mesh.peers.get_mut(&from);
        // Of one that rests nothing is known but what it says.
        if let Some(peer) = peer.filter(|peer| peer.ahead.is_empty() && !peer.pages.rests(now)) {
            peer.synced_at = Some(now);
        }
        // Most news are told by several peers, and are on their way after the first.
        if wanted {
            self.fetch_more(effects);
        }
    }

    pub(super) fn want_range(
        &mut self,
        from: PartyId,
        (chain, from_seq, max): (PartyId, u64, u32),
        effects: &mut Effects,
    ) {
        if from_seq >= self.next_seq(chain) || max == 0 {
            let (entries, more) = (Vec::new(), false);
            effects.send.push((from, Message::Finals { chain, entries, more }));
            return;
        }
        let max = max.min(SERVE_MAX);
        let left = u32::try_from(self.next_seq(chain) - from_seq).unwrap_or(u32::MAX).min(max);
        if self.may_answer(from, FINAL_BYTES.saturating_mul(left)) {
            effects.serve.push(Serve { peer: from, chain, from_seq, max });
        }
    }

    /// Takes a page or a push. Entries without a certificate need one after them.
    pub(super) fn take_finals(
        &mut self,
        from: PartyId,
        (chain, entries): (PartyId, Vec<FinalEntry>),
        effects: &mut Effects,
    ) {
        let answered = self.mesh.fetch.answered(chain, from);
        let certified = entries.iter().rposition(|entry| entry.certificate.is_some());
        if certified.map_or(0, |last| last + 1) != entries.len() {
            self.fault(from, Fault::Invalid, effects);
            return;
        }
        if !self.follows(chain) {
            return;
        }
        let before = self.next_seq(chain);
        let empty = entries.is_empty();
        let seqs = (seq_of(chain, entries.first()), seq_of(chain, entries.last()));
        if !answered
            && let (Some(first), Some(last)) = seqs
            && first > before
        {
            // A push with a gap before it would only wait here: the peer has what is between.
            if let Some(peer) = self.mesh.peers.get_mut(&from)
                && peer.ahead.len() < AHEAD_MAX
            {
                peer.ahead.insert(chain, last.saturating_add(1));
            }
            return self.fetch_more(effects);
        }
        if !empty && (seqs.0.is_none() || seqs.1.is_none()) {
            return self.fault(from, Fault::Invalid, effects);
        }
        if chain == self.ledger.party() {
            self.note_own(entries.last(), effects);
        }
        for entry in in_order_of_proof(entries, self.keeps_own()) {
            if let Err(fault) = self.take_final(entry, effects) {
                self.fault(from, fault, effects);
                break;
            }
        }
        let after = self.next_seq(chain);
        if let Some(peer) = self.mesh.peers.get_mut(&from) {
            peer.knows(chain, after);
            // What it pushes of its own it was not asked for.
            if after > before && (answered || chain != from) {
                peer.pages.served();
            }
            if answered && empty {
                // It said that it had more and has not.
                peer.ahead.remove(&chain);
                peer.pages.failed(self.clock);
            }
        }
        if !empty && after == before {
            self.stalled(from, chain, answered, effects);
        }
        // A push that was of use leaves nothing more to ask for.
        if answered || after == before {
            self.fetch_more(effects);
        }
    }

    fn stalled(&mut self, from: PartyId, chain: PartyId, answered: bool, effects: &mut Effects) {
        let waits: BTreeSet<Dependency> = self.ledger.lattice().missing().take(64).collect();
        if waits.is_empty() {
            // A page that is neither new nor waits: nothing more is to be had from this peer.
            if answered && let Some(peer) = self.mesh.peers.get_mut(&from) {
                peer.ahead.remove(&chain);
            }
            return;
        }
        let until = self.clock.plus_ms(STALLED_MS);
        self.mesh.fetch.rest(chain, until, self.next_seq(chain));
        for dependency in waits {
            if let Dependency::Charter(_) = dependency {
                self.ask_charters(from, effects);
            }
        }
        self.compare_with(from, effects);
    }

    fn take_final(&mut self, entry: FinalEntry, effects: &mut Effects) -> Result<(), Fault> {
        let FinalEntry { bytes, signature, certificate } = entry;
        let command = match certificate {
            None => Command::ReceiveEntry { bytes, signature },
            Some(certificate) => {
                let certificate: Certificate =
                    minicbor::decode(&certificate).map_err(|_| Fault::Malformed)?;
                Command::ReceiveCertified { bytes, signature, certificate }
            }
        };
        match self.decide(&Actor::Node, &command) {
            Ok((events, _)) => {
                self.take(events, effects);
                Ok(())
            }
            Err(rejection) => fault_of(&rejection).map_or(Ok(()), Err),
        }
    }

    pub(super) fn tell_cut(&mut self, to: PartyId, checkpoint: DocumentId, effects: &mut Effects) {
        let Some(cut) = self.ledger.lattice().cut(checkpoint) else { return };
        if !self.may_answer(to, HEAD_BYTES.saturating_mul(cut.len() as u32)) {
            return;
        }
        let slots = cut.iter().map(|slot| WireSlot { chain: slot.chain, seq: slot.seq });
        let slots = slots.take(tirami_proto::CUT_SLOTS_MAX).collect();
        effects.send.push((to, Message::Cut { checkpoint, slots }));
    }

    pub(super) fn take_cut(
        &mut self,
        from: PartyId,
        (entry, slots): (DocumentId, &[WireSlot]),
        effects: &mut Effects,
    ) {
        let slots = slots.iter().map(|slot| Slot { chain: slot.chain, seq: slot.seq }).collect();
        match self.decide(&Actor::Node, &Command::ReceiveCut { entry, slots }) {
            Ok((events, _)) => {
                self.take(events, effects);
                self.mesh.desk.again = true;
            }
            // What the cut covers and is missing here comes first; then it is asked for again.
            Err(Rejection::Cut(CutRejection::NotFinal { .. })) => self.compare_with(from, effects),
            Err(Rejection::Cut(CutRejection::WrongRoot)) => {
                self.fault(from, Fault::Invalid, effects);
            }
            Err(_) => {}
        }
    }

    /// Gives up on pages that do not come, and compares with peers from time to time.
    pub(super) fn beat_sync(&mut self, now: Timestamp, effects: &mut Effects) {
        for from in self.beat_fetch(now) {
            self.compare_with(from, effects);
        }
        let doubted = |peer: &Peer| peer.doubts_at.is_some_and(|at| now >= at.plus_ms(DOUBT_MS));
        let doubted = self.mesh.peers.iter().filter(|(_, peer)| doubted(peer));
        for from in doubted.map(|(party, _)| *party).collect::<Vec<_>>() {
            self.ask_heads(from, effects);
        }
        let open = self.mesh.peers.iter().filter(|(_, peer)| peer.is_open() && !peer.keeps_own);
        let told: Vec<_> = open.map(|(to, peer)| (peer.summary_at, *to)).collect();
        let latest = told.iter().filter_map(|(last, _)| *last).max();
        // Of few peers each hears all news anyway.
        let many = told.len() > NEWS_PEERS_MAX;
        let quiet = many && latest.is_none_or(|last| now >= last.plus_ms(SUMMARY_ANY_MS));
        let oldest = told.iter().min().filter(|_| quiet).map(|(_, to)| *to);
        for (last, to) in told {
            let due = last.is_none_or(|last| now >= last.plus_ms(SUMMARY_EVERY_MS));
            if (due && (!many || self.is_witness(to))) || Some(to) == oldest {
                self.send_summary(to, effects);
            }
        }
        self.fetch_more(effects);
    }

    /// Tells some peers which chains went on, so that they fetch what they lack.
    /// Those that keep only some chains ask for themselves.
    pub(super) fn flush_heads(&mut self, peers: &[PartyId], effects: &mut Effects) {
        let news = core::mem::take(&mut self.mesh.news);
        if news.is_empty() {
            return;
        }
        let lattice = self.ledger.lattice();
        for to in peers {
            let Some(peer) = self.mesh.peers.get_mut(to) else { continue };
            if peer.keeps_own {
                continue;
            }
            let mut buckets = BTreeMap::<u8, Vec<Head>>::new();
            for (chain, source) in &news {
                let Some(known) = lattice.chain(*chain) else { continue };
                let (next_seq, Some(head)) = (known.next_seq(), known.head()) else { continue };
                let told = peer.told.get(chain).is_some_and(|told| *told >= next_seq);
                if told || *source == Some(*to) {
                    continue;
                }
                peer.knows(*chain, next_seq);
                let head = Head { chain: *chain, next_seq, head };
                buckets.entry(bucket_of(*chain)).or_default().push(head);
            }
            let messages =
                buckets.into_iter().map(|(bucket, heads)| Message::Heads { bucket, heads });
            effects.send.extend(messages.map(|message| (*to, message)));
        }
    }

    /// Takes an entry that is not final; says what was wrong with it.
    pub(super) fn take_entry(
        &mut self,
        bytes: Vec<u8>,
        signature: Signature,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let command = Command::ReceiveEntry { bytes, signature };
        let (events, _) = self.decide(&Actor::Node, &command)?;
        self.take(events, effects);
        Ok(())
    }
}

/// A node that does not keep what entries name takes an entry only once it knows of a certificate
/// that stands for it: of each run that ends with one, the last entry comes first.
fn in_order_of_proof(entries: Vec<FinalEntry>, proof_first: bool) -> Vec<FinalEntry> {
    if !proof_first {
        return entries;
    }
    let (mut ordered, mut run) = (Vec::with_capacity(entries.len()), Vec::new());
    for entry in entries {
        let is_proof = entry.certificate.is_some();
        run.push(entry);
        if is_proof {
            ordered.extend(run.drain(..).rev());
        }
    }
    ordered
}

/// The slot of an entry of `chain`; none for another chain's.
fn seq_of(chain: PartyId, entry: Option<&FinalEntry>) -> Option<u64> {
    let entry = tirami_core::decode_body::<Entry>(&entry?.bytes).ok()?;
    (entry.chain == chain).then_some(entry.seq)
}

/// What a peer is charged for having sent something that was refused.
pub(super) fn fault_of(rejection: &Rejection) -> Option<Fault> {
    match rejection {
        Rejection::Entry(EntryRejection::Key(_) | EntryRejection::BadAcknowledgement { .. }) => {
            Some(Fault::BadSignature)
        }
        Rejection::Entry(refused) if refused.is_peer_fault() => Some(Fault::Invalid),
        _ => None,
    }
}
