//! What this node knows of providers from its own jobs: speed, failures, trade, cached prompts.

use std::collections::BTreeMap;

use tirami_core::{Digest, MINUTE_MS, ModelDigest, PartyId, Timestamp, Trm};
use tirami_proto::{MeasuredSpeed, OFFERS_MAX, OPINIONS_PER_FRAME_MAX, Offer, ProviderOpinion};

use super::UNHEALTHY_PPM;
use super::hearsay::Hearsay;

/// Parties with an opinion at most; whoever was observed longest ago is forgotten first.
pub const PARTIES_MAX: usize = 4_096;
/// Prompts whose provider is remembered at most.
pub const PREFIXES_MAX: usize = 4_096;
/// How long the provider of a prompt is remembered, in milliseconds.
pub const PREFIX_LIFE_MS: u64 = 10 * MINUTE_MS;
/// Time to the first token that a provider starts with, in milliseconds.
pub const FIRST_TOKEN_NEUTRAL_MS: u32 = 1_000;
/// Speed that a provider starts with, in tokens per 1 000 s.
pub const SPEED_NEUTRAL_MILLI: u32 = 10_000;
/// Failure rate that a provider starts with, in ppm.
pub const FAILURE_NEUTRAL_PPM: u64 = 50_000;

/// One, in ppm.
pub(super) const PPM: u64 = 1_000_000;

/// How much of the distance to one a failure adds to the failure rate.
const FAILURE_GAIN_PPM: u64 = 250_000;
/// How much of the failure rate a success takes away.
const SUCCESS_GAIN_PPM: u64 = 100_000;
/// What is left of the failure rate above the neutral one halves in this time after one failure,
/// and in twice the time for each further failure in a row.
const FAILURE_HALF_LIFE_MS: u64 = 20_000;
/// Doublings of that time at most: eleven minutes.
const STREAK_MAX: u32 = 5;
/// How much a new measurement counts at least.
const SAMPLE_PPM: u64 = 250_000;
/// After this time a new measurement counts alone.
const SAMPLE_ALONE_MS: u64 = 30_000;
/// A measurement younger than this needs no exploring.
const RECENT_MS: u64 = MINUTE_MS;
/// In this time the part of a measurement that is worse than neutral halves.
const SPEED_HALF_LIFE_MS: u64 = 5 * MINUTE_MS;
/// A provider that asks to wait is left alone for at most this long.
const WAIT_MS_MAX: u64 = MINUTE_MS;
/// Times beyond this are measured as this.
const TIME_MS_MAX: u32 = 600_000;
/// Speeds beyond this are measured as this.
pub(super) const SPEED_MILLI_MAX: u64 = 1_000_000_000;

/// What this node saw a provider do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The provider.
    pub provider: PartyId,
    /// What it did.
    pub outcome: Observed,
}

/// What a provider did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// It answered completely and its receipt was right.
    Served {
        /// The model.
        model: ModelDigest,
        /// Digest of the whole prompt, as it stands among [`super::Query::prefixes`] of a prompt
        /// that goes on from it.
        prefix: Option<Digest>,
        /// Milliseconds from sending the order to the first token.
        first_token_ms: u32,
        /// Tokens of the answer.
        tokens: u32,
        /// Milliseconds from the first token to the last.
        tokens_ms: u32,
    },
    /// It was lost, stalled, or failed before the end.
    Failed,
    /// It tried to be paid for something it did not do.
    Cheated,
    /// It refused an order for now.
    Refused {
        /// When it may be asked again, in milliseconds; at most a minute counts.
        retry_after_ms: u64,
    },
    /// A trade with it was settled.
    Traded {
        /// What this node paid it.
        bought: Trm,
        /// What it paid this node.
        sold: Trm,
    },
}

/// What is expected of a provider with one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Estimate {
    pub(super) first_token_ms: u32,
    pub(super) tokens_per_second_milli: u32,
    pub(super) failure_ppm: u64,
    pub(super) measured: bool,
    /// How many others told of it, where this node has not measured it.
    pub(super) heard_from: u32,
    /// Whether its failures are those of this node's own jobs.
    pub(super) failed_here: bool,
    /// Whether it was measured within the last minute.
    pub(super) recent: bool,
    pub(super) jobs: u32,
}

/// What this node knows of a provider, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Failures among its jobs, as they are counted now.
    pub failure_ppm: u64,
    /// Jobs of this node that it answered completely and that were measured.
    pub jobs: u32,
    /// What this node paid it, and what it paid this node, since the start.
    pub traded: (Trm, Trm),
    /// Milliseconds to the first token and tokens per 1 000 s, by model.
    pub speeds: BTreeMap<ModelDigest, (u32, u32)>,
}

/// What this node thinks of providers. Bounded; nothing of it is durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opinions {
    parties: BTreeMap<PartyId, Opinion>,
    prefixes: BTreeMap<Digest, (PartyId, Timestamp)>,
    hearsay: Hearsay,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Opinion {
    speeds: BTreeMap<ModelDigest, Speed>,
    failures: Failures,
    wait_until: Timestamp,
    bought: Trm,
    sold: Trm,
    at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Speed {
    first_token_ms: u32,
    tokens_per_second_milli: u32,
    jobs: u32,
    at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failures {
    ppm: u64,
    streak: u32,
    at: Timestamp,
}

impl Opinions {
    /// Learns from what was seen.
    pub fn observe(&mut self, observation: &Observation, now: Timestamp) {
        let party = observation.provider;
        if !self.parties.contains_key(&party) && self.parties.len() >= PARTIES_MAX {
            let oldest = self.parties.iter().min_by_key(|(_, opinion)| opinion.at);
            if let Some(oldest) = oldest.map(|(party, _)| *party) {
                self.parties.remove(&oldest);
            }
        }
        let opinion = self.parties.entry(party).or_default();
        opinion.at = now;
        match &observation.outcome {
            Observed::Served { model, prefix, first_token_ms, tokens, tokens_ms } => {
                opinion.failures.success(now);
                opinion.wait_until = Timestamp::default();
                opinion.measure(*model, *first_token_ms, speed_milli(*tokens, *tokens_ms), now);
                if let Some(prefix) = prefix {
                    self.remember(*prefix, party, now);
                }
            }
            Observed::Failed => opinion.failures.failure(now),
            Observed::Cheated => opinion.failures.cheated(now),
            Observed::Refused { retry_after_ms } => {
                opinion.wait_until = now.plus_ms((*retry_after_ms).min(WAIT_MS_MAX));
            }
            Observed::Traded { bought, sold } => {
                opinion.bought = opinion.bought.saturating_add(*bought);
                opinion.sold = opinion.sold.saturating_add(*sold);
            }
        }
    }

    /// What is expected of `party` when it serves `offer`.
    pub(super) fn estimate(&self, party: PartyId, offer: &Offer, now: Timestamp) -> Estimate {
        let opinion = self.parties.get(&party);
        let failures = opinion.map_or_else(Failures::default, |opinion| opinion.failures);
        let failure_ppm = failures.rate(now);
        let Some(speed) = opinion.and_then(|opinion| opinion.speeds.get(&offer.model)) else {
            // Whoever calls itself slow is believed; whoever calls itself fast is not.
            let declared = offer.tokens_per_second_milli.min(SPEED_NEUTRAL_MILLI);
            let estimate = Estimate {
                first_token_ms: FIRST_TOKEN_NEUTRAL_MS,
                tokens_per_second_milli: declared.max(1),
                failure_ppm,
                measured: false,
                heard_from: 0,
                failed_here: true,
                recent: failures.at.plus_ms(RECENT_MS) > now,
                jobs: 0,
            };
            let about = (party, offer.model, declared);
            let Some(told) =
                self.hearsay.about(about, |speaker| paid_by(&self.parties, speaker), now)
            else {
                return estimate;
            };
            let failed_here = failures != Failures::default();
            let speed = told.tokens_per_second_milli.min(offer.tokens_per_second_milli);
            return Estimate {
                first_token_ms: told.first_token_ms,
                tokens_per_second_milli: speed.max(1),
                // What happened to this node's own jobs it knows best. Whatever others say, a
                // provider may be tried.
                failure_ppm: match failed_here {
                    true => failure_ppm,
                    false => told.failure_ppm.min(UNHEALTHY_PPM),
                },
                failed_here,
                heard_from: told.speakers,
                ..estimate
            };
        };
        let age_ms = now.since_ms(speed.at);
        Estimate {
            first_token_ms: faded_down(speed.first_token_ms, FIRST_TOKEN_NEUTRAL_MS, age_ms),
            tokens_per_second_milli: faded_up(
                speed.tokens_per_second_milli,
                SPEED_NEUTRAL_MILLI,
                age_ms,
            ),
            failure_ppm,
            measured: true,
            heard_from: 0,
            failed_here: true,
            recent: age_ms < RECENT_MS || failures.at.plus_ms(RECENT_MS) > now,
            jobs: speed.jobs,
        }
    }

    /// Notes what `speaker` saw providers do. It counts in proportion to what the speaker has paid
    /// this node, and not at all without.
    pub fn hear(&mut self, speaker: PartyId, said: Vec<ProviderOpinion>, now: Timestamp) {
        let parties = &self.parties;
        self.hearsay.hear(speaker, said, |party| paid_by(parties, party), now);
    }

    /// What there is to tell others: what was seen from `since` on, the newest of it.
    pub fn tell(&self, since: Timestamp) -> Vec<ProviderOpinion> {
        let seen = |opinion: &Opinion| {
            !opinion.speeds.is_empty() || opinion.failures != Failures::default()
        };
        let news = self.parties.iter().filter(|(_, opinion)| opinion.at >= since && seen(opinion));
        let mut news: Vec<_> = news.collect();
        news.sort_by_key(|(_, opinion)| std::cmp::Reverse(opinion.at));
        news.truncate(OPINIONS_PER_FRAME_MAX);
        let told = |(provider, opinion): (&PartyId, &Opinion)| ProviderOpinion {
            provider: *provider,
            failure_ppm: u32::try_from(opinion.failures.rate(opinion.at)).unwrap_or(u32::MAX),
            speeds: opinion.speeds.iter().map(|(model, speed)| speed.told(*model)).collect(),
        };
        news.into_iter().map(told).collect()
    }

    /// What is known of `party`.
    pub fn known(&self, party: PartyId, now: Timestamp) -> Known {
        let opinion = self.parties.get(&party).cloned().unwrap_or_default();
        let speeds = opinion.speeds.iter();
        let shown = |speed: &Speed| (speed.first_token_ms, speed.tokens_per_second_milli);
        Known {
            failure_ppm: opinion.failures.rate(now),
            jobs: opinion.speeds.values().fold(0, |sum, speed| speed.jobs.saturating_add(sum)),
            traded: (opinion.bought, opinion.sold),
            speeds: speeds.map(|(model, speed)| (*model, shown(speed))).collect(),
        }
    }

    /// Whether `party` asked to be left alone for now.
    pub(super) fn waits(&self, party: PartyId, now: Timestamp) -> bool {
        self.parties.get(&party).is_some_and(|opinion| opinion.wait_until > now)
    }

    /// The smaller of what was bought from `party` and what was sold to it, in µTRM.
    pub(super) fn mutual(&self, party: PartyId) -> u64 {
        self.parties.get(&party).map_or(0, |opinion| opinion.bought.min(opinion.sold).micro())
    }

    /// What was bought from `party`.
    pub(crate) fn bought(&self, party: PartyId) -> Trm {
        self.parties.get(&party).map_or(Trm::ZERO, |opinion| opinion.bought)
    }

    /// The provider that served the longest of these prompts lately.
    pub(super) fn last_for(&self, prefixes: &[Digest], now: Timestamp) -> Option<PartyId> {
        let held = prefixes.iter().find_map(|prefix| self.prefixes.get(prefix))?;
        (held.1.plus_ms(PREFIX_LIFE_MS) > now).then_some(held.0)
    }

    /// How many parties and prompts are remembered.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.parties.len(), self.prefixes.len())
    }

    /// How many speakers and opinions of theirs are remembered.
    #[cfg(test)]
    pub(super) fn heard(&self) -> (usize, usize) {
        self.hearsay.sizes()
    }

    fn remember(&mut self, prefix: Digest, party: PartyId, now: Timestamp) {
        if self.prefixes.len() >= PREFIXES_MAX && !self.prefixes.contains_key(&prefix) {
            self.prefixes.retain(|_, (_, at)| at.plus_ms(PREFIX_LIFE_MS) > now);
        }
        if self.prefixes.len() >= PREFIXES_MAX && !self.prefixes.contains_key(&prefix) {
            let oldest = self.prefixes.iter().min_by_key(|(_, (_, at))| *at);
            if let Some(oldest) = oldest.map(|(prefix, _)| *prefix) {
                self.prefixes.remove(&oldest);
            }
        }
        self.prefixes.insert(prefix, (party, now));
    }
}

impl Opinion {
    fn measure(
        &mut self,
        model: ModelDigest,
        first_token_ms: u32,
        speed_milli: Option<u32>,
        now: Timestamp,
    ) {
        let first_token_ms = first_token_ms.min(TIME_MS_MAX);
        let full = self.speeds.len() >= OFFERS_MAX && !self.speeds.contains_key(&model);
        let oldest = self.speeds.iter().min_by_key(|(_, speed)| speed.at).map(|(model, _)| *model);
        if let Some(oldest) = oldest.filter(|_| full) {
            self.speeds.remove(&oldest);
        }
        let Some(speed) = self.speeds.get_mut(&model) else {
            let tokens_per_second_milli = speed_milli.unwrap_or(SPEED_NEUTRAL_MILLI);
            let speed = Speed { first_token_ms, tokens_per_second_milli, jobs: 1, at: now };
            self.speeds.insert(model, speed);
            return;
        };
        let weight =
            SAMPLE_PPM.max(PPM * now.since_ms(speed.at).min(SAMPLE_ALONE_MS) / SAMPLE_ALONE_MS);
        speed.first_token_ms = mixed(speed.first_token_ms, first_token_ms, weight);
        if let Some(new) = speed_milli {
            speed.tokens_per_second_milli = mixed(speed.tokens_per_second_milli, new, weight);
        }
        speed.jobs = speed.jobs.saturating_add(1);
        speed.at = now;
    }
}

impl Speed {
    const fn told(&self, model: ModelDigest) -> MeasuredSpeed {
        let Self { first_token_ms, tokens_per_second_milli, .. } = *self;
        MeasuredSpeed { model, first_token_ms, tokens_per_second_milli }
    }
}

impl Default for Failures {
    fn default() -> Self {
        Self { ppm: FAILURE_NEUTRAL_PPM, streak: 0, at: Timestamp::default() }
    }
}

impl Failures {
    /// The rate now: what is above the neutral one fades, slower after more failures in a row.
    fn rate(&self, now: Timestamp) -> u64 {
        let above = self.ppm.saturating_sub(FAILURE_NEUTRAL_PPM);
        let half_life = FAILURE_HALF_LIFE_MS << self.streak.saturating_sub(1).min(STREAK_MAX);
        self.ppm - above + halved(above, now.since_ms(self.at), half_life)
    }

    fn failure(&mut self, now: Timestamp) {
        let rate = self.rate(now);
        self.ppm = rate + (PPM - rate) * FAILURE_GAIN_PPM / PPM;
        self.streak = (self.streak + 1).min(STREAK_MAX + 1);
        self.at = now;
    }

    fn success(&mut self, now: Timestamp) {
        let rate = self.rate(now);
        self.ppm = rate - rate * SUCCESS_GAIN_PPM / PPM;
        self.streak /= 2;
        self.at = now;
    }

    fn cheated(&mut self, now: Timestamp) {
        self.ppm = PPM * 9 / 10;
        self.streak = STREAK_MAX + 1;
        self.at = now;
    }
}

/// What `party` has paid this node, in µTRM.
fn paid_by(parties: &BTreeMap<PartyId, Opinion>, party: PartyId) -> u64 {
    parties.get(&party).map_or(0, |opinion| opinion.sold.micro())
}

/// Tokens per 1 000 s; nothing when there were too few to say.
fn speed_milli(tokens: u32, tokens_ms: u32) -> Option<u32> {
    if tokens < 2 {
        return None;
    }
    let speed = u64::from(tokens - 1) * 1_000_000 / u64::from(tokens_ms.max(1));
    u32::try_from(speed.min(SPEED_MILLI_MAX)).ok()
}

/// `old` moved towards `new` by `weight` ppm.
fn mixed(old: u32, new: u32, weight: u64) -> u32 {
    let sum = u64::from(old) * (PPM - weight) + u64::from(new) * weight;
    u32::try_from(sum / PPM).unwrap_or(u32::MAX)
}

/// A value that is too high fades down to the neutral one.
fn faded_down(value: u32, neutral: u32, age_ms: u64) -> u32 {
    let above = u64::from(value.saturating_sub(neutral));
    let left = halved(above, age_ms, SPEED_HALF_LIFE_MS);
    value.min(neutral) + u32::try_from(left).unwrap_or(u32::MAX)
}

/// A value that is too low fades up to the neutral one.
fn faded_up(value: u32, neutral: u32, age_ms: u64) -> u32 {
    let below = u64::from(neutral.saturating_sub(value));
    let left = halved(below, age_ms, SPEED_HALF_LIFE_MS);
    value.max(neutral) - u32::try_from(left).unwrap_or(neutral)
}

/// `value` after halving once in each `half_life_ms`, in a straight line between.
fn halved(value: u64, age_ms: u64, half_life_ms: u64) -> u64 {
    let times = u32::try_from(age_ms / half_life_ms).unwrap_or(u32::MAX);
    let left = value.checked_shr(times).unwrap_or(0);
    left - left * (age_ms % half_life_ms) / (2 * half_life_ms)
}
