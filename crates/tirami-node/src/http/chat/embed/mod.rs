//! Embeddings: understand, hold, read, charge.
//!
//! A job of its own reads all texts of a request. It delivers when every vector is there, so a
//! client that leaves before owes nothing, and the engine stops within one pass.

mod request;
mod vectors;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Map, Value};
use tirami_core::{Digest, ModelDigest};
use tirami_infer::engine::{EmbedError, Engine, Failure};
use tirami_kernel::scheduler::Preferences;
use tirami_ledger::command::{Actor, StartJob};
use tirami_sdk::types::{Embedding, EmbeddingVector, Embeddings, EmbeddingsUsage};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::deadline::{Deadline, late};
use super::job::{Charged, Job, Opening};
use super::place::{self, Place};
use super::{Head, broken, cancelled, created, engine_failed, mesh_error, newcomer, no_provider};
use super::{no_randomness, scope, stopping};
use crate::http::error::ApiError;
use crate::http::guard::Caller;
use crate::http::{AppState, json, loaded, wish};
use crate::mesh::{self, EMBEDDINGS_PATH, Embedded, GaveUp, MeshAsk, Retold, WantedVectors};
use crate::models::{KeepAlive, Model};
use request::{Ask, Input};

pub(crate) use vectors::{NUMBERS_MAX, ToEmbed, bytes_of, vectors_digest};

/// Requests whose texts engines here read at the same time: an engine reads one text at a time, and
/// each of them keeps a thread.
pub(crate) const READERS_MAX: usize = 2;

/// Tokens that may stand before a text and in it beyond its bytes.
const TEXT_TOKENS: usize = 8;
/// Bytes of a token, for a guess.
const TOKEN_BYTES: usize = 4;

type Reply = oneshot::Sender<Result<Embeddings, ApiError>>;

/// Answers `POST /v1/embeddings`.
pub(in crate::http) async fn embeddings(
    State(app): State<AppState>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    if app.jobs.is_closed() {
        return Err(stopping());
    }
    let body = json::body(request, &app).await?;
    let read = |fields: Map<String, Value>| {
        let (ask, wish) = (Ask::read(&fields)?, wish::read(&fields)?);
        Ok::<_, ApiError>((ask, wish, loaded::keep_alive(&fields)?, Deadline::read(&fields)?))
    };
    let (ask, wish, keep, deadline) = json::understood(&app, body.clone(), read).await?;
    let (reply, answer) = oneshot::channel();
    let (jobs, asked_of) = (app.jobs.clone(), app.clone());
    jobs.spawn(Run { app, actor: caller.actor(), body, ask, wish, keep, deadline }.work(reply));
    let embeddings = match answer.await.map_err(|_| broken())? {
        Ok(embeddings) => embeddings,
        Err(error) => return Err(newcomer::told(&asked_of, error).await),
    };
    // Millions of numbers are not written out while others wait for this thread.
    let written = tokio::task::spawn_blocking(move || json::ok(&embeddings));
    written.await.map_err(|_| broken())
}

/// A request on its way.
struct Run {
    app: AppState,
    actor: Actor,
    body: Bytes,
    ask: Ask,
    wish: Preferences,
    /// How long the model is to stay in memory afterwards.
    keep: Option<KeepAlive>,
    deadline: Deadline,
}

/// Vectors that are there and charged.
struct Done {
    vectors: Vec<Vec<f32>>,
    head: Head,
    charged: Charged,
}

impl Run {
    async fn work(self, mut reply: Reply) {
        let result = match self.place().await {
            Ok(Place::Here(model)) => self.here(&model, &mut reply).await,
            Ok(Place::Mesh(model)) => self.away(self.mesh_ask(model), &mut reply).await,
            Err(error) => Err(error),
        };
        let is_base64 = self.ask.is_base64;
        // Nobody hears it when the client left.
        let _ = reply.send(result.map(|done| done.shown(is_base64)));
    }

    async fn place(&self) -> Result<Place, ApiError> {
        let (place, _) = place::of(&self.app, &self.ask.model, &self.wish, false).await?;
        Ok(place)
    }

    async fn here(&self, model: &Model, reply: &mut Reply) -> Result<Done, ApiError> {
        let app = &self.app;
        let engine = self.deadline.bound(app.models.lease(model, self.keep)).await??;
        let (reading, ask) = (engine.clone(), self.ask.clone());
        let texts = tokio::task::spawn_blocking(move || ToEmbed::of(&*reading, &ask));
        let texts = texts.await.map_err(|_| broken())??.asked_by(scope(&self.actor), true);
        let (prompt_tokens, readers) = (texts.prompt_tokens(), Arc::clone(&app.readers));
        let reading = tokio::select! {
            biased;
            () = app.cut.cancelled() => return Err(stopping()),
            () = reply.closed() => return Err(left()),
            () = self.deadline.passed() => return Err(late()),
            reading = texts.begin(engine.clone(), readers, Arc::default()) => {
                reading.map_err(|_| broken())?
            }
        };
        let mut start = self.start(&*engine, prompt_tokens)?;
        let model = engine.model();
        let head = Head {
            id: String::new(),
            created: created(),
            model: model.name.clone(),
            build: model.build.clone(),
            digest: model.digest.to_string(),
            provider: app.handle.party().to_string(),
            prompt_tokens,
        };
        let opening = Opening { is_named: true, sharing: 1, build: model.build.clone() };
        let handle = app.handle.clone();
        let job = Job::open(handle, self.actor.clone(), &mut start, opening).await?;
        let read = tokio::select! {
            biased;
            () = app.cut.cancelled() => Err(stopping()),
            () = job.token.cancelled() => Err(cancelled()),
            () = reply.closed() => Err(left()),
            () = self.deadline.passed() => Err(late()),
            read = reading => Ok(read),
        };
        match read {
            Ok(Ok(vectors)) => {
                let charged = job.finish_reading(vectors_digest(&vectors)).await?;
                Ok(Done { vectors, head, charged })
            }
            Ok(Err(EmbedError::Server(full @ (Failure::Full | Failure::FullFor { .. })))) => {
                let order = job.order();
                job.void(false).await;
                let Some(order) = order.filter(|_| app.mesh.is_some() && self.wish.allow_fallbacks)
                else {
                    return Err(full.into());
                };
                let gave_up = GaveUp { order, prompt_tokens, reason: full.to_string() };
                let ask = MeshAsk { gave_up: Some(gave_up), ..self.mesh_ask(start.model) };
                self.away(ask, reply).await
            }
            Ok(Err(failed)) => {
                job.void(true).await;
                if let EmbedError::Server(failure) = failed {
                    return Err(failure.into());
                }
                tracing::warn!(%failed, "texts were not read");
                Err(engine_failed())
            }
            Err(error) => {
                job.void(false).await;
                Err(error)
            }
        }
    }

    fn start(&self, engine: &dyn Engine, prompt_tokens: u32) -> Result<StartJob, ApiError> {
        let model = engine.model();
        Ok(StartJob {
            job: crate::keys::job_id().map_err(no_randomness)?,
            model: model.digest,
            shape: model.shape.without_attention(),
            request: Digest::of(&self.body),
            seed: 0,
            prompt_tokens,
            completion_max: 0,
            continues: None,
        })
    }

    /// Has another node read the texts.
    async fn away(&self, ask: MeshAsk, reply: &mut Reply) -> Result<Done, ApiError> {
        let app = &self.app;
        let client = app.mesh.clone();
        let client =
            client.ok_or_else(|| no_provider("this node is in no mesh with others".to_owned()))?;
        let wanted = WantedVectors { texts: self.ask.inputs.len(), width: self.ask.dimensions };
        let is_moved = ask.gave_up.is_some();
        let left_early = CancellationToken::new();
        let embedding = mesh::embed(client, ask, wanted, left_early.clone());
        let mut embedding = core::pin::pin!(embedding);
        // What was begun is ended in order before the answer.
        let (error, embedded) = tokio::select! {
            biased;
            () = app.cut.cancelled() => {
                left_early.cancel();
                (Some(stopping()), embedding.as_mut().await)
            }
            () = reply.closed() => {
                left_early.cancel();
                (Some(left()), embedding.as_mut().await)
            }
            () = self.deadline.passed() => {
                left_early.cancel();
                (Some(late()), embedding.as_mut().await)
            }
            embedded = &mut embedding => (None, embedded),
        };
        let embedded = match (embedded, error) {
            (Ok(Some(embedded)), _) => embedded,
            (_, Some(error)) => return Err(error),
            (Ok(None), None) => return Err(cancelled()),
            // What is wrong here is the reason to tell.
            (Err(_), None) if is_moved => return Err(Failure::Full.into()),
            (Err(error), None) => return Err(mesh_error(&error)),
        };
        let Embedded { vectors, journeyed, served, provider, prompt_tokens } = embedded;
        let head = Head {
            id: String::new(),
            created: created(),
            model: served.name,
            build: served.build,
            digest: served.model.to_string(),
            provider: provider.to_string(),
            prompt_tokens,
        };
        Ok(Done { vectors, head, charged: Charged::of(journeyed) })
    }

    fn mesh_ask(&self, model: ModelDigest) -> MeshAsk {
        let (most, guess) =
            self.ask.inputs.iter().fold((0, 0), |(most, guess), input| match input {
                Input::Text(text) => {
                    (most + text.len() + TEXT_TOKENS, guess + text.len() / TOKEN_BYTES + 1)
                }
                Input::Tokens(tokens) => (most + tokens.len(), guess + tokens.len()),
            });
        let tokens = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        MeshAsk {
            actor: self.actor.clone(),
            path: EMBEDDINGS_PATH,
            body: self.body.clone(),
            model,
            shape: None,
            seed: 0,
            prompt_max: tokens(most),
            prompt_guess: tokens(guess),
            completion_max: Some(0),
            preferences: self.wish.clone(),
            prefixes: Vec::new(),
            own: None,
            retold: Retold::default(),
            echoes: false,
            gave_up: None,
        }
    }
}

impl Done {
    fn shown(self, is_base64: bool) -> Embeddings {
        let Self { vectors, head, charged } = self;
        let prompt_tokens = head.prompt_tokens;
        let data = vectors.into_iter().zip(0..).map(|(vector, index)| Embedding {
            object: "embedding".to_owned(),
            index,
            embedding: match is_base64 {
                true => EmbeddingVector::Base64(base64(&bytes_of(&vector))),
                false => EmbeddingVector::Numbers(vector),
            },
        });
        Embeddings {
            object: "list".to_owned(),
            data: data.collect(),
            model: head.model.clone(),
            usage: EmbeddingsUsage { prompt_tokens, total_tokens: prompt_tokens },
            x_tirami: Some(head.info(&charged)),
        }
    }
}

/// The client left; nobody reads this.
fn left() -> ApiError {
    ApiError::malformed("the client left")
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| {
            (bits << 8) | u32::from(chunk.get(at).copied().unwrap_or_default())
        });
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let shown = if place <= chunk.len() { ALPHABET[digit as usize] } else { b'=' };
            text.push(char::from(shown));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn bytes_are_written_as_rfc_4648_says() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
