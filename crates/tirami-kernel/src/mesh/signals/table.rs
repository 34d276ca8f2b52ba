//! The signals that are believed, and on whose word each is held. Keys cost nothing: what a peer
//! tells of parties nobody knows takes room from what it told itself, or from whoever told more.

use core::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use tirami_core::{PartyId, Signed, Timestamp};
use tirami_proto::{PriceSignal, SIGNAL_AHEAD_MS_MAX, SIGNAL_LIFE_MS_MAX, Via};

use super::ANNOUNCED_MAX;

/// Strangers that are held on the word of one peer: more than serve in a mesh of 3 000 nodes, of
/// which a node with a single peer hears of all, and few enough that several peers find room.
const TOLD_MAX: usize = ANNOUNCED_MAX / 4;
/// Times that are remembered of signals that ended: so many of known parties, and as many of
/// strangers. Beyond that the older half is forgotten, so that nobody new is refused for it.
const FLOORS_MAX: usize = ANNOUNCED_MAX;
/// How long a signal's time is remembered: after that no signal of the same time is valid.
const FLOOR_MS: u64 = SIGNAL_LIFE_MS_MAX + SIGNAL_AHEAD_MS_MAX;

/// On whose word a signal is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The provider's, which is known to the mesh or was traded with.
    Known,
    /// The provider's, a stranger that is a peer; `told` where others told of it, too.
    Own { told: bool },
    /// That peer's, which told of a stranger.
    Told(PartyId),
    /// Of peers that have left: the first to make room.
    Gone,
}

/// A signal that is believed.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) signal: Arc<Signed<PriceSignal>>,
    pub(super) word: Word,
    /// Whether it names a way to its provider that counts here.
    pub(super) has_ways: bool,
    /// Whether ways inside a machine count: who told of them is on this one.
    pub(super) from_here: bool,
}

/// The signals that are believed, and the times of those that ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    held: BTreeMap<PartyId, Held>,
    /// Strangers held on the word of each peer; of those that have left under none.
    told: BTreeMap<Option<PartyId>, usize>,
    /// The newest time of each known provider that is not held, and of each stranger: nothing as
    /// old or older is believed again.
    known_floors: BTreeMap<PartyId, Timestamp>,
    strange_floors: BTreeMap<PartyId, Timestamp>,
}

impl Table {
    pub(super) fn get(&self, provider: PartyId) -> Option<&Held> {
        self.held.get(&provider)
    }

    /// All that are held, in the order of their parties.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PartyId, &Held)> {
        self.held.iter().map(|(party, held)| (*party, held))
    }

    /// The newest time of `provider`.
    pub(super) fn floor(&self, provider: PartyId) -> Option<Timestamp> {
        let held = self.held.get(&provider).map(|held| held.signal.body().issued_at);
        let floors = [&self.known_floors, &self.strange_floors];
        held.or_else(|| floors.into_iter().find_map(|floors| floors.get(&provider).copied()))
    }

    /// Whether a provider that is not held is taken on this word: where all places are taken, a
    /// known one has a stranger's, and a stranger that of one whose peer told of more.
    pub(super) fn has_room(&self, word: Word) -> bool {
        let is_full = self.held.len() >= ANNOUNCED_MAX;
        let most = || self.told.values().copied().max().unwrap_or_default();
        match word {
            Word::Known => !is_full || self.held.values().any(|held| held.word != Word::Known),
            Word::Own { .. } => !is_full || most() > 0,
            Word::Told(by) => {
                let told = self.told_by(by);
                let others = || most() > told || self.told.contains_key(&None);
                told < TOLD_MAX && (!is_full || others())
            }
            Word::Gone => false,
        }
    }

    /// Holds a signal in place of an older one of its provider, or of another provider's where
    /// there is no room.
    pub(super) fn insert(&mut self, provider: PartyId, held: Held) {
        let before = self.remove(provider).map(|before| before.word);
        let word = self.joined(before, held.word);
        if self.held.len() >= ANNOUNCED_MAX
            && let Some(last) = self.last()
        {
            self.end(last);
        }
        self.known_floors.remove(&provider);
        self.strange_floors.remove(&provider);
        if let Some(teller) = word.teller() {
            *self.told.entry(teller).or_default() += 1;
        }
        self.held.insert(provider, Held { word, ..held });
    }

    /// The signal that is held came from `from`, too.
    pub(super) fn told_too(&mut self, provider: PartyId, from: PartyId) {
        let Some(held) = self.held.get(&provider) else { return };
        if matches!(held.word, Word::Known | Word::Own { told: true })
            || held.word == Word::Told(from)
        {
            return;
        }
        let is_own = from == provider;
        let word = if is_own { Word::Own { told: false } } else { Word::Told(from) };
        let held = Held { word, ..held.clone() };
        self.insert(provider, held);
    }

    /// A signal is believed no longer, nor anything as old.
    pub(super) fn end(&mut self, provider: PartyId) -> Option<Held> {
        let held = self.remove(provider)?;
        let is_known = held.word == Word::Known;
        let floors = if is_known { &mut self.known_floors } else { &mut self.strange_floors };
        floors.insert(provider, held.signal.body().issued_at);
        if floors.len() > FLOORS_MAX {
            let mut times: Vec<Timestamp> = floors.values().copied().collect();
            let (_, middle, _) = times.select_nth_unstable(FLOORS_MAX / 2);
            floors.retain(|_, floor| *floor > *middle);
        }
        Some(held)
    }

    /// A peer is one no longer. Its own signal, if it is a stranger's and nobody else told of it,
    /// goes with it: else each key that connects for a moment would leave one.
    pub(super) fn left(&mut self, peer: PartyId) {
        let own = self.held.get(&peer).map(|held| held.word);
        if let Some(Word::Own { told }) = own
            && let Some(held) = self.remove(peer)
            && told
        {
            self.insert(peer, Held { word: Word::Gone, ..held });
        }
        if let Some(told) = self.told.remove(&Some(peer)) {
            *self.told.entry(None).or_default() += told;
            let its = self.held.values_mut().filter(|held| held.word == Word::Told(peer));
            its.for_each(|held| held.word = Word::Gone);
        }
    }

    /// Forgets signals whose time is over, and times that no valid signal can have any more.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let over = self.held.iter().filter(|(_, held)| held.signal.body().expires_at <= now);
        let over: Vec<PartyId> = over.map(|(provider, _)| *provider).collect();
        for provider in over {
            self.end(provider);
        }
        for floors in [&mut self.known_floors, &mut self.strange_floors] {
            floors.retain(|_, floor| floor.plus_ms(FLOOR_MS) > now);
        }
    }

    fn told_by(&self, peer: PartyId) -> usize {
        self.told.get(&Some(peer)).copied().unwrap_or_default()
    }

    fn remove(&mut self, provider: PartyId) -> Option<Held> {
        let held = self.held.remove(&provider)?;
        if let Some(teller) = held.word.teller()
            && let Some(told) = self.told.get_mut(&teller)
        {
            *told = told.saturating_sub(1);
            if *told == 0 {
                self.told.remove(&teller);
            }
        }
        Some(held)
    }

    /// The word of a provider that was held on one and is told on another: of two peers that of
    /// the one that told of fewer, so that whoever makes keys up is left with them.
    fn joined(&self, before: Option<Word>, word: Word) -> Word {
        match (before, word) {
            (Some(before @ Word::Own { .. }), Word::Own { .. }) => before,
            (Some(Word::Own { .. }), Word::Told(_))
            | (Some(Word::Told(_) | Word::Gone), Word::Own { .. }) => Word::Own { told: true },
            (Some(Word::Told(first)), Word::Told(by))
                if self.told_by(first) <= self.told_by(by) =>
            {
                Word::Told(first)
            }
            (Some(Word::Gone), Word::Told(by)) if self.told_by(by) >= TOLD_MAX => Word::Gone,
            _ => word,
        }
    }

    /// Whoever makes room: on the word of a peer that has left, or of the one that told of most,
    /// and of those the one whose last word is the oldest.
    fn last(&self) -> Option<PartyId> {
        let strangers = self.held.iter().filter(|(_, held)| held.word != Word::Known);
        let last = strangers.max_by_key(|(provider, held)| {
            let told = match held.word {
                Word::Known | Word::Own { .. } => 0,
                Word::Told(by) => self.told_by(by),
                Word::Gone => usize::MAX,
            };
            (told, Reverse(held.signal.body().issued_at), **provider)
        });
        last.map(|(provider, _)| *provider)
    }
}

impl Held {
    /// The ways to its provider that count here.
    pub(super) fn ways(&self) -> Vec<Via> {
        let named = &self.signal.body().addresses;
        let named = named.iter().filter_map(|via| via.parse::<Via>().ok());
        let inside = |via: &Via| matches!(via, Via::Ip(address) if address.ip().is_loopback());
        named.filter(|via| self.from_here || !inside(via)).collect()
    }
}

impl Word {
    /// Whose stranger it is; none where it takes nobody's room.
    const fn teller(self) -> Option<Option<PartyId>> {
        match self {
            Self::Known | Self::Own { .. } => None,
            Self::Told(by) => Some(Some(by)),
            Self::Gone => Some(None),
        }
    }
}

/// Known providers in the order of a key, and strangers: of each peer that told of some one, then
/// of each another one, so that what one peer makes up does not come before all of the others'.
pub(super) fn in_turns<K: Ord>(
    providers: impl Iterator<Item = (PartyId, Word, K)>,
) -> (Vec<PartyId>, Vec<PartyId>) {
    let (mut known, mut strangers) = (Vec::new(), Vec::new());
    for (provider, word, key) in providers {
        match word {
            Word::Known => known.push((key, provider)),
            Word::Own { .. } => strangers.push((Some(provider), false, key, provider)),
            Word::Told(by) => strangers.push((Some(by), true, key, provider)),
            Word::Gone => strangers.push((None, true, key, provider)),
        }
    }
    known.sort_unstable();
    strangers.sort_unstable();
    let (mut turns, mut turn, mut last) = (Vec::with_capacity(strangers.len()), 0_usize, None);
    for (teller, _, key, provider) in strangers {
        turn = if last == Some(teller) { turn.saturating_add(1) } else { 0 };
        last = Some(teller);
        turns.push((turn, key, provider));
    }
    turns.sort_unstable();
    let known = known.into_iter().map(|(_, provider)| provider).collect();
    (known, turns.into_iter().map(|(_, _, provider)| provider).collect())
}
