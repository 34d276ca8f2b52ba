//! The sampler on logits made by hand.

use super::*;

fn sampling(temperature: f32, top_p: f32, top_k: u32, seed: u32) -> Sampling {
    Sampling { temperature, top_p, top_k, seed, ..Sampling::default() }
}

fn sampler(sampling: &Sampling) -> Sampler {
    Sampler::new(sampling, None, &[])
}

fn pick(sampling: &Sampling, logits: &[f32]) -> Option<usize> {
    sampler(sampling).pick(logits, 0, &|_| Vec::new())
}

/// How often each of the tokens is chosen in `draws`.
fn counts(sampling: &Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = sampler(sampling);
    let mut counts = vec![0; logits.len()];
    for position in 0..draws {
        counts[sampler.pick(logits, position, &|_| Vec::new()).unwrap()] += 1;
    }
    counts
}

fn possible(sampling: &Sampling, logits: &[f32]) -> Vec<bool> {
    counts(sampling, logits, 4_000).iter().map(|count| *count > 0).collect()
}

#[test]
fn temperature_zero_takes_the_first_of_the_likeliest() {
    assert_eq!(pick(&sampling(0.0, 1.0, 0, 1), &[1.0, 3.0, 3.0]), Some(1));
    assert_eq!(pick(&sampling(0.0, 1.0, 0, 1), &[f32::NAN, 3.0]), Some(1));
    assert_eq!(pick(&sampling(f32::NAN, 1.0, 0, 1), &[1.0, 3.0]), Some(1));
}

#[test]
fn logits_without_a_number_choose_nothing() {
    for logits in [&[][..], &[f32::NAN, f32::NAN], &[f32::NEG_INFINITY]] {
        assert_eq!(pick(&sampling(1.0, 0.9, 5, 1), logits), None);
    }
    assert_eq!(pick(&sampling(1.0, 0.9, 5, 1), &[f32::INFINITY, 1.0]), Some(0));
}

#[test]
fn a_seed_and_a_position_decide_a_draw() {
    let logits = [1.0, 1.1, 0.9, 1.05];
    let draws = |seed| {
        let mut sampler = sampler(&sampling(1.0, 1.0, 0, seed));
        (0..32).map(|position| sampler.pick(&logits, position, &|_| Vec::new())).collect::<Vec<_>>()
    };
    assert_eq!(draws(7), draws(7));
    assert_ne!(draws(7), draws(8));
    // A sampler that begins in the middle, or goes back, draws the same.
    let mut late = sampler(&sampling(1.0, 1.0, 0, 7));
    for position in [20, 31, 5] {
        assert_eq!(late.pick(&logits, position, &|_| Vec::new()), draws(7)[position], "{position}");
    }
}

#[test]
fn draws_follow_the_probabilities() {
    // Probabilities 1/2, 1/4, 1/4.
    let logits = [2.0_f32.ln(), 0.0, 0.0];
    let counts = counts(&sampling(1.0, 1.0, 0, 3), &logits, 8_000);
    assert!((3_800..4_200).contains(&counts[0]), "{counts:?}");
    assert!((1_850..2_150).contains(&counts[1]), "{counts:?}");
}

#[test]
fn top_k_and_top_p_leave_the_unlikely_out() {
    let logits = [0.0, 1.0, 2.0, 3.0];
    for (top_p, top_k, expected) in [
        (1.0, 1, [false, false, false, true]),
        (1.0, 2, [false, false, true, true]),
        (1.0, 9, [true; 4]),
        // Probabilities 0.03, 0.09, 0.24, 0.64.
        (0.5, 0, [false, false, false, true]),
        (0.7, 0, [false, false, true, true]),
        (0.9, 0, [false, true, true, true]),
        (0.0, 0, [false, false, false, true]),
    ] {
        assert_eq!(possible(&sampling(1.0, top_p, top_k, 5), &logits), expected, "{top_p} {top_k}");
    }
}

#[test]
fn min_p_and_typical_p_leave_the_unusual_out() {
    // Probabilities 0.03, 0.09, 0.24, 0.64: surprises 3.4, 2.4, 1.4, 0.44, expected 0.94.
    let logits = [0.0, 1.0, 2.0, 3.0];
    for (min_p, typical_p, expected) in [
        (0.0, 1.0, [true; 4]),
        (0.1, 1.0, [false, true, true, true]),
        (0.3, 1.0, [false, false, true, true]),
        (1.0, 1.0, [false, false, false, true]),
        (0.0, 0.2, [false, false, true, false]),
        (0.0, 0.8, [false, false, true, true]),
        (0.0, 0.9, [false, true, true, true]),
    ] {
        let sampling = Sampling { min_p, typical_p, ..sampling(1.0, 1.0, 0, 5) };
        assert_eq!(possible(&sampling, &logits), expected, "{min_p} {typical_p}");
    }
}

#[test]
fn a_bias_is_added_to_its_tokens_logit() {
    let logits = [1.0, 3.0, 2.9];
    for (bias, expected) in [
        (vec![(1, -100.0)], 2),
        (vec![(0, 2.5)], 0),
        (vec![(2, 0.2), (9, 100.0), (u32::MAX, 100.0)], 2),
    ] {
        let logit_bias = bias.into_iter().collect();
        let sampling = Sampling { logit_bias, ..Sampling::default() };
        assert_eq!(pick(&sampling, &logits), Some(expected));
    }
}

#[test]
fn penalties_count_what_the_completion_has() {
    let logits = [3.0, 2.5, -1.0];
    let after = |sampling: &Sampling, prompt: &[u32], completion: &[u32]| {
        let mut sampler = Sampler::new(sampling, None, prompt);
        assert!(completion.iter().all(|token| sampler.accept(*token, &|_| Vec::new())));
        sampler.pick(&logits, completion.len(), &|_| Vec::new())
    };
    let presence = Sampling { presence_penalty: 1.0, ..Sampling::default() };
    assert_eq!(after(&presence, &[0], &[]), Some(0));
    assert_eq!(after(&presence, &[], &[0, 0, 0]), Some(1));
    assert_eq!(after(&presence, &[], &[0, 1]), Some(0));
    let frequency = Sampling { frequency_penalty: 0.3, ..Sampling::default() };
    assert_eq!(after(&frequency, &[], &[0]), Some(0));
    assert_eq!(after(&frequency, &[], &[0, 0]), Some(1));
    let repeat = Sampling { repeat_penalty: 2.0, ..Sampling::default() };
    assert_eq!(after(&repeat, &[0], &[]), Some(1));
    assert_eq!(after(&repeat, &[0, 1], &[]), Some(0));
    // A token further back than the window is forgotten.
    assert_eq!(after(&repeat, &[0], &[2; REPEAT_TOKENS]), Some(0));
    assert_eq!(after(&repeat, &[0], &[2; REPEAT_TOKENS - 1]), Some(1));
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let logits = [2.0_f32.ln(), 0.0, f32::NEG_INFINITY, 0.0];
    let asked = |top| Sampling { top_logprobs: top, temperature: 0.3, ..Sampling::default() };
    assert_eq!(sampler(&asked(None)).logprobs(&logits, 0), None);
    let given = sampler(&asked(Some(2))).logprobs(&logits, 3).unwrap();
    assert_eq!(given.token, 3);
    let near = |a: f32, b: f32| (a - b.ln()).abs() < 1e-6;
    assert!(near(given.logprob, 0.25));
    assert_eq!(given.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
    assert!(near(given.top[0].1, 0.5) && near(given.top[1].1, 0.25));
    assert_eq!(sampler(&asked(Some(0))).logprobs(&logits, 0).unwrap().top, []);
    assert_eq!(sampler(&asked(Some(99))).logprobs(&logits, 0).unwrap().top.len(), 4);
}
