//! Claims against silent consumers are published: the witnesses hold back what the debtor signs
//! next, and nobody who knows of one takes its orders (MONEY §8, §9).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tirami_core::{JobId, PartyId, Timestamp, decode_body};
use tirami_ledger::Rejection;
use tirami_ledger::book::{CLAIMED_DOCUMENT_BYTES_MAX, Claimed, DUN_MS, ServedJob};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::documents::{Claim, Order, SignedBytes, Voucher};
use tirami_ledger::refusal::ClaimRefusal;
use tirami_proto::{Fault, Message, WireClaim, WireDocument};

use super::buckets::{Buckets, Rate};
use super::proofs::could_pay;
use crate::kernel::{Effects, Kernel};

/// Claims told to a peer that connects, claims of others kept to be told, and claims that wait to
/// be passed on.
const CLAIMS_MAX: usize = 1_024;
/// Of those of others that are kept, those against one consumer: it signs them for nothing.
const HEARD_PER_CONSUMER_MAX: usize = CLAIMS_MAX / 8;
/// Bytes beside each document of a claim, its signature among them.
const BESIDE_BYTES: usize = 80;
/// Bytes of a claim that is told: of them an honest one has about 600. All that are kept are about
/// 4 MiB, and so are all that wait.
const CLAIM_BYTES_MAX: u32 = 2 * (CLAIMED_DOCUMENT_BYTES_MAX + BESIDE_BYTES) as u32;
/// Bytes of claims told to a peer at once, and of claims passed on to peers between two beats: a
/// peer's queue has room for several times as many.
const CLAIMS_BYTES_MAX: u32 = 256 * 1_024;
/// A claim that lapses sooner is not passed on: it ends before it holds anybody back for long. An
/// honest one is made [`DUN_MS`] before it lapses; half of that is for its way.
const PASSED_ON_MS: u64 = DUN_MS / 2;
/// Claims with something new in them that are taken of one peer, each second in the long run and at
/// once: more in a day than a node notes, and at once what one tells that connects. What a peer
/// claims itself and what it passes on count apart, so that nobody's claims fill the room of
/// another's.
pub const CLAIMS_TAKEN: (u32, u32) = (1, CLAIMS_MAX as u32);
/// The same of a peer whose party is not known to the mesh: keys cost nothing.
const CLAIMS_OF_STRANGER: Rate = (1, 16);

/// What is remembered of claims since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    /// What peers may still claim, by who sends and whether it is the provider itself.
    taken: Buckets<(PartyId, bool)>,
    /// Claims of others that were noted here, as they came.
    heard: BTreeMap<(PartyId, Claimed), WireClaim>,
    /// Peers that connected and were not told everything yet.
    telling: BTreeMap<PartyId, Telling>,
    /// Claims to be passed on, this node's own first, and who told the others.
    news: VecDeque<(WireClaim, Option<PartyId>)>,
    /// Bytes of them passed on since the last beat.
    passed_on: u32,
}

/// How far a peer was told.
#[derive(Debug, Clone, Copy)]
struct Telling {
    last: Option<Place>,
    /// How many more it is told.
    left: usize,
}

/// A claim's place in what a peer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Own(JobId),
    Heard(PartyId, Claimed),
}

impl Kernel {
    /// This node made a claim.
    pub(super) fn claim_made(&mut self, job: JobId, effects: &mut Effects) {
        let served = self.ledger.book().served().get(&job);
        if let Some(claim) = served.and_then(|served| self.standing_claim(served)) {
            self.publish(claim, None, effects);
        }
    }

    /// Tells a peer that connects the claims of this node, and those it heard of, that are neither
    /// paid nor lapsed. Strangers hear only of what comes: they could ask for all by coming again.
    pub(super) fn tell_claims(&mut self, to: PartyId, effects: &mut Effects) {
        if self.is_known(to) {
            let telling = Telling { last: None, left: CLAIMS_MAX };
            self.mesh.claims.telling.insert(to, telling);
            self.tell_more(to, effects);
        }
    }

    /// Goes on with what did not fit before.
    pub(super) fn beat_claims(&mut self, effects: &mut Effects) {
        self.mesh.claims.passed_on = 0;
        self.pass_on(effects);
        let peers: Vec<PartyId> = self.mesh.claims.telling.keys().copied().collect();
        for to in peers {
            self.tell_more(to, effects);
        }
    }

    fn tell_more(&mut self, to: PartyId, effects: &mut Effects) {
        let telling = self.mesh.claims.telling.remove(&to);
        let Some(mut telling) = telling.filter(|_| self.mesh.is_open(to)) else { return };
        let (book, now) = (self.ledger.book(), self.clock);
        let is_next = |place: Place| Some(place) > telling.last;
        let own = book.served().iter().filter(|(_, served)| served.claimed);
        let own = own.map(|(job, served)| (Place::Own(*job), served));
        let own = own.filter(|(place, _)| is_next(*place));
        let own = own.filter_map(|(place, served)| Some((place, self.standing_claim(served)?)));
        let heard = self.mesh.claims.heard.iter();
        let heard = heard.map(|((of, claimed), claim)| (Place::Heard(*of, *claimed), claim));
        let heard = heard.filter(|(place, _)| is_next(*place));
        let heard = heard.filter(|(place, _)| match place {
            Place::Heard(of, claimed) => book.noted_claim(*of, *claimed, now).is_some(),
            Place::Own(_) => false,
        });
        let heard = heard.map(|(place, claim)| (place, claim.clone()));
        let mut bytes = 0_u32;
        let mut share = Vec::new();
        for (place, claim) in own.chain(heard).take(telling.left) {
            if bytes + wire_bytes(&claim) > CLAIMS_BYTES_MAX {
                break;
            }
            bytes += wire_bytes(&claim);
            share.push((place, claim));
        }
        let Some((last, _)) = share.last() else { return };
        let last = *last;
        if self.may_answer(to, bytes) {
            telling = Telling { last: Some(last), left: telling.left.saturating_sub(share.len()) };
            effects.send.extend(share.into_iter().map(|(_, claim)| (to, Message::Claim(claim))));
        }
        self.mesh.claims.telling.insert(to, telling);
    }

    pub(super) fn take_claim(&mut self, from: PartyId, claim: WireClaim, effects: &mut Effects) {
        let order = decode_body::<Order>(&claim.order.bytes);
        let (Ok(order), Ok(voucher)) = (order, decode_body::<Voucher>(&claim.voucher.bytes)) else {
            self.fault(from, Fault::Invalid, effects);
            return;
        };
        let now = self.clock;
        let is_own = order.provider == self.ledger.party();
        // Most claims come from several peers. One that is paid is an honest mistake.
        if is_own || self.ledger.knows_claim(now, &order, &voucher) {
            return;
        }
        let by_itself = order.provider == from;
        let rate = if self.is_known(from) { CLAIMS_TAKEN } else { CLAIMS_OF_STRANGER };
        if !self.mesh.claims.taken.take((from, by_itself), rate, 1, now) {
            return;
        }
        let of = (order.consumer, (order.provider, order.job));
        // Nothing that lapses at once keeps what lasts from being told.
        let noted = self.ledger.book().noted_claim(of.0, of.1, now);
        let is_first = noted.is_none_or(|noted| !lasts(noted.claim_by, now));
        // What nobody can lose by is worth nobody's room: a chain that has nothing costs nothing.
        let counts = is_first
            && lasts(order.claim_by, now)
            && could_pay(self.ledger.lattice(), order.consumer);
        let (order, voucher) = (signed(claim.order.clone()), signed(claim.voucher.clone()));
        let command = Command::ReceiveClaim { order, voucher };
        match self.decide(&Actor::Node, &command) {
            Ok((events, _)) => {
                self.take(events, effects);
                if counts && wire_bytes(&claim) <= CLAIM_BYTES_MAX {
                    self.keep_heard(of, claim.clone());
                    self.publish(claim, Some(from), effects);
                }
            }
            // Who passes it on may have judged it by another clock.
            Err(Rejection::Claim(ClaimRefusal::Malformed)) if by_itself => {
                self.fault(from, Fault::Invalid, effects);
            }
            // It lapsed, or is one too many. A signature that does not fit says nothing either:
            // the consumer may have a new key that is not known there yet, or not here.
            Err(_) => {}
        }
    }

    /// The witnesses hear of it, and some peers that tell others when they hear of it first; at the
    /// next beat where too much was told since the last one. What finds no room to wait is told to
    /// peers that connect.
    fn publish(&mut self, claim: WireClaim, source: Option<PartyId>, effects: &mut Effects) {
        let news = &mut self.mesh.claims.news;
        match source {
            None => news.push_front((claim, None)),
            Some(source) => news.push_back((claim, Some(source))),
        }
        news.truncate(CLAIMS_MAX);
        self.pass_on(effects);
    }

    fn pass_on(&mut self, effects: &mut Effects) {
        while let Some((claim, source)) = self.mesh.claims.news.pop_front() {
            let bytes = self.mesh.claims.passed_on.saturating_add(wire_bytes(&claim));
            if bytes > CLAIMS_BYTES_MAX {
                self.mesh.claims.news.push_front((claim, source));
                return;
            }
            self.mesh.claims.passed_on = bytes;
            let mut peers: BTreeSet<PartyId> = self.open_witnesses().into_iter().collect();
            peers.extend(self.mesh.news_peers(self.ledger.party(), |_| true));
            peers.retain(|to| Some(*to) != source);
            effects.send.extend(peers.into_iter().map(|to| (to, Message::Claim(claim.clone()))));
        }
    }

    fn keep_heard(&mut self, of: (PartyId, Claimed), claim: WireClaim) {
        let (book, now) = (self.ledger.book(), self.clock);
        let heard = &mut self.mesh.claims.heard;
        let against = |heard: &BTreeMap<(PartyId, Claimed), WireClaim>| {
            heard.keys().filter(|(consumer, _)| *consumer == of.0).count()
        };
        if heard.len() >= CLAIMS_MAX || against(heard) >= HEARD_PER_CONSUMER_MAX {
            heard.retain(|(of, claimed), _| book.noted_claim(*of, *claimed, now).is_some());
        }
        let has_room = heard.len() < CLAIMS_MAX && against(heard) < HEARD_PER_CONSUMER_MAX;
        if has_room || heard.contains_key(&of) {
            heard.insert(of, claim);
        }
    }

    /// The claim for a job, if others can still be shown it.
    fn standing_claim(&self, served: &ServedJob) -> Option<WireClaim> {
        let claim = served.claim()?;
        let stands = self.ledger.claim_stands(served.consumer, &claim);
        let claim = stands.then(|| wire_claim(claim));
        claim.filter(|claim| wire_bytes(claim) <= CLAIM_BYTES_MAX)
    }
}

/// Whether a claim that lapses then is worth passing on.
fn lasts(claim_by: Timestamp, now: Timestamp) -> bool {
    claim_by >= now.plus_ms(PASSED_ON_MS)
}

/// About the bytes of a claim on the wire.
fn wire_bytes(claim: &WireClaim) -> u32 {
    let bytes = claim.order.bytes.len() + claim.voucher.bytes.len() + 2 * BESIDE_BYTES;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn wire_claim(claim: Claim) -> WireClaim {
    WireClaim { order: wire(claim.order), voucher: wire(claim.voucher) }
}

fn wire(document: SignedBytes) -> WireDocument {
    WireDocument { bytes: document.bytes, signature: document.signature }
}

fn signed(document: WireDocument) -> SignedBytes {
    SignedBytes { bytes: document.bytes, signature: document.signature }
}
