//! Choosing the next token of one sequence from its logits.
//!
//! A sequence owns its sampler, and a draw depends on the seed and the token's place in the
//! completion alone. So a choice does not depend on what else runs, nor on whether the tokens
//! before it were chosen here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::grammar::{Grammar, Spelling};
use crate::engine::{REPEAT_TOKENS, Sampling, TOP_LOGPROBS_MAX};

/// Words of the generator that one draw takes.
const DRAW_WORDS: u128 = 2;
/// The generator's streams: the first draw for a token, and the one after the grammar refused it.
const FIRST_DRAW: u64 = 0;
const SECOND_DRAW: u64 = 1;

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(super) struct Sampler {
    temperature: f32,
    limits: Limits,
    biases: Biases,
    top_logprobs: Option<usize>,
    grammar: Option<Grammar>,
    generator: ChaCha8Rng,
    /// The logits after bias and penalties, where there are any.
    adjusted: Vec<f32>,
}

/// The log-probabilities at one place of a completion, by token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Logprobs {
    /// The produced token.
    pub(super) token: u32,
    pub(super) logprob: f32,
    /// The likeliest, likeliest first.
    pub(super) top: Vec<(u32, f32)>,
}

/// Which tokens may be drawn.
#[derive(Debug, Clone, Copy)]
struct Limits {
    top_k: usize,
    typical_p: f64,
    top_p: f64,
    min_p: f64,
}

/// What is added to the logits, and the tokens it depends on.
#[derive(Debug)]
struct Biases {
    fixed: Vec<(usize, f32)>,
    presence: f32,
    frequency: f32,
    repeat: f32,
    /// How often the completion has each token.
    counts: BTreeMap<u32, u32>,
    /// The last tokens of prompt and completion.
    recent: VecDeque<u32>,
}

impl Sampler {
    /// A sampler before the first token of the completion of `prompt`.
    pub(super) fn new(sampling: &Sampling, grammar: Option<Grammar>, prompt: &[u32]) -> Self {
        let start = prompt.len().saturating_sub(REPEAT_TOKENS);
        Self {
            temperature: sampling.temperature,
            limits: Limits {
                top_k: usize::try_from(sampling.top_k).unwrap_or(usize::MAX),
                typical_p: f64::from(sampling.typical_p),
                top_p: f64::from(sampling.top_p),
                min_p: f64::from(sampling.min_p),
            },
            biases: Biases {
                fixed: sampling
                    .logit_bias
                    .iter()
                    .filter_map(|(token, bias)| Some((usize::try_from(*token).ok()?, *bias)))
                    .collect(),
                presence: sampling.presence_penalty,
                frequency: sampling.frequency_penalty,
                repeat: sampling.repeat_penalty,
                counts: BTreeMap::new(),
                recent: prompt[start..].iter().copied().collect(),
            },
            top_logprobs: sampling.top_logprobs.map(|top| top.min(TOP_LOGPROBS_MAX) as usize),
            grammar,
            generator: ChaCha8Rng::seed_from_u64(u64::from(sampling.seed)),
            adjusted: Vec::new(),
        }
    }

    /// The index of the token at `position` of the completion; none when no logit is a number, or
    /// the grammar allows no token or is too costly to follow.
    pub(super) fn pick(
        &mut self,
        logits: &[f32],
        position: usize,
        spelling: Spelling<'_>,
    ) -> Option<usize> {
        if !self.biases.is_none() {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            self.biases.apply(&mut self.adjusted);
        }
        let logits = if self.biases.is_none() { logits } else { &self.adjusted };
        let draw = uniform(&mut self.generator, FIRST_DRAW, position);
        let choice = choose(logits, self.temperature, &self.limits, draw)?;
        let Some(grammar) = &mut self.grammar else {
            return Some(choice);
        };
        // Nearly always the choice is allowed, and to ask for one token is quick.
        if grammar.allows(choice, spelling) {
            return Some(choice);
        }
        let allowed = grammar.only_allowed(logits, spelling);
        let draw = uniform(&mut self.generator, SECOND_DRAW, position);
        choose(&allowed, self.temperature, &self.limits, draw)
    }

    /// Whether following the grammar took more time than it may.
    pub(super) fn is_too_costly(&self) -> bool {
        self.grammar.as_ref().is_some_and(Grammar::is_too_costly)
    }

    /// Notes the next token of a completion that another one began; the grammar knows it.
    pub(super) fn note(&mut self, token: u32) {
        self.biases.accept(token);
    }

    /// Notes the next token of the completion. False when the grammar does not allow it.
    pub(super) fn accept(&mut self, token: u32, spelling: Spelling<'_>) -> bool {
        self.note(token);
        self.grammar.as_mut().is_none_or(|grammar| grammar.accept(token, spelling))
    }

    /// The log-probabilities of a produced token, where they were asked for.
    pub(super) fn logprobs(&self, logits: &[f32], token: usize) -> Option<Logprobs> {
        let count = self.top_logprobs?;
        let top = f64::from(*logits.get(likeliest(logits)?)?);
        let sum = logits.iter().map(|logit| (f64::from(*logit) - top).exp());
        let norm = top + sum.filter(|weight| !weight.is_nan()).sum::<f64>().ln();
        #[expect(clippy::cast_possible_truncation, reason = "a probability needs no more digits")]
        let logprob = |logit: f32| ((f64::from(logit) - norm) as f32).min(0.0);
        let mut order = (0..logits.len()).filter(|i| !logits[*i].is_nan()).collect::<Vec<_>>();
        let first = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if (1..order.len()).contains(&count) {
            order.select_nth_unstable_by(count - 1, first);
        }
        order.truncate(count);
        order.sort_unstable_by(first);
        let id = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        Some(Logprobs {
            token: id(token),
            logprob: logprob(*logits.get(token)?),
            top: order.into_iter().map(|index| (id(index), logprob(logits[index]))).collect(),
        })
    }
}

impl Biases {
    /// Whether the logits stay as they are.
    fn is_none(&self) -> bool {
        let is = |value: f32, neutral: f32| (value - neutral).abs() < f32::EPSILON;
        self.fixed.is_empty()
            && is(self.presence, 0.0)
            && is(self.frequency, 0.0)
            && is(self.repeat, 1.0)
    }

    fn apply(&self, logits: &mut [f32]) {
        for (index, bias) in &self.fixed {
            if let Some(logit) = logits.get_mut(*index) {
                *logit += bias;
            }
        }
        for token in self.recent.iter().collect::<BTreeSet<_>>() {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = if *logit > 0.0 { *logit / self.repeat } else { *logit * self.repeat };
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                #[expect(clippy::cast_precision_loss, reason = "a context is far below 2^24")]
                let often = *count as f32;
                *logit -= self.presence + self.frequency * often;
            }
        }
    }

    fn accept(&mut self, token: u32) {
        if self.is_none() {
            return;
        }
        *self.counts.entry(token).or_default() += 1;
        if self.recent.len() == REPEAT_TOKENS {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }
}

/// A token by its logits; `draw` is from 0 (inclusive) to 1 (exclusive).
fn choose(logits: &[f32], temperature: f32, limits: &Limits, draw: f64) -> Option<usize> {
    let best = likeliest(logits)?;
    let top = logits[best];
    // A temperature that is not positive, NaN included, is greedy.
    if temperature.is_nan() || temperature <= 0.0 || !top.is_finite() {
        return Some(best);
    }
    let temperature = f64::from(temperature);
    let weigh = |logit: f32| ((f64::from(logit) - f64::from(top)) / temperature).exp();
    let mut candidates = logits
        .iter()
        .map(|logit| weigh(*logit))
        .enumerate()
        .filter(|(_, weight)| *weight > 0.0)
        .collect::<Vec<_>>();
    limits.apply(&mut candidates);
    let total = candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut left = draw * total;
    for (index, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return Some(*index);
        }
    }
    candidates.last().map(|(index, _)| *index).or(Some(best))
}

impl Limits {
    /// Leaves out what may not be drawn. The likeliest weighs 1; the order that is left decides
    /// what a draw means, so it depends on the weights and indexes alone.
    fn apply(&self, candidates: &mut Vec<(usize, f64)>) {
        self.keep_top_k(candidates);
        self.keep_typical(candidates);
        self.keep_nucleus(candidates);
        if self.min_p > 0.0 {
            candidates.retain(|(_, weight)| *weight >= self.min_p);
        }
    }

    fn keep_top_k(&self, candidates: &mut Vec<(usize, f64)>) {
        if (1..candidates.len()).contains(&self.top_k) {
            candidates.select_nth_unstable_by(self.top_k - 1, likelier_first);
            candidates.truncate(self.top_k);
            candidates.sort_unstable_by_key(|(index, _)| *index);
        }
    }

    /// Keeps the candidates whose surprise is nearest to the expected one and that together have
    /// at least `typical_p` of the weight.
    fn keep_typical(&self, candidates: &mut Vec<(usize, f64)>) {
        if !(0.0..1.0).contains(&self.typical_p) {
            return;
        }
        let total = candidates.iter().map(|(_, weight)| weight).sum::<f64>();
        let surprise = |weight: f64| -(weight / total).ln();
        let expected =
            candidates.iter().map(|(_, weight)| weight / total * surprise(*weight)).sum::<f64>();
        let oddness = |weight: f64| (surprise(weight) - expected).abs();
        candidates
            .sort_unstable_by(|a, b| oddness(a.1).total_cmp(&oddness(b.1)).then(a.0.cmp(&b.0)));
        truncate_to(candidates, self.typical_p * total);
        candidates.sort_unstable_by_key(|(index, _)| *index);
    }

    /// Keeps the likeliest candidates that together have at least `top_p` of the weight.
    fn keep_nucleus(&self, candidates: &mut Vec<(usize, f64)>) {
        if !(0.0..1.0).contains(&self.top_p) {
            return;
        }
        let total = candidates.iter().map(|(_, weight)| weight).sum::<f64>();
        // All candidates below this together weigh less than what may be left out.
        #[expect(clippy::cast_precision_loss, reason = "a vocabulary is far below 2^52")]
        let negligible = total * (1.0 - self.top_p) / candidates.len().max(1) as f64;
        candidates.retain(|(_, weight)| *weight >= negligible);
        candidates.sort_unstable_by(likelier_first);
        truncate_to(candidates, self.top_p * total);
    }
}

/// Keeps the first candidates that together weigh at least `needed`.
fn truncate_to(candidates: &mut Vec<(usize, f64)>, needed: f64) {
    let mut sum = 0.0;
    let last = candidates.iter().position(|(_, weight)| {
        sum += weight;
        sum >= needed
    });
    candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
}

/// A number from 0 (inclusive) to 1 (exclusive) with 53 random bits.
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
fn uniform(generator: &mut ChaCha8Rng, stream: u64, position: usize) -> f64 {
    generator.set_stream(stream);
    generator.set_word_pos(position as u128 * DRAW_WORDS);
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The first of the highest logits; NaN counts as lowest.
pub(super) fn likeliest(logits: &[f32]) -> Option<usize> {
    // The highest is found in lanes, which the compiler makes vectors of; then its place.
    const LANES: usize = 16;
    let higher = |top: f32, logit: f32| if logit > top { logit } else { top };
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (rows, rest) = logits.as_chunks::<LANES>();
    for row in rows {
        for (top, logit) in tops.iter_mut().zip(row) {
            *top = higher(*top, *logit);
        }
    }
    let top = tops.iter().chain(rest).copied().fold(f32::NEG_INFINITY, higher);
    logits.iter().position(|logit| *logit >= top).filter(|_| top > f32::NEG_INFINITY)
}

fn likelier_first(a: &(usize, f64), b: &(usize, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests;
