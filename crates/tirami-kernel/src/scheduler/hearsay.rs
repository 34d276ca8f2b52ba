//! What other nodes say of providers. It counts where this node has measured nothing itself, in
//! proportion to what whoever says it has paid this node: nobody is paid for a voice, and a
//! provider has none with those who only buy from it.

use std::collections::BTreeMap;

use tirami_core::{MINUTE_MS, ModelDigest, PartyId, Timestamp};
use tirami_proto::{MeasuredSpeed, OPINIONS_PER_FRAME_MAX, ProviderOpinion};

use super::opinion::{
    FAILURE_NEUTRAL_PPM, FIRST_TOKEN_NEUTRAL_MS, PPM, SPEED_MILLI_MAX, SPEED_NEUTRAL_MILLI,
};
use super::scale;

/// Nodes whose opinions are kept at most: those that paid this node the most.
pub const SPEAKERS_MAX: usize = 64;
/// How long an opinion counts after it was heard, in milliseconds.
pub const OPINION_LIFE_MS: u64 = 10 * MINUTE_MS;
/// Providers of one speaker that are kept at most, those heard of last.
const PROVIDERS_MAX: usize = OPINIONS_PER_FRAME_MAX;
/// What speakers have paid this node when they count as much as what is expected of a stranger, in
/// µTRM.
const PAID_HALF: u64 = 1_000_000_000;
/// How many times slower than a stranger somebody is believed to be at most: whoever is spoken ill
/// of is still tried where others are slow.
const SLOWER_MAX: u32 = 4;
/// The longest time to the first token that is believed, in milliseconds.
const FIRST_TOKEN_MS_MAX: u32 = FIRST_TOKEN_NEUTRAL_MS * SLOWER_MAX;
/// The lowest speed that is believed, in tokens per 1 000 s.
const SPEED_MILLI_MIN: u32 = SPEED_NEUTRAL_MILLI / SLOWER_MAX;

/// What others said. Bounded; nothing of it is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hearsay {
    speakers: BTreeMap<PartyId, BTreeMap<PartyId, Heard>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    failure_ppm: u64,
    speeds: BTreeMap<ModelDigest, MeasuredSpeed>,
    at: Timestamp,
}

/// What is expected of a provider by what others said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rumour {
    pub(super) first_token_ms: u32,
    pub(super) tokens_per_second_milli: u32,
    pub(super) failure_ppm: u64,
    /// How many told of it.
    pub(super) speakers: u32,
}

impl Hearsay {
    /// Notes what `speaker` said of others. `paid` is what a node has paid this one, in µTRM.
    pub(super) fn hear(
        &mut self,
        speaker: PartyId,
        said: Vec<ProviderOpinion>,
        paid: impl Fn(PartyId) -> u64,
        now: Timestamp,
    ) {
        self.forget(now);
        if paid(speaker) == 0 {
            return;
        }
        if !self.speakers.contains_key(&speaker) && self.speakers.len() >= SPEAKERS_MAX {
            let least = self.speakers.keys().copied().min_by_key(|party| paid(*party));
            let Some(least) = least.filter(|least| paid(*least) < paid(speaker)) else { return };
            self.speakers.remove(&least);
        }
        let known = self.speakers.entry(speaker).or_default();
        // Nobody is asked about itself.
        for ProviderOpinion { provider, failure_ppm, speeds } in
            said.into_iter().filter(|opinion| opinion.provider != speaker)
        {
            let oldest = known.iter().min_by_key(|(_, heard)| heard.at).map(|(party, _)| *party);
            if let Some(oldest) = oldest
                && known.len() >= PROVIDERS_MAX
                && !known.contains_key(&provider)
            {
                known.remove(&oldest);
            }
            let speeds = speeds.into_iter().map(|speed| (speed.model, speed)).collect();
            let failure_ppm = u64::from(failure_ppm).min(PPM);
            known.insert(provider, Heard { failure_ppm, speeds, at: now });
        }
    }

    /// What a stranger with this declared speed is expected to do with `model`, if somebody told.
    pub(super) fn about(
        &self,
        (provider, model, declared): (PartyId, ModelDigest, u32),
        paid: impl Fn(PartyId) -> u64,
        now: Timestamp,
    ) -> Option<Rumour> {
        let (mut failures, mut firsts, mut speeds) =
            (Mean::default(), Mean::default(), Mean::default());
        let mut speakers = 0;
        for (speaker, known) in &self.speakers {
            let Some(heard) = known.get(&provider).filter(|heard| heard.counts(now)) else {
                continue;
            };
            let weight = paid(*speaker);
            failures.add(heard.failure_ppm, weight);
            speakers += 1;
            if let Some(speed) = heard.speeds.get(&model) {
                let speed_milli = u64::from(speed.tokens_per_second_milli.max(SPEED_MILLI_MIN));
                firsts.add(speed.first_token_ms.min(FIRST_TOKEN_MS_MAX).into(), weight);
                speeds.add(speed_milli.min(SPEED_MILLI_MAX), weight);
            }
        }
        if failures.weight == 0 {
            return None;
        }
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Some(Rumour {
            first_token_ms: small(firsts.applied_to(FIRST_TOKEN_NEUTRAL_MS.into())),
            tokens_per_second_milli: small(speeds.applied_to(declared.into())),
            failure_ppm: failures.applied_to(FAILURE_NEUTRAL_PPM),
            speakers,
        })
    }

    fn forget(&mut self, now: Timestamp) {
        self.speakers.retain(|_, known| {
            known.retain(|_, heard| heard.counts(now));
            !known.is_empty()
        });
    }

    /// How many speakers and opinions are kept.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.speakers.len(), self.speakers.values().map(BTreeMap::len).sum())
    }
}

impl Heard {
    fn counts(&self, now: Timestamp) -> bool {
        self.at.plus_ms(OPINION_LIFE_MS) > now
    }
}

/// A mean of what several say, weighted by what they paid.
#[derive(Default)]
struct Mean {
    sum: u128,
    weight: u128,
}

impl Mean {
    fn add(&mut self, value: u64, weight: u64) {
        self.sum += u128::from(value) * u128::from(weight);
        self.weight += u128::from(weight);
    }

    /// `neutral`, moved towards the mean by what the speakers have paid.
    fn applied_to(&self, neutral: u64) -> u64 {
        let told = self.sum.checked_div(self.weight).unwrap_or_default();
        let told = u64::try_from(told).unwrap_or(u64::MAX);
        let weight = u64::try_from(self.weight).unwrap_or(u64::MAX);
        let share = scale(PPM, weight, weight.saturating_add(PAID_HALF));
        scale(neutral, PPM - share, PPM).saturating_add(scale(told, share, PPM))
    }
}
