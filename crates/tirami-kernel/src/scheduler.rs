//! Which provider gets a job: the requester's constraints first, then what this node measured.
//!
//! What a provider says of itself can only hurt it: a slower speed, a full house and a price are
//! believed, a higher speed is not. Integers only; the time and the dice are arguments, so that a
//! choice can be replayed.

mod hearsay;
mod opinion;
mod reason;

use std::collections::{BTreeMap, BTreeSet};

use tirami_core::{Digest, Flop, ModelDigest, ModelShape, PartyId, Ppm, Timestamp};
use tirami_proto::{Offer, PriceSignal};

pub use hearsay::{OPINION_LIFE_MS, SPEAKERS_MAX};
use opinion::{Estimate, PPM};
pub use opinion::{
    FAILURE_NEUTRAL_PPM, FIRST_TOKEN_NEUTRAL_MS, Known, Observation, Observed, Opinions,
    PARTIES_MAX, PREFIX_LIFE_MS, PREFIXES_MAX, SPEED_NEUTRAL_MILLI,
};
pub use reason::{Exclusion, Reason};

/// Of how many jobs, in ppm, one may go to a provider that was not measured lately.
pub const EXPLORE_PPM: u64 = 50_000;

/// The dice of a question that gives nobody a job: they explore nothing.
pub const NO_DICE: u64 = u64::MAX;

/// How much of an answer counts for the estimate of its time: few answers are as long as allowed.
const TOKENS_MAX: u32 = 256;
/// What a failure costs its user, in milliseconds, until another provider has taken over.
const FAILOVER_MS: u64 = 5_000;
/// Beyond this failure rate a provider is no measure for others. What others say of one that this
/// node never asked counts up to it.
const UNHEALTHY_PPM: u64 = 200_000;
/// What settled trade in both directions is worth at most.
const RECIPROCITY_PPM: u64 = 50_000;
/// Trade in both directions that is worth half of that, in µTRM.
const RECIPROCITY_HALF: u64 = 1_000_000_000;

/// A job that is looking for a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The model that must answer.
    pub model: ModelDigest,
    /// Its shape, where this node has the model: a provider that names another one lies.
    pub shape: Option<ModelShape>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer at most.
    pub completion_tokens: u32,
    /// Digests of the prompt's beginnings, the longest first; see [`Observed::Served`].
    pub prefixes: Vec<Digest>,
    /// Providers that already failed or refused this job.
    pub tried: BTreeSet<PartyId>,
    /// What the requester asks for.
    pub preferences: Preferences,
}

impl Query {
    /// The job's work at most by `shape`.
    pub fn work(&self, shape: ModelShape) -> Flop {
        // A job that only reads may read several texts, each by itself.
        let shape = if self.completion_tokens == 0 { shape.without_attention() } else { shape };
        shape.work(0, self.prompt_tokens.saturating_add(self.completion_tokens))
    }
}

/// The requester's `provider` object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preferences {
    /// Providers to take in this order, before all others.
    pub order: Vec<PartyId>,
    /// No others than these; empty for any.
    pub only: Vec<PartyId>,
    /// Not these.
    pub ignore: Vec<PartyId>,
    /// Whether another provider may be taken when those in `order`, or else the best one, cannot.
    pub allow_fallbacks: bool,
    /// No other quantisations than these, compared without case; empty for any.
    pub quantizations: Vec<String>,
    /// The highest price, µTRM for 10⁹ FLOP: of the model's own shape where this node knows it,
    /// else of the least work that is named for the job.
    pub max_price: Option<Ppm>,
    /// What counts before everything else.
    pub sort: Option<Sort>,
    /// The lowest speed, in tokens per 1 000 s. Providers that were never measured come last.
    pub min_throughput_milli: Option<u32>,
    /// Who may see the prompt.
    pub data: Data,
}

impl Default for Preferences {
    fn default() -> Self {
        Self {
            order: Vec::new(),
            only: Vec::new(),
            ignore: Vec::new(),
            allow_fallbacks: true,
            quantizations: Vec::new(),
            max_price: None,
            sort: None,
            min_throughput_milli: None,
            data: Data::Any,
        }
    }
}

/// What counts before everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// The lowest price.
    Price,
    /// The most tokens per second.
    Throughput,
    /// The shortest time to the first token.
    Latency,
}

/// Who may see the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Any provider.
    Any,
    /// Providers on the owner's list of trusted peers.
    Trusted,
}

/// A provider as this node sees it now.
#[derive(Debug, Clone, Copy)]
pub struct Provider<'a> {
    /// Its newest price signal, checked and not expired.
    pub signal: &'a PriceSignal,
    /// Whether this node holds a live connection to it.
    pub connected: bool,
    /// Whether it is on the owner's list of trusted peers.
    pub trusted: bool,
    /// Jobs of this node that run there now.
    pub running: u16,
}

/// A provider that can take the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub provider: PartyId,
    /// Its price of work, µTRM for 10⁹ FLOP.
    pub price: Ppm,
    /// Its price of cached prompt tokens, µTRM for 10⁹ FLOP.
    pub cached_price: Ppm,
    /// The job's work at most, by the shape that it offers.
    pub work: Flop,
    /// How it compares with the best by measure, which has 1 000 000: twice the expected time,
    /// with risk and price counted as time, is half the score.
    pub score: u64,
    /// Why it stands where it stands, the decisive reason first.
    pub why: Vec<Reason>,
}

impl Candidate {
    /// Whether a job would begin at once there.
    pub fn is_free(&self) -> bool {
        self.why.iter().any(|why| matches!(why, Reason::Free { .. }))
    }

    /// Expected milliseconds to its first token, when it begins at once.
    pub fn first_token_ms(&self) -> u32 {
        let measured = self.why.iter().find_map(|why| match why {
            Reason::Measured { first_token_ms, .. } => Some(*first_token_ms),
            _ => None,
        });
        measured.unwrap_or(FIRST_TOKEN_NEUTRAL_MS)
    }
}

/// All providers that can take a job, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    /// In the order in which they are to be tried.
    pub candidates: Vec<Candidate>,
    /// How many providers were looked at.
    pub asked: u32,
    /// How many were left out, and why.
    pub excluded: BTreeMap<Exclusion, u32>,
}

impl Ranking {
    /// What to tell the requester when there is no candidate.
    pub fn refusal(&self) -> String {
        reason::refusal(self.asked, &self.excluded)
    }
}

/// Ranks `providers` for `query`. `dice` is one draw of a seeded generator, the same for no two
/// jobs: it breaks ties and decides whether this job explores.
pub fn rank<'a>(
    providers: impl IntoIterator<Item = Provider<'a>>,
    opinions: &Opinions,
    query: &Query,
    now: Timestamp,
    dice: u64,
) -> Ranking {
    let mut ranking = Ranking::default();
    let (mut runners, mut proven) = (Vec::new(), Vec::new());
    for provider in providers {
        ranking.asked = ranking.asked.saturating_add(1);
        match admit(&provider, opinions, query, now) {
            Ok(offer) => runners.push(Runner::new(&provider, offer, opinions, query, now)),
            Err(exclusion) => {
                *ranking.excluded.entry(exclusion).or_default() += 1;
                proven.extend(proven_work(&provider, opinions, query, now));
            }
        }
    }
    // A shape that is too large makes a low price dear: what counts is what the job costs.
    let least = match query.shape {
        Some(shape) => query.work(shape).get().max(1),
        None => least_work(&runners, proven),
    };
    for runner in &mut runners {
        runner.weigh(query, opinions, least);
    }
    let most = query.preferences.max_price.map(|most| u64::from(most.get()));
    let (dear, mut runners): (Vec<_>, Vec<_>) =
        runners.into_iter().partition(|runner| most.is_some_and(|most| runner.job_price > most));
    if let Ok(count @ 1..) = u32::try_from(dear.len()) {
        *ranking.excluded.entry(Exclusion::Price).or_default() += count;
    }
    hold_back_strangers(&mut runners);
    runners.sort_by_cached_key(|runner| runner.key(query, dice));
    explore(&mut runners, query, dice);
    if query.preferences.order.is_empty() && !query.preferences.allow_fallbacks {
        runners.truncate(1);
    }
    let best = runners.iter().map(|runner| runner.cost).min().unwrap_or(1).max(1);
    let candidates = runners.into_iter().map(|runner| runner.candidate(query, best));
    ranking.candidates = candidates.collect();
    ranking
}

/// The provider's offer of the model, if it may take the job.
fn admit<'a>(
    provider: &Provider<'a>,
    opinions: &Opinions,
    query: &Query,
    now: Timestamp,
) -> Result<&'a Offer, Exclusion> {
    let (signal, wish) = (provider.signal, &query.preferences);
    let party = signal.provider;
    let refuse = |yes: bool, why| if yes { Err(why) } else { Ok(()) };
    refuse(query.tried.contains(&party), Exclusion::Tried)?;
    refuse(!provider.connected, Exclusion::Unreachable)?;
    refuse(!signal.serving || signal.slots == 0, Exclusion::Paused)?;
    let offer = signal.offer(query.model).ok_or(Exclusion::Model)?;
    refuse(query.shape.is_some_and(|shape| shape != offer.shape), Exclusion::Shape)?;
    let tokens = query.prompt_tokens.saturating_add(query.completion_tokens.min(1));
    refuse(tokens > offer.context_tokens, Exclusion::Context)?;
    refuse(wish.ignore.contains(&party), Exclusion::Ignored)?;
    refuse(!wish.only.is_empty() && !wish.only.contains(&party), Exclusion::NotInOnly)?;
    // Without an order the first choice is the best one, and there is no second.
    let chosen = match wish.order.is_empty() {
        true => query.tried.is_empty(),
        false => wish.order.contains(&party),
    };
    refuse(!wish.allow_fallbacks && !chosen, Exclusion::Fallback)?;
    let same = |name: &String| name.eq_ignore_ascii_case(&offer.quantisation);
    let fits = wish.quantizations.is_empty() || wish.quantizations.iter().any(same);
    refuse(!fits, Exclusion::Quantisation)?;
    refuse(wish.data == Data::Trusted && !provider.trusted, Exclusion::Untrusted)?;
    let estimate = opinions.estimate(party, offer, now);
    let declared = offer.tokens_per_second_milli;
    let known = if estimate.measured { estimate.tokens_per_second_milli } else { declared };
    refuse(wish.min_throughput_milli.is_some_and(|min| known < min), Exclusion::Throughput)?;
    refuse(opinions.waits(party, now), Exclusion::Waiting)?;
    Ok(offer)
}

/// A provider that may take the job, with what is known about it.
struct Runner {
    provider: PartyId,
    price: Ppm,
    cached_price: Ppm,
    /// The job's work at most, as the provider says.
    work: Flop,
    /// The price, had the job the work by the model's own shape, or else the least that is named.
    job_price: u64,
    estimate: Estimate,
    slots: (u16, u16),
    queue: u16,
    busy: bool,
    prefix: bool,
    reciprocal: bool,
    explored: bool,
    /// Expected milliseconds, with risk and price counted as time.
    cost: u64,
}

impl Runner {
    fn new(
        provider: &Provider<'_>,
        offer: &Offer,
        opinions: &Opinions,
        query: &Query,
        now: Timestamp,
    ) -> Self {
        let signal = provider.signal;
        Self {
            provider: signal.provider,
            price: signal.price,
            cached_price: signal.cached_price,
            work: query.work(offer.shape),
            job_price: 0,
            estimate: opinions.estimate(signal.provider, offer, now),
            slots: (signal.slots_free, signal.slots),
            queue: signal.queue,
            busy: signal.slots_free == 0 || provider.running >= signal.slots,
            prefix: opinions.last_for(&query.prefixes, now) == Some(signal.provider),
            reciprocal: opinions.mutual(signal.provider) > 0,
            explored: false,
            cost: 0,
        }
    }

    fn flop(&self) -> u64 {
        self.work.get().max(1)
    }

    fn weigh(&mut self, query: &Query, opinions: &Opinions, least: u64) {
        self.job_price = scale(u64::from(self.price.get()), self.flop(), least);
        self.cost = self.expected(query, opinions.mutual(self.provider));
    }

    /// Expected milliseconds until the answer is complete, with risk and price counted as time.
    fn expected(&self, query: &Query, mutual: u64) -> u64 {
        let estimate = &self.estimate;
        // A prompt whose beginning is cached needs little computing.
        let first_ms = estimate.first_token_ms / if self.prefix { 4 } else { 1 };
        let tokens = u64::from(query.completion_tokens.min(TOKENS_MAX));
        let speed = u64::from(estimate.tokens_per_second_milli.max(1));
        let mut time = u64::from(first_ms) + tokens * 1_000_000 / speed;
        if self.busy {
            let waiting = u64::from(self.queue) + 1;
            time += time.saturating_mul(waiting) / u64::from(self.slots.1.max(1));
        }
        // Attempts that fail are made again, and a failure is noticed late.
        let failing = estimate.failure_ppm.min(PPM - 10_000);
        time = scale(time, PPM, PPM - failing) + FAILOVER_MS * failing / PPM;
        // At twice the price of par an answer costs what half as much more time does.
        time = scale(time, self.job_price.saturating_add(PPM), 2 * PPM);
        let share = scale(RECIPROCITY_PPM, mutual, mutual.saturating_add(RECIPROCITY_HALF));
        scale(time, PPM - share, PPM).max(1)
    }

    /// Sorts runners, best first.
    fn key(&self, query: &Query, dice: u64) -> (usize, bool, u64, u64, u64) {
        let wish = &query.preferences;
        let place = wish.order.iter().position(|party| *party == self.provider);
        let place = place.unwrap_or(wish.order.len());
        let unproven = wish.min_throughput_milli.is_some() && !self.estimate.measured;
        let healthy = PPM - self.estimate.failure_ppm.min(PPM - 10_000);
        let speed = u64::from(self.estimate.tokens_per_second_milli);
        let sorted = match wish.sort {
            None => 0,
            Some(Sort::Price) => scale(self.job_price, PPM, healthy),
            Some(Sort::Throughput) => u64::MAX - coarse(scale(speed, healthy, PPM)),
            Some(Sort::Latency) => {
                coarse(scale(u64::from(self.estimate.first_token_ms), PPM, healthy))
            }
        };
        (place, unproven, sorted, coarse(self.cost), lot(self.provider, dice))
    }

    fn candidate(self, query: &Query, best: u64) -> Candidate {
        let wish = &query.preferences;
        let mut why = Vec::new();
        if let Some(place) = wish.order.iter().position(|party| *party == self.provider) {
            why.push(Reason::Ordered { place: place + 1 });
        }
        why.extend(self.explored.then_some(Reason::Explored));
        why.extend(wish.sort.map(Reason::Sorted));
        why.extend(self.prefix.then_some(Reason::Prefix));
        why.push(match (self.estimate.measured, self.estimate.heard_from) {
            (true, _) => Reason::Measured {
                first_token_ms: self.estimate.first_token_ms,
                tokens_per_second_milli: self.estimate.tokens_per_second_milli,
                jobs: self.estimate.jobs,
            },
            (false, 0) => Reason::Unmeasured,
            (false, nodes) => Reason::Heard { nodes },
        });
        if self.estimate.failure_ppm > FAILURE_NEUTRAL_PPM && self.estimate.failed_here {
            why.push(Reason::Fails { ppm: self.estimate.failure_ppm });
        }
        why.push(match self.busy {
            true => Reason::Busy { queue: self.queue },
            false => Reason::Free { free: self.slots.0, slots: self.slots.1 },
        });
        why.push(Reason::Price { price: self.price });
        why.extend(self.reciprocal.then_some(Reason::Reciprocal));
        Candidate {
            provider: self.provider,
            price: self.price,
            cached_price: self.cached_price,
            work: self.work,
            score: scale(PPM, best, self.cost),
            why,
        }
    }
}

/// The job's work by the shape of a provider that may not take it, but answered this node before
/// and is well: it still shows what the others' prices are worth.
fn proven_work(
    provider: &Provider<'_>,
    opinions: &Opinions,
    query: &Query,
    now: Timestamp,
) -> Option<u64> {
    let party = provider.signal.provider;
    let offer = provider.signal.offer(query.model)?;
    let estimate = opinions.estimate(party, offer, now);
    let is_measure = estimate.measured
        && estimate.failure_ppm <= UNHEALTHY_PPM
        && !query.preferences.ignore.contains(&party);
    is_measure.then(|| query.work(offer.shape).get().max(1))
}

/// The job's work by the smallest shape. Whoever fails is no measure: a shape that is too small
/// would keep all others from those who say how dear they take it.
fn least_work(runners: &[Runner], proven: Vec<u64>) -> u64 {
    let well = runners.iter().filter(|runner| runner.estimate.failure_ppm <= UNHEALTHY_PPM);
    let least = well.map(Runner::flop).chain(proven).min();
    least.or_else(|| runners.iter().map(Runner::flop).min()).unwrap_or(1)
}

/// Whoever was never measured does not come before the best of those that were and are well.
/// Otherwise a crowd of fresh keys would get every job that a slow but honest provider serves.
fn hold_back_strangers(runners: &mut [Runner]) {
    let proven =
        |runner: &&Runner| runner.estimate.measured && runner.estimate.failure_ppm <= UNHEALTHY_PPM;
    let Some(best) = runners.iter().filter(proven).map(|runner| runner.cost).min() else {
        return;
    };
    for runner in runners.iter_mut().filter(|runner| !runner.estimate.measured) {
        runner.cost = runner.cost.max(best.saturating_add(best / 4));
    }
}

/// Now and then lets a provider have the job that nobody measured lately, so that one that became
/// better is noticed. Jobs that were failed once, and requesters who named an order, are spared.
fn explore(runners: &mut [Runner], query: &Query, dice: u64) {
    let wish = &query.preferences;
    let free = wish.order.is_empty() && wish.sort.is_none() && query.tried.is_empty();
    if !free || dice % PPM >= EXPLORE_PPM {
        return;
    }
    let worth = |runner: &Runner| !runner.estimate.recent && !runner.busy;
    let worth = |runner: &Runner| worth(runner) && runner.estimate.failure_ppm < PPM / 2;
    // A trial is not for whoever is much dearer than others.
    let cheapest = runners.iter().map(|runner| runner.job_price).min().unwrap_or_default();
    let dear = cheapest.saturating_mul(2);
    let worth = |runner: &Runner| worth(runner) && runner.job_price <= dear;
    let choices: Vec<usize> = (1..runners.len()).filter(|at| worth(&runners[*at])).collect();
    let Some(count) = u64::try_from(choices.len()).ok().filter(|count| *count > 0) else {
        return;
    };
    let chosen = usize::try_from((dice / PPM) % count).unwrap_or(0);
    if let Some(at) = choices.get(chosen) {
        runners[..=*at].rotate_right(1);
        runners[0].explored = true;
    }
}

/// `value × numerator ÷ denominator`, rounded down, at most [`u64::MAX`].
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    let product = u128::from(value) * u128::from(numerator) / u128::from(denominator.max(1));
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// The four leading bits of a number: what differs by less is a tie.
const fn coarse(value: u64) -> u64 {
    let shift = 60_u32.saturating_sub(value.leading_zeros());
    (value >> shift) << shift
}

/// A lot for a provider that depends on the dice only.
fn lot(provider: PartyId, dice: u64) -> u64 {
    let mut bytes = [0; 40];
    bytes[..32].copy_from_slice(provider.as_bytes());
    bytes[32..].copy_from_slice(&dice.to_be_bytes());
    let mut lot = [0; 8];
    lot.copy_from_slice(&Digest::of(&bytes).as_bytes()[..8]);
    u64::from_be_bytes(lot)
}

#[cfg(test)]
mod tests;
