//! Embeddings of the real model.

use tirami_infer::engine::{EmbedError, Engine};
use tirami_infer::llama::LlamaEngine;

use super::{CAPITAL, ask, greedy, header, model_path, shared_engine, small};

fn vector(engine: &LlamaEngine, tokens: &[u32]) -> Vec<f32> {
    engine.embed(tokens, &|| true).unwrap()
}

fn embedded(engine: &LlamaEngine, text: &str) -> Vec<f32> {
    vector(engine, &engine.tokenize(text).unwrap())
}

#[test]
fn near_texts_have_near_embeddings() {
    let engine = shared_engine();
    let likeness = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cat = embedded(&engine, "The cat sleeps on the sofa.");
    assert_eq!(cat.len(), 576);
    assert!((likeness(&cat, &cat) - 1.0).abs() < 1e-5);
    let kitten = embedded(&engine, "A kitten is sleeping on the couch.");
    let tax = embedded(&engine, "fn main() { println!(\"{}\", 40 + 2); }");
    assert!(likeness(&cat, &kitten) > likeness(&cat, &tax));
    // The same text gives the same bits, also in several passes and while others generate.
    let long = "Some words that fill several passes. ".repeat(12);
    let expected = embedded(&engine, &long);
    let prompt = engine.prepare(&super::chat(CAPITAL)).unwrap();
    let generation = engine.start(prompt, greedy(16)).unwrap();
    assert_eq!(embedded(&engine, &long), expected);
    super::collect(generation);
    assert!(ask(&engine, CAPITAL, greedy(16)).text.contains("Paris"));
}

#[test]
fn a_text_gets_the_vector_of_the_token_that_the_models_file_names() {
    let folder = tempfile::tempdir().unwrap();
    let load = |pooling: u32| {
        let path = folder.path().join(format!("{pooling}.gguf"));
        let pooling = ("llama.pooling_type", header::number(pooling));
        let ended = ("tokenizer.ggml.add_eos_token", header::flag(true));
        header::copy_with(&model_path(), &path, &[pooling, ended]);
        LlamaEngine::load(&path, &small()).unwrap()
    };
    let mean = shared_engine();
    // Several passes.
    let tokens = mean.tokenize(&"The cat sleeps on the sofa. ".repeat(8)).unwrap();
    let (begin, of_all) = (vector(&mean, &tokens[..1]), vector(&mean, &tokens));
    assert_eq!(mean.end_token(), None);
    let likeness = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let first = load(2);
    assert!(likeness(&vector(&first, &tokens), &begin) > 0.999);
    assert_eq!(first.end_token(), None);
    drop(first);
    let last = load(3);
    assert!(likeness(&vector(&last, &tokens[..1]), &begin) > 0.999);
    let of_last = vector(&last, &tokens);
    assert!(of_last != of_all && likeness(&of_last, &begin) < 0.999);
    let end = last.end_token().unwrap();
    assert_ne!(vector(&last, &[&tokens[..], &[end]].concat()), of_last);
    drop(last);
    let ranks = load(4);
    assert_eq!(ranks.model().embedding_width, 0);
    assert_eq!(ranks.embed(&tokens, &|| true), Err(EmbedError::Unsupported));
    assert_eq!(mean.model().embedding_width, 576);
}

#[test]
fn tokens_that_cannot_be_embedded_are_refused() {
    let engine = shared_engine();
    for tokens in [vec![], vec![u32::MAX], vec![1; 2_049]] {
        let refused = engine.embed(&tokens, &|| true);
        assert_eq!(refused, Err(EmbedError::Tokens { context_tokens: 2_048 }));
    }
    assert_eq!(engine.embed(&[1_000], &|| false), Err(EmbedError::Unwanted));
}
