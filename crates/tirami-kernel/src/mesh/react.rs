//! What the mesh does about events of its own ledger, messages of open peers, and time.

use std::collections::BTreeSet;

use tirami_core::{PartyId, Timestamp};
use tirami_ledger::event::{BookEvent, Event};
use tirami_ledger::lattice::{Change, Entry, EntryKind, LatticeEvent, SignedEntry};
use tirami_proto::{FinalEntry, Message, PEERS_PER_FRAME_MAX, PeerAddress};

use super::{BEAT_MS, MeshInput, PEERS_ASK_MS, PEERS_TARGET};
use crate::kernel::{Effects, Kernel};

/// Bytes of addresses in one answer.
const PEERS_BYTES_MAX: usize = 32 * 1024;

/// What events of one input call for, once all of them are applied.
#[derive(Default)]
struct Calls {
    /// Own final entries, to be pushed.
    own: Vec<FinalEntry>,
    /// Final entries that contradict others, to be pushed whoever wrote them.
    rivals: Vec<(PartyId, FinalEntry)>,
    double_signed: Vec<SignedEntry>,
    finals: bool,
    own_pending: bool,
    proposed: bool,
    adopted: bool,
}

impl Kernel {
    pub(crate) fn mesh_input(&mut self, input: MeshInput, effects: &mut Effects) {
        let own = self.ledger.party();
        match input {
            MeshInput::Settings(settings) => {
                for address in &settings.bootstrap {
                    self.mesh.addresses.add(own, address, true);
                }
                self.ledger.set_keep(settings.keep);
                self.mesh.settings = settings;
                self.mesh.beat_at = Some(self.clock);
            }
            MeshInput::Offer(offer) => {
                self.set_offer(offer);
                self.renew_signal();
            }
            MeshInput::Observed(observation) => {
                self.mesh.opinions.observe(&observation, self.clock);
            }
            MeshInput::Worked { sponsor, challenge, nonce } => {
                self.worked((sponsor, challenge), nonce, effects);
            }
            MeshInput::Offended { peer, fault } => self.fault(peer, fault, effects),
            MeshInput::FirstContact(party) => self.first_contact(party, effects),
            MeshInput::AddPeer(address) => {
                self.mesh.addresses.add(own, &address, true);
                self.mesh.beat_at = Some(self.clock);
            }
            MeshInput::Found(address) => {
                self.mesh.addresses.add(own, &address, false);
                self.mesh.addresses.seen(address.party(), self.clock);
                self.mesh.beat_at = Some(self.clock);
            }
        }
    }

    fn end_blocked(&mut self, effects: &mut Effects) {
        let peers = self.mesh.peers.keys().copied();
        let blocked: Vec<PartyId> = peers.filter(|party| self.is_blocked(*party)).collect();
        for party in blocked {
            let reason = "the owner of this node does not want this peer";
            let code = tirami_proto::GoodbyeCode::Blocked;
            self.send_away(party, super::handshake::goodbye(code, reason, 0), effects);
        }
    }

    /// A message of a peer that was accepted.
    pub(super) fn open_message(&mut self, from: PartyId, message: Message, effects: &mut Effects) {
        match message {
            Message::Entry(entry) => self.take_offer(from, entry, effects),
            Message::Acknowledgement(bytes) => self.take_acknowledgement(from, &bytes, effects),
            Message::EntryRefused { code, .. } => self.take_refusal(from, &code, effects),
            Message::Finals { chain, entries, .. } => {
                self.take_finals(from, (chain, entries), effects);
            }
            Message::Summary { state, buckets } => {
                self.take_summary(from, (state, &buckets), effects);
            }
            Message::WantHeads { bucket } => self.tell_heads(from, bucket, effects),
            Message::Heads { heads, .. } => self.take_heads(from, &heads, effects),
            Message::WantRange { chain, from_seq, max } => {
                self.want_range(from, (chain, from_seq, max), effects);
            }
            Message::WantCut { checkpoint } => self.tell_cut(from, checkpoint, effects),
            Message::Cut { checkpoint, slots } => {
                self.take_cut(from, (checkpoint, &slots), effects)
            }
            Message::WantCharters { after_version } => {
                self.tell_charters(from, after_version, effects);
            }
            Message::Charters { charters } => self.take_charters(from, &charters, effects),
            Message::CharterProposal { bytes } => self.take_draft(from, bytes, effects),
            Message::CharterApproval { bytes } => self.take_approval(from, &bytes, effects),
            Message::WantHighest { chain } => self.tell_highest(from, chain, effects),
            Message::Highest { chain, next_seq, entry } => {
                self.take_highest(from, (chain, next_seq, entry), effects);
            }
            Message::Claim(claim) => self.take_claim(from, claim, effects),
            Message::DoubleSign { first, second } => {
                self.take_proof(from, [first, second], effects);
            }
            Message::Announce(documents) => self.take_announcements(from, &documents, effects),
            Message::WantPeers => {
                self.tell_peers(from, effects);
                self.tell_signals(from, effects);
            }
            Message::WantSponsor => self.tell_task(from, effects),
            Message::SponsorTask { challenge, bits } => {
                self.take_task(from, (challenge, bits), effects);
            }
            Message::SponsorProof { challenge, nonce } => {
                self.take_sponsor_proof(from, (challenge, nonce), effects);
            }
            Message::SponsorRefused { reason, .. } => self.take_sponsor_refusal(from, reason),
            Message::Peers(peers) => self.take_peers(from, &peers),
            Message::Opinions(said) => self.mesh.opinions.hear(from, said, self.clock),
            message => self.kept_message(from, message, effects),
        }
    }

    /// What nodes say to each other that do not all keep all chains.
    fn kept_message(&mut self, from: PartyId, message: Message, effects: &mut Effects) {
        match message {
            Message::Kept { number, heads } => self.tell_beyond(from, (number, &heads), effects),
            Message::Beyond { number, heads } => self.take_beyond(from, (number, &heads), effects),
            Message::WantPlaces { entries } => self.tell_places(from, &entries, effects),
            Message::WantMine { after } => self.tell_mine(from, after, effects),
            Message::Places { places, more } => self.take_places(from, (&places, more), effects),
            // Handled before, or when a peer is not open yet.
            _ => {}
        }
    }

    /// Reacts to all events of this input so far, and to the events that leads to.
    pub(crate) fn settle_news(&mut self, effects: &mut Effects) {
        while self.mesh.seen < effects.append.len() {
            let mut calls = Calls::default();
            // Events are looked at one by one: reacting appends more of them.
            while let Some(event) = effects.append.get(self.mesh.seen) {
                self.mesh.seen += 1;
                match event {
                    Event::Lattice(event) => self.note_event(event, &mut calls),
                    Event::Book(BookEvent::ClaimMade { job, .. }) => {
                        let job = *job;
                        self.claim_made(job, effects);
                    }
                    Event::Book(BookEvent::ServingSet(_)) => self.end_blocked(effects),
                    Event::Book(event) => {
                        self.follow_trade(event);
                        if let Some(trade) = super::reciprocity::traded(event) {
                            self.mesh.opinions.observe(&trade, self.clock);
                        }
                    }
                    _ => {}
                }
            }
            self.answer_calls(calls, effects);
        }
    }

    fn note_event(&mut self, event: &LatticeEvent, calls: &mut Calls) {
        let own = self.ledger.party();
        match event {
            LatticeEvent::EntryFinal { entry, effect, certificate, .. } => {
                calls.finals = true;
                if let Change::Sponsored { newcomer, .. } = effect.change
                    && newcomer == own
                {
                    self.mesh.roll.sponsored(entry.id());
                }
                let chain = entry.entry().chain;
                self.mesh.held.went_on(chain);
                let lattice = self.ledger.lattice();
                if let Some(lock) = lattice.unseen_lock(chain).filter(|_| entry.entry().seq == 0) {
                    self.mesh.kept.wants_lock(lock);
                }
                let frozen = lattice.chain(chain).is_some_and(|known| known.frozen().is_some());
                if self.mesh.peers.is_empty() {
                    return;
                }
                if chain == own || frozen {
                    let certificate = certificate.as_ref();
                    let certificate = certificate.and_then(|c| minicbor::to_vec(c).ok());
                    let (bytes, signature) = (entry.bytes().to_vec(), entry.signature());
                    let last = FinalEntry { bytes, signature, certificate };
                    if !frozen {
                        calls.own.push(last);
                    } else if last.certificate.is_some() {
                        calls.rivals.push((chain, last));
                    }
                } else if !self.keeps_own() {
                    self.mesh.news.insert(chain, self.mesh.source);
                    self.mesh.flush_soon(self.clock);
                }
            }
            LatticeEvent::EntryPending { entry, .. } => {
                calls.own_pending |= entry.entry().chain == own;
            }
            LatticeEvent::DoubleSigned { rival, .. } => calls.double_signed.push(rival.clone()),
            LatticeEvent::Parked { parked } => {
                let source = self.mesh.reparked.take().or(self.mesh.offering);
                self.mesh.desk.parked(parked.number, source);
            }
            LatticeEvent::Unparked { number } => {
                self.mesh.reparked = self.mesh.desk.unparked(*number);
            }
            LatticeEvent::CharterProposed { .. } => calls.proposed = true,
            LatticeEvent::CharterAdopted { .. } => calls.adopted = true,
            _ => {}
        }
        if !matches!(event, LatticeEvent::Unparked { .. }) {
            self.mesh.reparked = None;
        }
    }

    fn answer_calls(&mut self, calls: Calls, effects: &mut Effects) {
        if calls.adopted {
            self.charter_adopted(effects);
        }
        if calls.proposed {
            self.spread_proposals(effects);
        }
        self.push_finals(calls.own, effects);
        for (chain, last) in calls.rivals {
            for to in self.mesh.others() {
                let (entries, more) = (vec![last.clone()], false);
                effects.send.push((to, Message::Finals { chain, entries, more }));
            }
        }
        for rival in calls.double_signed {
            self.spread_proof(&rival, effects);
        }
        if calls.own_pending {
            self.offer_entries(false, effects);
        }
        if calls.finals {
            self.remember_buckets();
            self.mesh.desk.again = true;
            self.offer_entries(false, effects);
            self.acknowledge_waiting(effects);
            self.ask_locks(effects);
            self.join(effects);
        }
    }

    /// Own entries that became final go to every peer at once, up to the last certificate; to one
    /// that keeps only some chains where they concern it. It asks for what else it follows, and of
    /// what did not reach a witness the witness learns by this node's questions.
    fn push_finals(&mut self, mut entries: Vec<FinalEntry>, effects: &mut Effects) {
        let certified = entries.iter().rposition(|entry| entry.certificate.is_some());
        entries.truncate(certified.map_or(0, |last| last + 1));
        if entries.is_empty() {
            return;
        }
        let (chain, next_seq) = (self.ledger.party(), self.next_seq(self.ledger.party()));
        // Everybody keeps the chains of offices.
        let is_office = self.ledger.lattice().offices().contains(&chain);
        let concerned: BTreeSet<PartyId> = entries.iter().filter_map(concerned).collect();
        for to in self.mesh.others() {
            let Some(peer) = self.mesh.peers.get_mut(&to) else { continue };
            if peer.keeps_own && !is_office && !concerned.contains(&to) {
                continue;
            }
            peer.knows(chain, next_seq);
            for page in pages(&entries) {
                let (entries, more) = (page.to_vec(), false);
                effects.send.push((to, Message::Finals { chain, entries, more }));
            }
        }
        // Peers that had no connection when it became final hear of it by their peers' heads.
        self.mesh.news.insert(chain, self.mesh.source);
        self.mesh.flush_soon(self.clock);
    }

    pub(super) fn ask_peers(&mut self, from: PartyId, effects: &mut Effects) {
        let now = self.clock;
        let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
        (peer.peers_asked_at, peer.peers_due) = (Some(now), true);
        effects.send.push((from, Message::WantPeers));
    }

    fn tell_peers(&mut self, to: PartyId, effects: &mut Effects) {
        if !self.may_answer(to, PEERS_BYTES_MAX as u32) {
            return;
        }
        // Witnesses come first: everybody needs them.
        let (witnesses, others): (Vec<PartyId>, Vec<PartyId>) =
            self.mesh.open_peers().into_iter().partition(|party| self.is_witness(*party));
        let open = witnesses.into_iter().chain(others).filter(|party| *party != to);
        let known = open.filter_map(|party| self.mesh.addresses.get(party));
        let with_ways = known.filter(|address| !address.via.is_empty()).cloned();
        let mut peers: Vec<PeerAddress> = with_ways.take(PEERS_PER_FRAME_MAX).collect();
        // As many as fit a frame whatever their addresses look like.
        let mut bytes = 0;
        peers.retain(|address| {
            bytes += 64 + address.to_string().len();
            bytes <= PEERS_BYTES_MAX
        });
        effects.send.push((to, Message::Peers(peers)));
    }

    /// Takes one answer to each question: whoever is not asked would fill the address book.
    fn take_peers(&mut self, from: PartyId, peers: &[PeerAddress]) {
        let peer = self.mesh.peers.get_mut(&from);
        let is_due = peer.is_some_and(|peer| core::mem::take(&mut peer.peers_due));
        if !is_due {
            return;
        }
        for PeerAddress { key, via } in peers {
            let address = PeerAddress { key: *key, via: self.ways_told(from, via.iter().cloned()) };
            self.mesh.addresses.add(self.ledger.party(), &address, false);
        }
    }

    /// What comes with time: dialling, asking again, renewing, forgetting.
    pub(crate) fn beat(&mut self, effects: &mut Effects) {
        let now = self.clock;
        if self.mesh.flush_at.is_some_and(|at| at <= now) {
            self.mesh.flush_at = None;
            let own = self.ledger.party();
            let keep_all = |peer: &super::Peer| !peer.keeps_own;
            let peers = self.mesh.news_peers(own, keep_all);
            self.flush_heads(&peers, effects);
            let peers = self.mesh.news_peers(own, |_| true);
            self.flush_signals(&peers, effects);
        }
        if self.mesh_beat_at().is_none_or(|at| at > now) {
            return;
        }
        self.mesh.beat_at = Some(now.plus_ms(BEAT_MS));
        self.end_handshakes(now, effects);
        self.expire_signals(now);
        self.forget_drafts();
        self.renew_signal();
        self.beat_start(effects);
        self.beat_lag(now);
        self.beat_sync(now, effects);
        self.beat_kept(now, effects);
        self.beat_witness(effects);
        self.beat_roll(effects);
        self.beat_faucet(now, effects);
        self.beat_claims(effects);
        self.beat_proofs(now, effects);
        self.beat_welcome(effects);
        self.tell_opinions(now, effects);
        self.dial(now, effects);
        self.settle_news(effects);
    }

    /// When something of the mesh is due.
    pub(crate) fn mesh_due(&self) -> Option<Timestamp> {
        [self.mesh_beat_at(), self.mesh.flush_at].into_iter().flatten().min()
    }

    /// When the next beat is due; never while the node is alone.
    fn mesh_beat_at(&self) -> Option<Timestamp> {
        let mesh = &self.mesh;
        let alone = mesh.peers.is_empty() && mesh.addresses.is_empty();
        if alone && !self.ledger.lattice().is_asking() {
            return None;
        }
        Some(mesh.beat_at.unwrap_or(self.clock))
    }

    fn dial(&mut self, now: Timestamp, effects: &mut Effects) {
        let (own, key) = (self.ledger.party(), self.keys.node.public());
        let witnesses = self.ledger.lattice().charter().witnesses.clone();
        self.mesh.addresses.keep(witnesses.iter().map(|witness| witness.party()));
        for witness in witnesses {
            if witness != key && self.mesh.addresses.get(witness.party()).is_none() {
                let address = PeerAddress { key: witness, via: Vec::new() };
                self.mesh.addresses.add(own, &address, false);
            }
        }
        let providers = self.mesh.serving_parties(own, now);
        let peers = &self.mesh.peers;
        let wanted = PEERS_TARGET.saturating_sub(peers.len());
        let blocked = &self.ledger.book().serving().blocked;
        let witnesses = &self.ledger.lattice().charter().witnesses;
        let alone = peers.is_empty();
        let due = self.mesh.addresses.due(
            now,
            wanted,
            |party| peers.contains_key(&party) || blocked.contains(&party),
            |party| {
                let witness = witnesses.iter().any(|key| key.party() == party);
                alone || witness || providers.contains(&party)
            },
        );
        effects.connect.extend(due);
        let lost_witness = witnesses.iter().map(|witness| witness.party()).any(|party| {
            let known = self.mesh.addresses.get(party);
            !peers.contains_key(&party) && known.is_some_and(|address| address.via.is_empty())
        });
        let asks = self.mesh.open_peers().into_iter().filter(|party| {
            let asked = self.mesh.peers.get(party).and_then(|peer| peer.peers_asked_at);
            asked.is_none_or(|at| now >= at.plus_ms(PEERS_ASK_MS))
        });
        if (wanted > 0 || lost_witness)
            && let Some(from) = asks.into_iter().next()
        {
            self.ask_peers(from, effects);
        }
    }
}

/// The party besides its author that an entry is about.
fn concerned(entry: &FinalEntry) -> Option<PartyId> {
    match tirami_core::decode_body::<Entry>(&entry.bytes).ok()?.kind {
        EntryKind::Pay(pay) => Some(pay.payee),
        EntryKind::Transfer(transfer) => Some(transfer.payee),
        EntryKind::Sponsor(sponsor) => Some(sponsor.newcomer),
        _ => None,
    }
}

/// Runs of entries that fit one frame, each ending with a certificate.
fn pages(entries: &[FinalEntry]) -> Vec<&[FinalEntry]> {
    const FRAME_BYTES: usize = tirami_proto::CONTROL_FRAME_BYTES_MAX / 2;
    let (mut pages, mut start, mut end, mut bytes) = (Vec::new(), 0, 0, 0);
    for (index, entry) in entries.iter().enumerate() {
        bytes += entry.wire_bytes();
        let full = bytes > FRAME_BYTES || index - start >= tirami_proto::FINALS_PER_FRAME_MAX;
        if full && end > start {
            pages.push(&entries[start..end]);
            bytes = entries[end..=index].iter().map(FinalEntry::wire_bytes).sum();
            start = end;
        }
        if entry.certificate.is_some() {
            end = index + 1;
        }
    }
    pages.push(&entries[start..end]);
    pages
}
