//! One generation: its tokens, what is chosen next and what its reader is told.

use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::mpsc;

use super::grammar::Grammar;
use super::lookup::{Lookup, Toll};
use super::sampler::{Logprobs, Sampler};
use super::tokens::piece;
use crate::engine::{
    Failure, Finish, Likely, Piece, Progress, Prompt, PromptImage, Sampling, TokenLogprobs,
    is_image_token,
};
use crate::text::AnswerText;

/// A request on its way to the engine's thread.
pub(super) struct Job {
    pub(super) prompt: Prompt,
    pub(super) sampling: Sampling,
    /// Of the sampling's format, with the resumed tokens behind it.
    pub(super) grammar: Option<Grammar>,
    pub(super) sender: mpsc::Sender<Piece>,
    pub(super) progress: Arc<Progress>,
}

/// A running generation.
pub(super) struct Sequence {
    /// Prompt, resumed and produced tokens.
    tokens: Vec<u32>,
    /// How many of them are the prompt's.
    prompt_tokens: usize,
    /// How many of them are read before the first is chosen here.
    given_tokens: usize,
    /// The prompt's pictures, in order.
    images: Vec<PromptImage>,
    /// How many of them are in the cache, from the first on.
    in_cache: usize,
    /// Tokens there may be in all.
    tokens_max: usize,
    scope: u64,
    /// Whether the prompt's own tokens are scored.
    scores_prompt: bool,
    sampler: Sampler,
    lookup: Lookup,
    answer: AnswerText,
    sender: mpsc::Sender<Piece>,
    progress: Arc<Progress>,
}

impl Sequence {
    /// A sequence at its beginning; or the only piece of one that cannot begin or whose resumed
    /// tokens end it.
    pub(super) fn new(job: Job, model: &LlamaModel, context_tokens: usize) -> Result<Self, Piece> {
        match Self::begin(job, model, context_tokens) {
            Ok((sequence, None)) if sequence.scores_prompt => Ok(sequence),
            Ok((mut sequence, None)) => match sequence.last_by_length() {
                None => Ok(sequence),
                Some(last) => Err(last),
            },
            Ok((_, Some(last))) => Err(last),
            Err(reason) => Err(Piece::Failed { reason }),
        }
    }

    fn begin(
        job: Job,
        model: &LlamaModel,
        context_tokens: usize,
    ) -> Result<(Self, Option<Piece>), String> {
        let Job { prompt, sampling, grammar, sender, progress } = job;
        let Prompt { mut tokens, resumed, scope, images, .. } = prompt;
        let prompt_tokens = tokens.len();
        let vocab = model.vocab();
        let known = |token: &u32| (0..vocab.n_tokens().cast_unsigned()).contains(token);
        let in_picture = |at: usize| images.iter().any(|image| image.has(at));
        let readable = |(at, token): (usize, &u32)| {
            if is_image_token(*token) { in_picture(at) } else { known(token) && !in_picture(at) }
        };
        // The last token is of the vocabulary, because what follows is chosen by it.
        let ends_in_text = tokens.last().is_some_and(known);
        let is_readable = ends_in_text && tokens.iter().enumerate().all(readable);
        if prompt_tokens >= context_tokens || !is_readable {
            return Err("the prompt is empty, too long or not of this model".to_owned());
        }
        let scores_prompt = sampling.scores_prompt && resumed.is_empty();
        let completion_max = sampling.completion_max.max(u32::from(!scores_prompt));
        let completion_max = usize::try_from(completion_max).unwrap_or(usize::MAX);
        let tokens_max = prompt_tokens.saturating_add(completion_max).min(context_tokens);
        let ends = |token: &u32| vocab.is_eog(LlamaToken(token.cast_signed()));
        if prompt_tokens + resumed.len() > tokens_max
            || !resumed.iter().all(|token| known(token) && !ends(token))
        {
            return Err("the resumed tokens are too many or not of this model".to_owned());
        }
        let mut sampler = Sampler::new(&sampling, grammar, &tokens);
        let mut answer = AnswerText::new(&sampling.stop);
        let mut last = None;
        for token in &resumed {
            sampler.note(*token);
            if last.is_some() {
                return Err("the resumed tokens go on after their answer's end".to_owned());
            }
            // The text was delivered with the token by whoever produced it.
            let certain = answer.push(&piece(model, LlamaToken(token.cast_signed())));
            last =
                certain.stopped.then_some(Piece::End { text: String::new(), finish: Finish::Stop });
        }
        progress.stopped_by(answer.met());
        tokens.extend(resumed);
        let given_tokens = tokens.len();
        let in_cache = 0;
        let sequence = Self {
            tokens,
            prompt_tokens,
            given_tokens,
            images,
            in_cache,
            tokens_max,
            scope,
            scores_prompt,
            sampler,
            lookup: Lookup::default(),
            answer,
            sender,
            progress,
        };
        Ok((sequence, last))
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn in_cache(&self) -> usize {
        self.in_cache
    }

    pub(super) fn scope(&self) -> u64 {
        self.scope
    }

    /// Notes that the sequence begins with `count` tokens in the cache.
    pub(super) fn found(&mut self, count: usize) {
        self.in_cache = count;
        let of_prompt = u32::try_from(count.min(self.prompt_tokens)).unwrap_or(u32::MAX);
        self.progress.cached(of_prompt);
        self.tell();
    }

    /// Notes that the tokens before the `count`th are in the cache.
    pub(super) fn read(&mut self, count: usize) {
        self.in_cache = count;
        if count <= self.given_tokens {
            self.tell();
        }
    }

    fn tell(&self) {
        self.progress.read(u32::try_from(self.in_cache).unwrap_or(u32::MAX));
    }

    /// Whether the prompt's own tokens are scored, so that all of them have to be read.
    pub(super) fn scores_prompt(&self) -> bool {
        self.scores_prompt
    }

    /// Scores the given token at `position` by the logits after the one before it; without any it
    /// is the first, which has no figure.
    pub(super) fn score(&self, model: &LlamaModel, position: usize, logits: Option<&[f32]>) {
        let Some(token) = self.tokens.get(position).filter(|_| position < self.prompt_tokens)
        else {
            return;
        };
        let first = || Logprobs { token: *token, logprob: 0.0, top: Vec::new() };
        let scored = match logits {
            None => Some(first()),
            Some(logits) => self.sampler.logprobs(logits, *token as usize),
        };
        self.progress.scored(scored.map(|logprobs| spelled(model, logprobs)));
    }

    /// Tokens given to the sequence that are not in the cache.
    pub(super) fn unread_tokens(&self) -> usize {
        self.given_tokens.saturating_sub(self.in_cache)
    }

    pub(super) fn is_prefilling(&self) -> bool {
        self.unread_tokens() > 0
    }

    /// The picture of which the next token in the cache will be the first.
    pub(super) fn picture(&self) -> Option<&PromptImage> {
        self.images.iter().find(|image| image.start == self.in_cache)
    }

    /// Tokens that can be read before the next picture; 0 where it is the next.
    pub(super) fn tokens_to_picture(&self) -> usize {
        let next = self.images.iter().map(|image| image.start).find(|at| *at >= self.in_cache);
        next.map_or(usize::MAX, |at| at - self.in_cache)
    }

    /// So many of the first `count` tokens that no picture is cut.
    pub(super) fn before_picture(&self, count: usize) -> usize {
        let cut = self.images.iter().find(|image| image.has(count) && image.start < count);
        cut.map_or(count, |image| image.start)
    }

    /// What may follow the newest token, where that is worth it: no more than the reader has room
    /// for, and fewer than may still be produced.
    pub(super) fn guess(&mut self, toll: &Toll) -> Vec<u32> {
        let left = self.tokens_max.saturating_sub(self.tokens.len()).saturating_sub(1);
        let room = self.sender.capacity().saturating_sub(2);
        let guess = self.lookup.guess(&self.tokens, left.min(room), toll).iter();
        guess.copied().take_while(|token| !is_image_token(*token)).collect()
    }

    /// Whether the reader has room for what one step may deliver: a delta and an end. So an end
    /// or failure always finds room.
    pub(super) fn has_room(&self) -> bool {
        self.sender.capacity() >= 2
    }

    pub(super) fn is_left(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn sender(&self) -> &mpsc::Sender<Piece> {
        &self.sender
    }

    /// Chooses the next token, delivers it, and gives the last piece if the generation ends.
    pub(super) fn advance(&mut self, model: &LlamaModel, logits: &[f32]) -> Option<Piece> {
        if let Some(last) = self.last_by_length() {
            // The prompt was only to be scored.
            return Some(last);
        }
        let position = self.tokens.len() - self.prompt_tokens;
        let index = self.sampler.pick(logits, position, &spelling(model));
        let token = index.and_then(|index| u32::try_from(index).ok());
        let (Some(index), Some(token)) = (index, token) else {
            return Some(self.failed("the model computes no numbers; its file is damaged"));
        };
        let native = LlamaToken(token.cast_signed());
        if model.vocab().is_eog(native) {
            let text = self.answer.finish();
            return Some(Piece::End { text, finish: Finish::Stop });
        }
        if !self.sampler.accept(token, &spelling(model)) {
            return Some(self.failed("the answer has left its grammar"));
        }
        self.tokens.push(token);
        let certain = self.answer.push(&piece(model, native));
        let logprobs = self.sampler.logprobs(logits, index);
        let logprobs = logprobs.map(|logprobs| spelled(model, logprobs)).into_iter().collect();
        // A reader that is gone is noticed before the next step.
        let delta = Piece::Delta { tokens: vec![token], text: certain.text, logprobs };
        let _ = self.sender.try_send(delta);
        if certain.stopped {
            self.progress.stopped_by(self.answer.met());
            return Some(Piece::End { text: String::new(), finish: Finish::Stop });
        }
        self.last_by_length()
    }

    /// The last piece where there is no next token: for this reason, unless the grammar is too
    /// costly to follow.
    fn failed(&self, reason: &str) -> Piece {
        if !self.sampler.is_too_costly() {
            return Piece::Failed { reason: reason.to_owned() };
        }
        self.progress.failed(Failure::Costly);
        Piece::Failed { reason: Failure::Costly.to_string() }
    }

    fn last_by_length(&mut self) -> Option<Piece> {
        (self.tokens.len() >= self.tokens_max)
            .then(|| Piece::End { text: self.answer.finish(), finish: Finish::Length })
    }
}

fn spelling(model: &LlamaModel) -> impl Fn(usize) -> Vec<u8> + '_ {
    move |index| i32::try_from(index).map_or_else(|_| Vec::new(), |id| piece(model, LlamaToken(id)))
}

/// Whether an answer may begin with `resumed` in its grammar, which then goes on behind it. The
/// native engine aborts where an end comes too early, so there may be none.
pub(super) fn follows(model: &LlamaModel, grammar: &mut Grammar, resumed: &[u32]) -> bool {
    let (vocab, spelling) = (model.vocab(), spelling(model));
    let is_text = |token: u32| {
        (0..vocab.n_tokens().cast_unsigned()).contains(&token)
            && !vocab.is_eog(LlamaToken(token.cast_signed()))
    };
    resumed.iter().all(|token| is_text(*token) && grammar.accept(*token, &spelling))
}

/// The same with each token's bytes.
fn spelled(model: &LlamaModel, logprobs: Logprobs) -> TokenLogprobs {
    let likely = |(token, logprob): (u32, f32)| Likely {
        bytes: piece(model, LlamaToken(token.cast_signed())),
        logprob,
    };
    TokenLogprobs {
        chosen: likely((logprobs.token, logprobs.logprob)),
        top: logprobs.top.into_iter().map(likely).collect(),
    }
}
