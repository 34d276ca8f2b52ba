//! A generation that another machine began goes on as if it had never been cut.

use tirami_infer::engine::{Engine, Finish, Format, Piece, Prompt, Sampling, StartError};
use tirami_infer::llama::{LlamaEngine, LlamaOptions};

use super::{
    Answer, CAPITAL, QUESTIONS, chat, collect, engine, greedy, shared_engine, small, warm,
};

/// The text delivered with the first `count` tokens of an answer.
fn text_until(engine: &LlamaEngine, prompt: &Prompt, sampling: &Sampling, count: usize) -> String {
    let mut generation = engine.start(prompt.clone(), sampling.clone()).unwrap();
    let (mut seen, mut delivered) = (0, String::new());
    while seen < count {
        match generation.pieces.blocking_recv() {
            Some(Piece::Delta { tokens, text, .. }) => {
                seen += tokens.len();
                delivered += &text;
            }
            other => panic!("{other:?}"),
        }
    }
    delivered
}

fn resumed(prompt: &Prompt, tokens: &[u32]) -> Prompt {
    Prompt { resumed: tokens.to_vec(), ..prompt.clone() }
}

/// Cuts the answer after `count` tokens, resumes it in `other`, and compares.
fn assert_resumes(
    (one, other): (&LlamaEngine, &LlamaEngine),
    prompt: &Prompt,
    sampling: &Sampling,
    whole: &Answer,
    count: usize,
) {
    let before = text_until(one, prompt, sampling, count);
    let again = resumed(prompt, &whole.tokens[..count]);
    let rest = collect(other.start(again, sampling.clone()).unwrap());
    assert_eq!(rest.tokens, whole.tokens[count..], "resumed at {count}");
    assert_eq!(format!("{before}{}", rest.text), whole.text, "resumed at {count}");
    assert_eq!(rest.end, whole.end, "resumed at {count}");
}

#[test]
fn an_answer_resumed_anywhere_is_the_undisturbed_answer() {
    let one = shared_engine();
    // Another machine has its own cache and other places.
    let other = engine(&LlamaOptions { sequences: 2, ..small() });
    let penal = Sampling {
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        repeat_penalty: 1.1,
        ..warm(120, 9)
    };
    for (question, sampling) in
        [(QUESTIONS[0], greedy(120)), (QUESTIONS[1], warm(120, 5)), (QUESTIONS[2], penal)]
    {
        let prompt = one.prepare(&chat(question)).unwrap();
        let whole = collect(one.start(prompt.clone(), sampling.clone()).unwrap());
        // Where prompt and resumed tokens end at, before and after the end of a pass.
        let to_a_pass = (32 - prompt.tokens.len() % 32) % 32;
        let edges = [to_a_pass + 31, to_a_pass + 32, to_a_pass + 33];
        for count in [1, 10, 100].into_iter().chain(edges) {
            if count < whole.tokens.len() {
                assert_resumes((&one, &other), &prompt, &sampling, &whole, count);
            }
        }
        assert!(whole.tokens.len() > 65, "{question}: {}", whole.tokens.len());
    }
}

#[test]
fn a_stop_text_across_the_cut_is_met_and_not_delivered() {
    let engine = shared_engine();
    let prompt = engine.prepare(&chat(CAPITAL)).unwrap();
    let stop = vec!["capital of France is".to_owned()];
    let sampling = Sampling { stop, ..greedy(64) };
    let whole = collect(engine.start(prompt.clone(), sampling.clone()).unwrap());
    assert_eq!((whole.text.as_str(), whole.end), ("The ", Some(Finish::Stop)));
    for count in 1..whole.tokens.len() {
        assert_resumes((&engine, &engine), &prompt, &sampling, &whole, count);
    }
    // A text that began like the stop text comes with what shows that it is none.
    let stop = vec!["capital of Spain".to_owned()];
    let sampling = Sampling { stop, ..greedy(64) };
    let whole = collect(engine.start(prompt.clone(), sampling.clone()).unwrap());
    assert!(whole.text.contains("capital of France"));
    for count in 1..whole.tokens.len() {
        assert_resumes((&engine, &engine), &prompt, &sampling, &whole, count);
    }
}

#[test]
fn an_answer_that_was_complete_only_gets_its_end() {
    let engine = shared_engine();
    let prompt = engine.prepare(&chat(CAPITAL)).unwrap();
    let stop = vec!["France".to_owned()];
    for sampling in [greedy(3), Sampling { stop, ..greedy(64) }] {
        let whole = collect(engine.start(prompt.clone(), sampling.clone()).unwrap());
        let before = text_until(&engine, &prompt, &sampling, whole.tokens.len());
        let all = resumed(&prompt, &whole.tokens);
        let rest = collect(engine.start(all, sampling.clone()).unwrap());
        assert_eq!((rest.tokens.len(), rest.end), (0, whole.end));
        assert_eq!(format!("{before}{}", rest.text), whole.text);
    }
    // Without a limit the model's own end comes again.
    let whole = collect(engine.start(prompt.clone(), greedy(64)).unwrap());
    let rest = collect(engine.start(resumed(&prompt, &whole.tokens), greedy(64)).unwrap());
    assert_eq!((rest.tokens.len(), rest.end), (0, Some(Finish::Stop)));
}

#[test]
fn a_constrained_answer_is_resumed_within_its_grammar() {
    let engine = shared_engine();
    let prompt = engine.prepare(&chat("Name a city and its population.")).unwrap();
    let sampling = Sampling { format: Format::JsonObject, ..warm(48, 3) };
    let whole = collect(engine.start(prompt.clone(), sampling.clone()).unwrap());
    assert!(whole.text.starts_with('{'), "{}", whole.text);
    for count in [1, whole.tokens.len() / 2, whole.tokens.len() - 1] {
        assert_resumes((&engine, &engine), &prompt, &sampling, &whole, count);
    }
}

#[test]
fn resumed_tokens_that_cannot_be_the_answers_are_refused() {
    let engine = shared_engine();
    let prompt = engine.prepare(&chat(CAPITAL)).unwrap();
    let whole = collect(engine.start(prompt.clone(), greedy(64)).unwrap());
    let after_stop = Sampling { stop: vec!["The".to_owned()], ..greedy(64) };
    let no_object = Sampling { format: Format::JsonObject, ..greedy(64) };
    for (tokens, sampling) in [
        (vec![u32::MAX], greedy(64)),
        // The model's end is no token of an answer.
        (vec![2], greedy(64)),
        (whole.tokens.clone(), greedy(3)),
        (vec![1_000; 2_048], greedy(4_000)),
        (whole.tokens.clone(), after_stop),
    ] {
        let mut generation = engine.start(resumed(&prompt, &tokens), sampling).unwrap();
        let piece = generation.pieces.blocking_recv();
        assert!(matches!(piece, Some(Piece::Failed { .. })), "{piece:?}");
        assert_eq!(generation.pieces.blocking_recv(), None);
    }
    for tokens in [whole.tokens, vec![u32::MAX], vec![2]] {
        let started = engine.start(resumed(&prompt, &tokens), no_object.clone());
        assert!(matches!(started, Err(StartError::Unsupported { .. })), "{started:?}");
    }
    assert_eq!((engine.load().running, engine.load().queued), (0, 0));
}
