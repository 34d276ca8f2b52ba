//! Guesses save passes and change nothing.

use std::collections::BTreeMap;

use tirami_infer::engine::{Engine, Format, JsonSchema, Piece, Prompt, Sampling};
use tirami_infer::llama::{Guesses, LlamaEngine, LlamaOptions};

use super::{chat, engine, greedy, header, model_path, small, warm};

/// What an editor is asked: the answer repeats most of the question.
const EDIT: &str = "Copy this list and write nothing else:\n- red apples from the north\n- green \
                    apples from the south\n- red pears from the north\n- green pears from the \
                    south\n- red plums from the north\n- green plums from the south\n";

fn pieces(engine: &LlamaEngine, prompt: &Prompt, sampling: &Sampling) -> Vec<Piece> {
    let mut generation = engine.start(prompt.clone(), sampling.clone()).unwrap();
    std::iter::from_fn(|| generation.pieces.blocking_recv()).collect()
}

#[test]
fn an_answer_that_is_guessed_is_the_one_that_is_not() {
    let options = LlamaOptions { sequences: 2, context_tokens: Some(512), ..small() };
    let plain = engine(&LlamaOptions { guesses: Guesses::Never, ..options.clone() });
    let guessing = engine(&LlamaOptions { guesses: Guesses::Always, ..options });
    let schema = r#"{"type": "object", "properties": {"fruits": {"type": "array", "items":
        {"enum": ["red apples", "green apples", "red pears", "green pears"]}, "minItems": 4}},
        "required": ["fruits"]}"#;
    let samplings = [
        greedy(90),
        warm(60, 3),
        Sampling { temperature: 0.3, ..warm(60, 4) },
        Sampling { frequency_penalty: 0.1, repeat_penalty: 1.05, ..greedy(50) },
        Sampling { top_logprobs: Some(3), ..greedy(40) },
        Sampling { stop: vec!["pears".to_owned()], ..greedy(60) },
        Sampling { format: Format::JsonSchema(JsonSchema::new(schema, true)), ..greedy(60) },
        Sampling { logit_bias: BTreeMap::from([(30, 1.0)]), ..warm(40, 5) },
    ];
    let prompt = plain.prepare(&chat(EDIT)).unwrap();
    let mut kept = Vec::new();
    for sampling in &samplings {
        let before = guessing.load().guessed_tokens_total;
        let guessed = pieces(&guessing, &prompt, sampling);
        assert_eq!(guessed, pieces(&plain, &prompt, sampling), "{sampling:?}");
        // Nothing of a wrong guess stays in the cache.
        assert_eq!(pieces(&guessing, &prompt, sampling), guessed, "{sampling:?} again");
        kept.push(guessing.load().guessed_tokens_total - before);
    }
    println!("kept guesses by sampling: {kept:?}");
    assert_eq!(plain.load().guessed_tokens_total, 0);
    assert!(kept.iter().filter(|kept| **kept > 0).count() >= 5, "{kept:?}");
    // Among others the answer is the same as well.
    let sampling = warm(60, 3);
    let alone = pieces(&plain, &prompt, &sampling);
    let other = guessing.start(prompt.clone(), greedy(200)).unwrap();
    assert_eq!(pieces(&guessing, &prompt, &sampling), alone);
    drop(other);
}

#[test]
fn what_is_guessed_where_no_bits_are_promised_is_what_the_model_says() {
    let options = LlamaOptions { reproducible: false, sequences: 2, ..small() };
    let guessing = engine(&LlamaOptions { guesses: Guesses::Always, ..options });
    let prompt = guessing.prepare(&chat(EDIT)).unwrap();
    let answer = super::collect(guessing.start(prompt.clone(), greedy(90)).unwrap());
    assert!(answer.text.contains("- red apples from the north\n"), "{}", answer.text);
    let kept = guessing.load().guessed_tokens_total;
    assert!(kept > 20, "{kept}");
    // Read back, each token is the likeliest as far as bits may differ; nothing of a wrong guess
    // stays in the cache, or those after it were not.
    let scored = Sampling { top_logprobs: Some(1), scores_prompt: true, ..greedy(0) };
    let given = Prompt::from([prompt.tokens.as_slice(), &answer.tokens].concat());
    let mut generation = guessing.start(given, scored).unwrap();
    while generation.pieces.blocking_recv().is_some() {}
    let figures = generation.take_prompt_logprobs().split_off(prompt.tokens.len());
    assert_eq!(figures.len(), answer.tokens.len());
    for token in figures {
        assert!(token.chosen.logprob >= token.top[0].logprob - 0.1, "{token:?}");
    }
}

#[test]
fn a_quantisation_that_was_not_measured_is_guessed_only_where_no_bits_are_promised() {
    /// What `general.file_type` says of `Q4_K_M`.
    const OTHER: u32 = 15;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    header::copy_with(&model_path(), &path, &[("general.file_type", header::number(OTHER))]);
    for reproducible in [true, false] {
        let guesses = Guesses::Always;
        let options = LlamaOptions { guesses, reproducible, sequences: 2, ..small() };
        let engine = LlamaEngine::load(&path, &options).unwrap();
        let prompt = engine.prepare(&chat(EDIT)).unwrap();
        pieces(&engine, &prompt, &greedy(90));
        let kept = engine.load().guessed_tokens_total;
        assert_eq!(kept == 0, reproducible, "{kept}");
    }
}
