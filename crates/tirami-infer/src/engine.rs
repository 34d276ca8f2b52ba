//! The trait every engine implements, and what goes in and comes out of one.

mod format;
mod variables;

use std::any::Any;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use format::{CallFormat, CallSchema, CallText, Format, JsonSchema};
use tirami_core::{ModelDigest, ModelShape};
use tokio::sync::mpsc;
pub use variables::{VARIABLE_NAME_BYTES_MAX, Variables};

use crate::image::Image;

/// Pieces a generation may be ahead of its reader before the engine pauses that sequence.
pub const PIECES_AHEAD_MAX: usize = 64;

/// A loaded model that answers requests. Cheap to share; every method returns at once or fails.
///
/// Requests run concurrently: the engine interleaves them, and no call waits for another's
/// generation.
pub trait Engine: Send + Sync + 'static {
    /// What is loaded.
    fn model(&self) -> &ModelInfo;

    /// Renders the chat template and tokenises, without touching the generating thread.
    ///
    /// # Errors
    ///
    /// [`PrepareError`] when the conversation cannot be rendered or does not fit the context.
    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError>;

    /// A prompt that is gone on with as it stands, without the chat template: spellings of control
    /// tokens in it mean those tokens, because whoever sends it writes the whole prompt.
    ///
    /// # Errors
    ///
    /// [`PrepareError`] when it is empty, does not fit the context, has tokens the model does not
    /// know, or is one the engine cannot make.
    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        let _ = raw;
        Err(PrepareError::Unsupported { what: "to go on with a raw prompt" })
    }

    /// The tokens of `text` as it stands; spellings of control tokens in it are text.
    ///
    /// # Errors
    ///
    /// [`PrepareError::Unsupported`] where the engine has no tokenizer at hand, and
    /// [`PrepareError::ContextLength`] when the text surely has more tokens than the context.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        let _ = text;
        Err(PrepareError::Unsupported { what: "to tokenise" })
    }

    /// The bytes of `token` as it stands in an answer, which may be a part of a character; empty
    /// for control tokens and unknown ids. The text of many tokens is their bytes in order.
    ///
    /// # Errors
    ///
    /// [`PrepareError::Unsupported`] where the engine has no tokenizer at hand.
    fn token_bytes(&self, token: u32) -> Result<Vec<u8>, PrepareError> {
        let _ = token;
        Err(PrepareError::Unsupported { what: "to tokenise" })
    }

    /// The token that the model wants before a text, if it wants one.
    fn begin_token(&self) -> Option<u32> {
        None
    }

    /// The token that the model wants after a text it is to embed, if it wants one.
    fn end_token(&self) -> Option<u32> {
        None
    }

    /// Whether its tokens are those of the model itself. Where they only count text, they mean
    /// nothing to anybody else.
    fn has_vocabulary(&self) -> bool {
        true
    }

    /// The bytes of `token` as the vocabulary spells it, those of control tokens included; `None`
    /// for an id the model does not have.
    ///
    /// # Errors
    ///
    /// [`PrepareError::Unsupported`] where the engine has no tokenizer at hand.
    fn spelling(&self, token: u32) -> Result<Option<Vec<u8>>, PrepareError> {
        let _ = token;
        Err(PrepareError::Unsupported { what: "to tokenise" })
    }

    /// Whether `format` can be used: a schema is translated to a grammar, so this takes
    /// some milliseconds and belongs on a thread that may be kept waiting.
    ///
    /// # Errors
    ///
    /// [`PrepareError::Format`] says what is wrong; [`PrepareError::Unsupported`] where the
    /// engine cannot constrain its answers.
    fn check_format(&self, format: &Format) -> Result<(), PrepareError> {
        match format {
            Format::Text => Ok(()),
            _ => Err(PrepareError::Unsupported { what: "to constrain an answer" }),
        }
    }

    /// The meaning of `tokens` as a vector of length 1: the mean of the last layer over all of
    /// them, or what it says of the one the model's file names. The same tokens and build give the
    /// same bits. It reads the tokens on the caller's thread, one text at a time, so it belongs on
    /// a thread that may be kept waiting; between passes it asks whether it `is_wanted` and stops
    /// when not.
    ///
    /// # Errors
    ///
    /// [`EmbedError`]; there is no part of an embedding.
    fn embed(&self, tokens: &[u32], is_wanted: &dyn Fn() -> bool) -> Result<Vec<f32>, EmbedError> {
        let _ = (tokens, is_wanted);
        Err(EmbedError::Unsupported)
    }

    /// A text that is to be embedded, which has these `tokens`. They were cut from `text`, or came
    /// without one.
    ///
    /// # Errors
    ///
    /// [`PrepareError`] when the engine hands texts on and `tokens` are none.
    fn prepare_embedding(
        &self,
        tokens: Vec<u32>,
        text: Option<&str>,
    ) -> Result<Prompt, PrepareError> {
        let _ = text;
        Ok(Prompt::from(tokens))
    }

    /// The same as [`Engine::embed`] of all `texts`, for an engine that hands them on to where they
    /// are read: it tells `progress` how many tokens are read, and whether it waits. None for an
    /// engine that reads them one after the other, on the caller's thread.
    fn embed_all(&self, texts: &Arc<[Prompt]>, progress: &Arc<Progress>) -> Option<Vectors> {
        let _ = (texts, progress);
        None
    }

    /// Whether it answers chats. One that does not has its other uses.
    fn answers_chats(&self) -> bool {
        true
    }

    /// Queues a generation. With a format other than text it may take as long as
    /// [`Engine::check_format`].
    ///
    /// # Errors
    ///
    /// [`StartError`] when the queue is full or the engine has stopped; nothing was started.
    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError>;

    /// How busy the engine is now.
    fn load(&self) -> EngineLoad;

    /// Whether it can still answer; once it cannot, it never will again.
    fn is_alive(&self) -> bool {
        true
    }
}

/// The vectors of texts, in their order, on their way. Nothing is done before they are waited for,
/// and nothing more once this is dropped.
pub type Vectors = Pin<Box<dyn Future<Output = Result<Vec<Vec<f32>>, EmbedError>> + Send>>;

/// A model as loaded by an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The name it was asked for by, such as `smollm2:135m`, or the file's stem.
    pub name: String,
    /// blake3 of the model's files: the GGUF file or its shards, and the projector where it has one.
    pub digest: ModelDigest,
    /// The numbers work is metered by.
    pub shape: ModelShape,
    /// `general.architecture` of the GGUF, such as `llama`.
    pub architecture: String,
    /// The quantisation, such as `Q4_1`.
    pub quantisation: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Tokens one sequence may hold in this engine, prompt and completion together.
    pub context_tokens: u32,
    /// Numbers in a vector that [`Engine::embed`] gives; 0 where the engine makes none.
    pub embedding_width: u32,
    /// Tokens one picture of a prompt takes at most; 0 where the model reads none.
    pub image_tokens_max: u32,
    /// Engine, version and back-end that produce the answers, for receipts.
    pub build: String,
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Pictures within the text, in the order of their places.
    pub images: Vec<Placed>,
    /// Tools the assistant called.
    pub calls: Vec<Call>,
    /// The id of the call whose result this is; `None` for what is no result.
    pub call_id: Option<String>,
    /// Who said it among those of one role, or the tool whose result it is.
    pub name: Option<String>,
}

/// A picture in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Bytes of the text before it, at the boundary of a character.
    pub at: usize,
    /// The picture.
    pub image: Image,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.to_owned(),
            content: content.into(),
            images: Vec::new(),
            calls: Vec::new(),
            call_id: None,
            name: None,
        }
    }
}

/// A tool that was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What names the call in the conversation; the model does not see it.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// A JSON object as text, or what there is of one that was cut.
    pub arguments: String,
}

/// What is asked of a model: a chat to be rendered with the model's own template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The messages, oldest first; at least one.
    pub messages: Vec<Message>,
    /// The tools that may be called, each as the text of a JSON object `{type, function}`.
    pub tools: Vec<String>,
    /// What the template is told besides.
    pub variables: Variables,
}

impl Conversation {
    /// Whether it has to do with tools.
    pub(crate) fn has_tools(&self) -> bool {
        let has = |message: &Message| message.role == "tool" || !message.calls.is_empty();
        !self.tools.is_empty() || self.messages.iter().any(has)
    }

    /// The pictures of all messages, in order.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.messages.iter().flat_map(|message| &message.images).map(|placed| &placed.image)
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// What is asked of a model without its chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawPrompt {
    /// A text to go on with.
    Text(String),
    /// A text with a gap, which the answer fills.
    Infill {
        /// What stands before the gap.
        before: String,
        /// What stands after it.
        after: String,
    },
    /// Tokens to go on with; nothing is added to them.
    Tokens(Vec<u32>),
}

/// A rendered, tokenised prompt that fits the context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
    /// Completion tokens that another machine with the same model and build has already produced
    /// and delivered for this prompt and this sampling; usually none. They are read like the
    /// prompt, count against [`Sampling::completion_max`] and the context, and are not delivered
    /// again: what comes is what an undisturbed generation delivers after them.
    pub resumed: Vec<u32>,
    /// Who may notice by the time a prompt takes that its beginning was read before: only
    /// requests of one scope share what is cached. The beginning that the model's template gives
    /// to every chat is shared by all.
    pub scope: u64,
    /// Whether it waits for a place with those who come first: callers of the node itself, and
    /// consumers that have answered for it. Within them and within the others the scopes take
    /// turns.
    pub contributes: bool,
    /// The pictures, in order. Each takes a run of tokens that are not of the vocabulary: see
    /// [`is_image_token`].
    pub images: Vec<PromptImage>,
    /// What the tokens were made of, for an engine that hands it on instead of reading them.
    pub source: Option<Source>,
}

/// What the tokens of a prompt were made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The conversation that they render.
    Chat(Arc<Conversation>),
    /// The text that they are cut from; a begin token before it is not in it.
    Text(Arc<str>),
}

/// A picture in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptImage {
    /// Tokens before it.
    pub start: usize,
    /// Tokens it takes, at least 1.
    pub tokens: usize,
    /// The picture.
    pub image: Image,
}

impl PromptImage {
    /// Whether the prompt's token at `place`, from 0, is a part of the picture.
    pub const fn has(&self, place: usize) -> bool {
        self.start <= place && place - self.start < self.tokens
    }
}

/// The ids above every vocabulary, which stand for pictures.
const IMAGE_TOKEN: u32 = 1 << 31;

/// Whether a token of a prompt stands for a part of a picture. The picture's digest says which
/// token it is, so that prompts with different pictures are different prompts.
pub const fn is_image_token(token: u32) -> bool {
    token & IMAGE_TOKEN != 0
}

/// The tokens that stand for a picture.
pub fn image_tokens(image: &Image, count: usize) -> impl Iterator<Item = u32> {
    let digest = image.digest();
    let (words, _) = digest.as_bytes().as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    words.into_iter().map(|word| word | IMAGE_TOKEN).cycle().take(count)
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, ..Self::default() }
    }
}

/// How tokens are chosen and when to stop. The default is greedy with everything else off.
///
/// A token is chosen thus: `logit_bias` is added, then the penalties are taken, then what the
/// grammar forbids is left out. With a temperature of 0 the likeliest token is taken; otherwise
/// the logits are divided by it, `top_k`, `typical_p`, `top_p` and `min_p` leave tokens out, in
/// this order, and one draw decides. The draw depends on the seed and the token's place in the
/// completion only.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Completion tokens at most; at least 1, but for a prompt that is only scored. The engine also
    /// stops at the end of the context.
    pub completion_max: u32,
    /// 0 is greedy; otherwise logits are divided by it. 0 to 2.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens with at least this probability. 0 (exclusive) to 1;
    /// 1 is all.
    pub top_p: f32,
    /// Only the `top_k` likeliest tokens; 0 is all.
    pub top_k: u32,
    /// Only tokens at least this part as likely as the likeliest. 0 to 1; 0 is all.
    pub min_p: f32,
    /// Locally typical: the tokens whose surprise is nearest to the expected one and that
    /// together have at least this probability. 0 (exclusive) to 1; 1 is all.
    pub typical_p: f32,
    /// Taken from the logit of each token the completion has. -2 to 2; 0 is none.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time the completion has it. -2 to 2; 0 is none.
    pub frequency_penalty: f32,
    /// Divides the positive logit, and multiplies the negative one, of each of the last
    /// [`REPEAT_TOKENS`] tokens of prompt and completion. Above 0; 1 is none.
    pub repeat_penalty: f32,
    /// Added to the logits of these tokens, -100 to 100; at most [`LOGIT_BIAS_MAX`]. Ids the
    /// vocabulary does not have are ignored.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Whether each token comes with its log-probability and those of so many likeliest tokens
    /// beside it, up to [`TOP_LOGPROBS_MAX`]; none for no log-probabilities.
    pub top_logprobs: Option<u32>,
    /// Whether the prompt's own tokens are scored too, as [`Sampling::top_logprobs`] says; then
    /// all of them are read, whatever is cached, and `completion_max` may be 0.
    pub scores_prompt: bool,
    /// What the answer must be; see [`Format`].
    pub format: Format,
    /// Seed of the sequence's own sampler: same prompt, sampling and build, same tokens.
    pub seed: u32,
    /// Texts that end the answer and are not part of it; at most [`STOPS_MAX`].
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            completion_max: 1,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_penalty: 1.0,
            logit_bias: BTreeMap::new(),
            top_logprobs: None,
            scores_prompt: false,
            format: Format::Text,
            seed: 0,
            stop: Vec::new(),
        }
    }
}

/// Tokens that [`Sampling::repeat_penalty`] looks back.
pub const REPEAT_TOKENS: usize = 64;
/// Tokens [`Sampling::logit_bias`] may name.
pub const LOGIT_BIAS_MAX: usize = 1_024;
/// Likeliest tokens one token's log-probability may come with.
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Stop texts one request may name.
pub const STOPS_MAX: usize = 16;

/// A running generation. Dropping it cancels the work within one decode step.
#[derive(Debug)]
pub struct Generation {
    /// Pieces in order; the last one is [`Piece::End`] or [`Piece::Failed`].
    pub pieces: mpsc::Receiver<Piece>,
    progress: Arc<Progress>,
    /// Only to be dropped with the rest.
    _held: Option<Box<dyn Any + Send + Sync>>,
}

impl Generation {
    /// A generation that delivers `pieces` and says in `progress` how far it is before the first.
    pub fn new(pieces: mpsc::Receiver<Piece>, progress: Arc<Progress>) -> Self {
        Self { pieces, progress, _held: None }
    }

    /// The same generation, which keeps `what` for as long as it lives itself: the model it runs
    /// on must not be unloaded before.
    #[must_use]
    pub fn holding(self, what: impl Any + Send + Sync) -> Self {
        Self { _held: Some(Box::new(what)), ..self }
    }

    /// How many of the prompt's tokens were not read because they were in the cache; true from
    /// the first piece on.
    pub fn cached_tokens(&self) -> u32 {
        self.progress.cached.load(Ordering::Relaxed)
    }

    /// Which of [`Sampling::stop`] ended the answer, by its place; none where none did. True once
    /// the last piece is there.
    pub fn stopped_by(&self) -> Option<u32> {
        self.progress.stopped_by.load(Ordering::Relaxed).checked_sub(1)
    }

    /// What kind of failure ended the answer; none where none did, or where it is the engine's own
    /// affair. True once the last piece is there.
    pub fn failure(&self) -> Option<&Failure> {
        self.progress.failure.get()
    }

    /// How likely each token of the prompt was after those before it; empty unless
    /// [`Sampling::scores_prompt`] asks for it, true from the first piece on, and taken by this.
    /// Before the first token stands nothing, so its figure means nothing.
    pub fn take_prompt_logprobs(&self) -> Vec<TokenLogprobs> {
        let mut scored = self.progress.scored.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut scored)
    }

    /// How many of the given tokens, prompt and resumed, are read.
    pub fn read_tokens(&self) -> u32 {
        self.progress.read_tokens()
    }

    /// Its place in the queue, from 1; 0 once it holds a sequence.
    pub fn place_in_queue(&self) -> u32 {
        self.progress.place()
    }
}

/// How far a generation is, written by its engine.
#[derive(Debug, Default)]
pub struct Progress {
    cached: AtomicU32,
    read: AtomicU32,
    place_in_queue: AtomicU32,
    /// The place of the stop text that ended the answer, from 1; 0 for none.
    stopped_by: AtomicU32,
    failure: OnceLock<Failure>,
    scored: Mutex<Vec<TokenLogprobs>>,
}

impl Progress {
    /// Notes how many of the prompt's tokens are in the cache before any is read.
    pub fn cached(&self, tokens: u32) {
        self.cached.store(tokens, Ordering::Relaxed);
    }

    /// Notes how many of the given tokens are read.
    pub fn read(&self, tokens: u32) {
        self.read.store(tokens, Ordering::Relaxed);
    }

    /// Notes, before the last piece, which of the stop texts ended the answer.
    pub fn stopped_by(&self, stop: Option<u32>) {
        self.stopped_by.store(stop.map_or(0, |stop| stop.saturating_add(1)), Ordering::Relaxed);
    }

    /// Notes, before the last piece, what kind of failure it is; the first word counts.
    pub fn failed(&self, failure: Failure) {
        let _ = self.failure.set(failure);
    }

    /// Notes how likely the next tokens of the prompt were.
    pub fn scored(&self, logprobs: impl IntoIterator<Item = TokenLogprobs>) {
        let mut scored = self.scored.lock().unwrap_or_else(PoisonError::into_inner);
        scored.extend(logprobs);
    }

    /// Notes the place in the queue; 0 when it holds a sequence.
    pub fn queued(&self, place: u32) {
        self.place_in_queue.store(place, Ordering::Relaxed);
    }

    /// The place in the queue.
    pub fn place(&self) -> u32 {
        self.place_in_queue.load(Ordering::Relaxed)
    }

    /// How many of the given tokens are read.
    pub fn read_tokens(&self) -> u32 {
        self.read.load(Ordering::Relaxed)
    }
}

/// A token and its log-probability among all tokens, as the model computed it: before
/// temperature, bias, penalties and grammar.
#[derive(Debug, Clone, PartialEq)]
pub struct Likely {
    /// The token's bytes in an answer, which may be a part of a character; empty for control
    /// tokens.
    pub bytes: Vec<u8>,
    /// Its natural logarithm of probability, at most 0.
    pub logprob: f32,
}

/// How likely a produced token was.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was produced.
    pub chosen: Likely,
    /// The likeliest tokens, likeliest first; as many as were asked for.
    pub top: Vec<Likely>,
}

/// What a generation delivers.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Tokens were produced. `text` is valid UTF-8 and may be empty while a character is
    /// incomplete or a stop text may be beginning.
    Delta {
        /// The produced tokens, in order.
        tokens: Vec<u32>,
        /// The text that became certain.
        text: String,
        /// One for each of `tokens` where [`Sampling::top_logprobs`] asks for them; else empty.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The generation ended as asked. `text` is what was still withheld.
    End {
        /// Text that became certain with the end.
        text: String,
        /// Why it ended.
        finish: Finish,
    },
    /// The engine could not go on; what was delivered before is valid.
    Failed {
        /// One sentence for the node's owner.
        reason: String,
    },
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer, or a stop text was met.
    Stop,
    /// `completion_max` or the end of the context was reached.
    Length,
}

/// What kind of failure ended an answer, where whoever asked can do something about it. The
/// sentences are for people at other machines too: none has a key or an address in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server cannot be reached, or hung up before it answered.
    #[error("the server that computes the model cannot be reached")]
    Unreachable,
    /// There is no room: the server had none when it was asked again, or others took the place in
    /// the queue.
    #[error("what computes the model is full")]
    Full,
    /// The server has no room, and says for how long.
    #[error("what computes the model is full")]
    FullFor {
        /// Seconds until it may have room.
        seconds: u64,
    },
    /// The server refuses the node itself: its key, or what it may do.
    #[error("the server that computes the model refuses this node: its engine is misconfigured")]
    Misconfigured,
    /// The server does not have the model.
    #[error("the server that computes the model does not have it")]
    UnknownModel,
    /// The server has no such endpoint.
    #[error("the server that computes the model has no {path}")]
    NoEndpoint {
        /// Its path at OpenAI.
        path: &'static str,
    },
    /// The server finds the request invalid.
    #[error("the server that computes the model finds the request invalid: {message}")]
    Invalid {
        /// The server's own words: one line of at most 300 bytes.
        message: String,
    },
    /// The answer ended before its end.
    #[error("the server that computes the model broke the answer off")]
    BrokenOff,
    /// No text came for too long.
    #[error("the server that computes the model gave no text for too long")]
    Slow,
    /// To follow the answer's format took more time than an answer may keep the others waiting.
    #[error("to follow the answer's format takes too much time")]
    Costly,
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Generations that can hold a sequence at the same time; 0 where there is no such bound.
    pub places: u32,
    /// Places that cannot be had because another model of the same server has them.
    pub taken_by_others: u32,
    /// Generations that hold a sequence.
    pub running: u32,
    /// Generations that wait for one.
    pub queued: u32,
    /// Completion tokens produced since the engine was loaded.
    pub completion_tokens_total: u64,
    /// Those of them that were guessed from what was said before, and so cost no pass of their
    /// own.
    pub guessed_tokens_total: u64,
    /// Prompt tokens read since the engine was loaded, resumed ones included and cached ones not.
    pub prompt_tokens_total: u64,
}

/// Why a conversation cannot become a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The model's chat template refuses these messages.
    #[error("the model's chat template refuses these messages: {reason}")]
    Template {
        /// The template's own message.
        reason: String,
    },
    /// The model's chat template does not read a variable that is asked for by name.
    #[error("the model's chat template does not read the variable {name}; it reads {reads}")]
    Variable {
        /// The variable.
        name: String,
        /// The names it does read, in words.
        reads: String,
    },
    /// The format cannot be used.
    #[error("the answer's format cannot be used: {reason}")]
    Format {
        /// What is wrong with it.
        reason: String,
    },
    /// The engine cannot do this.
    #[error("the model's engine has no way {what}")]
    Unsupported {
        /// What was asked for, as "to …".
        what: &'static str,
    },
    /// There are pictures, and the model reads none.
    #[error(
        "the model reads no pictures; leave them out, or ask a model that does: /v1/models says \
         which"
    )]
    NoImages,
    /// A picture cannot be read.
    #[error("picture {number} cannot be read: {reason}")]
    Image {
        /// Which one of the conversation, from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to go on with.
    #[error("the prompt is empty")]
    Empty,
    /// The tokens of a raw prompt cannot be read.
    #[error("a prompt has at least one token, and only tokens of the model: 0 to {last}")]
    Tokens {
        /// The model's last token.
        last: u32,
    },
    /// Prompt and at least one completion token do not fit the context.
    #[error(
        "the messages or the prompt have {prompt_tokens} tokens and the model's context holds \
         {context_tokens}; shorten them"
    )]
    ContextLength {
        /// Tokens of the rendered prompt.
        prompt_tokens: u32,
        /// Tokens one sequence may hold.
        context_tokens: u32,
    },
}

/// Why there is no embedding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// The engine makes none.
    #[error("the model's engine makes no embeddings")]
    Unsupported,
    /// There are no tokens, too many, or one the model does not know.
    #[error("a text to embed has 1 to {context_tokens} of the model's tokens; shorten or split it")]
    Tokens {
        /// Tokens the context holds.
        context_tokens: u32,
    },
    /// Nobody waits for it any more.
    #[error("nobody waits for the embedding any more")]
    Unwanted,
    /// The server that computes the model gave none.
    #[error(transparent)]
    Server(Failure),
    /// The engine could not compute it.
    #[error("the engine failed: {reason}")]
    Failed {
        /// One sentence for the operator.
        reason: String,
    },
}

/// Why a generation was not started. Nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The queue is full.
    #[error("{queued} requests are already waiting for the model")]
    Busy {
        /// Length of the full queue.
        queued: u32,
    },
    /// The engine cannot do what is asked.
    #[error("the model's engine has no way {what}")]
    Unsupported {
        /// What was asked for, as "to …".
        what: &'static str,
        /// The field of a request that asks for it, where it is one.
        param: Option<&'static str>,
    },
    /// The engine's thread has ended.
    #[error("the model's engine has stopped")]
    Stopped,
}
