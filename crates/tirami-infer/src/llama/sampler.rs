//! Choosing the next token of one sequence from its logits.
//!
//! A sequence owns its generator, so its choices do not depend on what else runs.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::engine::Sampling;

/// Draws the tokens of one sequence.
#[derive(Debug)]
pub(super) struct Sampler {
    temperature: f32,
    top_p: f64,
    top_k: usize,
    generator: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its seed's stream.
    pub(super) fn new(sampling: &Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: f64::from(sampling.top_p),
            top_k: usize::try_from(sampling.top_k).unwrap_or(usize::MAX),
            generator: ChaCha8Rng::seed_from_u64(u64::from(sampling.seed)),
        }
    }

    /// The index of the chosen token; none when no logit is a number.
    pub(super) fn pick(&mut self, logits: &[f32]) -> Option<usize> {
        let best = likeliest(logits)?;
        let top = logits[best];
        // A temperature that is not positive, NaN included, is greedy.
        if self.temperature.is_nan() || self.temperature <= 0.0 || !top.is_finite() {
            return Some(best);
        }
        let temperature = f64::from(self.temperature);
        let weigh = |logit: f32| ((f64::from(logit) - f64::from(top)) / temperature).exp();
        let mut candidates = logits
            .iter()
            .map(|logit| weigh(*logit))
            .enumerate()
            .filter(|(_, weight)| *weight > 0.0)
            .collect::<Vec<_>>();
        self.keep_top_k(&mut candidates);
        self.keep_nucleus(&mut candidates);
        let total = candidates.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut left = self.uniform() * total;
        for (index, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Some(*index);
            }
        }
        candidates.last().map(|(index, _)| *index).or(Some(best))
    }

    fn keep_top_k(&self, candidates: &mut Vec<(usize, f64)>) {
        if (1..candidates.len()).contains(&self.top_k) {
            candidates.select_nth_unstable_by(self.top_k - 1, likelier_first);
            candidates.truncate(self.top_k);
            // The order decides what a draw means, so it must not depend on the selection.
            candidates.sort_unstable_by_key(|(index, _)| *index);
        }
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
        let mut sum = 0.0;
        let needed = candidates.iter().position(|(_, weight)| {
            sum += weight;
            sum >= self.top_p * total
        });
        candidates.truncate(needed.map_or(candidates.len(), |last| last + 1));
    }

    /// A number from 0 (inclusive) to 1 (exclusive) with 53 random bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn uniform(&mut self) -> f64 {
        (self.generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The first of the highest logits; NaN counts as lowest.
pub(super) fn likeliest(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut top = f32::NEG_INFINITY;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > top {
            (best, top) = (Some(index), *logit);
        }
    }
    best
}

fn likelier_first(a: &(usize, f64), b: &(usize, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, top_k: u32, seed: u32) -> Sampler {
        let stop = Vec::new();
        Sampler::new(&Sampling { completion_max: 1, temperature, top_p, top_k, seed, stop })
    }

    /// How often each of the tokens is chosen in `draws`.
    fn counts(mut sampler: Sampler, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.pick(logits).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_likeliest() {
        assert_eq!(sampler(0.0, 1.0, 0, 1).pick(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(sampler(0.0, 1.0, 0, 1).pick(&[f32::NAN, 3.0]), Some(1));
        assert_eq!(sampler(f32::NAN, 1.0, 0, 1).pick(&[1.0, 3.0]), Some(1));
    }

    #[test]
    fn logits_without_a_number_choose_nothing() {
        for logits in [&[][..], &[f32::NAN, f32::NAN], &[f32::NEG_INFINITY]] {
            assert_eq!(sampler(1.0, 0.9, 5, 1).pick(logits), None);
        }
        assert_eq!(sampler(1.0, 0.9, 5, 1).pick(&[f32::INFINITY, 1.0]), Some(0));
    }

    #[test]
    fn a_seed_decides_all_draws() {
        let logits = [1.0, 1.1, 0.9, 1.05];
        let draws = |seed| {
            let mut sampler = sampler(1.0, 1.0, 0, seed);
            (0..32).map(|_| sampler.pick(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        // Probabilities 1/2, 1/4, 1/4.
        let logits = [2.0_f32.ln(), 0.0, 0.0];
        let counts = counts(sampler(1.0, 1.0, 0, 3), &logits, 8_000);
        assert!((3_800..4_200).contains(&counts[0]), "{counts:?}");
        assert!((1_850..2_150).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn top_k_and_top_p_leave_the_unlikely_out() {
        let logits = [0.0, 1.0, 2.0, 3.0];
        for (top_p, top_k, possible) in [
            (1.0, 1, [false, false, false, true]),
            (1.0, 2, [false, false, true, true]),
            (1.0, 9, [true; 4]),
            // Probabilities 0.03, 0.09, 0.24, 0.64.
            (0.5, 0, [false, false, false, true]),
            (0.7, 0, [false, false, true, true]),
            (0.9, 0, [false, true, true, true]),
            (0.0, 0, [false, false, false, true]),
        ] {
            let counts = counts(sampler(1.0, top_p, top_k, 5), &logits, 4_000);
            assert_eq!(
                counts.iter().map(|n| *n > 0).collect::<Vec<_>>(),
                possible,
                "{top_p} {top_k}"
            );
        }
    }
}
