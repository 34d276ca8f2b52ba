//! The same request gives the same tokens: alone, among others, after a prefix hit, and when its
//! answer is read back.
//!
//! Tokens are compared with the figures they were chosen by, so a place where the engine computes
//! other bits is found even where it chooses the same. `TIRAMI_TEST_LONG=1`, which `cargo xtask
//! conformance` sets, makes more of the prompts long and all answers longer.

use std::time::Duration;

use tirami_infer::engine::{Engine, Finish, Generation, Piece, Prompt, Sampling, TokenLogprobs};
use tirami_infer::llama::{LlamaEngine, LlamaOptions};
use tokio::sync::mpsc::error::TryRecvError;

use super::{QUESTIONS, chat, engine, greedy, small, warm};

const PROMPTS: usize = 20;
const TOGETHER: u32 = 8;
/// More tokens than all prompts have in common.
const COMMON_TOKENS_MAX: usize = 40;

/// Prompts that have nothing in common but what all chats begin with; the last `long` ones have
/// more than a thousand tokens.
fn texts(long: usize) -> Vec<String> {
    let text = |i: usize| {
        let words = if i >= PROMPTS - long { 115 + i % 5 * 4 } else { i % 4 };
        let before = format!("Number {i} says that some words come. ").repeat(words);
        format!("{} {before}{}", i * 7, QUESTIONS[i % 4])
    };
    (0..PROMPTS).map(text).collect()
}

/// An answer with the figures of its tokens.
#[derive(Debug, Default, PartialEq)]
struct Said {
    tokens: Vec<u32>,
    figures: Vec<TokenLogprobs>,
    text: String,
    end: Option<Finish>,
}

impl Said {
    fn hear(&mut self, piece: Piece) {
        match piece {
            Piece::Delta { tokens, text, logprobs } => {
                self.tokens.extend(tokens);
                self.figures.extend(logprobs);
                self.text += &text;
            }
            Piece::End { text, finish } => {
                self.text += &text;
                self.end = Some(finish);
            }
            Piece::Failed { reason } => panic!("failed: {reason}"),
        }
    }
}

fn listen(mut generation: Generation) -> Said {
    let mut said = Said::default();
    while let Some(piece) = generation.pieces.blocking_recv() {
        said.hear(piece);
    }
    said
}

/// What all of them said; and at most how many were in the midst of their answers at one moment,
/// and were counted as running by the engine.
fn listen_to_all(engine: &LlamaEngine, mut all: Vec<Generation>) -> (Vec<Said>, usize, u32) {
    let mut said: Vec<Said> = all.iter().map(|_| Said::default()).collect();
    let (mut answering, mut running) = (0, 0);
    while said.iter().any(|one| one.end.is_none()) {
        for (generation, said) in all.iter_mut().zip(&mut said) {
            loop {
                match generation.pieces.try_recv() {
                    Ok(piece) => said.hear(piece),
                    Err(TryRecvError::Disconnected) if said.end.is_none() => panic!("no end"),
                    Err(_) => break,
                }
            }
        }
        let is_answering = |one: &&Said| !one.tokens.is_empty() && one.end.is_none();
        answering = answering.max(said.iter().filter(is_answering).count());
        running = running.max(engine.load().running);
        std::thread::sleep(Duration::from_millis(1));
    }
    (said, answering, running)
}

/// Prompts, and how to ask for an answer of so many tokens to the one of a number.
struct Asked {
    engine: LlamaEngine,
    prompts: Vec<Prompt>,
    answer_tokens: u32,
}

impl Asked {
    fn sampling(&self, number: usize) -> Sampling {
        let sampling = match number % 3 {
            0 => greedy(self.answer_tokens),
            _ => warm(self.answer_tokens, u32::try_from(number).unwrap()),
        };
        // Without its end tokens the model goes on; figures are of what it computed before.
        let logit_bias = [(0, -100.0), (2, -100.0)].into();
        Sampling { logit_bias, top_logprobs: Some(2), ..sampling }
    }

    /// Of another scope nothing is found in the cache but what all chats begin with.
    fn start(&self, number: usize, scope: u64) -> Generation {
        let prompt = Prompt { scope, ..self.prompts[number].clone() };
        self.engine.start(prompt, self.sampling(number)).unwrap()
    }

    /// The answer, and how many tokens of its prompt had to be read.
    fn answer(&self, number: usize, scope: u64) -> (Said, usize) {
        let before = self.engine.load().prompt_tokens_total;
        let said = listen(self.start(number, scope));
        let read = self.engine.load().prompt_tokens_total - before;
        (said, usize::try_from(read).unwrap())
    }

    /// The figures of an answer's tokens when prompt and answer are given and read in passes of
    /// many tokens.
    fn read_back(&self, number: usize, tokens: &[u32]) -> Vec<TokenLogprobs> {
        let prompt = &self.prompts[number].tokens;
        let given = Prompt::from([prompt, tokens].concat());
        let sampling = Sampling { completion_max: 0, scores_prompt: true, ..self.sampling(number) };
        let mut generation = self.engine.start(given, sampling).unwrap();
        while generation.pieces.blocking_recv().is_some() {}
        assert_eq!(generation.cached_tokens(), 0, "prompt {number}");
        generation.take_prompt_logprobs().split_off(prompt.len())
    }
}

#[test]
fn twenty_prompts_get_the_same_tokens_alone_among_others_from_the_cache_and_read_back() {
    let thorough = std::env::var_os("TIRAMI_TEST_LONG").is_some();
    let (long, answer_tokens) = if thorough { (8, 64) } else { (2, 24) };
    let engine = engine(&LlamaOptions { sequences: TOGETHER, ..small() });
    let prompts = texts(long).into_iter().map(|text| engine.prepare(&chat(&text)).unwrap());
    let asked = Asked { prompts: prompts.collect(), engine, answer_tokens };
    let sizes = asked.prompts.iter().map(|prompt| prompt.tokens.len()).collect::<Vec<_>>();
    assert_eq!(sizes.iter().filter(|size| **size > 1_000).count(), long, "{sizes:?}");

    let mut alone = Vec::new();
    for (number, size) in sizes.iter().enumerate() {
        let (said, read) = asked.answer(number, 1);
        assert!(read + COMMON_TOKENS_MAX > *size, "{read} of the {size} of prompt {number}");
        assert_eq!(said.tokens.len(), answer_tokens as usize);
        // Its prompt is in the cache until others take the place.
        let (again, read) = asked.answer(number, 1);
        assert_eq!((&again, read), (&said, 1), "prompt {number} from the cache");
        alone.push(said);
    }

    // A size of pass that was not tried yet comes first, so eight that are in the midst of their
    // answers are in one pass at least once.
    let all = (0..PROMPTS).map(|number| asked.start(number, 2)).collect();
    let (together, answering, running) = listen_to_all(&asked.engine, all);
    assert_eq!(together, alone);
    assert_eq!((answering, running), (TOGETHER as usize, TOGETHER));

    // What they left in the cache is as good as what one leaves alone.
    let mut hits = 0;
    for (number, expected) in alone.iter().enumerate().skip(PROMPTS - 6) {
        let (said, read) = asked.answer(number, 2);
        assert_eq!(said, *expected, "prompt {number} from the cache that many filled");
        hits += u32::from(read == 1);
    }
    assert!(hits >= 4, "{hits}");

    for (number, expected) in alone.iter().enumerate() {
        let figures = asked.read_back(number, &expected.tokens);
        assert_eq!(figures, expected.figures, "prompt {number} read back");
    }
}
