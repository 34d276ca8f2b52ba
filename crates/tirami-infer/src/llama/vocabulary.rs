//! The words of a model file, read without its weights.

use std::path::Path;
use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

use super::tokens::Tokenizer;
use super::{LlamaOptions, LoadError, Projector, judge, load_with, model_info};
use crate::digest::file_digest;
use crate::engine::{Conversation, ModelInfo, PrepareError, Prompt, RawPrompt, Variables};
use crate::gguf::Pooling;
use crate::vocabulary::Vocabulary;

/// The vocabulary and the chat template of a GGUF file.
pub struct LlamaVocabulary {
    info: ModelInfo,
    tokenizer: Tokenizer,
    model: Arc<LlamaModel>,
    /// What a vector says of a text's tokens, where the file says it.
    pooling: Option<Pooling>,
}

impl LlamaVocabulary {
    /// Reads them. `build` names who computes the answers.
    ///
    /// # Errors
    ///
    /// [`LoadError`] says in one sentence what is wrong and what to do.
    pub fn open(path: &Path, options: &LlamaOptions, build: &str) -> Result<Self, LoadError> {
        // Pictures are read where the weights are.
        let options = &LlamaOptions { projector: Projector::None, ..options.clone() };
        let (file, setting) = judge(path, options)?;
        let digest = file_digest(&file, options.digest_cache.as_deref())
            .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let model = load_with(&file, &LlamaModelParams::default().with_vocab_only(true))?;
        let template = file.chat_template.as_deref();
        let tokenizer = Tokenizer::new(&model, template, setting.context_tokens)
            .map_err(|reason| LoadError::Refused { path: path.to_owned(), reason })?;
        let info = model_info(path, &file, digest, options, &setting);
        let info = ModelInfo { build: build.to_owned(), ..info };
        Ok(Self { info, tokenizer, model: Arc::new(model), pooling: file.pooling })
    }
}

impl std::fmt::Debug for LlamaVocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaVocabulary").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Vocabulary for LlamaVocabulary {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.tokenizer.prepare(&self.model, None, conversation)
    }

    fn variables(&self, conversation: &Conversation) -> Variables {
        // What cannot be told was refused when the conversation was prepared.
        let named = self.tokenizer.told(conversation).unwrap_or_default();
        Variables { named, ..Variables::default() }
    }

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        self.tokenizer.prepare_raw(&self.model, raw)
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        self.tokenizer.tokenize_text(&self.model, text)
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.tokenizer.piece(&self.model, token)
    }

    fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        self.tokenizer.spelling(&self.model, token)
    }

    fn begin_token(&self) -> Option<u32> {
        self.tokenizer.begin_token()
    }

    fn end_token(&self) -> Option<u32> {
        self.tokenizer.end_token().filter(|_| self.pooling == Some(Pooling::Last))
    }
}
