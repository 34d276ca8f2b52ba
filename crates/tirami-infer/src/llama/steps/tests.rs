//! Steps made one at a time, on the real model: what each of them may keep anybody waiting for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use llama_cpp_2::model::params::LlamaModelParams;

use super::super::backend;
use super::super::grammar::Grammar;
use super::super::lookup::Guesses;
use super::super::sequence::Job;
use super::*;
use crate::engine::{
    Failure, Format, Generation, Progress, Prompt, PromptImage, Sampling, image_tokens,
};
use crate::image::Image;

#[path = "../../../tests/support/vision.rs"]
mod support;

use support::{PICTURE_TOKENS, png, projector};

const SEQUENCES: u32 = 4;

fn model() -> LlamaModel {
    let named = std::env::var_os("TIRAMI_TEST_MODEL").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let path = home.join(".tirami/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = named.unwrap_or(path);
    let backend = backend::backend().unwrap();
    LlamaModel::load_from_file(backend, &path, &LlamaModelParams::default()).unwrap()
}

fn setting() -> Setting {
    Setting {
        threads: 1,
        context_tokens: 512,
        sequences: SEQUENCES,
        gpu_layers: 0,
        reproducible: true,
        guesses: Guesses::Never,
    }
}

/// A reader of a job of so many prompt and completion tokens, queued.
fn ask(shared: &Shared, prompt: u32, completion_max: u32) -> mpsc::Receiver<Piece> {
    // Any tokens will do; those of two prompts differ from the first on.
    let tokens = (0..prompt).map(|i| 1_000 + (i * 37 + prompt) % 5_000).collect::<Vec<_>>();
    submit(shared, Prompt::from(tokens), completion_max)
}

fn submit(shared: &Shared, prompt: Prompt, completion_max: u32) -> mpsc::Receiver<Piece> {
    let (sender, reader) = mpsc::channel(512);
    // Without its end token the model goes on.
    let logit_bias = [(0, -100.0), (2, -100.0)].into();
    let sampling = Sampling { completion_max, logit_bias, ..Sampling::default() };
    let progress = Arc::new(Progress::default());
    let job = Job { prompt, sampling, grammar: None, sender, progress };
    assert!(shared.submit(job).is_ok());
    reader
}

/// Tokens that came since the last look.
fn came(reader: &mut mpsc::Receiver<Piece>) -> usize {
    std::iter::from_fn(|| reader.try_recv().ok())
        .map(|piece| match piece {
            Piece::Delta { tokens, .. } => tokens.len(),
            _ => 0,
        })
        .sum()
}

fn steps(play: impl FnOnce(&mut Steps<'_>, &Shared)) {
    steps_seeing(None, play);
}

/// The same with this projector.
fn steps_seeing(projector: Option<&Path>, play: impl FnOnce(&mut Steps<'_>, &Shared)) {
    let owned = Arc::new(model());
    let open = |path| Arc::new(Vision::open(path, &owned, &setting()).unwrap());
    let vision = projector.map(open);
    let model: &LlamaModel = &owned;
    let shared = Shared::new(SEQUENCES, 64);
    let context = setting().context(model).unwrap();
    play(&mut Steps::new((model, vision), context, setting(), &shared, Vec::new()), &shared);
}

#[test]
fn a_running_stream_waits_for_one_short_pass_of_strangers_prompts_and_no_longer() {
    steps(|steps, shared| {
        let mut running = [ask(shared, 5, 400), ask(shared, 6, 400)];
        while running.iter().any(mpsc::Receiver::is_empty) {
            assert!(steps.step().unwrap());
        }
        assert!(running.iter_mut().map(came).sum::<usize>() >= 2);
        let mut late = [ask(shared, 300, 1), ask(shared, 301, 1)];
        let mut made = 0;
        while late.iter().any(mpsc::Receiver::is_empty) {
            let read = shared.prompt_tokens_total.load(Ordering::Relaxed);
            assert!(steps.step().unwrap());
            let read = shared.prompt_tokens_total.load(Ordering::Relaxed) - read;
            assert!(read <= PASS_TOKENS_MAX as u64, "{read} prompt tokens in one step");
            for reader in &mut running {
                assert_eq!(came(reader), 1, "in step {made}");
            }
            made += 1;
        }
        // Each step read as much as it may.
        assert_eq!(made, 2 * 300_usize.div_ceil(PASS_TOKENS_MAX));
        late.iter_mut().for_each(|reader| assert_eq!(came(reader), 1));
    });
}

#[test]
fn where_more_prompts_wait_than_streams_run_as_many_are_read_between_two_tokens() {
    steps(|steps, shared| {
        let mut running = ask(shared, 5, 400);
        while running.is_empty() {
            assert!(steps.step().unwrap());
        }
        came(&mut running);
        let late = [300, 301, 302].map(|tokens| ask(shared, tokens, 1));
        // Until the first of them is read.
        for step in 0..3 {
            let read = shared.prompt_tokens_total.load(Ordering::Relaxed);
            assert!(steps.step().unwrap());
            let read = shared.prompt_tokens_total.load(Ordering::Relaxed) - read;
            assert_eq!(read, 3 * PASS_TOKENS_MAX as u64, "in step {step}");
            assert_eq!(came(&mut running), 1, "in step {step}");
        }
        assert!(late.iter().all(mpsc::Receiver::is_empty));
    });
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_and_the_long_one_goes_on() {
    steps(|steps, shared| {
        let long = ask(shared, 320, 1);
        assert!(steps.step().unwrap());
        let short = [40, 41].map(|tokens| ask(shared, tokens, 1));
        for _ in 0..8 {
            assert!(steps.step().unwrap());
        }
        // Two passes of each short prompt, and as many of the long one between them.
        assert!(short.iter().all(|reader| !reader.is_empty()));
        let read = shared.prompt_tokens_total.load(Ordering::Relaxed);
        assert_eq!(read, 40 + 41 + 5 * PASS_TOKENS_MAX as u64);
        assert!(long.is_empty());
        for _ in 0..5 {
            assert!(steps.step().unwrap());
        }
        assert!(!long.is_empty());
    });
}

#[test]
fn a_round_is_made_in_passes_of_the_size_that_gains_most() {
    // No pass takes so long; how long those take that are made is not known here.
    const LONG: Duration = Duration::from_secs(1_000);
    const LONGER: Duration = Duration::from_secs(1_000_000);
    steps(|steps, shared| {
        let mut running = [5, 6, 7, 8].map(|tokens| ask(shared, tokens, 400));
        while running.iter().any(mpsc::Receiver::is_empty) {
            assert!(steps.step().unwrap());
        }
        running.iter_mut().for_each(|reader| assert!(came(reader) > 0));
        for best in [1, 2, 4] {
            steps.pace = Pace::default();
            for size in 1..=4 {
                steps.pace.note(size, if size == best { LONG } else { LONGER });
            }
            assert!(steps.step().unwrap());
            running.iter_mut().for_each(|reader| assert_eq!(came(reader), 1, "by {best}"));
            let took = |size: usize| steps.pace.seconds(size).unwrap();
            let made: Vec<usize> =
                (1..=4).filter(|size| took(*size) < LONG.as_secs_f32() / 2.0).collect();
            assert_eq!(made, [best]);
        }
    });
}

#[test]
fn a_picture_is_read_at_most_once_between_two_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mmproj.gguf");
    std::fs::write(&file, projector(1)).unwrap();
    let pictured = |seed: u8| {
        let image = Image::open(png(64, 48, seed)).unwrap();
        let tokens = PICTURE_TOKENS as usize;
        let given = image_tokens(&image, tokens).chain([1_000]).collect::<Vec<_>>();
        let images = vec![PromptImage { start: 0, tokens, image }];
        Prompt { images, ..Prompt::from(given) }
    };
    steps_seeing(Some(&file), |steps, shared| {
        let mut running = ask(shared, 5, 400);
        while running.is_empty() {
            assert!(steps.step().unwrap());
        }
        came(&mut running);
        // As many as would be read between two tokens if they were texts.
        let late = [1, 2, 3].map(|seed| submit(shared, pictured(seed), 1));
        let mut made = 0;
        while late.iter().any(mpsc::Receiver::is_empty) {
            let read = shared.prompt_tokens_total.load(Ordering::Relaxed);
            assert!(steps.step().unwrap());
            let read = shared.prompt_tokens_total.load(Ordering::Relaxed) - read;
            assert!(read <= u64::from(PICTURE_TOKENS), "{read} prompt tokens in step {made}");
            assert_eq!(came(&mut running), 1, "in step {made}");
            made += 1;
            assert!(made < 100, "the pictures are not read");
        }
    });
}

#[test]
fn a_reader_that_leaves_frees_its_place_within_one_step() {
    steps(|steps, shared| {
        let readers = [30, 31, 32, 33].map(|tokens| ask(shared, tokens, 400));
        let waits = ask(shared, 5, 1);
        for _ in 0..6 {
            assert!(steps.step().unwrap());
        }
        assert!(waits.is_empty());
        drop(readers);
        assert!(steps.step().unwrap());
        assert_eq!(shared.running.load(Ordering::Relaxed), 0, "and the waiting one is answered");
        assert!(!waits.is_empty());
    });
}

#[test]
fn to_follow_a_grammar_takes_of_its_time() {
    let model = model();
    assert!(!super::super::grammar::scan(&model).is_zero());
    let grammar = Grammar::new(&model, &Format::JsonObject, Duration::ZERO);
    let mut grammar = grammar.unwrap().unwrap();
    let logits = vec![0.0; usize::try_from(model.vocab().n_tokens()).unwrap()];
    let before = grammar.time_left();
    let allowed = grammar.only_allowed(&logits, &|_| Vec::new());
    assert_eq!(allowed.len(), logits.len());
    assert!(allowed.iter().any(|logit| logit.is_infinite()));
    assert!(grammar.time_left() < before);
}

#[test]
fn an_answer_whose_grammar_takes_too_much_time_ends_alone() {
    steps(|steps, shared| {
        let mut running = ask(shared, 5, 60);
        let (sender, pieces) = mpsc::channel(512);
        let grammar =
            Grammar::new(steps.model, &Format::JsonObject, Duration::ZERO).unwrap().unwrap();
        let progress = Arc::new(Progress::default());
        let mut costly = Generation::new(pieces, Arc::clone(&progress));
        let job = Job {
            prompt: Prompt::from((1_000..1_009).collect::<Vec<_>>()),
            sampling: Sampling { completion_max: 60, ..Sampling::default() },
            grammar: Some(grammar.without_time()),
            sender,
            progress,
        };
        assert!(shared.submit(job).is_ok());
        while costly.pieces.is_empty() {
            assert!(steps.step().unwrap());
        }
        let reason = Failure::Costly.to_string();
        assert_eq!(costly.pieces.try_recv(), Ok(Piece::Failed { reason }));
        assert_eq!(costly.failure(), Some(&Failure::Costly));
        came(&mut running);
        assert!(steps.step().unwrap());
        assert_eq!((came(&mut running), shared.running.load(Ordering::Relaxed)), (1, 1));
    });
}
