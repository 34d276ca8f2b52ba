//! Chat completions: understand, quote, hold, generate, charge.
//!
//! Each job has a task of its own that outlives the connection: it opens the hold, moves pieces
//! from the engine to the body, and ends the job whatever becomes of the client. The client's
//! side is a channel; when that closes, the task charges what was handed over and nothing else.

mod job;
mod quote;
mod request;
mod stream;
mod whole;

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};
use tirami_core::{Digest, JobId};
use tirami_infer::engine::{Conversation, Finish, Generation, Prompt, Sampling, StartError};
use tirami_ledger::command::{Actor, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::{Route, TiramiInfo, Usage};

use super::AppState;
use super::error::ApiError;
use super::guard::Caller;
use super::json;
use job::{Charged, Job};
use request::Ask;

pub(super) use quote::payer;
pub(super) use request::{conversation, number};

/// Answers `POST /v1/chat/completions`.
pub(super) async fn chat(
    State(app): State<AppState>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    if app.jobs.is_closed() {
        return Err(stopping());
    }
    let body = json::body(request, &app.config).await?;
    let fields: Map<String, Value> = json::parse(&body)?;
    let ask = Ask::read(&fields)?;
    check_model(&app, &ask.model)?;
    let prepared = prepare(&app, &ask.conversation, ask.completion_max).await?;
    let stream = ask.stream.then_some(ask.include_usage);
    let run = Run::new(app, caller.actor(), Digest::of(&body), ask, prepared)?;
    match stream {
        Some(include_usage) => stream::answer(run, include_usage).await,
        None => whole::answer(run).await,
    }
}

/// A request that is ready to run.
struct Run {
    app: AppState,
    actor: Actor,
    start: StartJob,
    /// Whether the request names a maximum; otherwise it is what there is room for.
    is_named: bool,
    prompt: Prompt,
    sampling: Sampling,
    /// Seconds since the Unix epoch.
    created: u64,
}

impl Run {
    fn new(
        app: AppState,
        actor: Actor,
        request: Digest,
        ask: Ask,
        (mut prompt, completion_max): (Prompt, u32),
    ) -> Result<Self, ApiError> {
        prompt.scope = scope(&actor);
        let random = |error: crate::keys::KeyFileError| {
            ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "no_randomness", error.to_string())
        };
        let drawn = crate::keys::random::<4>().map_err(random)?;
        let seed = ask.seed.unwrap_or(u32::from_le_bytes(drawn));
        let model = app.engine.model();
        let start = StartJob {
            job: JobId::from_bytes(crate::keys::random().map_err(random)?),
            model: model.digest,
            shape: model.shape,
            request,
            seed,
            prompt_tokens: u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX),
            completion_max,
        };
        let is_named = ask.completion_max.is_some();
        let sampling = Sampling {
            completion_max,
            temperature: ask.temperature,
            top_p: ask.top_p,
            top_k: ask.top_k,
            seed,
            stop: ask.stop,
            ..Sampling::default()
        };
        let created = super::views::now_ms() / 1_000;
        Ok(Self { app, actor, start, is_named, prompt, sampling, created })
    }

    /// Opens the job and starts its generation; a job that cannot start owes nothing.
    async fn begin(self) -> Result<Begun, ApiError> {
        let asked_at = Instant::now();
        let head = self.head();
        let Self { app, actor, mut start, is_named, prompt, mut sampling, .. } = self;
        let (handle, build) = (app.handle.clone(), head.build.clone());
        let job = Job::open(handle, actor, &mut start, (is_named, build)).await?;
        sampling.completion_max = start.completion_max;
        match app.engine.start(prompt, sampling) {
            Ok(generation) => Ok(Begun { app, job, generation, head, asked_at }),
            Err(error) => {
                job.void(matches!(error, StartError::Stopped)).await;
                Err(error.into())
            }
        }
    }

    fn head(&self) -> Head {
        let model = self.app.engine.model();
        Head {
            id: format!("chatcmpl-{}", self.start.job),
            created: self.created,
            model: model.name.clone(),
            build: model.build.clone(),
            digest: model.digest.to_string(),
            provider: self.app.handle.party().to_string(),
            prompt_tokens: self.start.prompt_tokens,
        }
    }
}

/// A job whose answer is on its way.
struct Begun {
    app: AppState,
    job: Job,
    generation: Generation,
    head: Head,
    asked_at: Instant,
}

/// Whose cached prompts a request may use: an agent's own, so that the time an answer takes tells
/// nobody what others asked.
fn scope(actor: &Actor) -> u64 {
    match actor {
        Actor::Caller { agent: Some(agent), .. } => {
            agent.as_bytes().iter().take(8).fold(0, |scope, byte| (scope << 8) | u64::from(*byte))
        }
        Actor::Caller { agent: None, .. } | Actor::Node => 0,
    }
}

/// What all parts of an answer say alike.
#[derive(Clone)]
struct Head {
    id: String,
    created: u64,
    model: String,
    build: String,
    digest: String,
    provider: String,
    prompt_tokens: u32,
}

impl Head {
    fn usage(&self, completion_tokens: u32) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens.saturating_add(completion_tokens),
        }
    }

    fn info(&self, charged: &Charged) -> TiramiInfo {
        TiramiInfo {
            trm_cost: charged.amount.into(),
            effective_balance: charged.available.into(),
            provider: self.provider.clone(),
            trade_id: charged.trade.to_string(),
            flops: charged.flop.get(),
            route: Route {
                provider: self.provider.clone(),
                model: self.digest.clone(),
                candidates: 1,
                reason: "this node serves the model itself".to_owned(),
            },
        }
    }
}

const fn finish_of(finish: Finish) -> FinishReason {
    match finish {
        Finish::Stop => FinishReason::Stop,
        Finish::Length => FinishReason::Length,
    }
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled | FinishReason::Failed => "stop",
    }
}

fn engine_failed() -> ApiError {
    ApiError::server(
        StatusCode::INTERNAL_SERVER_ERROR,
        "engine_failed",
        "the model's engine failed while answering; only what was delivered is charged; the \
         node's log says why",
    )
}

fn cancelled() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "cancelled",
        "job_cancelled",
        "the node ended the job: the kill switch was turned on, the API key was revoked, or the \
         job's time ran out",
    )
}

fn stopping() -> ApiError {
    ApiError::server(
        StatusCode::SERVICE_UNAVAILABLE,
        "stopping",
        "the node is stopping; ask again when it has started",
    )
}

fn broken() -> ApiError {
    ApiError::server(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "the job ended without a word; the node's log says why",
    )
}

/// Whether the node serves `model`, by name or digest.
pub(super) fn check_model(app: &AppState, model: &str) -> Result<(), ApiError> {
    let served = app.engine.model();
    if model == served.name || model == served.digest.to_string() {
        return Ok(());
    }
    // A stranger's text goes into the message, so it is kept short.
    let shown: String = model.chars().take(100).collect();
    let message =
        format!("the model {shown:?} is not served here; this node serves {}", served.name);
    Err(ApiError::not_found("model_not_found", message).param("model"))
}

/// Renders and tokenises, and says how many completion tokens there may be: `asked`, or all the
/// context has room for.
pub(super) async fn prepare(
    app: &AppState,
    conversation: &Conversation,
    asked: Option<u32>,
) -> Result<(Prompt, u32), ApiError> {
    let context = app.engine.model().context_tokens;
    if asked.is_some_and(|asked| asked > context) {
        let message = format!("max_tokens must be at most {context}, the model's context");
        return Err(ApiError::invalid("max_tokens", message));
    }
    let (engine, conversation) = (app.engine.clone(), conversation.clone());
    // A long text keeps a core busy for a while; no other request may wait for it.
    let prompt = tokio::task::spawn_blocking(move || engine.prepare(&conversation))
        .await
        .map_err(|_| {
            let message = "the prompt could not be prepared; the node's log says why";
            ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "prepare_failed", message)
        })??;
    let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
    let room = context.saturating_sub(prompt_tokens).max(1);
    Ok((prompt, asked.map_or(room, |asked| asked.min(room))))
}
