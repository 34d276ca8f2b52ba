//! The trait every engine implements, and what goes in and comes out of one.

use tirami_core::{ModelDigest, ModelShape};
use tokio::sync::mpsc;

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

    /// Queues a generation.
    ///
    /// # Errors
    ///
    /// [`StartError`] when the queue is full or the engine has stopped; nothing was started.
    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError>;

    /// How busy the engine is now.
    fn load(&self) -> EngineLoad;
}

/// A model as loaded by an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The name it was asked for by, such as `smollm2:135m`, or the file's stem.
    pub name: String,
    /// blake3 of the GGUF file.
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
}

/// What is asked of a model: a chat to be rendered with the model's own template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The messages, oldest first; at least one.
    pub messages: Vec<Message>,
}

/// A rendered, tokenised prompt that fits the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
}

/// How tokens are chosen and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Completion tokens at most; at least 1. The engine also stops at the end of the context.
    pub completion_max: u32,
    /// 0 is greedy; otherwise logits are divided by it. 0 to 2.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens with at least this probability. 0 (exclusive) to 1.
    pub top_p: f32,
    /// Only the `top_k` likeliest tokens; 0 is all.
    pub top_k: u32,
    /// Seed of the sequence's own sampler: same prompt, sampling and build, same tokens.
    pub seed: u32,
    /// Texts that end the answer and are not part of it; at most [`STOPS_MAX`].
    pub stop: Vec<String>,
}

/// Stop texts one request may name.
pub const STOPS_MAX: usize = 16;

/// A running generation. Dropping it cancels the work within one decode step.
#[derive(Debug)]
pub struct Generation {
    /// Pieces in order; the last one is [`Piece::End`] or [`Piece::Failed`].
    pub pieces: mpsc::Receiver<Piece>,
}

/// What a generation delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Tokens were produced. `text` is valid UTF-8 and may be empty while a character is
    /// incomplete or a stop text may be beginning.
    Delta {
        /// The produced tokens, in order.
        tokens: Vec<u32>,
        /// The text that became certain.
        text: String,
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
        /// One sentence for the operator.
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

/// How busy an engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Generations that hold a sequence.
    pub running: u32,
    /// Generations that wait for one.
    pub queued: u32,
    /// Completion tokens produced since the engine was loaded.
    pub completion_tokens_total: u64,
    /// Prompt tokens processed since the engine was loaded.
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
    /// Prompt and at least one completion token do not fit the context.
    #[error(
        "the messages have {prompt_tokens} tokens and the model's context holds {context_tokens}; \
         shorten them"
    )]
    ContextLength {
        /// Tokens of the rendered prompt.
        prompt_tokens: u32,
        /// Tokens one sequence may hold.
        context_tokens: u32,
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
    /// The engine's thread has ended.
    #[error("the model's engine has stopped")]
    Stopped,
}
