//! Answers of a model: understand, quote, hold, generate, charge, tell.
//!
//! ```text
//! what is asked ──► jobs ──► pump ──► form
//! a chat, texts     one for each      what the client sees
//! ```
//!
//! Each job has a task of its own that outlives the connection: it opens the hold, moves pieces
//! from the engine to the body, and ends the job whatever becomes of the client. The client's
//! side is a channel; when that closes, the task charges what was handed over and nothing else.

mod choices;
mod deadline;
mod embed;
pub(super) mod form;
mod job;
mod moved;
mod newcomer;
mod picture;
mod place;
mod quote;
mod raw;
mod request;
mod running;
mod sampling;
mod served;
mod stream;
mod tools;
mod variables;
mod whole;

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Map, Value};
use tirami_core::{Digest, ModelDigest, Ppm};
use tirami_infer::engine::{
    Conversation, Engine, Finish, Format, Prompt, RawPrompt, Sampling, StartError,
};
use tirami_kernel::scheduler::Preferences;
use tirami_ledger::command::{Actor, StartJob};
use tirami_ledger::documents::FinishReason;
use tirami_sdk::types::{PromptDetails, Route, RouteAttempt, TiramiInfo, Usage};

use super::error::ApiError;
use super::guard::Caller;
use super::{AppState, json, length, wish};
use crate::mesh::{self, GaveUp, Invalid, MeshAsk, Part, RouteError, Served, Started};
use crate::models::{Lease, Model, why_here};
use choices::{Choice, Choices, after, after_others};
use deadline::{Deadline, late};
use form::{ChatForm, CompletionForm, Ended, Form, Gathered};
use job::{APPROVAL_REQUIRED, Charged, Job, Opening};
use moved::Elsewhere;
use place::{Known, Place};
use request::Subject;
use running::Running;

pub(super) use choices::call_id;
pub(super) use embed::embeddings;
pub(crate) use embed::{NUMBERS_MAX, READERS_MAX, ToEmbed, bytes_of, vectors_digest};
pub(super) use picture::{Said, check};
pub(super) use place::is_sooner_elsewhere;
pub(crate) use quote::payer;
pub(crate) use request::Kind;
pub(super) use request::{Ask, CHOICES_MAX, conversation, flag, number, present};
pub(crate) use served::{Asked, understand, understand_at_once};

/// A prompt of surely no more tokens is prepared at once: to wake another thread for it takes
/// longer.
const PREPARED_HERE_TOKENS_MAX: usize = 1_024;
/// When it is worth asking again for a model that nobody serves at this time.
const RETRY_AFTER_S: u64 = 5;

/// Answers `POST /v1/chat/completions`.
pub(super) async fn chat(
    State(app): State<AppState>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = json::body(request, &app).await?;
    let form = |ask: &Ask, _| -> Box<dyn Form> {
        Box::new(ChatForm {
            include_usage: ask.include_usage,
            logprobs: ask.sampling.top_logprobs.is_some(),
            gathered: Gathered::default(),
        })
    };
    answer(app, &caller, (Kind::Chat, body), form).await
}

/// Answers `POST /v1/completions`.
pub(super) async fn complete(
    State(app): State<AppState>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = json::body(request, &app).await?;
    let form = |ask: &Ask, echo| -> Box<dyn Form> {
        Box::new(CompletionForm {
            include_usage: ask.include_usage,
            logprobs: ask.sampling.top_logprobs.is_some(),
            echo,
            offsets: vec![0; ask.subjects.len() * ask.choices as usize],
            gathered: Gathered::default(),
        })
    };
    answer(app, &caller, (Kind::Raw, body), form).await
}

/// What each answer begins with, where it is to repeat what it continues; `engine` is the model's
/// where it is here. Where it is not, whoever answers tells the text of tokens.
fn echo(ask: &Ask, engine: Option<&dyn Engine>) -> Result<Vec<String>, ApiError> {
    if !ask.echo {
        return Ok(Vec::new());
    }
    let unable = |why: &str| ApiError::unsupported("echo", format!("{why}; leave echo out"));
    let text = |subject: &Subject| match subject {
        Subject::Raw(RawPrompt::Text(text)) => Ok(text.clone()),
        Subject::Raw(RawPrompt::Tokens(tokens)) => {
            let Some(engine) = engine else { return Ok(String::new()) };
            let bytes = tokens.iter().map(|token| engine.token_bytes(*token));
            let bytes = bytes.collect::<Result<Vec<_>, _>>();
            let bytes = bytes.map_err(|error| unable(&error.to_string()))?;
            Ok(String::from_utf8_lossy(&bytes.concat()).into_owned())
        }
        Subject::Raw(RawPrompt::Infill { .. }) | Subject::Chat(_) => Ok(String::new()),
    };
    let texts = ask.subjects.iter().map(text).collect::<Result<Vec<_>, ApiError>>()?;
    let each = |text| std::iter::repeat_n(text, ask.choices as usize);
    Ok(texts.into_iter().flat_map(each).collect())
}

/// Who answers a request.
enum Way {
    /// This node's engine.
    Here(Lease),
    /// Whoever serves this model in the mesh.
    Mesh(ModelDigest),
}

impl Way {
    fn engine(&self) -> Option<&dyn Engine> {
        match self {
            Self::Here(engine) => Some(&**engine),
            Self::Mesh(_) => None,
        }
    }
}

/// Answers a request, in the form that suits what is asked.
pub(super) async fn answer(
    app: AppState,
    caller: &Caller,
    asked: (Kind, Bytes),
    form: impl FnOnce(&Ask, Vec<String>) -> Box<dyn Form> + Send,
) -> Result<Response, ApiError> {
    let asked_of = app.clone();
    match answered(app, caller, asked, form).await {
        Err(error) => Err(newcomer::told(&asked_of, error).await),
        answer => answer,
    }
}

async fn answered(
    app: AppState,
    caller: &Caller,
    (kind, body): (Kind, Bytes),
    form: impl FnOnce(&Ask, Vec<String>) -> Box<dyn Form> + Send,
) -> Result<Response, ApiError> {
    if app.jobs.is_closed() {
        return Err(stopping());
    }
    let (whole, max) = (body.clone(), app.config.body_max_bytes);
    let read = move |fields: Map<String, Value>| {
        let ask = Ask::read(kind, &fields)?;
        let (wish, deadline) = (wish::read(&fields)?, Deadline::read(&fields)?);
        let (keep, field) = (super::loaded::keep_alive(&fields)?, length::field(kind, &fields));
        Ok::<_, ApiError>((ask, wish, deadline, keep, field, bodies(kind, fields, whole, max)?))
    };
    let (ask, wish, deadline, keep, field, bodies) = json::understood(&app, body, read).await?;
    let (place, price) = place::of(&app, &ask.model, &wish, ask.has_images()).await?;
    let way = match place {
        Place::Here(model) => Way::Here(deadline.bound(app.models.lease(&model, keep)).await??),
        Place::Mesh(model) => Way::Mesh(model),
    };
    let form = form(&ask, echo(&ask, way.engine())?);
    let asker = Asker { app: &app, actor: caller.actor(), kind, ask: &ask, wish: &wish, price };
    let mut plans = Vec::with_capacity(ask.subjects.len());
    let seed = seed(&ask)?;
    let named = |error| length::called(error, field);
    for (subject, body) in ask.subjects.iter().zip(bodies) {
        let plan = match &way {
            Way::Here(engine) => asker.here(engine, subject, &body, seed).await,
            Way::Mesh(model) => asker.there(subject, &body, (*model, seed)).await,
        };
        plans.push(plan.map_err(named)?);
    }
    let Ask { choices, tools, stream, .. } = ask;
    let run = Run { app, plans, choices, tools, form, deadline, created: created() };
    let answer = if stream { stream::answer(run).await } else { whole::answer(run).await };
    answer.map_err(named)
}

/// The request of each subject: as it came, or with only that one of several. What comes with each
/// of them takes `max` bytes in all at most.
fn bodies(
    kind: Kind,
    mut fields: Map<String, Value>,
    body: Bytes,
    max: usize,
) -> Result<Vec<Bytes>, ApiError> {
    let several = match fields.remove(kind.field()) {
        // Of the kinds only texts are several, and a list of numbers is one text's tokens.
        Some(Value::Array(list)) if kind == Kind::Raw && list.len() > 1 && !list[0].is_u64() => {
            list
        }
        _ => return Ok(vec![body]),
    };
    let (count, rest) = (several.len(), form::written(&fields).len());
    if rest.saturating_mul(count) > max {
        let message = format!(
            "each of the {count} prompts is asked with the other {rest} bytes of the request, and \
             all of that may have {max} bytes; shorten them or send each prompt alone"
        );
        return Err(ApiError::bad_request("prompts_too_large", message).param(kind.field()));
    }
    let with_one = |one: Value| {
        fields.insert(kind.field().to_owned(), one);
        Bytes::from(form::written(&fields))
    };
    Ok(several.into_iter().map(with_one).collect())
}

/// Refuses a form of answer the engine cannot follow, before anything is set aside.
async fn check_format(engine: &Lease, format: &Format) -> Result<(), ApiError> {
    if *format == Format::Text {
        return Ok(());
    }
    let (engine, format) = (engine.clone(), format.clone());
    let checked = tokio::task::spawn_blocking(move || served::check_format(&*engine, &format));
    checked.await.map_err(|_| broken())?
}

/// A request that is ready to run.
struct Run {
    app: AppState,
    /// One for each subject.
    plans: Vec<Plan>,
    /// Answers that are wanted to each.
    choices: u32,
    /// Names of the tools that may be called.
    tools: Vec<String>,
    form: Box<dyn Form>,
    deadline: Deadline,
    /// Seconds since the Unix epoch.
    created: u64,
}

/// Where and how a subject is answered.
#[derive(Clone)]
enum Plan {
    Here(Box<Here>),
    Mesh(Box<MeshAsk>),
}

/// A request for this node's engine.
#[derive(Clone)]
struct Here {
    engine: Lease,
    actor: Actor,
    start: StartJob,
    /// Whether the request names a maximum; otherwise it is what there is room for.
    is_named: bool,
    prompt: Prompt,
    sampling: Sampling,
    /// What other nodes are asked for when the engine has no room.
    instead: Option<MeshAsk>,
}

/// Who asks for what.
struct Asker<'a> {
    app: &'a AppState,
    actor: Actor,
    kind: Kind,
    ask: &'a Ask,
    wish: &'a Preferences,
    /// This node's price.
    price: Ppm,
}

impl Asker<'_> {
    /// Has this node's engine answer.
    async fn here(
        &self,
        engine: &Lease,
        subject: &Subject,
        body: &Bytes,
        seed: u32,
    ) -> Result<Plan, ApiError> {
        let Self { app, ask, wish, price, .. } = self;
        let engine = engine.clone();
        check_format(&engine, &ask.sampling.format).await?;
        served::check_bias(&*engine, &ask.sampling)?;
        let (mut prompt, completion_max) = prepare(&engine, subject, ask.completion_max).await?;
        prompt.scope = scope(&self.actor);
        prompt.contributes = true;
        let model = engine.model();
        let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
        let start = StartJob {
            job: crate::keys::job_id().map_err(no_randomness)?,
            model: model.digest,
            shape: model.shape,
            request: Digest::of(body),
            seed,
            prompt_tokens,
            completion_max,
            continues: None,
        };
        let instead = (app.mesh.is_some() && wish.allow_fallbacks).then(|| {
            let own = place::successor(app, model.digest, wish, *price);
            let known = Known::Counted { shape: model.shape, tokens: prompt_tokens };
            let here = (model.digest, known, own);
            place::ask(self, (subject, body), here, seed)
        });
        let is_named = ask.completion_max.is_some();
        let sampling = Sampling { completion_max, seed, ..ask.sampling.clone() };
        let actor = self.actor.clone();
        Ok(Plan::Here(Box::new(Here { engine, actor, start, is_named, prompt, sampling, instead })))
    }

    /// Has another node answer.
    async fn there(
        &self,
        subject: &Subject,
        body: &Bytes,
        (model, seed): (ModelDigest, u32),
    ) -> Result<Plan, ApiError> {
        let own = place::successor(self.app, model, self.wish, self.price);
        let image_tokens = match subject.has_images() {
            true => place::image_tokens(self.app, model).await?,
            false => 0,
        };
        let known = Known::Elsewhere { image_tokens };
        let asked = place::ask(self, (subject, body), (model, known, own), seed);
        Ok(Plan::Mesh(Box::new(asked)))
    }
}

impl Run {
    /// As [`Run::begin`], as long as there is time. What is opened later is ended in order.
    async fn begin_in_time(self) -> Result<Begun, ApiError> {
        let (jobs, deadline) = (self.app.jobs.clone(), self.deadline);
        let is_one = self.plans.len() == 1 && self.choices == 1;
        let mut begin = Box::pin(self.begin());
        let begun = deadline.bound(&mut begin).await;
        begun.unwrap_or_else(|late| {
            jobs.spawn(async move {
                if let Ok(begun) = begin.await {
                    begun.choices.void(false).await;
                }
            });
            Err(if is_one { late } else { after_others(late) })
        })
    }

    /// Opens a job for each answer and starts its generation. When one of them cannot start, none
    /// does, and nothing more is owed.
    async fn begin(self) -> Result<Begun, ApiError> {
        let asked_at = Instant::now();
        let Self { app, plans, choices, tools, form, deadline, created } = self;
        let (mut all, mut head) = (Vec::new(), None::<Head>);
        let answers = choices.saturating_mul(u32::try_from(plans.len()).unwrap_or(u32::MAX));
        let mut sharing = answers;
        for plan in plans {
            for index in 0..choices {
                match plan.clone().of_choice(index)?.begin(&app, created, sharing).await {
                    Ok((choice, of_choice)) => {
                        all.push(choice.with_tools(&tools).at(index));
                        match &mut head {
                            None => head = Some(of_choice),
                            // Answers to one subject read it once, as far as usage goes.
                            Some(head) if index == 0 => head.reads(of_choice.prompt_tokens),
                            Some(_) => {}
                        }
                    }
                    Err(error) => {
                        let charged = Choices::new(all).void(false).await;
                        return Err(after(alone(error, answers), charged));
                    }
                }
                sharing = sharing.saturating_sub(1);
            }
        }
        let mut head = head.ok_or_else(broken)?;
        head.id = format!("{}{}", form.prefix(), head.id);
        Ok(Begun { app, choices: Choices::new(all), head, form, deadline, asked_at })
    }
}

impl Plan {
    /// The plan of one of several answers: a job of its own, with a seed of its own.
    fn of_choice(mut self, index: u32) -> Result<Self, ApiError> {
        if index == 0 {
            return Ok(self);
        }
        match &mut self {
            Self::Mesh(ask) => ask.seed = ask.seed.wrapping_add(index),
            Self::Here(here) => {
                let seed = here.start.seed.wrapping_add(index);
                here.start.job = crate::keys::job_id().map_err(no_randomness)?;
                (here.start.seed, here.sampling.seed) = (seed, seed);
                if let Some(ask) = &mut here.instead {
                    ask.seed = seed;
                }
            }
        }
        Ok(self)
    }

    async fn begin(
        self,
        app: &AppState,
        created: u64,
        sharing: u32,
    ) -> Result<(Choice, Head), ApiError> {
        let mut here = match self {
            Self::Here(here) => here,
            Self::Mesh(ask) => return away(app, *ask, created).await,
        };
        if let Some(ask) = &here.instead
            && is_sooner_elsewhere(app, ask.query()).await?
            && let Ok(begun) = away(app, ask.clone(), created).await
        {
            return Ok(begun);
        }
        let (head, prompt_tokens) = (here.head(app, created), here.start.prompt_tokens);
        let elsewhere = here.instead.and_then(|ask| Elsewhere::of(app, ask));
        let opening = Opening { is_named: here.is_named, sharing, build: head.build.clone() };
        let job = Job::open(app.handle.clone(), here.actor, &mut here.start, opening).await?;
        here.sampling.completion_max = here.start.completion_max;
        match here.engine.start(here.prompt, here.sampling).await {
            Ok(generation) => {
                let choice = Choice::new(Running::Here(Box::new(job)), generation);
                Ok((choice.or(elsewhere, prompt_tokens), head))
            }
            Err(error) => {
                let (order, reason) = (job.order(), error.to_string());
                job.void(matches!(error, StartError::Stopped)).await;
                let Some(elsewhere) = elsewhere else { return Err(error.into()) };
                let gave_up = order.map(|order| GaveUp { order, prompt_tokens, reason });
                let moved = away(app, elsewhere.after(gave_up), created).await;
                // What is wrong here is the reason to tell, unless the owner's word is all that is
                // missing there.
                moved.map_err(|there| match there.code() {
                    APPROVAL_REQUIRED => there,
                    _ => error.into(),
                })
            }
        }
    }
}

/// Who approves a request approves one job, so several at once cannot wait for the owner's word.
fn alone(error: ApiError, answers: u32) -> ApiError {
    if answers == 1 || error.code() != APPROVAL_REQUIRED {
        return error;
    }
    error.reworded(
        "each of the answers needs the owner's word, and several at once cannot wait for it; \
         nothing was charged; ask for one at a time, with n = 1"
            .to_owned(),
    )
}

impl Here {
    fn head(&self, app: &AppState, created: u64) -> Head {
        let model = self.engine.model();
        Head {
            id: self.start.job.to_string(),
            created,
            model: model.name.clone(),
            build: model.build.clone(),
            digest: model.digest.to_string(),
            provider: app.handle.party().to_string(),
            prompt_tokens: self.start.prompt_tokens,
        }
    }
}

/// Has another node answer.
async fn away(app: &AppState, ask: MeshAsk, created: u64) -> Result<(Choice, Head), ApiError> {
    let Some(client) = app.mesh.clone() else {
        return Err(no_provider("this node is in no mesh with others".to_owned()));
    };
    let started = mesh::begin(client, ask, &app.jobs).await;
    let started = started.map_err(|error| mesh_error(&error))?;
    let Started { job, generation, served, id, provider, prompt_tokens } = started;
    let head = Head {
        id: id.to_string(),
        created,
        model: served.name,
        build: served.build,
        digest: served.model.to_string(),
        provider: provider.to_string(),
        prompt_tokens,
    };
    Ok((Choice::new(Running::Mesh(job), generation), head))
}

fn created() -> u64 {
    super::views::now_ms() / 1_000
}

/// The sampler's seed: the one asked for, else one that is drawn.
fn seed(ask: &Ask) -> Result<u32, ApiError> {
    let drawn = crate::keys::random::<4>().map_err(no_randomness)?;
    Ok(ask.seed.unwrap_or(u32::from_le_bytes(drawn)))
}

fn no_randomness(error: crate::keys::KeyFileError) -> ApiError {
    ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "no_randomness", error.to_string())
}

/// Jobs whose answers are on their way.
struct Begun {
    app: AppState,
    choices: Choices,
    head: Head,
    form: Box<dyn Form>,
    deadline: Deadline,
    asked_at: Instant,
}

/// Makes durable what others may go on from, before anybody is told that they may.
async fn keep(app: &AppState, form: &mut dyn Form, (head, end): (&Head, &Ended)) {
    let Some(kept) = form.keeps(head, end) else { return };
    if let Err(error) = app.responses.keep(kept, super::views::now_ms()).await {
        // The answer is paid for, so it is told; it says of itself that it is not kept.
        tracing::error!(%error, "a response was not kept");
        form.is_not_kept();
    }
}

/// Whose cached prompts a request may use.
fn scope(actor: &Actor) -> u64 {
    match actor {
        Actor::Caller { agent, .. } => mesh::cache_scope(*agent),
        Actor::Node => 0,
    }
}

/// What all parts of an answer say alike.
#[derive(Debug, Clone)]
pub(super) struct Head {
    /// Of the first job, after what the form puts before it.
    pub(super) id: String,
    /// Seconds since the Unix epoch.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) build: String,
    digest: String,
    provider: String,
    /// Of all subjects.
    pub(super) prompt_tokens: u32,
}

impl Head {
    /// Adds another subject.
    fn reads(&mut self, prompt_tokens: u32) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(prompt_tokens);
    }

    /// Notes the model of the node that makes the first answer instead of this one.
    fn is_made_by(&mut self, served: Served) {
        (self.model, self.build) = (served.name, served.build);
    }

    fn usage(&self, completion_tokens: u32, cached_tokens: u32) -> Usage {
        let cached_tokens = cached_tokens.min(self.prompt_tokens);
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }

    fn info(&self, charged: &Charged) -> TiramiInfo {
        let last = charged.parts.last().map(|part| part.charge.provider.to_string());
        let provider = last.unwrap_or_else(|| self.provider.clone());
        TiramiInfo {
            trm_cost: charged.amount.into(),
            effective_balance: charged.available.into(),
            provider: provider.clone(),
            trade_id: charged.trade.to_string(),
            trade_ids: charged.trades(),
            flops: charged.flop.get(),
            ended_by: None,
            route: self.route(charged, provider),
        }
    }

    fn route(&self, charged: &Charged, provider: String) -> Route {
        let parts = &charged.parts;
        let is_here = parts.iter().all(|part| part.here);
        let goes_on = parts.last().is_some_and(|part| part.here);
        let answers = charged.earlier.len() + 1;
        let (kind, reason) = match parts.len() {
            _ if charged.moved && !goes_on => {
                ("mesh", "this node's own engine did not take it, and another did")
            }
            count if count <= answers && is_here => ("local", why_here(&self.build)),
            count if count <= answers => ("mesh", "the best of the nodes that serve the model"),
            _ if goes_on => ("mesh", "this node went on with the answer after another was lost"),
            _ => ("mesh", "another node went on with the answer after one was lost"),
        };
        Route {
            kind: kind.to_owned(),
            provider,
            model: self.digest.clone(),
            candidates: charged.candidates,
            reason: reason.to_owned(),
            why: parts.last().map(|part| part.why.clone()).unwrap_or_default(),
            attempts: parts.iter().map(attempt).collect(),
        }
    }
}

fn attempt(part: &Part) -> RouteAttempt {
    let charge = &part.charge;
    RouteAttempt {
        repeated_tokens: if part.repeats { charge.prompt_tokens } else { 0 },
        provider: charge.provider.to_string(),
        trade_id: charge.trade.to_string(),
        trm_cost: charge.amount.into(),
        prompt_tokens: charge.prompt_tokens,
        completion_tokens: charge.completion_tokens,
        ended: charge.ended.clone(),
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
         job's time ran out; only what was delivered is charged",
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
        "the job ended without a word; only what was delivered is charged; the node's log says why",
    )
}

/// No node of the mesh answers, or the mesh's answer broke off.
fn mesh_error(error: &RouteError) -> ApiError {
    match error {
        RouteError::Book(error) => error.clone().into(),
        RouteError::Approval { approval, expires_at, max_amount } => {
            job::approval_required(*approval, expires_at.ms(), *max_amount)
        }
        RouteError::Invalid(Invalid { code, message, param }) => {
            ApiError::of_provider(code, message, param.as_deref())
        }
        RouteError::NoProvider { message } => no_provider(message.clone()),
        RouteError::Lost { .. } => {
            ApiError::server(StatusCode::BAD_GATEWAY, "provider_lost", error.to_string())
        }
    }
}

fn no_provider(message: String) -> ApiError {
    ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "no_provider", message)
        .retry_after(RETRY_AFTER_S)
}

pub(super) fn unknown_model(app: &AppState, model: &str) -> ApiError {
    // A stranger's text goes into the message, so it is kept short.
    let shown: String = model.chars().take(100).collect();
    let all = app.models.all();
    let served: Vec<&str> = all.iter().map(|model| model.info().name.as_str()).collect();
    let message = match served.len() {
        1.. => {
            let served = served.join(", ");
            format!(
                "the model {shown:?} is not served here; nothing was charged; this node serves \
                 {served}"
            )
        }
        0 => format!(
            "the model {shown:?} is not served here, nor by any known node; nothing was charged; \
             GET /v1/models lists what is; serve a model with: tirami start --model NAME, or join \
             a mesh with: tirami join TOKEN"
        ),
    };
    ApiError::not_found("model_not_found", message).param("model")
}

/// The node's own model of this name or digest.
pub(super) fn own(app: &AppState, model: &str) -> Result<Model, ApiError> {
    app.models.find(model).ok_or_else(|| unknown_model(app, model))
}

/// The same, for what needs the model's file: that only others serve it is another refusal.
pub(super) async fn at_hand(app: &AppState, model: &str) -> Result<Model, ApiError> {
    match place::of(app, model, &Preferences::default(), false).await? {
        (Place::Here(model), _) => Ok(model),
        (Place::Mesh(_), _) => Err(elsewhere(model)),
    }
}

fn elsewhere(model: &str) -> ApiError {
    // It is the name or the digest of a model that others offer.
    let message = format!(
        "the model {model:?} is served by other nodes and its file is not at this node, so its \
         tokens cannot be told here; ask a node that has it"
    );
    ApiError::not_found("model_not_here", message).param("model")
}

/// Whether a prompt is prepared at once.
fn is_short(subject: &Subject) -> bool {
    !subject.has_images() && place::tokens_of(subject, 0).0 <= PREPARED_HERE_TOKENS_MAX
}

/// Renders and tokenises, and says how many completion tokens there may be: `asked`, or all the
/// context has room for.
async fn prepare(
    engine: &Lease,
    subject: &Subject,
    asked: Option<u32>,
) -> Result<(Prompt, u32), ApiError> {
    if is_short(subject) {
        return served::prepare(&**engine, subject, asked);
    }
    let (engine, subject) = (engine.clone(), subject.clone());
    // A long text keeps a core busy for a while; no other request may wait for it.
    tokio::task::spawn_blocking(move || served::prepare(&*engine, &subject, asked)).await.map_err(
        |_| {
            let message = "the prompt could not be prepared; the node's log says why";
            ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "prepare_failed", message)
        },
    )?
}

/// The same of a chat.
pub(super) async fn prepare_chat(
    engine: &Lease,
    conversation: Conversation,
    asked: Option<u32>,
) -> Result<(Prompt, u32), ApiError> {
    prepare(engine, &Subject::Chat(conversation), asked).await
}
