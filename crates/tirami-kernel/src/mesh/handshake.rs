//! Connections: hello, admission, welcome, goodbye, and what a peer is charged for misbehaving.

use tirami_core::{PartyId, Timestamp};
use tirami_proto::{
    ADDRESSES_MAX, AGENT_BYTES_MAX, FEATURE_KEEPS_OWN, Fault, Goodbye, GoodbyeCode, Hello, Message,
    PROTOCOL, PROTOCOL_MIN, PeerAddress, Via, Welcome, admission_fits, admission_proof,
    common_version,
};

use super::proofs::PROOFS_AGAIN_MS;
use super::{FEATURES, FIRST_PEERS, PEERS_MAX, Peer, PeerEvent, SCORES_MAX, STRANGERS_MAX};
use crate::kernel::{Effects, Kernel};

/// How long a new connection has until both sides accepted each other.
pub(super) const HANDSHAKE_MS: u64 = 5_000;
/// When a peer that was one too many may come back.
const FULL_RETRY_MS: u64 = 60_000;

/// What this node makes of a party before it says a word, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It misbehaved and is refused for so many more milliseconds.
    Refused(u64),
    /// Nothing is known of it.
    Stranger,
    /// It belongs to the mesh, or the owner named it.
    Member,
    /// A witness, or a party the owner trusts: without it little goes on.
    Needed,
}

impl Kernel {
    /// What this node makes of a party that connects, by the key which the connection proved.
    pub fn standing(&self, party: PartyId, now: Timestamp) -> Standing {
        if let Some(left_ms) = self.mesh.refused_ms(party, now) {
            Standing::Refused(left_ms)
        } else if self.is_witness(party) || self.is_trusted(party) {
            Standing::Needed
        } else if self.is_known(party) {
            Standing::Member
        } else {
            Standing::Stranger
        }
    }

    pub(crate) fn peer_event(&mut self, from: PartyId, event: PeerEvent, effects: &mut Effects) {
        if from == self.ledger.party() {
            let goodbye = goodbye(GoodbyeCode::Other, "this is the node itself", 0);
            effects.disconnect.push((from, goodbye));
            return;
        }
        match event {
            PeerEvent::Connected { outgoing, address } => {
                self.connected(from, outgoing, address, effects);
            }
            PeerEvent::Message(message) => self.message(from, *message, effects),
            PeerEvent::Malformed => self.fault(from, Fault::Malformed, effects),
            PeerEvent::Disconnected => {
                self.mesh.addresses.lost(from, self.clock);
                self.drop_peer(from);
            }
        }
    }

    fn connected(
        &mut self,
        from: PartyId,
        outgoing: bool,
        address: Option<String>,
        effects: &mut Effects,
    ) {
        self.drop_peer(from);
        if let Some(left_ms) = self.mesh.scores.get(&from).and_then(|s| s.refused_ms(self.clock)) {
            let reason = "too much of what this peer sent was invalid; it is refused for a while";
            self.send_away(from, goodbye(GoodbyeCode::Misbehaved, reason, left_ms), effects);
            return;
        }
        if let Err(goodbye) = self.has_room(from) {
            self.send_away(from, goodbye, effects);
            return;
        }
        self.mesh.peers.insert(from, Peer::new(self.clock, outgoing, address));
        let hello = self.hello(from);
        effects.send.push((from, Message::Hello(hello)));
    }

    fn hello(&self, to: PartyId) -> Hello {
        let (mesh, settings) = (self.ledger.lattice().mesh(), &self.mesh.settings);
        let proof = |secret| admission_proof(secret, mesh, self.ledger.party(), to);
        let mut agent = settings.agent.clone();
        while agent.len() > AGENT_BYTES_MAX {
            agent.pop();
        }
        Hello {
            protocol_min: PROTOCOL_MIN,
            protocol: PROTOCOL,
            features: self.features(),
            mesh,
            charter_version: self.ledger.lattice().charter().version,
            admission: settings.secret.as_ref().map(proof),
            addresses: settings.addresses.iter().take(ADDRESSES_MAX).cloned().collect(),
            agent,
        }
    }

    /// Whether the owner trusts the party: it is always let in, may see requests that ask for
    /// trusted providers, and need not earn its exposure.
    pub fn is_trusted(&self, party: PartyId) -> bool {
        self.ledger.book().serving().trusted.contains(&party)
    }

    /// Whether the owner wants nothing to do with the party.
    pub(super) fn is_blocked(&self, party: PartyId) -> bool {
        self.ledger.book().serving().blocked.contains(&party)
    }

    fn has_room(&self, from: PartyId) -> Result<(), Goodbye> {
        let full = self.mesh.peers.len() >= PEERS_MAX;
        if full && !self.is_witness(from) && !self.is_trusted(from) {
            let reason = "this node has as many peers as it can hold; try another one";
            return Err(goodbye(GoodbyeCode::TooMany, reason, FULL_RETRY_MS));
        }
        Ok(())
    }

    /// Everything a peer sends. Before both sides accepted each other only the first words count.
    fn message(&mut self, from: PartyId, message: Message, effects: &mut Effects) {
        let now = self.clock;
        let Some(peer) = self.mesh.peers.get_mut(&from) else {
            // It was shown the door and the node has not closed it yet.
            return;
        };
        if peer.frames.take(1, now).is_err() {
            self.fault(from, Fault::TooFast, effects);
            return;
        }
        let (accepted, is_open) = (peer.hello.is_some(), peer.is_open());
        match message {
            Message::Hello(hello) if !accepted => self.take_hello(from, hello, effects),
            // Once is enough: the answer may be large.
            Message::Hello(_) => self.fault(from, Fault::Unasked, effects),
            Message::Welcome(welcome) => self.take_welcome(from, welcome, effects),
            Message::Goodbye(goodbye) => {
                self.mesh.addresses.refused(from, &goodbye, now);
                // A newcomer that only came for the charter goes to start with it.
                if is_open || goodbye.code != GoodbyeCode::Stopping {
                    self.mesh.farewells.note(from, true, &goodbye, now);
                }
                self.drop_peer(from);
                effects.disconnect.push((from, self::goodbye(GoodbyeCode::Other, "", 0)));
            }
            _ if !accepted => self.fault(from, Fault::Unasked, effects),
            message => {
                self.mesh.source = Some(from);
                self.open_message(from, message, effects);
                // What the message led to is told to everybody but its sender.
                self.settle_news(effects);
                (self.mesh.source, self.mesh.offering) = (None, None);
            }
        }
    }

    fn take_hello(&mut self, from: PartyId, hello: Hello, effects: &mut Effects) {
        let protocol = match self.judge(from, &hello) {
            Ok(protocol) => protocol,
            Err(goodbye) => return self.send_away(from, goodbye, effects),
        };
        let invited = self.shows_secret(from, &hello);
        let charters = self.charters_after(hello.charter_version);
        let theirs = hello.charter_version;
        let features = hello.features & FEATURES;
        let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
        let your_address = peer.address.clone();
        (peer.protocol, peer.invited) = (protocol, invited);
        peer.keeps_own = hello.features & FEATURE_KEEPS_OWN != 0;
        let via: Vec<Via> = hello.addresses.iter().filter_map(|via| via.parse().ok()).collect();
        let seen = your_address.iter().filter_map(|via| via.parse().ok());
        peer.hello = Some(hello);
        let mut via = self.ways_told(from, via.into_iter());
        via.extend(seen);
        let address = PeerAddress { key: from.into(), via };
        self.mesh.addresses.add(self.ledger.party(), &address, false);
        let welcome = Welcome { protocol, features, charters, your_address };
        effects.send.push((from, Message::Welcome(welcome)));
        if theirs > self.ledger.lattice().charter().version {
            self.ask_charters(from, effects);
        }
        if invited {
            self.enrol(from, effects);
        }
        self.opened(from, effects);
    }

    fn take_welcome(&mut self, from: PartyId, welcome: Welcome, effects: &mut Effects) {
        if !(PROTOCOL_MIN..=PROTOCOL).contains(&welcome.protocol) {
            self.fault(from, Fault::Invalid, effects);
            return;
        }
        let Some(peer) = self.mesh.peers.get_mut(&from) else { return };
        if peer.welcomed {
            return;
        }
        peer.welcomed = true;
        self.take_charters(from, &welcome.charters, effects);
        self.opened(from, effects);
    }

    /// Whether the peer may stay, and the protocol version to speak with it.
    fn judge(&self, from: PartyId, hello: &Hello) -> Result<u16, Goodbye> {
        let settings = &self.mesh.settings;
        if self.is_blocked(from) {
            let reason = "the owner of this node does not want this peer";
            return Err(goodbye(GoodbyeCode::Blocked, reason, 0));
        }
        let Some(protocol) = common_version(hello) else {
            let reason = format!(
                "this node speaks protocol {PROTOCOL_MIN} to {PROTOCOL}, the peer {} to {}; \
                 upgrade the older one",
                hello.protocol_min, hello.protocol
            );
            return Err(goodbye(GoodbyeCode::Version, &reason, 0));
        };
        let mesh = self.ledger.lattice().mesh();
        if hello.mesh != mesh {
            let reason = "this node belongs to another mesh; join with an invite of this one";
            return Err(goodbye(GoodbyeCode::WrongMesh, reason, 0));
        }
        let known = self.is_known(from) || self.shows_secret(from, hello);
        if !known && !settings.public {
            let reason = "this mesh is private; join it with an invite of a member";
            return Err(goodbye(GoodbyeCode::NotAdmitted, reason, 0));
        }
        let strangers = || {
            let open = self.mesh.peers.iter().filter(|(_, peer)| peer.hello.is_some());
            open.filter(|(party, _)| !self.is_known(**party)).count()
        };
        if !known && strangers() >= STRANGERS_MAX {
            let reason = "this node has as many unknown peers as it can hold; try another one";
            return Err(goodbye(GoodbyeCode::TooMany, reason, FULL_RETRY_MS));
        }
        Ok(protocol)
    }

    fn shows_secret(&self, from: PartyId, hello: &Hello) -> bool {
        let (Some(secret), Some(shown)) = (&self.mesh.settings.secret, &hello.admission) else {
            return false;
        };
        let mesh = self.ledger.lattice().mesh();
        admission_fits(shown, secret, mesh, from, self.ledger.party())
    }

    /// Whether the party belongs here without showing the secret again.
    pub(super) fn is_known(&self, party: PartyId) -> bool {
        self.is_trusted(party)
            || self.mesh.addresses.is_pinned(party)
            || self.is_witness(party)
            || self.enrolment(party).is_some()
            || self.ledger.lattice().chain(party).is_some_and(|chain| {
                // In a public mesh everybody can open a chain.
                !self.mesh.settings.public || !chain.line().is_zero()
            })
    }

    /// Once both sides accepted each other: compare what they hold, and ask what is needed.
    fn opened(&mut self, from: PartyId, effects: &mut Effects) {
        if !self.mesh.is_open(from) {
            return;
        }
        self.mesh.addresses.reached(from);
        self.mesh.returned(from);
        self.compare_with(from, effects);
        self.ask_highest(from, effects);
        self.offer_entries(false, effects);
        self.tell_claims(from, effects);
        self.tell_proofs(from, effects);
        if let Some(peer) = self.mesh.peers.get_mut(&from) {
            peer.proofs_again_at = Some(self.clock.plus_ms(PROOFS_AGAIN_MS));
        }
        self.tell_signal(from, effects);
        self.tell_proposals(from, effects);
        if self.mesh.open_peers().len() <= FIRST_PEERS {
            self.ask_peers(from, effects);
        }
    }

    /// Whether a peer's question may be answered with about so many bytes: a question costs its
    /// asker little and this node much. Who asks too much is not answered and asks again.
    pub(super) fn may_answer(&mut self, to: PartyId, bytes: u32) -> bool {
        let now = self.clock;
        let peer = self.mesh.peers.get_mut(&to);
        peer.is_some_and(|peer| peer.answers.take(bytes, now).is_ok())
    }

    /// Records a fault of a peer. One fault too many and it has to go for a while.
    pub(super) fn fault(&mut self, from: PartyId, fault: Fault, effects: &mut Effects) {
        let now = self.clock;
        let scores = &mut self.mesh.scores;
        if scores.len() >= SCORES_MAX && !scores.contains_key(&from) {
            scores.retain(|_, score| !score.is_clean(now));
            if scores.len() >= SCORES_MAX {
                scores.pop_first();
            }
        }
        self.mesh.faults = self.mesh.faults.saturating_add(1);
        let score = self.mesh.scores.entry(from).or_default();
        if score.fault(fault, now) {
            let left_ms = score.refused_ms(now).unwrap_or_default();
            let reason = "too much of what this peer sent was invalid; it is refused for a while";
            self.send_away(from, goodbye(GoodbyeCode::Misbehaved, reason, left_ms), effects);
        }
    }

    /// Ends the connection to a peer with a word, and keeps it for the owner.
    pub(super) fn send_away(&mut self, from: PartyId, goodbye: Goodbye, effects: &mut Effects) {
        self.mesh.farewells.note(from, false, &goodbye, self.clock);
        self.drop_peer(from);
        effects.disconnect.push((from, goodbye));
    }

    /// Of the ways a peer tells of, those worth dialling: an address inside a machine means
    /// another machine to everybody else, so it counts only from a peer on this one.
    pub(super) fn ways_told(&self, from: PartyId, via: impl Iterator<Item = Via>) -> Vec<Via> {
        let seen = self.mesh.peers.get(&from).and_then(|peer| peer.address.as_deref());
        let inside = |via: &Via| matches!(via, Via::Ip(address) if address.ip().is_loopback());
        let is_here = seen.is_none_or(|seen| seen.parse().is_ok_and(|via| inside(&via)));
        via.filter(|via| is_here || !inside(via)).collect()
    }

    pub(super) fn drop_peer(&mut self, from: PartyId) {
        if let Some(peer) = self.mesh.peers.remove(&from) {
            if peer.ahead.is_empty() && self.is_witness(from) {
                self.mesh.fetch.keep_level(peer.synced_at);
            }
            self.mesh.fetch.lost(from);
            self.mesh.lost(from, self.clock);
        }
    }

    /// Ends connections on which nobody said hello.
    pub(super) fn end_handshakes(&mut self, now: Timestamp, effects: &mut Effects) {
        let peers = self.mesh.peers.iter();
        let late =
            peers.filter(|(_, peer)| !peer.is_open() && now >= peer.since.plus_ms(HANDSHAKE_MS));
        let late: Vec<PartyId> = late.map(|(party, _)| *party).collect();
        for party in late {
            let reason = "the peer did not introduce itself in time";
            self.send_away(party, goodbye(GoodbyeCode::Other, reason, 0), effects);
        }
    }
}

pub(super) fn goodbye(code: GoodbyeCode, reason: &str, retry_after_ms: u64) -> Goodbye {
    Goodbye { code, reason: reason.to_owned(), retry_after_ms }
}
