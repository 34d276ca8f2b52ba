//! The engine's loop with nothing around it, as a floor to measure a node against.

use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use super::LlamaEngine;
use super::backend::{PASS_TOKENS_MAX, Setting};
use super::sampler::likeliest;
use crate::engine::Prompt;

/// How a bare run reads its prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BareSetting {
    /// As the engine does, so that the same prompt gives the same bits in every mix of requests.
    Engine,
    /// As llama.cpp does by itself: passes of 512 tokens, keys and values of one type.
    Usual,
}

/// What a bare run produced, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareRun {
    /// The tokens of each prompt's answer, the likeliest at each step; the model's end token does
    /// not end them.
    pub tokens: Vec<Vec<u32>>,
    /// From the first prompt token to the first token of the last answer.
    pub prefill: Duration,
    /// From there to the last token.
    pub decode: Duration,
}

impl LlamaEngine {
    /// Produces `count` tokens greedily for each prompt, on a context of its own: the prompts are
    /// read one after another, and then every pass gives each answer its next token.
    ///
    /// The engine should be idle meanwhile, or both are slowed.
    ///
    /// # Errors
    ///
    /// A sentence when there is no prompt, prompt and tokens do not fit the context, or the native
    /// engine fails.
    pub fn run_bare(
        &self,
        prompts: &[Prompt],
        count: u32,
        setting: BareSetting,
    ) -> Result<BareRun, String> {
        let known = 0..self.model.vocab().n_tokens().cast_unsigned();
        let fits = |prompt: &Prompt| {
            let needed = prompt.tokens.len() + count as usize;
            !prompt.tokens.is_empty()
                && needed <= self.setting.context_tokens as usize
                && prompt.tokens.iter().all(|token| known.contains(token))
        };
        let places = i32::try_from(prompts.len()).unwrap_or(i32::MAX);
        if prompts.is_empty() || prompts.len() > PASS_TOKENS_MAX || !prompts.iter().all(fits) {
            return Err("the prompts and their answers do not fit the context".to_owned());
        }
        let setting = Setting {
            sequences: places.cast_unsigned(),
            reproducible: setting == BareSetting::Engine && self.setting.reproducible,
            ..self.setting
        };
        let mut context = setting.context(&self.model)?;
        let mut batch = LlamaBatch::new(setting.pass_tokens(), 1);
        let mut tokens = Vec::with_capacity(prompts.len());
        let started = Instant::now();
        for (place, prompt) in (0..).zip(prompts) {
            let mut position = 0;
            for chunk in prompt.tokens.chunks(setting.pass_tokens()) {
                batch.clear();
                for (i, token) in chunk.iter().enumerate() {
                    let last = i + 1 == chunk.len();
                    add(&mut batch, *token, position, place, last)?;
                    position += 1;
                }
                context.decode(&mut batch).map_err(|error| error.to_string())?;
            }
            tokens.push(vec![next(&context, batch.n_tokens() - 1)?]);
        }
        let first = Instant::now();
        for step in 1..count {
            batch.clear();
            for ((place, prompt), tokens) in (0..).zip(prompts).zip(&tokens) {
                let position = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX) + step - 1;
                add(&mut batch, tokens[tokens.len() - 1], position.cast_signed(), place, true)?;
            }
            context.decode(&mut batch).map_err(|error| error.to_string())?;
            for (row, tokens) in (0..).zip(&mut tokens) {
                tokens.push(next(&context, row)?);
            }
        }
        Ok(BareRun { tokens, prefill: first - started, decode: first.elapsed() })
    }
}

fn add(
    batch: &mut LlamaBatch<'_>,
    token: u32,
    position: i32,
    place: i32,
    logits: bool,
) -> Result<(), String> {
    let token = LlamaToken(token.cast_signed());
    batch.add(token, position, &[place], logits).map_err(|error| error.to_string())
}

fn next(context: &LlamaContext<'_>, row: i32) -> Result<u32, String> {
    likeliest(context.get_logits_ith(row))
        .and_then(|index| u32::try_from(index).ok())
        .ok_or_else(|| "the model computes no numbers".to_owned())
}
