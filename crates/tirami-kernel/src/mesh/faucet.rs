//! Welcome lines for newcomers that nobody knows. A node whose owner opened its faucet sponsors
//! whoever shows work, within a day's limit and so many from one place; a newcomer without a line
//! asks its peers one after another.
//!
//! The sponsor keeps nothing for a newcomer that only asks: the challenge follows from its own key,
//! the newcomer's and the time.

use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;

use tirami_core::{Digest, MINUTE_MS, PartyId, Timestamp, Trm};
use tirami_ledger::Rejection;
use tirami_ledger::command::{Actor, Command, FaucetBounds, SponsorStranger};
use tirami_ledger::refusal::FaucetRefusal;
use tirami_proto::{Fault, Message, WORK_BITS_MAX, Work};

use super::{Mesh, PEERS_MAX};
use crate::kernel::{Effects, Kernel};

/// How long a peer is connected before it is asked: the enrolment that comes with an invite is
/// better, and comes by itself.
const ASK_AFTER_MS: u64 = 5_000;
/// When a peer that refused is asked again.
const ASK_AGAIN_MS: u64 = 10 * MINUTE_MS;
/// How long a peer may take to say what work it wants.
const ANSWER_WITHIN_MS: u64 = 10_000;
/// How long the work, and the sponsor's entry after it, may take.
const WORK_WITHIN_MS: u64 = 10 * MINUTE_MS;
/// A challenge is good for the rest of such a time and one more.
const WINDOW_MS: u64 = 10 * MINUTE_MS;
/// What an answer about sponsoring counts as, in bytes: it costs more than it is long.
const ANSWER_BYTES: u32 = 64 * 1024;

/// A faucet as its owner opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faucet {
    /// What is locked for one newcomer; the charter's most when that is less.
    pub amount: Trm,
    /// The work asked for, in bits, at most [`WORK_BITS_MAX`].
    pub work_bits: u8,
    /// What may be given in a day.
    pub bounds: FaucetBounds,
}

/// A newcomer's search for a sponsor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Search {
    /// Peers that were asked lately; at most as many as there are peers.
    asked: BTreeMap<PartyId, Timestamp>,
    with: Option<Talk>,
    /// Who refused last, and why.
    refused: Option<(PartyId, String)>,
}

/// A peer that is asked.
#[derive(Debug, Clone, Copy)]
struct Talk {
    peer: PartyId,
    until: Timestamp,
    challenge: Option<Digest>,
}

impl Mesh {
    /// Whom this node asks for a welcome line now.
    pub fn asks_sponsor(&self) -> Option<PartyId> {
        self.search.with.map(|talk| talk.peer)
    }

    /// Who refused to sponsor this node last, and why.
    pub fn sponsor_refused(&self) -> Option<(PartyId, &str)> {
        self.search.refused.as_ref().map(|(peer, reason)| (*peer, reason.as_str()))
    }
}

/// The newcomer's side.
impl Kernel {
    /// Whether this node has no chain and no way to begin one.
    fn wants_sponsor(&self) -> bool {
        let (own, lattice) = (self.ledger.party(), self.ledger.lattice());
        let charter = lattice.charter();
        !charter.params.welcome.is_zero()
            && charter.registrar != own
            && lattice.chain(own).is_none()
            && lattice.pending_of(own).next().is_none()
            && lattice.missing_own(own) == 0
            && !lattice.is_asking()
            && lattice.grants(own).next().is_none()
    }

    pub(super) fn beat_faucet(&mut self, now: Timestamp, effects: &mut Effects) {
        if !self.wants_sponsor() {
            if self.mesh.search.with.is_some() || !self.mesh.search.asked.is_empty() {
                self.mesh.search = Search::default();
            }
            return;
        }
        let search = &mut self.mesh.search;
        search.asked.retain(|_, at| now < at.plus_ms(ASK_AGAIN_MS));
        if search.with.is_some_and(|talk| now < talk.until) {
            return;
        }
        search.with = None;
        let asked = &search.asked;
        let ready = |since: Timestamp| now >= since.plus_ms(ASK_AFTER_MS);
        let mut open = self.mesh.peers.iter().filter(|(party, peer)| {
            peer.is_open() && ready(peer.since) && !asked.contains_key(*party)
        });
        let Some(peer) = open.next().map(|(party, _)| *party) else { return };
        if self.mesh.search.asked.len() < PEERS_MAX {
            self.mesh.search.asked.insert(peer, now);
            let until = now.plus_ms(ANSWER_WITHIN_MS);
            self.mesh.search.with = Some(Talk { peer, until, challenge: None });
            effects.send.push((peer, Message::WantSponsor));
        }
    }

    pub(super) fn take_task(
        &mut self,
        from: PartyId,
        (challenge, bits): (Digest, u8),
        effects: &mut Effects,
    ) {
        let talk = self.mesh.search.with.filter(|talk| talk.peer == from);
        let Some(talk) = talk.filter(|talk| talk.challenge.is_none()) else {
            return self.fault(from, Fault::Unasked, effects);
        };
        if bits > WORK_BITS_MAX {
            let reason = format!("it wants {bits} bits of work, at most {WORK_BITS_MAX} are done");
            self.mesh.search.refused = Some((from, reason));
            self.mesh.search.with = None;
            return;
        }
        let until = self.clock.plus_ms(WORK_WITHIN_MS);
        self.mesh.search.with = Some(Talk { until, challenge: Some(challenge), ..talk });
        let (mesh, newcomer) = (self.ledger.lattice().mesh(), self.ledger.party());
        effects.work = Some(Work { mesh, sponsor: from, newcomer, challenge, bits });
    }

    /// The work for `sponsor` is done, or was given up.
    pub(crate) fn worked(
        &mut self,
        (sponsor, challenge): (PartyId, Digest),
        nonce: Option<u64>,
        effects: &mut Effects,
    ) {
        let talk = self.mesh.search.with;
        if talk.is_none_or(|talk| talk.peer != sponsor || talk.challenge != Some(challenge)) {
            return;
        }
        match nonce {
            Some(nonce) => {
                effects.send.push((sponsor, Message::SponsorProof { challenge, nonce }));
            }
            None => self.mesh.search.with = None,
        }
    }

    pub(super) fn take_sponsor_refusal(&mut self, from: PartyId, reason: String) {
        let is_asked = self.mesh.search.with.is_some_and(|talk| talk.peer == from);
        if is_asked {
            self.mesh.search.with = None;
        }
        // The registrar tells it unasked whom it does not enrol.
        if is_asked || self.ledger.lattice().charter().registrar == from {
            self.mesh.search.refused = Some((from, reason));
        }
    }
}

/// The sponsor's side.
impl Kernel {
    /// What a newcomer would be given; none while the faucet is shut.
    fn gift(&self, newcomer: PartyId) -> Option<(SponsorStranger, u8)> {
        let faucet = self.mesh.settings.faucet?;
        let address = self.mesh.peers.get(&newcomer).and_then(|peer| peer.address.as_deref());
        let amount = faucet.amount.min(self.ledger.lattice().charter().params.welcome);
        let source = source_of(address);
        let asked = SponsorStranger { newcomer, source, amount, bounds: faucet.bounds };
        Some((asked, faucet.work_bits.min(WORK_BITS_MAX)))
    }

    /// A newcomer asks: it is told the work, or at once why it would do it for nothing.
    pub(super) fn tell_task(&mut self, to: PartyId, effects: &mut Effects) {
        if !self.may_answer(to, ANSWER_BYTES) {
            return;
        }
        let Some((asked, bits)) = self.gift(to) else {
            return refuse(to, &FaucetRefusal::Off.into(), effects);
        };
        match self.ledger.check_stranger(self.clock, &asked) {
            Ok(()) => {
                let challenge = self.challenge(to, self.clock.ms() / WINDOW_MS);
                effects.send.push((to, Message::SponsorTask { challenge, bits }));
            }
            Err(rejection) => refuse(to, &rejection, effects),
        }
    }

    pub(super) fn take_sponsor_proof(
        &mut self,
        from: PartyId,
        (challenge, nonce): (Digest, u64),
        effects: &mut Effects,
    ) {
        if !self.may_answer(from, ANSWER_BYTES) {
            return;
        }
        let Some((asked, bits)) = self.gift(from) else {
            return refuse(from, &FaucetRefusal::Off.into(), effects);
        };
        let window = self.clock.ms() / WINDOW_MS;
        let fresh = [window, window.saturating_sub(1)];
        if !fresh.iter().any(|window| self.challenge(from, *window) == challenge) {
            return refuse(from, &FaucetRefusal::Work.into(), effects);
        }
        let (mesh, sponsor) = (self.ledger.lattice().mesh(), self.ledger.party());
        let work = Work { mesh, sponsor, newcomer: from, challenge, bits };
        if !work.fits(nonce) {
            self.fault(from, Fault::Invalid, effects);
            return;
        }
        match self.decide(&Actor::Node, &Command::SponsorStranger(asked)) {
            Ok((events, _)) => {
                self.take(events, effects);
                // It waits for this entry, although what it said led to it.
                self.mesh.source = None;
            }
            Err(rejection) => refuse(from, &rejection, effects),
        }
    }

    /// Nobody but this node can make it, and nothing has to be kept to know it again.
    fn challenge(&self, newcomer: PartyId, window: u64) -> Digest {
        let mut bytes = b"tirami/faucet-challenge/1".to_vec();
        bytes.extend_from_slice(&self.keys.node.seed());
        bytes.extend_from_slice(self.ledger.lattice().mesh().as_bytes());
        bytes.extend_from_slice(newcomer.as_bytes());
        bytes.extend_from_slice(&window.to_be_bytes());
        Digest::of(&bytes)
    }
}

fn refuse(to: PartyId, rejection: &Rejection, effects: &mut Effects) {
    let code = rejection.code().to_owned();
    let reason = super::witness::sentence(&rejection.to_string());
    effects.send.push((to, Message::SponsorRefused { code, reason }));
}

/// Where a peer comes from, as a number: an IPv4 address, the network of an IPv6 address, or all
/// that come over relays together.
fn source_of(address: Option<&str>) -> u64 {
    let ip = address.and_then(|text| text.parse::<SocketAddr>().ok());
    let bytes = match ip.map(|address| address.ip().to_canonical()) {
        Some(IpAddr::V4(ip)) => ip.octets().to_vec(),
        Some(IpAddr::V6(ip)) => ip.octets().iter().take(8).copied().collect(),
        None => Vec::new(),
    };
    let digest = Digest::of(&bytes);
    digest.as_bytes().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::source_of;

    #[test]
    fn one_address_or_network_is_one_source() {
        let of = |text: &str| source_of(Some(text));
        assert_eq!(of("192.0.2.1:1"), of("192.0.2.1:2"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:7"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:1]:9"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("https://relay.example/"), source_of(None));
    }
}
