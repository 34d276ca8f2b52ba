//! A scripted engine for load tests: no model, chosen speed, unlimited concurrency.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tirami_core::{ModelDigest, ModelShape};
use tokio::sync::mpsc;

use crate::engine::{
    Conversation, EmbedError, Engine, EngineLoad, Finish, Format, Generation, Likely, ModelInfo,
    PIECES_AHEAD_MAX, Piece, PrepareError, Progress, Prompt, RawPrompt, Sampling, StartError,
    TOP_LOGPROBS_MAX, TokenLogprobs, image_tokens,
};

/// Numbers in a vector of a [`FakeEngine`].
const WIDTH: u32 = 8;

/// The variable that a [`FakeEngine`] reads, and what it writes at the end of a chat where that is
/// `false`: two tokens.
const READS: &str = "enable_thinking";
const NO_THOUGHT: &[u8; 8] = b"no think";

/// What a [`FakeEngine`] does with each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeScript {
    /// Tokens of each answer; a request may ask for fewer.
    pub tokens_per_answer: u32,
    /// Pause before each token.
    pub delay: Duration,
    /// Tokens after which every answer fails; none to never fail.
    pub fail_after: Option<u32>,
}

/// An engine that says its words over and over, `word ` unless others are given, and whose tokens
/// are their places in the completion; so what it resumes goes on like the undisturbed answer. A
/// stop text ends an answer where it stands within one word.
#[derive(Debug)]
pub struct FakeEngine {
    info: ModelInfo,
    script: FakeScript,
    words: Arc<Vec<String>>,
    counters: Arc<Counters>,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Counters {
    running: AtomicU32,
    completion_tokens_total: AtomicU64,
    prompt_tokens_total: AtomicU64,
}

impl FakeEngine {
    /// An engine with a small model of its own.
    pub fn new(script: FakeScript) -> Self {
        let shape = ModelShape {
            parameters_active: 1_000_000,
            layers: 2,
            attention_width: 64,
            context_max: 4_096,
        };
        Self::with_model(
            script,
            ModelInfo {
                name: "fake".to_owned(),
                digest: ModelDigest::from_bytes([0xfa; 32]),
                shape,
                architecture: "fake".to_owned(),
                quantisation: "F32".to_owned(),
                size_bytes: 4_000_000,
                context_tokens: 4_096,
                embedding_width: WIDTH,
                image_tokens_max: 0,
                build: "fake".to_owned(),
            },
        )
    }

    /// An engine that says it has loaded `info`.
    pub fn with_model(script: FakeScript, info: ModelInfo) -> Self {
        let words = Arc::new(vec!["word ".to_owned()]);
        Self { info, script, words, counters: Arc::default(), stopped: AtomicBool::new(false) }
    }

    /// The same engine with other words, one for each token.
    #[must_use]
    pub fn saying(self, words: Vec<String>) -> Self {
        Self { words: Arc::new(words), ..self }
    }

    /// Takes no request any more, as an engine whose thread has ended.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// The last token that may stand in a raw prompt.
const LAST_TOKEN: u32 = 0xffff;

fn tokens_of(mut bytes: Vec<u8>) -> Vec<u32> {
    bytes.resize(bytes.len().next_multiple_of(4).max(4), 0);
    bytes.chunks(4).map(|four| four.iter().map(|byte| u32::from(*byte)).sum()).collect()
}

impl FakeEngine {
    fn fitting(&self, tokens: Vec<u32>) -> Result<Prompt, PrepareError> {
        let context_tokens = self.info.context_tokens;
        if tokens.len() >= context_tokens as usize {
            let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
            return Err(PrepareError::ContextLength { prompt_tokens, context_tokens });
        }
        Ok(Prompt::from(tokens))
    }
}

impl Engine for FakeEngine {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    /// One token for each four bytes of the messages' texts, and for each picture as many as one
    /// may take. It reads the variable `enable_thinking`, and writes some bytes more where it is
    /// `false`.
    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        if conversation.messages.is_empty() {
            return Err(PrepareError::Template { reason: "there are no messages".to_owned() });
        }
        let given = conversation.variables.given(&[READS.to_owned()].into())?;
        let text = conversation.messages.iter().flat_map(|message| message.content.bytes());
        let mut text = text.collect::<Vec<u8>>();
        if given.get(READS).is_some_and(|value| value == "false") {
            text.extend_from_slice(NO_THOUGHT);
        }
        let mut tokens = tokens_of(text);
        for image in conversation.images() {
            if self.info.image_tokens_max == 0 {
                return Err(PrepareError::NoImages);
            }
            tokens.extend(image_tokens(image, self.info.image_tokens_max as usize));
        }
        self.fitting(tokens)
    }

    /// One token for each four bytes of a text; a gap costs none.
    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        let tokens = match raw {
            RawPrompt::Text(text) => tokens_of(text.clone().into_bytes()),
            RawPrompt::Infill { before, after } => {
                tokens_of([before.as_bytes(), after.as_bytes()].concat())
            }
            RawPrompt::Tokens(tokens) if tokens.iter().all(|token| *token <= LAST_TOKEN) => {
                tokens.clone()
            }
            RawPrompt::Tokens(_) => Vec::new(),
        };
        if tokens.is_empty() {
            return Err(PrepareError::Tokens { last: LAST_TOKEN });
        }
        self.fitting(tokens)
    }

    /// One token for each byte.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn token_bytes(&self, token: u32) -> Result<Vec<u8>, PrepareError> {
        self.spelling(token).map(Option::unwrap_or_default)
    }

    fn spelling(&self, token: u32) -> Result<Option<Vec<u8>>, PrepareError> {
        Ok(u8::try_from(token).ok().map(|byte| vec![byte]))
    }

    /// A direction that follows from the tokens, after the script's pause.
    fn embed(&self, tokens: &[u32], is_wanted: &dyn Fn() -> bool) -> Result<Vec<f32>, EmbedError> {
        let context_tokens = self.info.context_tokens;
        if tokens.is_empty() || tokens.len() > context_tokens as usize {
            return Err(EmbedError::Tokens { context_tokens });
        }
        let until = Instant::now() + self.script.delay;
        self.counters.running.fetch_add(1, Ordering::Relaxed);
        while is_wanted() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.counters.running.fetch_sub(1, Ordering::Relaxed);
        if !is_wanted() {
            return Err(EmbedError::Unwanted);
        }
        if self.script.fail_after.is_some() || !self.is_alive() {
            return Err(EmbedError::Failed { reason: "the script fails here".to_owned() });
        }
        self.counters.prompt_tokens_total.fetch_add(tokens.len() as u64, Ordering::Relaxed);
        let sum = tokens.iter().fold(1_u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token));
        let vector = (1..=WIDTH)
            .map(|n| f32::from(u16::try_from(sum.wrapping_mul(n) >> 16).unwrap_or_default()) + 1.0);
        let vector: Vec<f32> = vector.collect();
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        Ok(vector.into_iter().map(|value| value / length).collect())
    }

    /// Takes every format, and says its words whatever it is.
    fn check_format(&self, _: &Format) -> Result<(), PrepareError> {
        Ok(())
    }

    /// Starts a task on the caller's runtime; without one the engine counts as stopped.
    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        if !self.is_alive() {
            return Err(StartError::Stopped);
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::Stopped)?;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        let resumed = u32::try_from(prompt.resumed.len()).unwrap_or(u32::MAX);
        let room = u64::from(self.info.context_tokens).saturating_sub(prompt.tokens.len() as u64);
        let completion_max = sampling.completion_max.min(u32::try_from(room).unwrap_or(u32::MAX));
        let completion_max = completion_max.max(u32::from(!sampling.scores_prompt));
        let given = prompt.tokens.len().saturating_add(prompt.resumed.len());
        let (script, words) = (self.script.clone(), Arc::clone(&self.words));
        let counters = Arc::clone(&self.counters);
        let Sampling { top_logprobs: top, stop: stops, .. } = sampling;
        counters.prompt_tokens_total.fetch_add(prompt.tokens.len() as u64, Ordering::Relaxed);
        let progress = Arc::new(Progress::default());
        progress.read(u32::try_from(given).unwrap_or(u32::MAX));
        if sampling.scores_prompt {
            let bytes = |token: &u32| self.token_bytes(*token).unwrap_or_default();
            let likely = |token| Likely { bytes: bytes(token), logprob: -0.5 };
            let scored = prompt.tokens.iter().map(likely);
            progress.scored(scored.map(|chosen| TokenLogprobs { chosen, top: Vec::new() }));
        }
        let told = Arc::clone(&progress);
        runtime.spawn(async move {
            let says = (&script, words.as_slice(), (top, stops.as_slice()));
            let positions = resumed..completion_max;
            counters.running.fetch_add(1, Ordering::Relaxed);
            // A reader that has gone needs no answer.
            tokio::select! {
                () = sender.closed() => {}
                () = answer(&sender, says, positions, (&counters, &told)) => {}
            }
            counters.running.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(Generation::new(pieces, progress))
    }

    fn load(&self) -> EngineLoad {
        EngineLoad {
            places: 0,
            taken_by_others: 0,
            running: self.counters.running.load(Ordering::Relaxed),
            queued: 0,
            completion_tokens_total: self.counters.completion_tokens_total.load(Ordering::Relaxed),
            guessed_tokens_total: 0,
            prompt_tokens_total: self.counters.prompt_tokens_total.load(Ordering::Relaxed),
        }
    }

    fn is_alive(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }
}

async fn answer(
    sender: &mpsc::Sender<Piece>,
    (script, words, (top, stops)): (&FakeScript, &[String], (Option<u32>, &[String])),
    positions: Range<u32>,
    (counters, progress): (&Counters, &Progress),
) {
    let count = script.tokens_per_answer.min(positions.end);
    for produced in positions.start..count {
        if script.fail_after == Some(produced) {
            let reason = "the script fails here".to_owned();
            let _ = sender.send(Piece::Failed { reason }).await;
            return;
        }
        if !script.delay.is_zero() {
            tokio::time::sleep(script.delay).await;
        }
        counters.completion_tokens_total.fetch_add(1, Ordering::Relaxed);
        let mut word =
            words.get(produced as usize % words.len().max(1)).cloned().unwrap_or_default();
        let likely = Likely { bytes: word.clone().into_bytes(), logprob: -0.5 };
        let logprobs = top.map(|top| TokenLogprobs {
            chosen: likely.clone(),
            top: vec![likely; top.min(TOP_LOGPROBS_MAX) as usize],
        });
        let logprobs = logprobs.into_iter().collect();
        let met = stops.iter().zip(0..).find_map(|(stop, at)| Some((word.find(stop)?, at)));
        if let Some((start, stop)) = met {
            word.truncate(start);
            progress.stopped_by(Some(stop));
        }
        let delta = Piece::Delta { tokens: vec![produced], text: word, logprobs };
        if sender.send(delta).await.is_err() {
            return;
        }
        if met.is_some() {
            let _ = sender.send(Piece::End { text: String::new(), finish: Finish::Stop }).await;
            return;
        }
    }
    let finish = if count < script.tokens_per_answer { Finish::Length } else { Finish::Stop };
    let _ = sender.send(Piece::End { text: String::new(), finish }).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Message;

    fn sampling(completion_max: u32) -> Sampling {
        Sampling { completion_max, ..Sampling::default() }
    }

    fn prompt(engine: &FakeEngine) -> Prompt {
        let message = Message::new("user", "12345");
        let prompt = engine.prepare(&Conversation::from(vec![message])).unwrap();
        assert_eq!(prompt.tokens.len(), 2);
        prompt
    }

    async fn collect(mut generation: Generation) -> (usize, Option<Piece>) {
        let (mut deltas, mut last) = (0, None);
        while let Some(piece) = generation.pieces.recv().await {
            deltas += usize::from(matches!(piece, Piece::Delta { .. }));
            last = Some(piece);
        }
        (deltas, last)
    }

    #[tokio::test]
    async fn the_script_is_followed() {
        let end = |finish| Piece::End { text: String::new(), finish };
        let failed = Piece::Failed { reason: "the script fails here".to_owned() };
        for (fail_after, completion_max, deltas, last) in [
            (None, 9, 3, end(Finish::Stop)),
            (None, 2, 2, end(Finish::Length)),
            (Some(1), 9, 1, failed),
        ] {
            let script = FakeScript { tokens_per_answer: 3, delay: Duration::ZERO, fail_after };
            let engine = FakeEngine::new(script);
            let generation = engine.start(prompt(&engine), sampling(completion_max)).unwrap();
            assert_eq!(collect(generation).await, (deltas, Some(last)));
        }
    }

    #[tokio::test]
    async fn a_resumed_answer_goes_on_where_it_was_cut() {
        let script = FakeScript { tokens_per_answer: 9, delay: Duration::ZERO, fail_after: None };
        let engine = FakeEngine::new(script);
        for (resumed, completion_max, deltas, finish) in
            [(4, 9, 5, Finish::Stop), (4, 6, 2, Finish::Length), (9, 9, 0, Finish::Stop)]
        {
            let prompt = Prompt { resumed: (0..resumed).collect(), ..prompt(&engine) };
            let mut generation = engine.start(prompt, sampling(completion_max)).unwrap();
            let first = generation.pieces.recv().await;
            if let Some(Piece::Delta { tokens, .. }) = &first {
                assert_eq!(*tokens, [resumed]);
            }
            let (rest, last) = collect(generation).await;
            assert_eq!(usize::from(deltas > 0) + rest, deltas);
            let end = Piece::End { text: String::new(), finish };
            assert_eq!(last.or(first), Some(end));
        }
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_work_and_a_slow_one_pauses_it() {
        let script =
            FakeScript { tokens_per_answer: 1_000, delay: Duration::ZERO, fail_after: None };
        let engine = FakeEngine::new(script);
        let generation = engine.start(prompt(&engine), sampling(1_000)).unwrap();
        while engine.load().completion_tokens_total < PIECES_AHEAD_MAX as u64 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(engine.load().completion_tokens_total <= PIECES_AHEAD_MAX as u64 + 1);
        assert_eq!(engine.load().running, 1);
        drop(generation);
        while engine.load().running > 0 {
            tokio::task::yield_now().await;
        }
    }
}
