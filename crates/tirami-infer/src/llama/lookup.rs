//! Guesses of what comes next, looked up in what was said before.
//!
//! An answer that repeats parts of its prompt, as a summary or a corrected text does, is guessed
//! from the last place where its newest tokens stand. Guesses are read in one pass with the newest
//! token; a guess is kept only where the sampler chooses it, so the answer is the same as without,
//! as far as a token's logits are the same in a long pass and alone.
//!
//! Two figures decide how much is guessed. How often the lookup is right is known of every
//! sequence without a single guess: what it would have said is compared with what came. What a pass
//! with guesses takes is measured once for the whole engine. On a processor with few threads such a
//! pass may take as long as its tokens one by one; then nothing is guessed.

/// Tokens a guess may have. Few sizes, because each is measured by itself.
const SIZES: [usize; 4] = [2, 4, 8, 16];
/// Tokens guessed at most, for one pass.
const GUESS_TOKENS_MAX: usize = SIZES[SIZES.len() - 1];
/// Tokens that must be the same before a guess.
const SAME_TOKENS: usize = 3;
/// How far back is looked.
const LOOK_BACK_TOKENS: usize = 4_096;
/// How often the lookup is right before anything is known of a sequence.
const CHANCE_BEGIN: f32 = 0.5;
/// What the newest token weighs in how often the lookup was right.
const CHANCE_WEIGHT: f32 = 0.125;
/// A size that was not measured is tried where the lookup is right so often.
const TRY_CHANCE_MIN: f32 = 0.8;
/// After so many passes of one sequence what is known of a size is measured again.
const TRY_AGAIN_AFTER: u32 = 2_048;
/// What the newest figure weighs in what a pass takes.
const NEWEST_WEIGHT: f32 = 0.25;
/// A guess is made where so many times more tokens come of the same time.
const GAIN_MIN: f32 = 1.05;

/// When tokens are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guesses {
    /// Never.
    Never,
    /// Where a live measure says that it saves time.
    WherePays,
    /// As often as it can be, at any cost: shows that guesses change no answer.
    Always,
}

/// How often the lookup is right for one sequence.
#[derive(Debug)]
pub(super) struct Lookup {
    chance: f32,
    /// How many tokens there were at the last look, and what it said comes after them.
    looked_at: usize,
    said: Vec<u32>,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { chance: CHANCE_BEGIN, looked_at: 0, said: Vec::new() }
    }
}

impl Lookup {
    /// What may follow `tokens`: as many of at most `most` tokens as `toll` finds worth it. Call
    /// it once for each pass.
    pub(super) fn guess(&mut self, tokens: &[u32], most: usize, toll: &Toll) -> &[u32] {
        let came = tokens.get(self.looked_at..).unwrap_or_default();
        for (said, came) in self.said.iter().zip(came) {
            let right = if said == came { 1.0 } else { 0.0 };
            self.chance += (right - self.chance) * CHANCE_WEIGHT;
            if said != came {
                break;
            }
        }
        self.looked_at = tokens.len();
        self.said.clear();
        self.said.extend_from_slice(follow(tokens, GUESS_TOKENS_MAX));
        let count = toll.worth(self.said.len().min(most), self.chance);
        &self.said[..count]
    }
}

/// What passes with guesses take on this engine.
#[derive(Debug)]
pub(super) struct Toll {
    when: Guesses,
    /// For each of [`SIZES`] the time of such a pass in passes of one token, and when it was
    /// measured last; none before that.
    known: [Option<(f32, u32)>; SIZES.len()],
    /// Passes of one sequence so far.
    passes: u32,
}

impl Toll {
    pub(super) fn new(when: Guesses) -> Self {
        Self { when, known: [None; SIZES.len()], passes: 0 }
    }

    pub(super) fn allows_any(&self) -> bool {
        self.when != Guesses::Never
    }

    /// Counts a pass of one sequence.
    pub(super) fn passed(&mut self) {
        self.passes = self.passes.wrapping_add(1);
    }

    /// Notes a pass with `guessed` guessed tokens that took `took` seconds, where one without any
    /// takes `alone`.
    pub(super) fn note(&mut self, guessed: usize, took: f32, alone: f32) {
        let Some(at) = SIZES.iter().position(|size| *size == guessed) else { return };
        let newest = took / alone;
        let known = self.known[at].filter(|(_, since)| !self.is_old(*since));
        let times = known.map_or(newest, |(times, _)| times + (newest - times) * NEWEST_WEIGHT);
        self.known[at] = Some((times, self.passes));
    }

    /// How many of `most` tokens that can be guessed, each right with `chance`, are worth it.
    fn worth(&self, most: usize, chance: f32) -> usize {
        let sizes = SIZES.iter().zip(&self.known).filter(|(size, _)| **size <= most);
        match self.when {
            Guesses::Never => return 0,
            Guesses::Always => return most,
            Guesses::WherePays => {}
        }
        let mut best = (GAIN_MIN, 0);
        for (size, known) in sizes {
            match known {
                Some((times, since)) if !self.is_old(*since) => {
                    let gain = expected(*size, chance) / times;
                    if gain > best.0 {
                        best = (gain, *size);
                    }
                }
                _ if chance >= TRY_CHANCE_MIN => return *size,
                _ => {}
            }
        }
        best.1
    }

    fn is_old(&self, since: u32) -> bool {
        self.passes.wrapping_sub(since) >= TRY_AGAIN_AFTER
    }
}

/// Tokens that a pass with `guessed` guessed ones gives: the guess ends with the first wrong one,
/// and the token after the last right one comes in any case.
fn expected(guessed: usize, chance: f32) -> f32 {
    (0..guessed)
        .fold((1.0, 1.0), |(sum, all_right), _| {
            let all_right = all_right * chance;
            (sum + all_right, all_right)
        })
        .0
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

    /// Reads `answer` after `prompt` on a machine on which a pass with so many guessed tokens takes
    /// `times` passes of one token; gives passes of one token in all, and guessed tokens.
    fn read(
        toll: &mut Toll,
        (prompt, answer): (&[u32], &[u32]),
        times: impl Fn(usize) -> f32,
    ) -> (f32, usize) {
        let (mut tokens, all) = (prompt.to_vec(), [prompt, answer].concat());
        let (mut lookup, mut took, mut guessed) = (Lookup::default(), 0.0, 0);
        while tokens.len() < all.len() {
            let left = all.len() - tokens.len() - 1;
            let guess = lookup.guess(&tokens, left, toll).to_vec();
            toll.passed();
            let right = guess.iter().zip(&all[tokens.len()..]).take_while(|(a, b)| a == b).count();
            let pass = if guess.is_empty() { 1.0 } else { times(guess.len()) };
            toll.note(guess.len(), pass, 1.0);
            took += pass;
            guessed += guess.len();
            tokens = all[..=tokens.len() + right].to_vec();
        }
        (took, guessed)
    }

    /// A text in which nothing repeats, and its copy.
    fn copied() -> (Vec<u32>, Vec<u32>) {
        ((0..300).collect(), (0..300).collect())
    }

    #[test]
    fn a_copy_is_guessed_where_a_long_pass_takes_no_longer_than_a_short_one() {
        let (prompt, answer) = copied();
        let mut toll = Toll::new(Guesses::WherePays);
        let (took, _) = read(&mut toll, (&prompt, &answer), |size| 1.0 + 0.02 * size as f32);
        assert!(took < 50.0, "{took}");
        assert_eq!(toll.worth(GUESS_TOKENS_MAX, 0.95), GUESS_TOKENS_MAX);
        assert_eq!(toll.worth(5, 0.95), 4);
        assert_eq!(toll.worth(GUESS_TOKENS_MAX, 0.01), 0);
    }

    #[test]
    fn nothing_is_guessed_where_a_pass_takes_as_long_as_its_tokens_one_by_one() {
        let (prompt, answer) = copied();
        let mut toll = Toll::new(Guesses::WherePays);
        let as_its_tokens = |size: usize| 1.0 + size as f32;
        let (_, tried) = read(&mut toll, (&prompt, &answer), as_its_tokens);
        assert_eq!(tried, SIZES.iter().sum::<usize>(), "each size is tried once");
        let (took, tried) = read(&mut toll, (&prompt, &answer), as_its_tokens);
        assert_eq!((took, tried), (answer.len() as f32, 0), "by all sequences together");
        // What has changed is found out.
        let quick = |_| 1.0;
        let mut took = 0.0;
        for _ in 0..12 {
            took = read(&mut toll, (&prompt, &answer), quick).0;
        }
        assert!(took < 50.0, "{took}");
    }

    #[test]
    fn an_answer_that_goes_its_own_way_is_not_guessed() {
        // Each beginning of three stands there, and goes on otherwise.
        let prompt: Vec<u32> = (0..400).flat_map(|n| [1, 2, 3, 1_000 + n]).collect();
        let answer: Vec<u32> = (0..100).flat_map(|n| [1, 2, 3, 2_000 + n]).collect();
        let mut toll = Toll::new(Guesses::WherePays);
        let (_, guessed) = read(&mut toll, (&prompt, &answer), |_| 1.0);
        assert!(guessed <= SIZES.iter().sum(), "{guessed}");
    }

    #[test]
    fn guesses_can_be_had_always_and_never() {
        let (prompt, answer) = copied();
        let as_its_tokens = |size: usize| 1.0 + size as f32;
        let read = |when| read(&mut Toll::new(when), (&prompt, &answer), as_its_tokens);
        assert!(read(Guesses::Always).1 > 250);
        assert_eq!(read(Guesses::Never), (answer.len() as f32, 0));
    }
}
