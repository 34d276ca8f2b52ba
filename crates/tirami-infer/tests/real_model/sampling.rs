//! Log-probabilities, penalties, bias and the tokenizer on the real model.

use tirami_infer::engine::{Engine, Piece, PrepareError, Sampling, TokenLogprobs};

use super::{CAPITAL, QUESTIONS, ask, chat, greedy, shared_engine};

#[test]
fn tokens_carry_their_log_probabilities() {
    let engine = shared_engine();
    let prompt = engine.prepare(&chat(CAPITAL)).unwrap();
    let sampling = Sampling { top_logprobs: Some(3), ..greedy(5) };
    let mut generation = engine.start(prompt, sampling).unwrap();
    let mut given = Vec::<TokenLogprobs>::new();
    while let Some(piece) = generation.pieces.blocking_recv() {
        if let Piece::Delta { tokens, logprobs, .. } = piece {
            assert_eq!(tokens.len(), logprobs.len());
            assert_eq!(engine.token_bytes(tokens[0]).unwrap(), logprobs[0].chosen.bytes);
            given.extend(logprobs);
        }
    }
    assert_eq!(given.len(), 5);
    for token in given {
        // Greedy: the produced token is the likeliest, and all are probabilities.
        assert_eq!(token.top.len(), 3);
        assert_eq!(token.top[0], token.chosen);
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        let sum = token.top.iter().map(|one| one.logprob.exp()).sum::<f32>();
        assert!((0.01..=1.0001).contains(&sum), "{token:?}");
    }
}

#[test]
fn a_forbidden_token_is_never_produced_and_penalties_stop_repetition() {
    let engine = shared_engine();
    let plain = ask(&engine, CAPITAL, greedy(16));
    let logit_bias = plain.tokens.iter().map(|token| (*token, -100.0)).collect();
    let other = ask(&engine, CAPITAL, Sampling { logit_bias, ..greedy(16) });
    assert!(other.tokens.iter().all(|token| !plain.tokens.contains(token)));
    let most = |tokens: &[u32]| {
        tokens.iter().map(|token| tokens.iter().filter(|t| *t == token).count()).max().unwrap()
    };
    let repeated = ask(&engine, QUESTIONS[0], greedy(60));
    for sampling in [
        Sampling { frequency_penalty: 2.0, ..greedy(60) },
        Sampling { repeat_penalty: 2.0, ..greedy(60) },
    ] {
        let varied = ask(&engine, QUESTIONS[0], sampling);
        assert!(most(&varied.tokens) < most(&repeated.tokens), "{}", varied.text);
    }
}

#[test]
fn texts_become_tokens_and_tokens_texts() {
    let engine = shared_engine();
    let texts = ["", "Hello", " Hello\n\n", "Grüße, 日本 😀", "<|im_end|>", QUESTIONS[0]];
    for text in texts {
        let tokens = engine.tokenize(text).unwrap();
        let bytes = tokens.iter().flat_map(|token| engine.token_bytes(*token).unwrap());
        assert_eq!(String::from_utf8(bytes.collect()).unwrap(), text);
        // 1 is <|im_start|>, 2 is <|im_end|>.
        assert!(!tokens.contains(&1) && !tokens.contains(&2));
    }
    assert_eq!(engine.token_bytes(2).unwrap(), b"");
    assert_eq!(engine.token_bytes(u32::MAX).unwrap(), b"");
    let long = engine.tokenize(&"7".repeat(10_000_000));
    assert!(matches!(long, Err(PrepareError::ContextLength { .. })), "{long:?}");
}
