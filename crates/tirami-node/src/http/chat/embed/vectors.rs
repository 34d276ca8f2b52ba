//! What an engine is to embed, and the vectors it makes of it: the same for this node's own users
//! and for the jobs of other nodes.

use std::cell::Cell;
use std::sync::Arc;

use serde_json::{Map, Value};
use tirami_core::Digest;
use tirami_infer::engine::{EmbedError, Engine, PrepareError, Progress, Prompt, Vectors};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::request::{Ask, Input};
use crate::http::error::ApiError;
use crate::http::json;
use crate::models::Lease;

/// Tokens of all texts of one request at most.
const TOKENS_MAX: u32 = 300_000;
/// Numbers of all vectors of one request at most: 16 MiB.
pub(crate) const NUMBERS_MAX: u32 = 1 << 22;
/// Tokens an engine reads, about, until it asks whether it is still wanted.
const STEP_TOKENS: u32 = 32;

/// Texts that an engine can embed.
#[derive(Debug)]
pub(crate) struct ToEmbed {
    texts: Vec<Prompt>,
    prompt_tokens: u32,
    /// Numbers of each vector.
    width: u32,
}

impl ToEmbed {
    /// Reads the body of a request for embeddings. The model's name in it does not count: an order
    /// names the digest. It takes long for long texts.
    ///
    /// # Errors
    ///
    /// What a caller by HTTP would be told.
    pub(crate) fn read(engine: &dyn Engine, body: &[u8]) -> Result<Self, ApiError> {
        let fields: Map<String, Value> = json::parse(body)?;
        Self::of(engine, &Ask::read(&fields)?)
    }

    pub(super) fn of(engine: &dyn Engine, ask: &Ask) -> Result<Self, ApiError> {
        let widest = engine.model().embedding_width;
        if widest == 0 {
            let message = format!("the model {} makes no embeddings", engine.model().name);
            return Err(ApiError::unsupported("model", message));
        }
        let width = ask.dimensions.unwrap_or(widest);
        if width > widest {
            let message = format!("dimensions must be at most {widest}, the model's width");
            return Err(ApiError::invalid("dimensions", message));
        }
        let most = (NUMBERS_MAX / width).max(1);
        if ask.inputs.len() > most as usize {
            let message = format!("input must have at most {most} texts for vectors this long");
            return Err(ApiError::invalid("input", message));
        }
        let (mut texts, mut prompt_tokens) = (Vec::with_capacity(ask.inputs.len()), 0_u32);
        for (index, input) in ask.inputs.iter().enumerate() {
            let text = prepared(engine, (index, input))?;
            prompt_tokens = prompt_tokens.saturating_add(count(&text.tokens));
            if prompt_tokens > TOKENS_MAX {
                let message =
                    format!("input has more than {TOKENS_MAX} tokens in all; send it in parts");
                return Err(ApiError::invalid("input", message));
            }
            texts.push(text);
        }
        Ok(Self { texts, prompt_tokens, width })
    }

    /// The same, asked by whom these say: see [`Prompt`].
    pub(crate) fn asked_by(mut self, scope: u64, contributes: bool) -> Self {
        for text in &mut self.texts {
            (text.scope, text.contributes) = (scope, contributes);
        }
        self
    }

    /// Tokens of all texts; at least 1.
    pub(crate) const fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// The vectors, once they may be read: an engine that reads here takes one of `readers` first,
    /// because it keeps a thread; one that hands them on needs none. `progress` says meanwhile how
    /// many tokens are read, about, and whether they wait.
    ///
    /// # Errors
    ///
    /// [`EmbedError`]; then there is no vector at all.
    pub(crate) async fn begin(
        self,
        engine: Lease,
        readers: Arc<Semaphore>,
        progress: Arc<Progress>,
    ) -> Result<Vectors, EmbedError> {
        let width = self.width;
        let texts: Arc<[Prompt]> = self.texts.into();
        if let Some(vectors) = engine.embed_all(&texts, &progress) {
            return Ok(Box::pin(async move {
                let _engine = engine;
                let vectors = vectors.await?.into_iter().map(|vector| shortened(vector, width));
                vectors.collect::<Result<Vec<_>, EmbedError>>()
            }));
        }
        let failed = |reason: String| EmbedError::Failed { reason };
        let place = readers.acquire_owned().await.map_err(|error| failed(error.to_string()))?;
        Ok(Box::pin(async move {
            let unwanted = CancellationToken::new();
            let _stops = unwanted.clone().drop_guard();
            let reading = tokio::task::spawn_blocking(move || {
                let _place = place;
                read((&*engine, width), &texts, &|| !unwanted.is_cancelled(), &progress)
            });
            reading.await.map_err(|error| failed(error.to_string()))?
        }))
    }
}

/// The vectors of `texts`, each of `width` numbers, read one after the other on this thread.
fn read(
    (engine, width): (&dyn Engine, u32),
    texts: &[Prompt],
    is_wanted: &dyn Fn() -> bool,
    progress: &Progress,
) -> Result<Vec<Vec<f32>>, EmbedError> {
    progress.queued(0);
    let mut done = 0_u32;
    let one = |Prompt { tokens, .. }: &Prompt| {
        let (all, begun) = (count(tokens), Cell::new(0_u32));
        let step = || {
            progress.read(done.saturating_add(begun.get().min(all)));
            begun.set(begun.get().saturating_add(STEP_TOKENS));
            is_wanted()
        };
        let vector = engine.embed(tokens, &step)?;
        done = done.saturating_add(all);
        progress.read(done);
        shortened(vector, width)
    };
    texts.iter().map(one).collect()
}

/// The first numbers of a vector, brought back to length 1.
fn shortened(mut vector: Vec<f32>, width: u32) -> Result<Vec<f32>, EmbedError> {
    if vector.len() <= width as usize {
        return Ok(vector);
    }
    vector.truncate(width as usize);
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length <= 0.0 {
        let reason = format!("the first {width} numbers of a vector have no direction");
        return Err(EmbedError::Failed { reason });
    }
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    Ok(vector)
}

/// The numbers of a vector as they travel and are signed for.
pub(crate) fn bytes_of(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// What documents name vectors by.
pub(crate) fn vectors_digest(vectors: &[Vec<f32>]) -> Digest {
    let bytes: Vec<u8> = vectors.iter().flat_map(|vector| bytes_of(vector)).collect();
    Digest::of(&bytes)
}

fn prepared(engine: &dyn Engine, (index, input): (usize, &Input)) -> Result<Prompt, ApiError> {
    let at = format!("input[{index}]");
    let context_tokens = engine.model().context_tokens;
    let too_long = || {
        let message = format!(
            "{at} has more tokens than the {context_tokens} the model reads; shorten or split it"
        );
        ApiError::invalid(&at, message)
    };
    let refused = |error: PrepareError| match error {
        PrepareError::ContextLength { .. } => too_long(),
        PrepareError::Unsupported { .. } => {
            ApiError::unsupported(&at, format!("{at}: {error}; send a text"))
        }
        other => ApiError::invalid(&at, other.to_string()),
    };
    let tokens = match input {
        Input::Text(text) => {
            let text = engine.tokenize(text).map_err(refused)?;
            engine.begin_token().into_iter().chain(text).chain(engine.end_token()).collect()
        }
        Input::Tokens(_) if !engine.has_vocabulary() => {
            let message =
                "the model's file is not at hand, so its tokens are not known; send texts";
            return Err(ApiError::unsupported(&at, message));
        }
        Input::Tokens(tokens) => {
            for token in tokens {
                if engine.spelling(*token).map_err(refused)?.is_none() {
                    let message = format!("{at} has the token {token}, which the model has not");
                    return Err(ApiError::invalid(&at, message));
                }
            }
            tokens.clone()
        }
    };
    if tokens.is_empty() {
        return Err(ApiError::invalid(&at, format!("{at} has no tokens; leave it out")));
    }
    if tokens.len() > context_tokens as usize {
        return Err(too_long());
    }
    let text = match input {
        Input::Text(text) => Some(text.as_str()),
        Input::Tokens(_) => None,
    };
    engine.prepare_embedding(tokens, text).map_err(refused)
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}
