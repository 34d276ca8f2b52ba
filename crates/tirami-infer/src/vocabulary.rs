//! What turns conversations into tokens for a model that runs elsewhere.

use crate::engine::{Conversation, ModelInfo, PrepareError, Prompt};

/// The words of a model, without its weights.
pub trait Vocabulary: Send + Sync + 'static {
    /// The model.
    fn model(&self) -> &ModelInfo;

    /// As [`crate::engine::Engine::prepare`].
    ///
    /// # Errors
    ///
    /// [`PrepareError`].
    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError>;

    /// As [`crate::engine::Engine::tokenize`].
    ///
    /// # Errors
    ///
    /// [`PrepareError`].
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError>;

    /// As [`crate::engine::Engine::token_bytes`].
    fn token_bytes(&self, token: u32) -> Vec<u8>;

    /// As [`crate::engine::Engine::spelling`].
    fn spelling(&self, token: u32) -> Option<Vec<u8>>;

    /// As [`crate::engine::Engine::begin_token`].
    fn begin_token(&self) -> Option<u32>;
}
