//! What an earlier request left in the cache saves time and changes nothing.

use std::time::{Duration, Instant};

use tirami_infer::engine::{Conversation, Engine, Message, Prompt};
use tirami_infer::llama::{LlamaEngine, LlamaOptions};

use super::{Answer, QUESTIONS, chat, collect, engine, greedy, small, warm};

/// An answer, how many tokens of its prompt were cached, and how long its first token took.
fn timed(engine: &LlamaEngine, prompt: &Prompt) -> (Answer, u32, Duration) {
    let asked = Instant::now();
    let mut generation = engine.start(prompt.clone(), warm(24, 11)).unwrap();
    let first = generation.pieces.blocking_recv().unwrap();
    let took = asked.elapsed();
    let cached = generation.cached_tokens();
    let (sender, pieces) = tokio::sync::mpsc::channel(64);
    sender.try_send(first).unwrap();
    while let Some(piece) = generation.pieces.blocking_recv() {
        sender.try_send(piece).unwrap();
    }
    drop(sender);
    generation.pieces = pieces;
    (collect(generation), cached, took)
}

/// A chat whose history has about a thousand tokens, and the same chat one turn later.
fn turns(engine: &LlamaEngine) -> (Prompt, Prompt) {
    let message = |role: &str, content: String| Message::new(role, content);
    let mut messages = vec![message(
        "user",
        format!("{} {}", "Here is a line to remember. ".repeat(150), QUESTIONS[0]),
    )];
    let first = engine.prepare(&Conversation::from(messages.clone())).unwrap();
    messages.push(message("assistant", "Once there was a dragon.".to_owned()));
    messages.push(message("user", QUESTIONS[3].to_owned()));
    (first, engine.prepare(&Conversation::from(messages)).unwrap())
}

#[test]
fn a_second_turn_is_quick_and_says_the_same() {
    let fresh = engine(&LlamaOptions { sequences: 2, ..small() });
    let (first, second) = turns(&fresh);
    assert!(first.tokens.len() > 1_000, "{}", first.tokens.len());
    let (expected, cached, slow) = timed(&fresh, &second);
    // What all chats begin with is read when the engine starts.
    assert!((10..33).contains(&cached), "{cached}");

    let engine = engine(&LlamaOptions { sequences: 2, ..small() });
    timed(&engine, &first);
    let before = engine.load().prompt_tokens_total;
    let (answer, cached, quick) = timed(&engine, &second);
    assert_eq!(answer, expected);
    assert!(cached as usize >= first.tokens.len() - 8, "{cached} of {}", first.tokens.len());
    let read = engine.load().prompt_tokens_total - before;
    assert_eq!(read, second.tokens.len() as u64 - u64::from(cached));
    println!("first token after {slow:?} without and {quick:?} with the history in the cache");
    assert!(quick * 5 <= slow, "{slow:?} without, {quick:?} with");
    // The same again, whole.
    let (answer, cached, _) = timed(&engine, &second);
    assert_eq!((answer, cached as usize), (expected, second.tokens.len() - 1));
}

#[test]
fn a_history_that_is_in_use_is_copied() {
    let engine = engine(&LlamaOptions { sequences: 3, ..small() });
    let (first, second) = turns(&engine);
    let (expected, ..) = timed(&engine, &second);
    let copied = engine.start(first.clone(), greedy(60)).unwrap();
    // The first is still running when the second and third come.
    let others = [(); 2].map(|()| {
        let mut generation = engine.start(second.clone(), warm(24, 11)).unwrap();
        let first = generation.pieces.blocking_recv();
        (generation.cached_tokens(), first, generation)
    });
    let running = engine.load().running;
    for (cached, first, mut generation) in others {
        let (sender, pieces) = tokio::sync::mpsc::channel(64);
        sender.try_send(first.unwrap()).unwrap();
        while let Some(piece) = generation.pieces.blocking_recv() {
            sender.try_send(piece).unwrap();
        }
        drop(sender);
        generation.pieces = pieces;
        assert_eq!(collect(generation), expected);
        assert!(cached as usize >= 1_000, "{cached}, {running} running");
    }
    collect(copied);
}

#[test]
fn every_place_may_be_taken_again_and_again_without_a_trace() {
    let engine = engine(&LlamaOptions { sequences: 2, context_tokens: Some(512), ..small() });
    let texts = ["", "A. ", "A. B. ", "A. B. C. ", "A. X. C. "];
    let prompts = texts.map(|text| {
        let text = format!("{}{}{}", text.repeat(20), QUESTIONS[1], text);
        engine.prepare(&chat(&text)).unwrap()
    });
    let fresh = self::engine(&LlamaOptions { sequences: 1, context_tokens: Some(512), ..small() });
    // Another scope each time, so that nothing but the common beginning is found.
    let mut scope = 0;
    let expected = prompts.clone().map(|prompt| {
        scope += 1;
        timed(&fresh, &Prompt { scope, ..prompt }).0
    });
    for round in 0..12_usize {
        let picks = [round % 5, (round * 3 + 1) % 5, (round * 2 + 2) % 5];
        let running = picks.map(|i| engine.start(prompts[i].clone(), warm(24, 11)).unwrap());
        for (i, generation) in picks.into_iter().zip(running) {
            assert_eq!(collect(generation), expected[i], "round {round}, prompt {i}");
        }
    }
}

#[test]
fn a_stranger_cannot_notice_what_others_asked() {
    let engine = engine(&LlamaOptions { sequences: 2, ..small() });
    let prompt = engine.prepare(&chat(&"A secret text. ".repeat(20))).unwrap();
    let scoped = |scope| Prompt { scope, ..prompt.clone() };
    let (_, common, _) = timed(&engine, &scoped(1));
    assert!(common < 33);
    assert!(timed(&engine, &scoped(2)).1 <= common);
    assert_eq!(timed(&engine, &scoped(1)).1 as usize, prompt.tokens.len() - 1);
}
