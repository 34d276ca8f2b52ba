//! The node's HTTP interface: OpenAI's chat endpoints and Tirami's own, over one table of routes.
//!
//! Handlers ask the kernel through the [`Handle`] and put its words into JSON; no rule is written
//! here. The router is built by walking [`Operation::ALL`], so a route cannot exist without a row
//! of the table, nor a row without a route, nor either without the scope it declares.

mod agents;
mod charter;
mod chat;
mod cors;
mod economy;
mod error;
mod guard;
mod json;
mod keys;
mod length;
mod loaded;
mod mesh;
mod messages;
mod models;
mod names;
mod network;
mod query;
mod refusals;
mod responses;
mod safety;
mod schedule;
mod serve;
mod serving;
mod stall;
mod status;
mod throttle;
mod tokens;
mod transfer;
mod views;
mod wish;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, delete, get, post};
use tirami_core::{AgentId, ModelShape};
use tirami_infer::engine::EngineLoad;
use tirami_sdk::endpoints::Operation;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::handle::Handle;
use crate::keys::KeyDir;
use crate::mesh::Client;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::node::REFERENCE_SHAPE;
use crate::responses::Responses;
use crate::store::StoreReader;
use network::StateSeen;
use throttle::Throttle;

pub(crate) use chat::{
    Asked, Kind, NUMBERS_MAX, READERS_MAX, ToEmbed, bytes_of, payer, understand,
    understand_at_once, vectors_digest,
};
pub(crate) use error::ApiError;
pub use serve::serve;

/// Connections served at the same time, where the system gives as many file descriptors; more
/// wait in the system's queue.
pub const CONNECTIONS_MAX: usize = 4_096;
/// A connection must have sent a request's headers by then.
pub const HEADER_WITHIN: Duration = Duration::from_secs(15);
/// How long a body may take to arrive: a connection that sends none must not be held for ever.
pub const BODY_WITHIN: Duration = Duration::from_secs(30);
/// A client that takes nothing of its answer for so long is taken for gone. So long in all, and
/// longer for each token it took, it may keep an engine waiting that others wait for.
pub const STALL_MAX: Duration = Duration::from_secs(60);

/// A model's name may have slashes that its asker did not encode: what is left of the path is it.
const MODEL_PATH: &str = "/v1/models/{*id}";

/// How the HTTP interface behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Bytes of a request's body at most; a longer one is refused with 413.
    pub body_max_bytes: usize,
    /// Whether the socket is bound to a loopback address. Only then does a caller from this
    /// machine need no API key.
    pub loopback: bool,
    /// Connections served at the same time at most; at least 1.
    pub connections_max: usize,
    /// A connection must have sent a request's headers by then.
    pub header_within: Duration,
    /// How long a request's body may take to arrive.
    pub body_within: Duration,
    /// A client that takes nothing of its answer for so long is taken for gone. So long in all, and
    /// longer for each token it took, it may keep an engine waiting that others wait for.
    pub stall_max: Duration,
    /// Origins whose pages a browser lets call with an API key.
    pub cors_origins: Arc<[String]>,
}

impl HttpConfig {
    /// The production bounds.
    pub fn new(body_max_bytes: usize, loopback: bool) -> Self {
        Self {
            body_max_bytes,
            loopback,
            connections_max: CONNECTIONS_MAX,
            header_within: HEADER_WITHIN,
            body_within: BODY_WITHIN,
            stall_max: STALL_MAX,
            cors_origins: Arc::default(),
        }
    }
}

/// What the HTTP interface needs of the node. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    handle: Handle,
    reader: StoreReader,
    /// The models of this node; none on one that only asks others.
    models: Models,
    /// The way to other nodes' models; none in a mesh of one.
    mesh: Option<Client>,
    config: HttpConfig,
    bodies: json::Intake,
    personal_agent: AgentId,
    keys: KeyDir,
    metrics: Arc<Metrics>,
    throttle: Arc<Throttle>,
    /// Answers that their askers may come back to.
    responses: Responses,
    /// What was last computed over the whole state.
    state_seen: Arc<StateSeen>,
    /// Places for requests whose texts are read into vectors.
    readers: Arc<Semaphore>,
    /// Bundles of agents' keys that are being made or opened.
    bundles: Arc<Semaphore>,
    openapi: Arc<str>,
    /// Everything that spends: one task for each running job.
    jobs: TaskTracker,
    /// Ends all running jobs; each is charged what it delivered.
    cut: CancellationToken,
    started_at_ms: u64,
}

impl AppState {
    /// The interface of a node. `personal_agent` pays for callers on loopback without a key.
    pub(crate) fn new(
        handle: Handle,
        reader: StoreReader,
        (models, mesh): (Models, Option<Client>),
        (personal_agent, keys, responses): (AgentId, KeyDir, Responses),
        metrics: Arc<Metrics>,
        config: HttpConfig,
    ) -> Self {
        // The document is built from tables of this program; it always serialises.
        let openapi = tirami_sdk::openapi::document().to_json().unwrap_or_default();
        Self {
            handle,
            reader,
            models,
            mesh,
            config,
            bodies: json::Intake::new(),
            personal_agent,
            keys,
            metrics,
            throttle: Arc::default(),
            responses,
            state_seen: Arc::default(),
            readers: Arc::new(Semaphore::new(chat::READERS_MAX)),
            bundles: Arc::new(Semaphore::new(1)),
            openapi: openapi.into(),
            jobs: TaskTracker::new(),
            cut: CancellationToken::new(),
            started_at_ms: views::now_ms(),
        }
    }

    /// The shape that figures are shown in: of the first model here, else the reference.
    fn shape(&self) -> ModelShape {
        self.models.first().map_or(REFERENCE_SHAPE, |model| model.info().shape)
    }

    fn load(&self) -> EngineLoad {
        self.models.load()
    }
}

/// The router of all operations. Connections must carry their peer's address as [`serve`] gives
/// it; without it a caller counts as one from another machine.
pub fn router(app: AppState) -> Router {
    let mut router = Router::new();
    for operation in Operation::ALL {
        let gate = from_fn_with_state((app.clone(), *operation), guard::gate);
        let path = match operation {
            Operation::Model => MODEL_PATH,
            _ => operation.endpoint().path,
        };
        router = router.route(path, handler(*operation).route_layer(gate));
    }
    let origins = app.config.cors_origins.clone();
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
        .layer(from_fn_with_state(origins, cors::share))
        .layer(from_fn(guard::name_request))
}

/// The handler of each row. The compiler sees to it that every row has one.
fn handler(operation: Operation) -> MethodRouter<AppState> {
    match operation {
        Operation::Health => get(status::health),
        Operation::Healthz => get(status::healthz),
        Operation::Readyz => get(status::readyz),
        Operation::OpenApi => get(status::openapi),
        Operation::Home | Operation::Docs | Operation::DocsFolder => get(status::docs),
        Operation::DocsFile => get(status::docs_file),
        Operation::Metrics => get(status::metrics),
        Operation::Models => get(models::models),
        Operation::Model => get(models::model),
        Operation::ModelStates => get(loaded::states),
        Operation::LoadModel => post(loaded::load),
        Operation::UnloadModel => post(loaded::unload),
        Operation::Chat => post(chat::chat),
        Operation::Completions => post(chat::complete),
        Operation::Messages => post(messages::messages),
        Operation::CountTokens => post(messages::count_tokens),
        Operation::Responses => post(responses::create),
        Operation::Response => get(responses::get),
        Operation::DeleteResponse => delete(responses::delete),
        Operation::ResponseInputItems => get(responses::input_items),
        Operation::Embeddings => post(chat::embeddings),
        Operation::Tokenize => post(tokens::tokenize),
        Operation::Detokenize => post(tokens::detokenize),
        Operation::Balance => get(economy::balance),
        Operation::Pricing => get(economy::pricing),
        Operation::Trades => get(economy::trades),
        Operation::Trade => get(economy::trade),
        Operation::Network => get(network::network),
        Operation::Peers => get(mesh::peers),
        Operation::Refusals => get(refusals::refusals),
        Operation::Providers => get(mesh::providers),
        Operation::Topology => get(mesh::topology),
        Operation::Protocol => get(mesh::protocol),
        Operation::Schedule => post(schedule::schedule),
        Operation::BestRoute => get(schedule::route),
        Operation::Transfer => post(transfer::transfer),
        Operation::MeshInvite => post(charter::invite),
        Operation::MeshJoin => post(charter::join),
        Operation::MeshCharter => get(charter::charter),
        Operation::ApproveCharter => post(charter::approve),
        Operation::ChangeWitnesses => post(charter::change_witnesses),
        Operation::Sponsor => post(charter::sponsor),
        Operation::Enrol => post(charter::enrol),
        Operation::Pause => post(serving::pause),
        Operation::Resume => post(serving::resume),
        Operation::Serving => get(serving::serving),
        Operation::ChangeServing => post(serving::change),
        Operation::Safety => get(safety::safety),
        Operation::Status => get(status::status),
        Operation::Estimate => post(economy::estimate),
        Operation::Agents => get(agents::list),
        Operation::CreateAgent => post(agents::create),
        Operation::FundAgent => post(agents::fund),
        Operation::ExportAgent => post(agents::export),
        Operation::ImportAgent => post(agents::import),
        Operation::ResetBreaker => post(safety::reset_breaker),
        Operation::Kill => post(safety::kill),
        Operation::Policy => post(safety::policy),
        Operation::Approvals => get(safety::approvals),
        Operation::DecideApproval => post(safety::decide_approval),
        Operation::Keys => get(keys::list),
        Operation::CreateKey => post(keys::create),
        Operation::RotateKey => post(keys::rotate),
        Operation::RevokeKey => delete(keys::revoke),
    }
}

async fn unknown_path(uri: axum::http::Uri) -> ApiError {
    ApiError::not_found(
        "unknown_path",
        format!("there is nothing at {}; GET /openapi.json lists what there is", uri.path()),
    )
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request_error",
        "method_not_allowed",
        format!("{method} is not for {}; the Allow header names what is", uri.path()),
    )
}

/// `N` random bytes as hexadecimal text. Zeros when the system has no randomness: what needs to
/// be secret or unique is drawn with [`crate::keys::random`] and its error.
fn random_hex<const N: usize>() -> String {
    let bytes = crate::keys::random::<N>().unwrap_or([0; N]);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
