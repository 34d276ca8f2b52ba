//! Prompts that are gone on with as they stand.

use tirami_infer::engine::{Engine, Finish, Piece, PrepareError, Prompt, RawPrompt, Sampling};

use crate::{chat, collect, greedy, shared_engine};

fn text(text: &str) -> RawPrompt {
    RawPrompt::Text(text.to_owned())
}

#[test]
fn a_raw_prompt_means_what_it_spells() {
    let engine = shared_engine();
    let plain = engine.prepare_raw(&text("The capital of France is")).unwrap();
    let same = engine.prepare_raw(&RawPrompt::Tokens(plain.tokens.clone())).unwrap();
    assert_eq!(plain, same);
    let answer = collect(engine.start(plain, greedy(8)).unwrap());
    assert!(answer.text.contains("Paris"), "{}", answer.text);
    // Whoever writes the template out is understood as if the node had.
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
                  Hugging Face<|im_end|>\n";
    let written = format!("{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let rendered = engine.prepare(&chat("Hi")).unwrap();
    assert_eq!(engine.prepare_raw(&text(&written)).unwrap().tokens, rendered.tokens);
}

#[test]
fn what_the_model_cannot_go_on_with_is_refused() {
    let engine = shared_engine();
    let last = |error| matches!(error, Err(PrepareError::Tokens { last: 49_151 }));
    assert!(last(engine.prepare_raw(&RawPrompt::Tokens(vec![49_152]))));
    assert!(last(engine.prepare_raw(&RawPrompt::Tokens(Vec::new()))));
    let long = engine.prepare_raw(&RawPrompt::Tokens(vec![5; 4_000]));
    assert!(matches!(long, Err(PrepareError::ContextLength { prompt_tokens: 4_000, .. })));
    let gap = RawPrompt::Infill { before: "a".to_owned(), after: "b".to_owned() };
    let unable = PrepareError::Unsupported { what: "to fill a gap in a text" };
    assert_eq!(engine.prepare_raw(&gap), Err(unable));
}

#[test]
fn the_stop_text_that_ended_an_answer_is_told() {
    let engine = shared_engine();
    let prompt = engine.prepare_raw(&text("1, 2, 3, 4, 5,")).unwrap();
    for (stop, met) in [(vec!["zebra", " 8"], Some(1)), (vec!["zebra"], None)] {
        let stop = stop.into_iter().map(str::to_owned).collect();
        let sampling = Sampling { stop, ..greedy(24) };
        let mut generation = engine.start(prompt.clone(), sampling).unwrap();
        while generation.pieces.blocking_recv().is_some() {}
        assert_eq!(generation.stopped_by(), met);
    }
    let all = collect(engine.start(prompt, greedy(4)).unwrap());
    assert_eq!(all.end, Some(Finish::Length));
}

#[test]
fn a_scored_prompt_has_the_figures_with_which_its_tokens_were_made() {
    let engine = shared_engine();
    let prompt = engine.prepare_raw(&text("The capital of France is")).unwrap();
    // Without its end tokens the model goes on; figures are of what it computed before.
    let logit_bias = [(0, -100.0), (2, -100.0)].into();
    let likely = Sampling { top_logprobs: Some(2), logit_bias, ..greedy(40) };
    let mut generation = engine.start(prompt.clone(), likely.clone()).unwrap();
    let (mut whole, mut made) = (prompt.tokens.clone(), Vec::new());
    while let Some(piece) = generation.pieces.blocking_recv() {
        if let Piece::Delta { tokens, logprobs, .. } = piece {
            whole.extend(tokens);
            made.extend(logprobs);
        }
    }
    assert_eq!(made.len(), 40);
    // Its beginning is in the cache, and it is read whole all the same, in passes of many tokens.
    for most in [0, 1] {
        let scored = Sampling { completion_max: most, scores_prompt: true, ..likely.clone() };
        let read = engine.load().prompt_tokens_total;
        let mut generation = engine.start(Prompt::from(whole.clone()), scored).unwrap();
        let first = generation.pieces.blocking_recv().unwrap();
        let ends = matches!(first, Piece::End { finish: Finish::Length, .. });
        assert_eq!(ends, most == 0, "{first:?}");
        let scored = generation.take_prompt_logprobs();
        assert_eq!(scored.len(), whole.len());
        assert_eq!(scored[prompt.tokens.len()..], made);
        assert!(
            scored[1..].iter().all(|token| token.top.len() == 2 && token.chosen.logprob <= 0.0)
        );
        assert_eq!(generation.cached_tokens(), 0);
        assert_eq!(engine.load().prompt_tokens_total - read, whole.len() as u64);
    }
}
