//! The llama.cpp engine: one thread owns the model's context, requests join and leave between
//! decode steps.

mod backend;
mod bare;
mod embed;
mod file;
mod grammar;
mod lookup;
mod pace;
mod places;
mod queue;
mod sampler;
mod sequence;
mod steps;
mod tokens;
mod vision;
mod vocabulary;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use tirami_core::ModelDigest;
use tokio::sync::mpsc;

pub use backend::PASS_TOKENS_MAX;
use backend::Setting;
pub use bare::{BareRun, BareSetting};
pub use file::LlamaFile;
use grammar::Grammar;
pub use grammar::{
    SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_LENGTH_MAX, SCHEMA_NAME_BYTES_MAX, SCHEMA_NODES_MAX,
    SCHEMA_PATTERN_DEPTH_MAX, SCHEMA_PATTERN_SIZE_MAX, SCHEMA_REFS_MAX,
};
pub use lookup::Guesses;
use sequence::Job;
use tokens::Tokenizer;
use vision::Vision;
pub use vocabulary::LlamaVocabulary;
use worker::Worker;

use crate::digest::file_digest;
use crate::engine::{
    Conversation, EmbedError, Engine, EngineLoad, Format, Generation, ModelInfo, PIECES_AHEAD_MAX,
    PrepareError, Progress, Prompt, RawPrompt, Sampling, StartError,
};
use crate::gguf::{GgufError, GgufFile, Pooling, projector_beside};
use crate::image::IMAGE_TOKENS_MAX;

/// Context of one sequence where the operator names none, in tokens, or what the model has.
pub const CONTEXT_TOKENS_DEFAULT: u32 = 4_096;
/// Sequences that can run at once.
pub const SEQUENCES_MAX: u32 = 32;
/// Requests that can wait.
pub const QUEUE_MAX: u32 = 65_536;

/// What the receipts name as the producer of an answer.
const BUILD: &str = "llama.cpp/llama-cpp-2 0.1.160";

/// How to load a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlamaOptions {
    /// The name clients ask for; the file's stem if none.
    pub name: Option<String>,
    /// Threads that compute; one less than the machine's cores (at least 1) if none.
    pub threads: Option<u32>,
    /// Tokens one sequence may hold; [`CONTEXT_TOKENS_DEFAULT`] if none. Never more than the
    /// model was trained for.
    pub context_tokens: Option<u32>,
    /// Generations that run at once, 1 to [`SEQUENCES_MAX`]. Each has its own full context.
    pub sequences: u32,
    /// Layers to put on a GPU; none for all of them where build and machine have one, and for
    /// none elsewhere.
    pub gpu_layers: Option<u32>,
    /// Whether the same request gives the same bits, alone and among others, so that an answer can
    /// be checked. Without it long prompts are read faster, and a seed promises nothing.
    pub reproducible: bool,
    /// When answers that repeat what was said before are guessed from it and read several tokens
    /// at a time. In the reproducible setting the answers are the same bits without, and only what
    /// was measured to keep them is guessed with; in the other one they are as likely.
    pub guesses: Guesses,
    /// Generations that may wait, up to [`QUEUE_MAX`].
    pub queue_max: u32,
    /// Where the projector is with which the model reads pictures.
    pub projector: Projector,
    /// Folder that remembers digests of large files by size and time of change; none if none.
    pub digest_cache: Option<PathBuf>,
}

impl Default for LlamaOptions {
    fn default() -> Self {
        Self {
            name: None,
            threads: None,
            context_tokens: None,
            sequences: 4,
            gpu_layers: None,
            reproducible: true,
            guesses: Guesses::WherePays,
            queue_max: 64,
            projector: Projector::Beside,
            digest_cache: None,
        }
    }
}

/// Where a model's projector is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Projector {
    /// Beside the model, if there is one: see [`crate::gguf::projector_beside`].
    #[default]
    Beside,
    /// The model is to read no pictures.
    None,
    /// In this file.
    At(PathBuf),
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An option is out of range.
    #[error("{0}")]
    Options(&'static str),
    /// The file is not a model that can be used.
    #[error("cannot use {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: GgufError,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The file system's error.
        source: std::io::Error,
    },
    /// The projector cannot be used with the model.
    #[error(
        "cannot read pictures with {}: {reason}; name another projector with mmproj, or set it to \
         none",
        .path.display()
    )]
    Projector {
        /// The projector.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The native engine refuses the file.
    #[error("cannot use {}: the engine refuses it: {reason}", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The engine's own words.
        reason: String,
    },
    /// There is no context for the model, usually for want of memory.
    #[error(
        "cannot hold a context of {sequences} × {context_tokens} tokens: {reason}; choose fewer \
         sequences or a shorter context"
    )]
    Context {
        /// Tokens one sequence was to hold.
        context_tokens: u32,
        /// Sequences that were to run at once.
        sequences: u32,
        /// The engine's own words.
        reason: String,
    },
    /// The operating system gives no thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
}

/// A model in llama.cpp.
pub struct LlamaEngine {
    info: ModelInfo,
    tokenizer: Tokenizer,
    setting: Setting,
    worker: Worker,
    /// None where the model reads no pictures.
    vision: Option<Arc<Vision>>,
    model: Arc<LlamaModel>,
    /// Held while a text is embedded: one at a time.
    embedding: Mutex<()>,
    /// How long one look at the vocabulary takes, measured when it is first asked for.
    scan: OnceLock<Duration>,
    /// None where the model makes no vectors.
    pooling: Option<Pooling>,
}

impl std::fmt::Debug for LlamaEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaEngine").field("info", &self.info).finish_non_exhaustive()
    }
}

impl LlamaEngine {
    /// Loads the GGUF file at `path` and starts its thread. Takes as long as reading the file.
    ///
    /// # Errors
    ///
    /// [`LoadError`] says in one sentence what is wrong and what to do.
    pub fn load(path: &Path, options: &LlamaOptions) -> Result<Self, LoadError> {
        let (file, setting) = judge(path, options)?;
        let context_tokens = setting.context_tokens;
        // The digest reads the whole file, which takes about as long as the engine's loading.
        std::thread::scope(|scope| {
            let digest = std::thread::Builder::new()
                .name("tirami-digest".to_owned())
                .spawn_scoped(scope, || file_digest(&file, options.digest_cache.as_deref()))
                .map_err(LoadError::Thread)?;
            let model = Arc::new(load_model(&file, setting.gpu_layers)?);
            let vision = file.projector.as_ref().map(|path| {
                let vision = Vision::open(path, &model, &setting);
                let wrong = |reason| LoadError::Projector { path: path.clone(), reason };
                vision.map(Arc::new).map_err(wrong)
            });
            let vision = vision.transpose()?;
            let native = (Arc::clone(&model), vision.clone());
            let (worker, tokenizer) = Worker::start(native, setting, options.queue_max, || {
                let template = file.chat_template.as_deref();
                let tokenizer = Tokenizer::new(&model, template, context_tokens)
                    .map_err(|reason| LoadError::Refused { path: path.to_owned(), reason })?;
                let common = tokenizer.common_beginning(&model);
                Ok((tokenizer, common))
            })?;
            let digest = digest
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("the reading thread panicked")))
                .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
            let info = model_info(path, &file, digest, options, &setting);
            let measured = vision.as_ref().map_or(0, |vision| vision.tokens_max());
            let image_tokens_max = measured.min(info.image_tokens_max);
            let info = ModelInfo { image_tokens_max, ..info };
            let (embedding, scan, pooling) = (Mutex::new(()), OnceLock::new(), file.pooling);
            Ok(Self { info, tokenizer, setting, worker, vision, model, embedding, scan, pooling })
        })
    }
}

impl Engine for LlamaEngine {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.tokenizer.prepare(&self.model, self.vision.as_deref(), conversation)
    }

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        self.tokenizer.prepare_raw(&self.model, raw)
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        self.tokenizer.tokenize_text(&self.model, text)
    }

    fn token_bytes(&self, token: u32) -> Result<Vec<u8>, PrepareError> {
        Ok(self.tokenizer.piece(&self.model, token))
    }

    fn begin_token(&self) -> Option<u32> {
        self.tokenizer.begin_token()
    }

    fn end_token(&self) -> Option<u32> {
        self.tokenizer.end_token().filter(|_| self.pooling == Some(Pooling::Last))
    }

    fn spelling(&self, token: u32) -> Result<Option<Vec<u8>>, PrepareError> {
        Ok(self.tokenizer.spelling(&self.model, token))
    }

    fn check_format(&self, format: &Format) -> Result<(), PrepareError> {
        Grammar::new(&self.model, format, Duration::ZERO)
            .map(drop)
            .map_err(|reason| PrepareError::Format { reason })
    }

    fn embed(&self, tokens: &[u32], is_wanted: &dyn Fn() -> bool) -> Result<Vec<f32>, EmbedError> {
        self.embedding_of(tokens, is_wanted)
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        // On the engine's thread all answers would wait for the grammar.
        self.worker.check_room(&prompt)?;
        let scan = match sampling.format {
            Format::Text => Duration::ZERO,
            _ => *self.scan.get_or_init(|| grammar::scan(&self.model)),
        };
        let grammar = Grammar::new(&self.model, &sampling.format, scan);
        let what = "to follow the answer's format";
        let mut grammar = grammar.map_err(|_| StartError::Unsupported { what, param: None })?;
        if let Some(grammar) = &mut grammar {
            let what = "to go on with what does not follow the answer's format";
            let follows = sequence::follows(&self.model, grammar, &prompt.resumed);
            follows.then_some(()).ok_or(StartError::Unsupported { what, param: None })?;
        }
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        let progress = Arc::new(Progress::default());
        let generation = Generation::new(pieces, Arc::clone(&progress));
        self.worker.submit(Job { prompt, sampling, grammar, sender, progress })?;
        Ok(generation)
    }

    fn load(&self) -> EngineLoad {
        self.worker.load()
    }

    fn is_alive(&self) -> bool {
        self.worker.is_alive()
    }
}

/// Looks at the file and at the options before anything is loaded.
fn judge(path: &Path, options: &LlamaOptions) -> Result<(GgufFile, Setting), LoadError> {
    if !(1..=SEQUENCES_MAX).contains(&options.sequences) {
        return Err(LoadError::Options("an engine runs 1 to 32 sequences at once"));
    }
    if options.threads == Some(0) || options.threads > Some(1_024) {
        return Err(LoadError::Options("an engine has 1 to 1024 threads"));
    }
    if options.queue_max > QUEUE_MAX {
        return Err(LoadError::Options("at most 65536 requests can wait for a model"));
    }
    let file =
        GgufFile::open(path).map_err(|reason| LoadError::File { path: path.to_owned(), reason })?;
    let projector = match &options.projector {
        Projector::None => None,
        Projector::Beside => projector_beside(path),
        Projector::At(path) => Some(path.clone()),
    };
    let file = match projector {
        None => file,
        Some(projector) => file
            .with_projector(&projector)
            .map_err(|reason| LoadError::File { path: projector, reason })?,
    };
    let context_tokens =
        options.context_tokens.unwrap_or(CONTEXT_TOKENS_DEFAULT).min(file.shape.context_max);
    if context_tokens < 2 {
        return Err(LoadError::Options("a context holds at least 2 tokens"));
    }
    let setting = Setting {
        threads: options.threads.unwrap_or_else(threads_default),
        context_tokens,
        sequences: options.sequences,
        gpu_layers: backend::gpu_layers(options.gpu_layers),
        reproducible: options.reproducible,
        guesses: options.guesses,
    };
    Ok((file, setting))
}

/// One core stays free: with all of them the threads that wait for each other starve on a busy
/// machine, and decoding becomes a hundred times slower.
fn threads_default() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores.saturating_sub(1)).unwrap_or(1).max(1)
}

fn load_model(file: &GgufFile, gpu_layers: u32) -> Result<LlamaModel, LoadError> {
    load_with(file, &LlamaModelParams::default().with_n_gpu_layers(gpu_layers))
}

fn load_with(file: &GgufFile, parameters: &LlamaModelParams) -> Result<LlamaModel, LoadError> {
    let path = file.paths.first().cloned().unwrap_or_default();
    let refused = |reason: String| LoadError::Refused { path: path.clone(), reason };
    let backend = backend::backend()
        .ok_or_else(|| refused("the native library could not be started".to_owned()))?;
    backend::take_complaint();
    LlamaModel::load_from_file(backend, &path, parameters)
        .map_err(|error| refused(backend::take_complaint().unwrap_or_else(|| error.to_string())))
}

fn model_info(
    path: &Path,
    file: &GgufFile,
    digest: ModelDigest,
    options: &LlamaOptions,
    setting: &Setting,
) -> ModelInfo {
    let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    ModelInfo {
        name: options.name.clone().unwrap_or_else(stem),
        digest,
        shape: file.shape,
        architecture: file.architecture.clone(),
        quantisation: file.quantisation.clone(),
        size_bytes: file.size_bytes,
        context_tokens: setting.context_tokens,
        embedding_width: file.embedding_width(),
        image_tokens_max: match file.projector {
            Some(_) => IMAGE_TOKENS_MAX.min(setting.context_tokens),
            None => 0,
        },
        // Whoever checks an answer needs the setting that made it.
        build: format!("{BUILD} {}", setting.label()),
    }
}
