//! A model file that llama.cpp can load, before it does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backend::{PASS_TOKENS_MAX, ROOM_STEP, Setting};
use super::{LlamaEngine, LlamaOptions, LoadError, judge, model_info};
use crate::digest::file_digest;
use crate::engine::{Engine, ModelInfo};
use crate::gguf::GgufFile;
use crate::loader::Loader;

/// Bytes of a key or a value in the cache.
const CACHED_BYTES: u64 = 2;
/// Bytes of what a pass computes for each token of the vocabulary and each token of the pass.
const LOGIT_BYTES: u64 = 4;
/// What the engine sets aside for the steps of a pass, whatever the model, in bytes.
const SCRATCH_BYTES: u64 = 32 << 20;

/// What it takes at most to unpack and encode pictures, beside the projector, in bytes.
const PICTURE_BYTES: u64 = 512 << 20;

/// A GGUF file whose header was judged and whose digest is known, with the options to load it by.
#[derive(Debug, Clone)]
pub struct LlamaFile {
    path: PathBuf,
    options: LlamaOptions,
    info: ModelInfo,
    memory_bytes: u64,
}

impl LlamaFile {
    /// Looks at the file. Reads all of it, unless its digest is remembered.
    ///
    /// # Errors
    ///
    /// [`LoadError`] says in one sentence what is wrong and what to do.
    pub fn open(path: &Path, options: LlamaOptions) -> Result<Self, LoadError> {
        let (file, setting) = judge(path, &options)?;
        let digest = file_digest(&file, options.digest_cache.as_deref())
            .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let info = model_info(path, &file, digest, &options, &setting);
        let memory_bytes = memory_bytes(&file, &setting);
        Ok(Self { path: path.to_owned(), options, info, memory_bytes })
    }
}

impl Loader for LlamaFile {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn load(&self) -> Result<Arc<dyn Engine>, String> {
        let engine =
            LlamaEngine::load(&self.path, &self.options).map_err(|error| error.to_string())?;
        if engine.model().digest != self.info.digest {
            return Err(format!(
                "{} is not the file it was when the node started; start the node again to serve \
                 the new one",
                self.path.display()
            ));
        }
        Ok(Arc::new(engine))
    }
}

/// The files, the cache of all sequences at their full length, and what a pass and a picture need.
fn memory_bytes(file: &GgufFile, setting: &Setting) -> u64 {
    let room = u64::from(setting.context_tokens).next_multiple_of(ROOM_STEP.into());
    let cells = room.saturating_mul(setting.sequences.into());
    let cache = cells.saturating_mul(file.cached_per_token).saturating_mul(CACHED_BYTES);
    let logits = file.vocabulary.saturating_mul(PASS_TOKENS_MAX as u64 * LOGIT_BYTES);
    let pictures = if file.projector.is_some() { PICTURE_BYTES } else { 0 };
    [file.size_bytes, cache, logits, pictures, SCRATCH_BYTES]
        .into_iter()
        .fold(0, u64::saturating_add)
}
