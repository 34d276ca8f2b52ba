//! Guesses of what comes next, looked up in what was said before.
//!
//! An answer that repeats parts of its prompt, as a summary or a corrected text does, is guessed
//! from the last place where its newest tokens stand. Guesses are read in one pass with the newest
//! token; a guess is kept only where the sampler chooses it, so the answer is the same as without.

/// Tokens guessed at most, for one pass.
pub(super) const GUESS_TOKENS_MAX: usize = 8;
/// Tokens that must be the same before a guess.
const SAME_TOKENS: usize = 3;
/// How far back is looked.
const LOOK_BACK_TOKENS: usize = 4_096;
/// What the newest guess weighs in what guessing gained so far.
const NEWEST_WEIGHT: f32 = 0.25;
/// After a loss so many tokens pass before the next guess; each further loss doubles them.
const PAUSE_TOKENS_MIN: u32 = 8;
const PAUSE_TOKENS_MAX: u32 = 512;

/// Whether guessing pays for one sequence.
#[derive(Debug)]
pub(super) struct Lookup {
    /// Tokens of the next guess at most.
    reach: usize,
    /// Seconds a guess gains, as measured; none before the first.
    gain: Option<f32>,
    /// Tokens until the next guess, and until the one after the next loss.
    pause: u32,
    next_pause: u32,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { reach: 2, gain: None, pause: 0, next_pause: PAUSE_TOKENS_MIN }
    }
}

impl Lookup {
    /// What may follow `tokens`, at most `most` tokens; nothing while guessing does not pay. Call
    /// it once for each pass.
    pub(super) fn guess<'a>(&mut self, tokens: &'a [u32], most: usize) -> &'a [u32] {
        if self.pause > 0 {
            self.pause -= 1;
            return &[];
        }
        follow(tokens, most.min(self.reach))
    }

    /// Notes that `kept` of `guessed` tokens were chosen; `alone` is what a pass without them
    /// takes, `took` what this one did, in seconds.
    pub(super) fn learn(&mut self, (kept, guessed): (usize, usize), alone: f32, took: f32) {
        self.reach = if kept == guessed { self.reach * 2 } else { kept.max(2) };
        self.reach = self.reach.min(GUESS_TOKENS_MAX);
        #[expect(clippy::cast_precision_loss, reason = "a guess has few tokens")]
        let gained = (kept as f32 + 1.0) * alone - took;
        let known = self.gain.unwrap_or(gained);
        let gain = known + (gained - known) * NEWEST_WEIGHT;
        self.gain = Some(gain);
        if gain < 0.0 {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_TOKENS_MAX);
            // The next guess is judged by itself.
            self.gain = None;
        } else if gained > 0.0 {
            self.next_pause = PAUSE_TOKENS_MIN;
        }
    }
}

/// What stood after the latest earlier place of the last [`SAME_TOKENS`] tokens.
fn follow(tokens: &[u32], most: usize) -> &[u32] {
    let Some(start) = tokens.len().checked_sub(SAME_TOKENS) else { return &[] };
    let last = &tokens[start..];
    let begin = start.saturating_sub(LOOK_BACK_TOKENS);
    let mut windows = tokens[begin..tokens.len() - 1].windows(SAME_TOKENS);
    let Some(found) = windows.rposition(|window| window == last) else { return &[] };
    let after = begin + found + SAME_TOKENS;
    &tokens[after..(after + most).min(tokens.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_last_time_is_guessed() {
        let cases: &[(&[u32], usize, &[u32])] = &[
            (&[1, 2, 3, 4, 5, 1, 2, 3], 8, &[4, 5, 1, 2, 3]),
            (&[1, 2, 3, 4, 5, 1, 2, 3], 2, &[4, 5]),
            (&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1, &[5]),
            (&[7, 7, 7, 7], 8, &[7]),
            (&[1, 2, 3, 4, 5, 6], 8, &[]),
            (&[1, 2, 3], 8, &[]),
            (&[1, 2], 8, &[]),
            (&[], 8, &[]),
        ];
        for (tokens, most, expected) in cases {
            assert_eq!(follow(tokens, *most), *expected, "{tokens:?}");
        }
    }

    #[test]
    fn guessing_reaches_further_while_it_pays_and_pauses_when_not() {
        let tokens: Vec<u32> = (0..20).chain(0..3).collect();
        let mut lookup = Lookup::default();
        assert_eq!(lookup.guess(&tokens, 20), [3, 4]);
        lookup.learn((2, 2), 1.0, 1.4);
        assert_eq!(lookup.guess(&tokens, 20).len(), 4);
        lookup.learn((4, 4), 1.0, 1.8);
        lookup.learn((8, 8), 1.0, 3.0);
        assert_eq!(lookup.guess(&tokens, 20).len(), GUESS_TOKENS_MAX);
        assert_eq!(lookup.guess(&tokens, 1).len(), 1);
        // Nothing of many guesses is kept.
        let mut guesses = 0;
        for _ in 0..1_000 {
            if !lookup.guess(&tokens, 20).is_empty() {
                guesses += 1;
                lookup.learn((0, 2), 1.0, 1.5);
            }
        }
        assert!(guesses < 30, "{guesses}");
        assert!(!lookup.guess(&tokens, 20).is_empty() || lookup.pause > 0);
    }
}
