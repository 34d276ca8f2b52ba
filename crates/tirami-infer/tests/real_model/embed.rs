//! Embeddings of the real model.

use tirami_infer::engine::{EmbedError, Engine};
use tirami_infer::llama::LlamaEngine;

use super::{CAPITAL, ask, greedy, shared_engine};

fn embedded(engine: &LlamaEngine, text: &str) -> Vec<f32> {
    engine.embed(&engine.tokenize(text).unwrap(), &|| true).unwrap()
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
fn tokens_that_cannot_be_embedded_are_refused() {
    let engine = shared_engine();
    for tokens in [vec![], vec![u32::MAX], vec![1; 2_049]] {
        let refused = engine.embed(&tokens, &|| true);
        assert_eq!(refused, Err(EmbedError::Tokens { context_tokens: 2_048 }));
    }
    assert_eq!(engine.embed(&[1_000], &|| false), Err(EmbedError::Unwanted));
}
