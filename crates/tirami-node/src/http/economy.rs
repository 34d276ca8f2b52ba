//! Balances, prices, trades, the mesh's totals, and quotes.

use axum::extract::{Request, State};
use axum::response::Response;
use data_encoding::HEXLOWER;
use serde_json::{Map, Value};
use tirami_core::{Digest, DocumentId, JobId, PublicKey, Trm};
use tirami_kernel::Kernel;
use tirami_ledger::book::{Target, Terms};
use tirami_ledger::command::StartJob;
use tirami_ledger::event::{DocumentKind, DocumentRecord};
use tirami_sdk::SignedAmount;
use tirami_sdk::types::{Balance, Estimate, Pricing, SignedDocument, TradeDetail, TradeList};

use super::error::ApiError;
use super::guard::Caller;
use super::query::{Asked, Parameters, Segment};
use super::views::{self, AnswerCost};
use super::{AppState, chat, json, length};
use crate::store::{self, TRADES_PAGE_MAX, TradeFilter};

/// Trades of a page when nobody says how many.
const TRADES_PAGE: u32 = 50;

pub(super) async fn balance(
    State(app): State<AppState>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let subject = caller.subject(parameters.account()?)?;
    let shape = app.shape();
    let read = move |kernel: &Kernel, now| {
        let ledger = kernel.ledger();
        let book = ledger.book();
        let answer = AnswerCost::new(&shape, book.price());
        let node_id = ledger.party().to_string();
        let Some(agent) = subject else {
            let available = ledger.fundable();
            return Some(Balance {
                node_id,
                agent: None,
                contributed: book.charged_total().into(),
                consumed: Trm::ZERO.into(),
                reserved: Trm::ZERO.into(),
                net_balance: SignedAmount::from_micro(ledger.own_balance()),
                effective_balance: available.into(),
                effective_balance_micro: available.micro().to_string(),
                effective_balance_answers: answer.answers(available),
            });
        };
        let account = book.agents().get(&agent)?;
        let usage = book.usage(Target::Agent(agent), now)?;
        let available = account.available();
        Some(Balance {
            node_id,
            agent: Some(agent.did()),
            contributed: Trm::ZERO.into(),
            consumed: usage.lifetime.saturating_sub(account.held()).into(),
            reserved: account.held().into(),
            net_balance: SignedAmount::from_micro(account.balance().signed()),
            effective_balance: available.into(),
            effective_balance_micro: available.micro().to_string(),
            effective_balance_answers: answer.answers(available),
        })
    };
    let balance = app.handle.read(read).await?;
    balance.map(|balance| json::ok(&balance)).ok_or_else(unknown_agent)
}

pub(super) async fn pricing(State(app): State<AppState>) -> Result<Response, ApiError> {
    let (price, trades) = app
        .handle
        .read(|kernel, _| {
            let book = kernel.ledger().book();
            (book.price(), book.jobs_charged())
        })
        .await?;
    let shape = app.shape();
    let cost = |tokens| shape.work(0, tokens).cost_ceil(price).into();
    let token = tirami_core::Flop::new(shape.parameters_active.saturating_mul(2));
    let model = app.models.first().map(|model| model.info().name.clone());
    Ok(json::ok(&Pricing {
        model: model.unwrap_or_default(),
        price_ppm: price.get(),
        flops_per_token: token.get(),
        trm_per_token: token.cost_ceil(price).into(),
        estimated_cost_100_tokens: cost(100),
        estimated_cost_1000_tokens: cost(1_000),
        total_trades_ever: trades,
    }))
}

pub(super) async fn trades(
    State(app): State<AppState>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    // Without a word, whoever may see all trades sees all; all of them are the node's.
    let agent = match parameters.account()? {
        Asked::Nobody => caller.confined_to(),
        asked => caller.subject(asked)?,
    };
    let limit = parameters.number::<u32>("limit")?.unwrap_or(TRADES_PAGE);
    if !(1..=TRADES_PAGE_MAX).contains(&limit) {
        let message = format!("limit must be a whole number from 1 to {TRADES_PAGE_MAX}");
        return Err(ApiError::invalid("limit", message));
    }
    let before = parameters.number::<i64>("before")?;
    let page = app.reader.trades(TradeFilter { agent, before, limit }).await.map_err(unreadable)?;
    Ok(json::ok(&TradeList {
        count: page.items.len() as u64,
        trades: page.items.iter().map(views::trade).collect(),
        next: page.next,
    }))
}

pub(super) async fn trade(
    State(app): State<AppState>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::not_found("unknown_trade", format!("there is no trade {id:.64}"));
    let document: DocumentId = id.parse().map_err(|_| unknown())?;
    let found = app.reader.trade(document).await.map_err(unreadable)?.ok_or_else(unknown)?;
    if caller.confined_to().is_some_and(|agent| agent != found.row.payer) {
        return Err(unknown());
    }
    let provider_key = provider_key(&app, &found).await?;
    let detail = detail(&app, &found, provider_key).ok_or_else(|| {
        ApiError::server(
            axum::http::StatusCode::INTERNAL_SERVER_ERROR,
            "incomplete_trade",
            "the trade's order is not in the store; run `tirami doctor`",
        )
    })?;
    Ok(json::ok(&detail))
}

/// The key that signs for the provider now; a chain's key may have been changed.
async fn provider_key(app: &AppState, found: &store::TradeDetail) -> Result<PublicKey, ApiError> {
    let provider = found.row.provider;
    let key = app
        .handle
        .read(move |kernel, _| kernel.ledger().lattice().chain(provider).map(|chain| chain.key()))
        .await?;
    Ok(key.unwrap_or_else(|| PublicKey::from(provider)))
}

fn detail(
    app: &AppState,
    found: &store::TradeDetail,
    provider_key: PublicKey,
) -> Option<TradeDetail> {
    let newest = |kind: DocumentKind| {
        found.documents.iter().rev().find(|record| record.kind == kind).map(document)
    };
    let mut detail = TradeDetail {
        trade: views::trade(&found.row),
        mesh_id: app.handle.mesh().to_string(),
        consumer_key: PublicKey::from(found.row.consumer).to_string(),
        provider_key: provider_key.to_string(),
        order: newest(DocumentKind::Order)?,
        receipt: newest(DocumentKind::Receipt),
        voucher: newest(DocumentKind::Voucher),
        verified: false,
        problem: None,
    };
    match tirami_sdk::verify_trade(&detail) {
        Ok(_) => detail.verified = true,
        Err(error) => detail.problem = Some(error.to_string()),
    }
    Some(detail)
}

fn document(record: &DocumentRecord) -> SignedDocument {
    SignedDocument {
        id: record.id.to_string(),
        kind: match record.kind {
            DocumentKind::Order => "order",
            DocumentKind::Voucher => "voucher",
            DocumentKind::Receipt => "receipt",
            DocumentKind::Claim => "claim",
        }
        .to_owned(),
        body: HEXLOWER.encode(&record.bytes),
        signature: record.signature.to_string(),
    }
}

pub(super) async fn estimate(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let fields: Map<String, Value> = json::read(request, &app).await?;
    let model = match fields.get("model") {
        None | Some(Value::Null) => {
            app.models.first().ok_or_else(|| chat::unknown_model(&app, ""))?
        }
        Some(Value::String(model)) => chat::own(&app, model)?,
        Some(_) => return Err(ApiError::invalid("model", "model must be a name as text")),
    };
    let asked = chat::number(&fields, "max_completion_tokens", 1, u32::MAX)?.or(chat::number(
        &fields,
        "max_tokens",
        1,
        u32::MAX,
    )?);
    let conversation = chat::conversation(&fields)?;
    let engine = app.models.lease(&model, None).await?;
    let (prompt, room) = chat::prepare_chat(&engine, conversation, asked)
        .await
        .map_err(|error| length::called(error, length::field(chat::Kind::Chat, &fields)))?;
    let model = engine.model();
    let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
    let start = StartJob {
        job: JobId::from_bytes([0; 16]),
        model: model.digest,
        shape: model.shape,
        request: Digest::of(b""),
        seed: 0,
        prompt_tokens,
        completion_max: room,
        continues: None,
    };
    let answers = chat::number(&fields, "n", 1, chat::CHOICES_MAX)?.unwrap_or(1);
    let (payer, is_named) = (chat::payer(&caller.actor()), asked.is_some());
    let read = move |kernel: &Kernel, now| {
        let book = kernel.ledger().book();
        let terms = Terms::own(book.price());
        let account = payer.and_then(|payer| book.agents().get(&payer.agent));
        let completion_max = match payer {
            Some(payer) if !is_named => {
                let longest = start.completion_max.saturating_mul(answers);
                let together = StartJob { completion_max: longest, ..start.clone() };
                let share = book.affordable(now, payer, &together, &terms) / answers;
                share.clamp(1, start.completion_max)
            }
            _ => start.completion_max,
        };
        let start = StartJob { completion_max, ..start };
        let all = (&terms, answers);
        let runs = payer.is_some_and(|payer| book.would_open_all(now, payer, &start, all));
        (book.price(), account.map(|account| account.available()), completion_max, runs)
    };
    let (price, available, completion_max, affordable) = app.handle.read(read).await?;
    let work = model.shape.work(0, prompt_tokens.saturating_add(completion_max));
    let times = |one: Trm| Trm::from_micro(one.micro().saturating_mul(u64::from(answers)));
    let max_cost = times(work.cost_ceil(price));
    let hundred = model.shape.work(prompt_tokens, 100).cost_ceil(price);
    let answer = AnswerCost::of(&app, price);
    Ok(json::ok(&Estimate {
        model: model.name.clone(),
        prompt_tokens,
        completion_max,
        n: answers,
        max_flops: work.get().saturating_mul(u64::from(answers)),
        max_cost_trm: max_cost.into(),
        max_cost_answers: answer.fraction(max_cost),
        prompt_cost_trm: times(model.shape.work(0, prompt_tokens).cost_ceil(price)).into(),
        cost_per_100_tokens_trm: hundred.into(),
        cost_per_100_tokens_answers: answer.fraction(hundred),
        available_trm: available.map(Into::into),
        affordable,
    }))
}

pub(super) fn unknown_agent() -> ApiError {
    ApiError::not_found("unknown_agent", "there is no such agent; GET /v1/tirami/agents lists them")
}

fn unreadable(error: store::StoreError) -> ApiError {
    ApiError::server(
        axum::http::StatusCode::SERVICE_UNAVAILABLE,
        "store_unreadable",
        format!("the store could not be read: {error}"),
    )
}
