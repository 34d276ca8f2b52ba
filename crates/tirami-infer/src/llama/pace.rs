//! How many sequences one pass is to have: as many as the machine gains by.
//!
//! On a processor with few threads a pass over a few sequences can take longer than so many passes
//! over one, and where that changes depends on model, quantisation and machine. So passes are
//! timed as they are made, and what was not tried yet is tried.

use std::time::Duration;

use super::SEQUENCES_MAX;

/// A pass over all who are ready is chosen unless another size is faster by this factor: it treats
/// everybody alike.
const GAIN_MIN: f32 = 1.05;
/// After so many passes one is made in another size, in turn, to learn what has changed.
const TRY_AGAIN_AFTER: u32 = 256;
/// What a new figure weighs when it is higher than what is known; a lower one counts at once, for
/// disturbances only make passes slower.
const SLOWER_WEIGHT: f32 = 0.125;

/// Seconds that passes took, by the tokens in them.
#[derive(Debug)]
pub(super) struct Pace {
    took: [Option<f32>; SEQUENCES_MAX as usize + 1],
    passes: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { took: [None; SEQUENCES_MAX as usize + 1], passes: 0 }
    }
}

impl Pace {
    /// Notes a pass.
    pub(super) fn note(&mut self, tokens: usize, took: Duration) {
        self.passes = self.passes.wrapping_add(1);
        let Some(known) = self.took.get_mut(tokens) else { return };
        let took = took.as_secs_f32();
        *known = Some(match *known {
            Some(known) if took > known => known + (took - known) * SLOWER_WEIGHT,
            _ => took,
        });
    }

    /// Seconds a pass over so many tokens takes, where that is known.
    pub(super) fn seconds(&self, tokens: usize) -> Option<f32> {
        self.took.get(tokens).copied().flatten()
    }

    /// How many of `ready` sequences the next pass is to have; at least 1 when any is ready.
    pub(super) fn group(&self, ready: usize) -> usize {
        let smaller = (0..).map(|power| 1 << power).take_while(|size| *size < ready);
        let sizes: Vec<usize> = smaller.chain([ready]).collect();
        if let Some(untried) = sizes.iter().rev().find(|size| self.seconds(**size).is_none()) {
            return *untried;
        }
        if self.passes % TRY_AGAIN_AFTER == TRY_AGAIN_AFTER - 1 {
            let turn = (self.passes / TRY_AGAIN_AFTER) as usize;
            return sizes[turn % sizes.len()];
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 32")]
        let rate = |size: usize| size as f32 / self.seconds(size).unwrap_or(f32::INFINITY);
        let best = sizes.iter().copied().max_by(|a, b| rate(*a).total_cmp(&rate(*b)));
        best.filter(|best| rate(*best) > rate(ready) * GAIN_MIN).unwrap_or(ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is chosen for `ready` on a machine whose passes take so many milliseconds by size.
    fn settled(ready: usize, took_ms: impl Fn(usize) -> f64) -> usize {
        let mut pace = Pace::default();
        let mut last = 0;
        for _ in 0..20 {
            last = pace.group(ready);
            pace.note(last, Duration::from_secs_f64(took_ms(last) / 1e3));
        }
        last
    }

    #[test]
    fn a_batch_is_as_large_as_the_machine_gains_by() {
        // One after another is quicker here until eight run together.
        let small_loses = |size: usize| {
            [15.0, 15.0, 39.0, 50.0, 68.0, 90.0, 95.0, 100.0, 105.0]
                .get(size)
                .copied()
                .unwrap_or(13.0 * size as f64)
        };
        for (ready, chosen) in [(1, 1), (2, 1), (4, 1), (8, 8), (16, 16), (13, 13)] {
            assert_eq!(settled(ready, small_loses), chosen, "{ready} ready");
        }
        // On a graphics card a pass takes about as long whatever is in it.
        for ready in [1, 2, 3, 7, 32] {
            assert_eq!(settled(ready, |size| 5.0 + 0.05 * size as f64), ready);
        }
        // Nothing is gained, so everybody is treated alike.
        assert_eq!(settled(6, |size| 10.0 * size as f64), 6);
    }

    #[test]
    fn a_disturbed_pass_is_forgotten() {
        let mut pace = Pace::default();
        for took in [10, 500, 10] {
            pace.note(1, Duration::from_millis(took));
        }
        assert!(pace.seconds(1).is_some_and(|seconds| seconds < 0.011));
        assert_eq!(pace.seconds(33), None);
    }

    #[test]
    fn what_changed_is_found_out() {
        let mut pace = Pace::default();
        let mut chosen = Vec::new();
        for pass in 0..3_000 {
            let size = pace.group(4);
            // Small batches lose at first, and gain later.
            let ms = if pass < 500 { 10 * size * size } else { 10 };
            pace.note(size, Duration::from_millis(ms as u64));
            chosen.push(size);
        }
        assert_eq!((chosen[400], chosen[2_990]), (1, 4));
    }
}
