//! Announcements: this node's price signal, everybody else's, and passing them on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tirami_core::{Digest, PartyId, Signed, Timestamp, one_copy};
use tirami_proto::{
    ADDRESSES_MAX, ANNOUNCED_PER_FRAME_MAX, Fault, Message, PeerAddress, PriceSignal,
    SIGNAL_AHEAD_MS_MAX, SIGNAL_LIFE_MS_MAX, SignalOrder, SignalRefusal, Via, WireDocument,
};

use super::{Mesh, NEWS_PEERS_MAX, OwnOffer, SIGNAL_PEERS_MAX, nearness};
use crate::kernel::{Effects, Kernel};

/// Providers whose signals are kept.
pub const ANNOUNCED_MAX: usize = 4_096;
/// How long this node's signal is valid.
pub const SIGNAL_LIFE_MS: u64 = 45_000;
/// How often it is renewed when nothing changes.
pub const SIGNAL_RENEW_MS: u64 = 15_000;
/// Providers that a node keeps a connection to besides its other peers.
const PROVIDERS_DIALLED_MAX: usize = 32;
/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 64;
/// The least time between two signals of this node.
const SIGNAL_EVERY_MS: u64 = 1_000;
/// A signal that follows another one of its provider sooner is not taken.
const SIGNAL_LEAST_MS: u64 = SIGNAL_EVERY_MS / 4;
/// Signals of parties without a chain that are believed from others at the same time.
const STRANGERS_MAX: usize = 256;
/// Bytes of signals that one peer is sent at a time; its queue has room for several times as many.
const SIGNALS_BYTES_MAX: usize = 256 * 1_024;
/// The least time between two when only the load changed: every signal goes to the whole mesh, and
/// a provider that is full says so to whoever asks.
const SIGNAL_LOAD_MS: u64 = 10_000;
/// How long a signal's time is remembered: after that no signal of the same time is valid.
const FLOOR_MS: u64 = SIGNAL_LIFE_MS_MAX + SIGNAL_AHEAD_MS_MAX;

/// What providers announced.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signals {
    held: BTreeMap<PartyId, Arc<Signed<PriceSignal>>>,
    /// The newest time ever seen of each provider: nothing as old or older is believed again.
    floors: BTreeMap<PartyId, Timestamp>,
    /// Providers whose connection to this node broke, and when.
    lost: BTreeMap<PartyId, Timestamp>,
    /// To be passed on with the next flush, and who told it and is not to be told.
    news: BTreeMap<PartyId, BTreeSet<PartyId>>,
    /// Signals that contradict one that was passed on, and who sent them.
    contradictions: Vec<(PartyId, WireDocument)>,
    /// Held ones of parties without a chain that others told of.
    strangers: BTreeSet<PartyId>,
    offer: Option<OwnOffer>,
    /// The offer that stands in the signal sent last, and when that was.
    sent: Option<(Option<OwnOffer>, Timestamp)>,
}

/// A provider as its newest signal describes it.
#[derive(Debug, Clone, Copy)]
pub struct Provider<'a> {
    /// The signal.
    pub signal: &'a PriceSignal,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Whether its connection broke and it has said nothing new since.
    pub lost: bool,
}

impl Mesh {
    /// The providers whose signals are valid at `now`, in the order of their parties; when this
    /// node serves, it is among them.
    pub fn providers(&self, now: Timestamp) -> impl Iterator<Item = Provider<'_>> {
        let held = self.signals.held.iter().filter(move |(_, held)| held.body().expires_at > now);
        held.map(|(party, held)| {
            let signal = held.body();
            let connected = self.is_open(*party);
            let lost_at = self.signals.lost.get(party);
            let lost = !connected && lost_at.is_some_and(|lost_at| signal.issued_at <= *lost_at);
            Provider { signal, connected, lost }
        })
    }

    /// The newest signal of `provider`.
    pub fn signal(&self, provider: PartyId) -> Option<&PriceSignal> {
        self.signals.held.get(&provider).map(|held| held.body())
    }

    /// The providers that take jobs now, as far as this node keeps connections to them: of many
    /// the nearest, so that not every node comes to the same ones.
    pub(super) fn serving_parties(&self, own: PartyId) -> BTreeSet<PartyId> {
        let held = self.signals.held.iter().filter(|(_, held)| held.body().serving);
        let mut serving: Vec<PartyId> = held.map(|(party, _)| *party).collect();
        if serving.len() > PROVIDERS_DIALLED_MAX {
            serving
                .select_nth_unstable_by_key(PROVIDERS_DIALLED_MAX, |party| nearness(*party, own));
            serving.truncate(PROVIDERS_DIALLED_MAX);
        }
        serving.into_iter().collect()
    }

    pub(super) fn lost(&mut self, peer: PartyId, now: Timestamp) {
        if self.signals.held.contains_key(&peer) {
            self.signals.lost.insert(peer, now);
        }
    }

    pub(super) fn returned(&mut self, peer: PartyId) {
        self.signals.lost.remove(&peer);
    }
}

impl Kernel {
    pub(super) fn set_offer(&mut self, offer: Option<OwnOffer>) {
        self.mesh.signals.offer = offer;
    }

    /// Signs this node's signal when it changed or grows old.
    pub(super) fn renew_signal(&mut self) {
        let signals = &self.mesh.signals;
        if self.mesh.peers.is_empty() || (signals.offer.is_none() && signals.sent.is_none()) {
            return;
        }
        let age_ms = signals.sent.as_ref().map(|(_, at)| self.clock.since_ms(*at));
        let changed = signals.sent.as_ref().is_none_or(|(sent, _)| *sent != signals.offer);
        let urgent =
            signals.sent.as_ref().is_none_or(|(sent, _)| !same_terms(sent, &signals.offer));
        let wait_ms = match (urgent, changed) {
            (true, _) => SIGNAL_EVERY_MS,
            (false, true) => SIGNAL_LOAD_MS,
            (false, false) => SIGNAL_RENEW_MS,
        };
        let due = age_ms.is_none_or(|age_ms| age_ms >= wait_ms);
        // Who serves nothing any more says so once.
        if !due || (!changed && signals.offer.is_none()) {
            return;
        }
        let signal = self.own_signal();
        let Ok(signal) = Signed::sign(self.ledger.lattice().mesh(), &self.keys.node, signal) else {
            return;
        };
        let party = self.ledger.party();
        let signals = &mut self.mesh.signals;
        signals.sent = Some((signals.offer.clone(), self.clock));
        signals.news.insert(party, BTreeSet::new());
        signals.held.insert(party, shared(signal));
        self.mesh.flush_soon(self.clock);
    }

    fn own_signal(&self) -> PriceSignal {
        let addresses = self.mesh.settings.addresses.iter().take(ADDRESSES_MAX).cloned().collect();
        let mut signal = PriceSignal {
            provider: self.ledger.party(),
            issued_at: self.clock,
            expires_at: self.clock.plus_ms(SIGNAL_LIFE_MS),
            price: tirami_core::Ppm::ZERO,
            cached_price: tirami_core::Ppm::ZERO,
            slots_free: 0,
            slots: 0,
            queue: 0,
            models: Vec::new(),
            region: String::new(),
            features: self.features(),
            addresses,
            http_endpoint: None,
            serving: false,
        };
        if let Some(offer) = self.mesh.signals.offer.clone() {
            signal.price = offer.price;
            signal.cached_price = offer.cached_price;
            signal.slots = offer.slots;
            signal.slots_free = offer.slots_free.min(offer.slots);
            signal.queue = offer.queue;
            signal.models = offer.models;
            signal.models.sort_by_key(|model| model.model);
            signal.models.dedup_by_key(|model| model.model);
            signal.models.truncate(tirami_proto::OFFERS_MAX);
            signal.region = offer.region;
            signal.http_endpoint = offer.http_endpoint;
            signal.serving = offer.serving;
        }
        signal
    }

    pub(super) fn take_announcements(
        &mut self,
        from: PartyId,
        documents: &[WireDocument],
        effects: &mut Effects,
    ) {
        for document in documents {
            match self.take_signal(from, document) {
                Ok(()) | Err(SignalRefusal::Expired | SignalRefusal::FromFuture { .. }) => {}
                Err(SignalRefusal::Signed(tirami_core::SignedError::Key(_))) => {
                    self.fault(from, Fault::BadSignature, effects);
                }
                Err(_) => self.fault(from, Fault::Invalid, effects),
            }
        }
    }

    fn is_stranger(&self, from: PartyId, provider: PartyId) -> bool {
        provider != from && self.ledger.lattice().chain(provider).is_none()
    }

    fn take_signal(&mut self, from: PartyId, document: &WireDocument) -> Result<(), SignalRefusal> {
        // The cheap look first: most of what floods is known already.
        if let Ok(signal) = tirami_core::decode_body::<PriceSignal>(&document.bytes) {
            let floor = self.mesh.signals.floors.get(&signal.provider).copied();
            let older = floor.is_some_and(|floor| signal.issued_at < floor);
            let held = self.mesh.signals.held.get(&signal.provider);
            let same = held.is_some_and(|held| {
                held.bytes() == document.bytes && held.signature() == document.signature
            });
            if same && let Some(knows) = self.mesh.signals.news.get_mut(&signal.provider) {
                knows.insert(from);
            }
            // Keys cost nothing: of those without a chain others can tell of a few only.
            let strangers = &self.mesh.signals.strangers;
            let known = strangers.len() < STRANGERS_MAX
                || strangers.contains(&signal.provider)
                || !self.is_stranger(from, signal.provider);
            let soon = floor.is_some_and(|floor| {
                signal.issued_at > floor && signal.issued_at < floor.plus_ms(SIGNAL_LEAST_MS)
            });
            // Contradicted already: none of that time counts.
            let gone = held.is_none() && floor == Some(signal.issued_at);
            if older || gone || same || soon || !known || signal.provider == self.ledger.party() {
                return Ok(());
            }
        }
        let signal = PriceSignal::receive(self.ledger.lattice().mesh(), document, self.clock)?;
        let provider = signal.body().provider;
        let stranger = self.is_stranger(from, provider);
        let signals = &mut self.mesh.signals;
        let floor = signals.floors.get(&provider).copied();
        match signals.held.get(&provider).map(|held| PriceSignal::order(&signal, held)) {
            Some(SignalOrder::Contradicts) => {
                let held = signals.held.remove(&provider);
                signals.news.remove(&provider);
                // Whoever believes the one has to see the other, and whoever knows neither both.
                let held = held.map(|held| (provider, wire(&held)));
                if signals.contradictions.len() + 2 <= ANNOUNCED_PER_FRAME_MAX {
                    signals.contradictions.extend(held);
                    signals.contradictions.push((from, document.clone()));
                }
                self.mesh.flush_soon(self.clock);
                return Ok(());
            }
            Some(SignalOrder::Older | SignalOrder::Same) => return Ok(()),
            None if floor.is_some_and(|floor| signal.body().issued_at <= floor) => return Ok(()),
            None if signals.held.len() >= ANNOUNCED_MAX => return Ok(()),
            Some(SignalOrder::Newer) | None => {}
        }
        if signals.floors.len() >= 2 * ANNOUNCED_MAX && floor.is_none() {
            return Ok(());
        }
        let ways: Vec<Via> =
            signal.body().addresses.iter().filter_map(|via| via.parse().ok()).collect();
        signals.floors.insert(provider, signal.body().issued_at);
        if stranger {
            signals.strangers.insert(provider);
        }
        signals.held.insert(provider, shared(signal));
        signals.news.insert(provider, BTreeSet::from([from]));
        self.mesh.flush_soon(self.clock);
        let via = self.ways_told(from, ways.into_iter());
        if !via.is_empty() {
            let address = PeerAddress { key: provider.into(), via };
            self.mesh.addresses.add(self.ledger.party(), &address, false);
        }
        Ok(())
    }

    /// Forgets signals whose time is over, and times that no valid signal can have any more.
    pub(super) fn expire_signals(&mut self, now: Timestamp) {
        let signals = &mut self.mesh.signals;
        signals.held.retain(|_, held| held.body().expires_at > now);
        signals.floors.retain(|_, floor| floor.plus_ms(FLOOR_MS) > now);
        let held: BTreeSet<PartyId> = signals.held.keys().copied().collect();
        signals.lost.retain(|party, _| held.contains(party));
        signals.news.retain(|party, _| held.contains(party));
        signals.strangers.retain(|party| held.contains(party));
    }

    /// Tells a new peer this node's own signal.
    pub(super) fn tell_signal(&self, to: PartyId, effects: &mut Effects) {
        let own = self.mesh.signals.held.get(&self.ledger.party());
        let documents: Vec<WireDocument> = own.map(|own| wire(own)).into_iter().collect();
        announce(to, &documents, effects);
    }

    /// Tells a peer that looks for others all signals.
    pub(super) fn tell_signals(&mut self, to: PartyId, effects: &mut Effects) {
        // Each peer is told of others first.
        let held = &self.mesh.signals.held;
        let held = held.range(to..).chain(held.range(..to)).map(|(_, held)| held);
        let valid = held.filter(|held| held.body().expires_at > self.clock);
        let documents = a_share(valid.map(|held| wire(held)));
        let bytes = documents.iter().map(|document| document.bytes.len() + SIGNATURE_BYTES);
        if self.may_answer(to, u32::try_from(bytes.sum::<usize>()).unwrap_or(u32::MAX)) {
            announce(to, &documents, effects);
        }
    }

    /// Passes on what is new to some peers.
    pub(super) fn flush_signals(&mut self, peers: &[PartyId], effects: &mut Effects) {
        let news = core::mem::take(&mut self.mesh.signals.news);
        let rivals = core::mem::take(&mut self.mesh.signals.contradictions);
        if news.is_empty() && rivals.is_empty() {
            return;
        }
        let all = self.mesh.open_peers().len() <= NEWS_PEERS_MAX;
        let some = if all { NEWS_PEERS_MAX } else { SIGNAL_PEERS_MAX };
        for to in peers.iter().copied().take(some) {
            let rivals = rivals.iter().filter(|(source, _)| *source != to);
            let rivals: Vec<WireDocument> = rivals.map(|(_, document)| document.clone()).collect();
            announce(to, &rivals, effects);
            let fresh = news.iter().filter(|(party, knows)| **party != to && !knows.contains(&to));
            let held = fresh.filter_map(|(party, _)| self.mesh.signals.held.get(party));
            announce(to, &a_share(held.map(|held| wire(held))), effects);
        }
    }
}

/// As many as are sent to one peer at a time.
fn a_share(documents: impl Iterator<Item = WireDocument>) -> Vec<WireDocument> {
    let mut left = SIGNALS_BYTES_MAX;
    let fits = |document: &WireDocument| {
        let bytes = document.bytes.len() + SIGNATURE_BYTES;
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    };
    documents.take_while(fits).collect()
}

/// Whether two offers differ in nothing but how busy and how fast the node is.
fn same_terms(one: &Option<OwnOffer>, other: &Option<OwnOffer>) -> bool {
    let terms = |offer: &OwnOffer| {
        let mut terms = OwnOffer { slots_free: 0, queue: 0, ..offer.clone() };
        for model in &mut terms.models {
            model.tokens_per_second_milli = 0;
        }
        terms
    };
    one.as_ref().map(terms) == other.as_ref().map(terms)
}

/// A signal as all nodes of a simulation hold it.
fn shared(signal: Signed<PriceSignal>) -> Arc<Signed<PriceSignal>> {
    let whole = [signal.id().as_bytes().as_slice(), &signal.signature().as_bytes()[..]].concat();
    one_copy(Digest::of(&whole), signal)
}

fn wire(held: &Signed<PriceSignal>) -> WireDocument {
    WireDocument { bytes: held.bytes().to_vec(), signature: held.signature() }
}

fn announce(to: PartyId, documents: &[WireDocument], effects: &mut Effects) {
    for chunk in documents.chunks(ANNOUNCED_PER_FRAME_MAX) {
        effects.send.push((to, Message::Announce(chunk.to_vec())));
    }
}
