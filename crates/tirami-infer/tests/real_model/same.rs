//! The same request gives the same tokens: alone, among others, after a prefix hit, and when its
//! answer is read back.
//!
//! `TIRAMI_TEST_LONG=1` makes more of the prompts long and all answers longer: some minutes.

use tirami_infer::engine::{Engine, Prompt};
use tirami_infer::llama::LlamaOptions;

use super::{QUESTIONS, chat, collect, engine, small, warm};

const PROMPTS: usize = 20;
const TOGETHER: u32 = 8;

/// Prompts that have nothing in common but what all chats begin with; some have more than a
/// thousand tokens.
fn texts(long: usize) -> Vec<String> {
    let text = |i: usize| {
        let words = if i >= PROMPTS - long { 120 + i % 5 * 4 } else { i % 4 };
        let before = format!("Number {i} says that some words come. ").repeat(words);
        format!("{} {before}{}", i * 7, QUESTIONS[i % 4])
    };
    (0..PROMPTS).map(text).collect()
}

#[test]
fn twenty_prompts_get_the_same_tokens_alone_among_others_from_the_cache_and_read_back() {
    let thorough = std::env::var_os("TIRAMI_TEST_LONG").is_some();
    let (long, answer) = if thorough { (8, 64) } else { (2, 6) };
    let options = LlamaOptions { sequences: TOGETHER, ..small() };
    let engine = engine(&options);
    let prompts = texts(long).into_iter().map(|text| engine.prepare(&chat(&text)).unwrap());
    let prompts = prompts.collect::<Vec<_>>();
    let sizes = prompts.iter().map(|prompt| prompt.tokens.len()).collect::<Vec<_>>();
    assert_eq!(sizes.iter().filter(|size| **size > 1_000).count(), long, "{sizes:?}");
    // Of another scope nothing is found in the cache.
    let start = |prompt: &Prompt, scope: u64, seed: usize| {
        let sampling =
            if seed.is_multiple_of(3) { super::greedy(answer) } else { warm(answer, seed as u32) };
        engine.start(Prompt { scope, ..prompt.clone() }, sampling).unwrap()
    };
    let alone = prompts.iter().enumerate().map(|(i, prompt)| collect(start(prompt, 1, i)));
    let alone = alone.collect::<Vec<_>>();
    let together = prompts.iter().enumerate().map(|(i, prompt)| start(prompt, 2, i));
    let together = together.collect::<Vec<_>>().into_iter().map(collect).collect::<Vec<_>>();
    assert_eq!(together, alone);

    // The last prompts are in the cache of the second scope, the long ones among them.
    let mut hits = 0;
    for (i, (prompt, expected)) in prompts.iter().zip(&alone).enumerate().skip(14) {
        let before = engine.load().prompt_tokens_total;
        assert_eq!(collect(start(prompt, 2, i)), *expected, "prompt {i} from the cache");
        hits += u32::from(engine.load().prompt_tokens_total - before == 1);
    }
    assert!(hits >= 4, "{hits}");
    // Read back in passes of many tokens: at each place of the answer stands what was chosen.
    for (i, (prompt, expected)) in prompts.iter().zip(&alone).enumerate().skip(1).step_by(2) {
        let count = expected.tokens.len();
        let resumed = expected.tokens[..count - 1].to_vec();
        let read = start(&Prompt { resumed, ..prompt.clone() }, 3, i);
        assert_eq!(collect(read).tokens, expected.tokens[count - 1..], "prompt {i} read back");
    }
}
