//! Announcements: this node's price signal, everybody else's, and passing them on.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tirami_core::{Digest, PartyId, Signed, Timestamp, one_copy};
use tirami_proto::{
    ADDRESSES_MAX, ANNOUNCED_PER_FRAME_MAX, Fault, Message, PeerAddress, PriceSignal, SignalOrder,
    SignalRefusal, Via, WireDocument,
};

use super::{Mesh, NEWS_PEERS_MAX, OwnOffer, SIGNAL_PEERS_MAX, nearness};
use crate::kernel::{Effects, Kernel};
use table::{Held, Table, Word, in_turns};

/// Providers whose signals are kept.
pub const ANNOUNCED_MAX: usize = 4_096;
/// How long this node's signal is valid.
pub const SIGNAL_LIFE_MS: u64 = 45_000;
/// How often it is renewed when nothing changes.
pub const SIGNAL_RENEW_MS: u64 = 15_000;
/// Providers that a node keeps a connection to besides its other peers.
const PROVIDERS_DIALLED_MAX: usize = 32;
/// Of them strangers, where there are enough others: a key near this node's costs nothing.
const STRANGERS_DIALLED_MAX: usize = 4;
/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 64;
/// The least time between two signals of this node.
const SIGNAL_EVERY_MS: u64 = 1_000;
/// A signal that follows another one of its provider sooner is not taken.
const SIGNAL_LEAST_MS: u64 = SIGNAL_EVERY_MS / 4;
/// Bytes of signals that one peer is sent at a time; its queue has room for several times as many.
const SIGNALS_BYTES_MAX: usize = 256 * 1_024;
/// Bytes of strangers' signals that one peer is told of with a flush, a third of a MB each second:
/// fifty times what a mesh of 3 000 nodes has to say, and little for whoever has to take it.
const STRANGERS_BYTES_MAX: usize = 32 * 1_024;
/// Signals that contradict each other and are passed on with one flush, in bytes about as many.
const CONTRADICTIONS_MAX: usize = 8;
/// The least time between two when only the load changed: every signal goes to the whole mesh, and
/// a provider that is full says so to whoever asks.
const SIGNAL_LOAD_MS: u64 = 10_000;

/// What providers announced.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signals {
    table: Table,
    /// Providers whose connection to this node broke, and when.
    lost: BTreeMap<PartyId, Timestamp>,
    /// Providers whose signals are to be passed on.
    news: BTreeMap<PartyId, News>,
    numbered: u64,
    /// Signals that contradict one that was passed on, and who sent them.
    contradictions: Vec<(PartyId, WireDocument)>,
    offer: Option<OwnOffer>,
    /// The offer that stands in the signal sent last, and when that was.
    sent: Option<(Option<OwnOffer>, Timestamp)>,
}

/// A signal that waits to be passed on.
#[derive(Debug, Clone)]
struct News {
    /// Its place: what waited longer goes first, also where a newer signal came meanwhile.
    number: u64,
    /// Who told it and is not to be told.
    knows: BTreeSet<PartyId>,
}

impl Signals {
    fn tell(&mut self, provider: PartyId, knows: BTreeSet<PartyId>) {
        self.numbered = self.numbered.wrapping_add(1);
        let number = self.news.get(&provider).map_or(self.numbered, |news| news.number);
        self.news.insert(provider, News { number, knows });
    }

    /// What is passed on now, strangers' signals last and of each peer's a few; the rest waits for
    /// the next flush.
    fn batch(&mut self) -> Vec<(PartyId, News, WireDocument)> {
        let table = &self.table;
        self.news.retain(|provider, _| table.get(*provider).is_some());
        let news = self.news.iter();
        let news =
            news.filter_map(|(party, news)| Some((*party, table.get(*party)?.word, news.number)));
        let (known, strangers) = in_turns(news);
        let mut share = a_share(table, &known, SIGNALS_BYTES_MAX);
        share.extend(a_share(table, &strangers, STRANGERS_BYTES_MAX));
        let batch = share.into_iter().filter_map(|(provider, document)| {
            Some((provider, self.news.remove(&provider)?, document))
        });
        batch.collect()
    }
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
        let signals = self.signals.table.iter();
        let signals = signals.map(|(party, held)| (party, held.signal.body()));
        let valid = signals.filter(move |(_, signal)| signal.expires_at > now);
        valid.map(|(party, signal)| {
            let connected = self.is_open(party);
            let lost_at = self.signals.lost.get(&party);
            let lost = !connected && lost_at.is_some_and(|lost_at| signal.issued_at <= *lost_at);
            Provider { signal, connected, lost }
        })
    }

    /// The newest signal of `provider`.
    pub fn signal(&self, provider: PartyId) -> Option<&PriceSignal> {
        self.signals.table.get(provider).map(|held| held.signal.body())
    }

    /// The providers that take jobs now, as far as this node keeps connections to them: of many
    /// the nearest, so that not every node comes to the same ones; whoever could not be reached
    /// after all others. Where they are comes into the address book only now, for else whoever
    /// makes keys up fills it.
    pub(super) fn serving_parties(&mut self, own: PartyId, now: Timestamp) -> BTreeSet<PartyId> {
        let serving = self.signals.table.iter().filter(|(party, held)| {
            let has_ways = || held.has_ways || self.addresses.get(*party).is_some();
            let is_other = held.signal.body().serving && *party != own;
            is_other && (self.peers.contains_key(party) || has_ways())
        });
        let ranked = serving.map(|(party, held)| (party, held.word, nearness(party, own)));
        let (missed, others): (Vec<_>, Vec<_>) =
            ranked.partition(|(party, ..)| self.addresses.is_missed(*party, now));
        let (mut known, mut strangers) = in_turns(others.into_iter());
        let (known_last, strangers_last) = in_turns(missed.into_iter());
        known.extend(known_last);
        strangers.extend(strangers_last);
        known.truncate(PROVIDERS_DIALLED_MAX - STRANGERS_DIALLED_MAX.min(strangers.len()));
        strangers.truncate(PROVIDERS_DIALLED_MAX - known.len());
        let chosen: BTreeSet<PartyId> = known.into_iter().chain(strangers).collect();
        for party in chosen.iter().filter(|party| !self.peers.contains_key(*party)) {
            let held = self.signals.table.get(*party);
            let via: Vec<Via> = held.map(Held::ways).unwrap_or_default();
            if !via.is_empty() {
                self.addresses.add(own, &PeerAddress { key: (*party).into(), via }, false);
            }
        }
        chosen
    }

    pub(super) fn lost(&mut self, peer: PartyId, now: Timestamp) {
        self.signals.table.left(peer);
        if self.signals.table.get(peer).is_some() {
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
        signals.tell(party, BTreeSet::new());
        let (signal, word) = (shared(signal), Word::Known);
        signals.table.insert(party, Held { signal, word, has_ways: false, from_here: false });
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

    /// On whose word a signal of `provider` is held that came from `from`.
    fn word(&self, from: PartyId, provider: PartyId) -> Word {
        if self.is_known(provider) || self.has_served_us(provider) {
            Word::Known
        } else if from == provider {
            Word::Own { told: false }
        } else {
            Word::Told(from)
        }
    }

    fn take_signal(&mut self, from: PartyId, document: &WireDocument) -> Result<(), SignalRefusal> {
        // The cheap look first: most of what floods is known already.
        let said: PriceSignal = tirami_core::decode_body(&document.bytes)?;
        let provider = said.provider;
        let signals = &mut self.mesh.signals;
        let held = signals.table.get(provider);
        let is_held = held.is_some();
        if held.is_some_and(|held| is_same(&held.signal, document)) {
            if let Some(news) = signals.news.get_mut(&provider) {
                news.knows.insert(from);
            }
            signals.table.told_too(provider, from);
            return Ok(());
        }
        let floor = signals.table.floor(provider);
        // Contradicted already, or over: none of that time counts.
        let is_refused = |floor: Timestamp| {
            let is_over = said.issued_at == floor && !is_held;
            let is_soon = said.issued_at > floor && said.issued_at < floor.plus_ms(SIGNAL_LEAST_MS);
            said.issued_at < floor || is_over || is_soon
        };
        if provider == self.ledger.party() || floor.is_some_and(is_refused) {
            return Ok(());
        }
        let word = self.word(from, provider);
        if !is_held && !self.mesh.signals.table.has_room(word) {
            return Ok(());
        }
        let signal = PriceSignal::receive(self.ledger.lattice().mesh(), document, self.clock)?;
        let held = self.mesh.signals.table.get(provider);
        match held.map(|held| PriceSignal::order(&signal, &held.signal)) {
            Some(SignalOrder::Contradicts) => self.contradicted(from, provider, document),
            Some(SignalOrder::Older | SignalOrder::Same) => {}
            Some(SignalOrder::Newer) | None => self.hold(from, word, signal),
        }
        Ok(())
    }

    /// Two signals of one time: neither is believed. Whoever believes the one has to see the
    /// other, and whoever knows neither both.
    fn contradicted(&mut self, from: PartyId, provider: PartyId, document: &WireDocument) {
        let signals = &mut self.mesh.signals;
        let held = signals.table.end(provider);
        if signals.contradictions.len() + 2 <= CONTRADICTIONS_MAX {
            signals.contradictions.extend(held.map(|held| (provider, wire(&held.signal))));
            signals.contradictions.push((from, document.clone()));
        }
        self.mesh.flush_soon(self.clock);
    }

    fn hold(&mut self, from: PartyId, word: Word, signal: Signed<PriceSignal>) {
        let provider = signal.body().provider;
        let named = signal.body().addresses.iter().filter_map(|via| via.parse::<Via>().ok());
        let named: Vec<Via> = named.collect();
        let via = self.ways_told(from, named.iter().cloned());
        let (has_ways, from_here) = (!via.is_empty(), via.len() == named.len());
        let signals = &mut self.mesh.signals;
        signals.table.insert(provider, Held { signal: shared(signal), word, has_ways, from_here });
        signals.tell(provider, BTreeSet::from([from]));
        self.mesh.flush_soon(self.clock);
        if has_ways && !matches!(word, Word::Told(_)) {
            let address = PeerAddress { key: provider.into(), via };
            self.mesh.addresses.add(self.ledger.party(), &address, false);
        }
    }

    /// Forgets signals whose time is over.
    pub(super) fn expire_signals(&mut self, now: Timestamp) {
        let Signals { table, lost, .. } = &mut self.mesh.signals;
        table.expire(now);
        lost.retain(|party, _| table.get(*party).is_some());
    }

    /// Tells a new peer this node's own signal.
    pub(super) fn tell_signal(&self, to: PartyId, effects: &mut Effects) {
        let own = self.mesh.signals.table.get(self.ledger.party());
        let documents: Vec<WireDocument> = own.map(|own| wire(&own.signal)).into_iter().collect();
        announce(to, &documents, effects);
    }

    /// Tells a peer that looks for others all signals.
    pub(super) fn tell_signals(&mut self, to: PartyId, effects: &mut Effects) {
        // Each peer is told of others first.
        let table = &self.mesh.signals.table;
        let valid = table.iter().filter(|(_, held)| held.signal.body().expires_at > self.clock);
        let (known, strangers) =
            in_turns(valid.map(|(party, held)| (party, held.word, (party < to, party))));
        let all: Vec<PartyId> = known.into_iter().chain(strangers).collect();
        let share = a_share(table, &all, SIGNALS_BYTES_MAX).into_iter();
        let documents: Vec<WireDocument> = share.map(|(_, document)| document).collect();
        let bytes = documents.iter().map(|document| document.bytes.len() + SIGNATURE_BYTES);
        if self.may_answer(to, u32::try_from(bytes.sum::<usize>()).unwrap_or(u32::MAX)) {
            announce(to, &documents, effects);
        }
    }

    /// Passes on what is new to some peers.
    pub(super) fn flush_signals(&mut self, peers: &[PartyId], effects: &mut Effects) {
        let batch = self.mesh.signals.batch();
        let rivals = core::mem::take(&mut self.mesh.signals.contradictions);
        let all = self.mesh.open_peers().len() <= NEWS_PEERS_MAX;
        let some = if all { NEWS_PEERS_MAX } else { SIGNAL_PEERS_MAX };
        for to in peers.iter().copied().take(some) {
            let rivals = rivals.iter().filter(|(source, _)| *source != to);
            let rivals: Vec<WireDocument> = rivals.map(|(_, document)| document.clone()).collect();
            announce(to, &rivals, effects);
            let fresh = batch.iter();
            let fresh = fresh.filter(|(party, news, _)| *party != to && !news.knows.contains(&to));
            let fresh: Vec<WireDocument> = fresh.map(|(.., document)| document.clone()).collect();
            announce(to, &fresh, effects);
        }
        if !self.mesh.signals.news.is_empty() {
            self.mesh.flush_soon(self.clock);
        }
    }
}

/// As many of these providers' signals as fit.
fn a_share(table: &Table, providers: &[PartyId], bytes_max: usize) -> Vec<(PartyId, WireDocument)> {
    let mut left = bytes_max;
    let signals =
        providers.iter().filter_map(|party| Some((*party, wire(&table.get(*party)?.signal))));
    let fits = |(_, document): &(PartyId, WireDocument)| {
        let bytes = document.bytes.len() + SIGNATURE_BYTES;
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    };
    signals.take_while(fits).collect()
}

fn is_same(held: &Signed<PriceSignal>, document: &WireDocument) -> bool {
    held.bytes() == document.bytes && held.signature() == document.signature
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
