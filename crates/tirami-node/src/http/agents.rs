//! Agents: making, funding, and moving them in and out.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tirami_core::{AgentId, SecretKey, Timestamp, Trm};
use tirami_kernel::Kernel;
use tirami_ledger::Rejection;
use tirami_ledger::book::{NAME_MAX_CHARS, Target};
use tirami_ledger::command::Command;
use tirami_sdk::SignedAmount;
use tirami_sdk::types::{
    Agent, AgentList, Bundle, CreateAgent, ExportAgent, FundAgent, ImportAgent,
};

use super::economy::unknown_agent;
use super::error::ApiError;
use super::guard::Caller;
use super::query::Segment;
use super::views::{self, AnswerCost};
use super::{AppState, json, query};
use crate::bundle::{self, BundleError};
use crate::handle::SubmitError;
use crate::keys::KeyFileError;

pub(super) async fn list(
    State(app): State<AppState>,
    caller: Caller,
) -> Result<Response, ApiError> {
    let only = caller.confined_to();
    let view = View::of(&app);
    let agents: Vec<Agent> = app
        .handle
        .read(move |kernel, now| {
            let agents = kernel.ledger().book().agents().keys();
            let shown = agents.filter(|agent| only.is_none_or(|only| only == **agent));
            shown.filter_map(|agent| view.agent(kernel, now, *agent)).collect()
        })
        .await?;
    Ok(json::ok(&AgentList { count: agents.len() as u64, agents }))
}

pub(super) async fn create(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: CreateAgent = json::read(request, &app).await?;
    check_name(&asked.name)?;
    let key = crate::keys::new_key().map_err(key_trouble)?;
    let agent = adopt(&app, &caller, key, asked.name).await?;
    if let Some(limits) = &asked.limits {
        let limits = views::ledger_limits(limits);
        let command = Command::SetLimits { target: Target::Agent(agent), limits };
        let set = app.handle.submit(caller.actor(), command).await;
        set.map_err(|error| made(error, agent, false))?;
    }
    if let Some(fund) = asked.fund_trm.filter(|fund| !fund.trm().is_zero()) {
        let command = Command::FundAgent { agent, amount: fund.trm() };
        let funded = app.handle.submit(caller.actor(), command).await;
        funded.map_err(|error| made(error, agent, true))?;
    }
    show(&app, agent).await
}

/// Says that the agent was made, and stays, although not all that was asked for with it came about.
fn made(error: SubmitError, agent: AgentId, has_limits: bool) -> ApiError {
    let did = agent.did();
    let told = if has_limits {
        format!("; the agent was made without TRM: `tirami agents fund {did} AMOUNT` gives it some")
    } else {
        format!(
            "; the agent was made without limits and without TRM: `tirami policy set {did}` sets \
             limits, `tirami agents fund {did} AMOUNT` gives it TRM"
        )
    };
    ApiError::from(error).add(&told)
}

/// Keeps the key durably, gives it to the kernel, then opens the account: an account whose key
/// is lost could never sign an order.
async fn adopt(
    app: &AppState,
    caller: &Caller,
    key: SecretKey,
    name: String,
) -> Result<AgentId, ApiError> {
    let agent = key.public().agent();
    check_free(app, agent, &name).await?;
    let (keys, kept) = (app.keys.clone(), key.clone());
    blocking(move || keys.keep_agent(&kept)).await?.map_err(key_trouble)?;
    app.handle.add_agent_key(key).await?;
    app.handle.submit(caller.actor(), Command::CreateAgent { agent, name }).await?;
    Ok(agent)
}

/// People name agents by their names, so one name is one agent's. An agent that has its account
/// here already is refused for that.
async fn check_free(app: &AppState, agent: AgentId, name: &str) -> Result<(), ApiError> {
    let wanted = name.to_owned();
    let read = move |kernel: &Kernel, _| {
        let agents = kernel.ledger().book().agents();
        let taken = agents.iter().find(|(_, account)| account.name() == wanted);
        taken.map(|(taken, _)| *taken).filter(|_| !agents.contains_key(&agent))
    };
    let Some(taken) = app.handle.read(read).await? else {
        return Ok(());
    };
    let message = format!(
        "the name {name:?} is taken by {}; nothing was made; choose another name",
        taken.did()
    );
    Err(ApiError::new(StatusCode::CONFLICT, "conflict_error", "exists", message).param("name"))
}

pub(super) async fn fund(
    State(app): State<AppState>,
    caller: Caller,
    Segment(did): Segment,
    request: Request,
) -> Result<Response, ApiError> {
    let agent = query::agent("did", &did)?;
    let asked: FundAgent = json::read(request, &app).await?;
    let command = match asked.amount_trm.micro() {
        0 => {
            let message = "amount_trm must not be 0: above 0 it moves TRM to the agent, below 0 \
                           back to the node";
            return Err(ApiError::invalid("amount_trm", message));
        }
        micro => {
            let amount = u64::try_from(micro.unsigned_abs()).map(Trm::from_micro);
            let amount = amount.map_err(|_| {
                let most = Trm::MAX;
                let message = format!("amount_trm must be from -{most} to {most} TRM");
                ApiError::invalid("amount_trm", message)
            })?;
            if micro < 0 {
                Command::DefundAgent { agent, amount }
            } else {
                Command::FundAgent { agent, amount }
            }
        }
    };
    let is_back = asked.amount_trm.micro() < 0;
    match app.handle.submit(caller.actor(), command).await {
        Ok(_) => show(&app, agent).await,
        Err(error) => Err(fund_refusal(asked.amount_trm, is_back, error)),
    }
}

/// Says on whose side the TRM are missing, with the sign the request had.
fn fund_refusal(asked: SignedAmount, is_back: bool, error: SubmitError) -> ApiError {
    let SubmitError::Rejected(Rejection::Insufficient { available, .. }) = &error else {
        return error.into();
    };
    let message = if is_back {
        format!(
            "{asked} TRM were asked back and the agent has {available} TRM beside its holds; \
             amount_trm must be at least {}",
            SignedAmount::from_micro(-available.signed())
        )
    } else {
        format!(
            "{asked} TRM were asked for and the node's account can give {available} TRM; \
             amount_trm must be at most {available}"
        )
    };
    ApiError::from(error).reworded(message).param("amount_trm")
}

pub(super) async fn export(
    State(app): State<AppState>,
    Segment(did): Segment,
    request: Request,
) -> Result<Response, ApiError> {
    let agent = query::agent("did", &did)?;
    let asked: ExportAgent = json::read(request, &app).await?;
    let name = app
        .handle
        .read(move |kernel, _| {
            let account = kernel.ledger().book().agents().get(&agent)?;
            Some(account.name().to_owned())
        })
        .await?
        .ok_or_else(unknown_agent)?;
    let _turn = turn(&app).await?;
    let keys = app.keys.clone();
    let bundle = blocking(move || -> Result<Bundle, ApiError> {
        let key = keys.agent(agent).map_err(key_trouble)?.ok_or_else(unknown_agent)?;
        bundle::seal(&key, &name, &asked.passphrase).map_err(bundle_trouble)
    })
    .await??;
    Ok(json::ok(&bundle))
}

pub(super) async fn import(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: ImportAgent = json::read(request, &app).await?;
    let name = asked.name.unwrap_or_else(|| asked.bundle.name.clone());
    check_name(&name)?;
    let turn = turn(&app).await?;
    let key = blocking(move || bundle::open(&asked.bundle, &asked.passphrase)).await?;
    drop(turn);
    let key = key.map_err(bundle_trouble)?;
    let agent = match restore(&app, &key).await? {
        true => key.public().agent(),
        false => adopt(&app, &caller, key, name).await?,
    };
    show(&app, agent).await
}

/// Gives an agent that has an account here its lost key back; `false` when it has lost none.
async fn restore(app: &AppState, key: &SecretKey) -> Result<bool, ApiError> {
    let agent = key.public().agent();
    let known = move |kernel: &Kernel, _| kernel.ledger().book().agents().contains_key(&agent);
    if !app.handle.read(known).await? {
        return Ok(false);
    }
    let (keys, kept) = (app.keys.clone(), key.clone());
    let is_lost = blocking(move || match keys.agent(agent)? {
        Some(_) => Ok(false),
        None => keys.keep_agent(&kept).map(|()| true),
    });
    if !is_lost.await?.map_err(key_trouble)? {
        return Ok(false);
    }
    app.handle.add_agent_key(key.clone()).await?;
    Ok(true)
}

/// Turning a passphrase into a key takes much memory on purpose; one at a time may.
async fn turn(app: &AppState) -> Result<tokio::sync::OwnedSemaphorePermit, ApiError> {
    app.bundles.clone().try_acquire_owned().map_err(|_| {
        ApiError::too_many(
            "busy",
            1,
            "another bundle is being made or opened; try again in a second",
        )
    })
}

async fn show(app: &AppState, agent: AgentId) -> Result<Response, ApiError> {
    let view = View::of(app);
    let shown = app.handle.read(move |kernel, now| view.agent(kernel, now, agent)).await?;
    shown.map(|agent| json::ok(&agent)).ok_or_else(unknown_agent)
}

/// What is needed to show an agent.
#[derive(Clone, Copy)]
struct View {
    personal: AgentId,
    shape: tirami_core::ModelShape,
}

impl View {
    fn of(app: &AppState) -> Self {
        Self { personal: app.personal_agent, shape: app.shape() }
    }

    fn agent(self, kernel: &Kernel, now: Timestamp, agent: AgentId) -> Option<Agent> {
        let book = kernel.ledger().book();
        let account = book.agents().get(&agent)?;
        let answer = AnswerCost::new(&self.shape, book.price());
        Some(Agent {
            did: agent.did(),
            name: account.name().to_owned(),
            personal: agent == self.personal,
            balance_trm: account.balance().into(),
            reserved_trm: account.held().into(),
            available_trm: account.available().into(),
            available_answers: answer.answers(account.available()),
            spending: views::spending(&book.usage(Target::Agent(agent), now)?),
            limits: answer.limits(account.limits()),
            breaker_open_until_ms: views::ms(account.breaker_open_until(now)),
        })
    }
}

/// Checked before the key is written, so that a wrong name leaves no file behind.
fn check_name(name: &str) -> Result<(), ApiError> {
    if (1..=NAME_MAX_CHARS).contains(&name.chars().count()) {
        return Ok(());
    }
    Err(ApiError::invalid("name", format!("name must have 1 to {NAME_MAX_CHARS} characters")))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        let message = "the node failed while working on keys; its log says why";
        ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    })
}

fn key_trouble(error: KeyFileError) -> ApiError {
    ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "key_file", error.to_string())
}

fn bundle_trouble(error: BundleError) -> ApiError {
    match &error {
        BundleError::Passphrase => ApiError::invalid("passphrase", error.to_string()),
        BundleError::Random => {
            ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "no_randomness", error.to_string())
        }
        BundleError::Unusable | BundleError::Parameters { .. } => {
            ApiError::invalid("bundle", error.to_string())
        }
    }
}
