//! Limits, approvals, circuit breakers and the kill switch.

use axum::extract::{Request, State};
use axum::response::Response;
use tirami_core::Timestamp;
use tirami_kernel::Kernel;
use tirami_ledger::book::{self, ApprovalId, ApprovalState, KeyId, Target};
use tirami_ledger::command::Command;
use tirami_sdk::types::{
    Approval, ApprovalDecision, ApprovalList, Done, KillRequest, KillStatus, PolicyRequest,
    PolicyStatus, Safety,
};

use super::economy::unknown_agent;
use super::error::ApiError;
use super::guard::Caller;
use super::query::{self, Parameters, Segment};
use super::views::{self, AnswerCost};
use super::{AppState, json};

pub(super) async fn safety(
    State(app): State<AppState>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let subject = caller.subject(parameters.account()?)?;
    let shape = app.shape();
    let read = move |kernel: &Kernel, now: Timestamp| {
        let book = kernel.ledger().book();
        let answer = AnswerCost::new(&shape, book.price());
        let account = match subject {
            Some(agent) => Some(book.agents().get(&agent)?),
            None => None,
        };
        let open_until = account.and_then(|account| account.breaker_open_until(now));
        let usage = subject.and_then(|agent| book.usage(Target::Agent(agent), now));
        Some(Safety {
            kill_switch_active: book.kill().is_some(),
            kill_switch_reason: book.kill().map(|kill| kill.reason.clone()),
            kill_switch_since_ms: book.kill().map(|kill| kill.since.ms()),
            agent: subject.map(|agent| agent.did()),
            circuit_tripped: open_until.is_some(),
            circuit_open_until_ms: views::ms(open_until),
            policy: account.map(|account| answer.limits(account.limits())),
            spending: usage.map(|usage| views::spending(&usage)),
            node_policy: answer.limits(book.limits(Target::Node)?),
            node_spending: views::spending(&book.usage(Target::Node, now)?),
            approvals_waiting: waiting(kernel, now),
            answer_trm: answer.trm().into(),
        })
    };
    let safety = app.handle.read(read).await?;
    safety.map(|safety| json::ok(&safety)).ok_or_else(unknown_agent)
}

/// Approvals nobody has answered yet and that have not lapsed.
pub(super) fn waiting(kernel: &Kernel, now: Timestamp) -> u64 {
    let approvals = kernel.ledger().book().approvals().values();
    approvals.filter(|approval| state(approval, now) == WAITING).count() as u64
}

const WAITING: &str = "waiting";

/// How an approval stands. One that lapsed is in the queue until the next tick.
fn state(approval: &book::Approval, now: Timestamp) -> &'static str {
    match approval.state {
        _ if approval.expires_at <= now => "lapsed",
        ApprovalState::Waiting => WAITING,
        ApprovalState::Approved => "approved",
        ApprovalState::Denied => "denied",
    }
}

pub(super) async fn kill(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: KillRequest = json::read(request, &app).await?;
    let reason = asked.reason.unwrap_or_default();
    let command = Command::SetKill { on: asked.activate, reason: reason.clone() };
    app.handle.submit(caller.actor(), command).await?;
    tracing::warn!(on = asked.activate, reason, "the kill switch was turned");
    Ok(json::ok(&KillStatus { kill_switch_active: asked.activate, reason }))
}

pub(super) async fn policy(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: PolicyRequest = json::read(request, &app).await?;
    let target = target(&asked.target)?;
    let limits = views::ledger_limits(&asked.limits);
    app.handle.submit(caller.actor(), Command::SetLimits { target, limits }).await?;
    let shape = app.shape();
    let policy = app
        .handle
        .read(move |kernel, _| {
            let book = kernel.ledger().book();
            AnswerCost::new(&shape, book.price()).limits(book.limits(target).unwrap_or(&limits))
        })
        .await?;
    Ok(json::ok(&PolicyStatus { target: asked.target, policy }))
}

fn target(text: &str) -> Result<Target, ApiError> {
    if text == "node" {
        return Ok(Target::Node);
    }
    if text.starts_with("did:") {
        return query::agent("target", text).map(Target::Agent);
    }
    key_id(text).map(Target::Key).map_err(|_| {
        ApiError::invalid("target", "target must be node, an agent's DID, or an API key's name")
    })
}

/// Reads the name of an API key, eight hexadecimal characters.
pub(super) fn key_id(text: &str) -> Result<KeyId, ApiError> {
    let wrong = || {
        let message = "an API key is named by the eight characters after tirami_";
        ApiError::not_found("unknown_key", message)
    };
    if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

pub(super) async fn approvals(
    State(app): State<AppState>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let all = parameters.choice("state", [WAITING, "all"])? == Some("all");
    let read = move |kernel: &Kernel, now| {
        let queue = kernel.ledger().book().approvals().iter();
        let shown = queue.filter(|(_, approval)| all || state(approval, now) == WAITING);
        shown
            .map(|(id, approval)| Approval {
                id: id.get(),
                agent: approval.agent.did(),
                key: approval.key.map(|key| key.to_string()),
                request: approval.request.to_string(),
                max_amount_trm: approval.max_amount.into(),
                state: state(approval, now).to_owned(),
                asked_at_ms: approval.at.ms(),
                expires_at_ms: approval.expires_at.ms(),
            })
            .collect()
    };
    let approvals: Vec<Approval> = app.handle.read(read).await?;
    Ok(json::ok(&ApprovalList { count: approvals.len() as u64, approvals }))
}

pub(super) async fn decide_approval(
    State(app): State<AppState>,
    caller: Caller,
    Segment(id): Segment,
    request: Request,
) -> Result<Response, ApiError> {
    let id: u64 = id.parse().map_err(|_| {
        ApiError::not_found("unknown_approval", "an approval is named by a whole number")
    })?;
    let asked: ApprovalDecision = json::read(request, &app).await?;
    let approval = ApprovalId::new(id);
    let command = Command::DecideApproval { approval, approve: asked.approve };
    app.handle.submit(caller.actor(), command).await?;
    Ok(json::ok(&Done { ok: true }))
}

pub(super) async fn reset_breaker(
    State(app): State<AppState>,
    caller: Caller,
    Segment(did): Segment,
) -> Result<Response, ApiError> {
    let agent = query::agent("did", &did)?;
    app.handle.submit(caller.actor(), Command::ResetBreaker { agent }).await?;
    Ok(json::ok(&Done { ok: true }))
}
