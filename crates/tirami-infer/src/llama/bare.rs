//! The engine's loop with nothing around it, as a floor to measure a node against.

use std::time::{Duration, Instant};

use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use super::LlamaEngine;
use super::backend::{PASS_TOKENS_MAX, Setting};
use super::sampler::likeliest;
use crate::engine::Prompt;

/// What a bare run produced, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareRun {
    /// The tokens, the likeliest at each step; the model's end token does not end them.
    pub tokens: Vec<u32>,
    /// From the first prompt token to the first produced token.
    pub prefill: Duration,
    /// From the first produced token to the last.
    pub decode: Duration,
}

impl LlamaEngine {
    /// Produces `count` tokens greedily on a context of its own in the engine's setting.
    ///
    /// The engine should be idle meanwhile, or both are slowed.
    ///
    /// # Errors
    ///
    /// A sentence when prompt and tokens do not fit the context or the native engine fails.
    pub fn run_bare(&self, prompt: &Prompt, count: u32) -> Result<BareRun, String> {
        let needed = prompt.tokens.len() + count as usize;
        let known = 0..self.model.vocab().n_tokens().cast_unsigned();
        if prompt.tokens.is_empty()
            || needed > self.setting.context_tokens as usize
            || prompt.tokens.iter().any(|token| !known.contains(token))
        {
            return Err("the prompt and its answer do not fit the context".to_owned());
        }
        let mut context = Setting { sequences: 1, ..self.setting }.context(&self.model)?;
        let mut batch = LlamaBatch::new(PASS_TOKENS_MAX, 1);
        let started = Instant::now();
        let mut position = 0;
        let mut row = 0;
        for chunk in prompt.tokens.chunks(PASS_TOKENS_MAX) {
            batch.clear();
            for (i, token) in chunk.iter().enumerate() {
                let token = LlamaToken(token.cast_signed());
                let last = i + 1 == chunk.len();
                batch.add(token, position, &[0], last).map_err(|error| error.to_string())?;
                position += 1;
            }
            context.decode(&mut batch).map_err(|error| error.to_string())?;
            row = batch.n_tokens() - 1;
        }
        let mut tokens = Vec::with_capacity(count as usize);
        let mut first = None;
        for _ in 0..count {
            let token = likeliest(context.get_logits_ith(row))
                .and_then(|index| i32::try_from(index).ok())
                .ok_or("the model computes no numbers")?;
            tokens.push(token.cast_unsigned());
            first.get_or_insert_with(Instant::now);
            if tokens.len() == count as usize {
                break;
            }
            batch.clear();
            batch.add(LlamaToken(token), position, &[0], true).map_err(|e| e.to_string())?;
            context.decode(&mut batch).map_err(|error| error.to_string())?;
            position += 1;
            row = 0;
        }
        let first = first.unwrap_or_else(Instant::now);
        Ok(BareRun { tokens, prefill: first - started, decode: first.elapsed() })
    }
}
