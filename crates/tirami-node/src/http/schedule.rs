//! Who would answer: the choice of a provider, without a request.

use std::collections::BTreeSet;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};
use tirami_core::{ModelDigest, ModelShape, Timestamp};
use tirami_kernel::Kernel;
use tirami_kernel::scheduler::{Candidate, NO_DICE, Preferences, Query};
use tirami_sdk::types::{
    BestRoute, Schedule, ScheduleCandidate, ScheduleExclusion, ScheduleRequest,
};

use super::error::ApiError;
use super::query::Parameters;
use super::{AppState, chat, json, mesh, wish};

/// Tokens of an answer when nobody says how many.
const ANSWER_TOKENS: u32 = tirami_sdk::types::ANSWER_TOKENS;
/// The best score there is.
const SCORE_MAX: u64 = 1_000_000;

pub(super) async fn schedule(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields: Map<String, Value> = json::read(request, &app).await?;
    let wish = wish::read(&fields)?;
    fields.remove("provider");
    let asked: ScheduleRequest = json::value(Value::Object(fields))?;
    let tokens =
        (asked.prompt_tokens.unwrap_or_default(), asked.max_tokens.unwrap_or(ANSWER_TOKENS));
    Ok(json::ok(&plan(&app, asked.model_id, wish, tokens).await?))
}

pub(super) async fn route(
    State(app): State<AppState>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let sort = parameters.text("sort").map(|sort| wish::sort_of("sort", Some(sort))).transpose()?;
    let tokens = parameters.number("max_tokens")?.unwrap_or(ANSWER_TOKENS);
    let max: Option<tirami_sdk::Amount> = match parameters.text("max_trm") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::invalid("max_trm", "max_trm must be an amount of TRM, such as 0.5")
        })?),
    };
    let wish = Preferences { sort, ..Preferences::default() };
    let model = parameters.text("model").map(str::to_owned);
    let plan = plan(&app, model, wish, (0, tokens)).await?;
    let best = routes(&plan).find(|route| max.is_none_or(|max| route.estimated_trm <= max));
    best.map(|route| json::ok(&route)).ok_or_else(|| {
        no_provider("no provider answers for so little; raise max_trm or lower max_tokens".into())
    })
}

/// This node first when it would be taken, then the others.
fn routes(plan: &Schedule) -> impl Iterator<Item = BestRoute> {
    let route = |provider: &str, estimated_trm, score, why| BestRoute {
        provider: provider.to_owned(),
        model: plan.model.clone(),
        model_id: plan.model_id.clone(),
        estimated_trm,
        score,
        why,
    };
    let here = (plan.kind == LOCAL).then(|| {
        let why = vec!["served by this node".to_owned()];
        route(&plan.provider, plan.estimated_trm_cost, SCORE_MAX, why)
    });
    let others = plan
        .candidates
        .iter()
        .map(move |one| route(&one.provider, one.estimated_trm_cost, one.score, one.why.clone()));
    here.into_iter().chain(others)
}

const LOCAL: &str = "local";

/// A model that somebody serves.
struct Found {
    model: ModelDigest,
    name: String,
    shape: ModelShape,
    /// Whether this node has it.
    is_own: bool,
    /// Whether this node would answer itself, and whether it may when no other one does.
    here: bool,
    may: bool,
}

async fn plan(
    app: &AppState,
    model: Option<String>,
    wish: Preferences,
    (prompt_tokens, max_tokens): (u32, u32),
) -> Result<Schedule, ApiError> {
    let own = model.as_deref().map_or_else(|| app.models.first(), |name| app.models.find(name));
    let own = own.map(|model| {
        let model = model.info();
        (model.digest, model.name.clone(), model.shape, model.quantisation.clone())
    });
    let has_mesh = app.mesh.is_some();
    let found = app.handle.read(move |kernel, now| {
        let found = find(kernel, now, model.as_deref(), own, (&wish, has_mesh))?;
        let query = Query {
            model: found.model,
            shape: found.is_own.then_some(found.shape),
            prompt_tokens,
            completion_tokens: max_tokens,
            prefixes: Vec::new(),
            tried: BTreeSet::new(),
            preferences: wish,
        };
        Ok::<_, ApiError>((found, query))
    });
    let (mut found, query) = found.await??;
    found.here = found.here && !chat::is_sooner_elsewhere(app, query.clone()).await?;
    let plan = app.handle.read(move |kernel, now| {
        let ranking = kernel.rank(&query, now, NO_DICE);
        let candidates: Vec<_> = ranking.candidates.iter().map(candidate).collect();
        let first = candidates.first().filter(|_| !found.here);
        let (kind, provider, estimated) = match first {
            None if found.may => {
                let cost = query.work(found.shape).cost_ceil(kernel.ledger().book().price());
                (LOCAL, kernel.ledger().party().to_string(), cost.into())
            }
            Some(first) => ("mesh", first.provider.clone(), first.estimated_trm_cost),
            None => return Err(no_provider(ranking.refusal())),
        };
        let excluded = ranking.excluded.iter();
        Ok(Schedule {
            provider,
            kind: kind.to_owned(),
            model: found.name,
            model_id: found.model.to_string(),
            estimated_trm_cost: estimated,
            prompt_tokens,
            max_tokens,
            candidates,
            asked: ranking.asked,
            excluded: excluded
                .map(|(why, count)| ScheduleExclusion { reason: why.to_string(), count: *count })
                .collect(),
        })
    });
    plan.await?
}

/// A candidate, with what the job costs by the shape that it offers.
fn candidate(candidate: &Candidate) -> ScheduleCandidate {
    ScheduleCandidate {
        provider: candidate.provider.to_string(),
        score: candidate.score,
        price_trm: mesh::price(candidate.price),
        estimated_trm_cost: candidate.work.cost_ceil(candidate.price).into(),
        why: candidate.why.iter().map(ToString::to_string).collect(),
    }
}

type Own = (ModelDigest, String, ModelShape, String);

/// The model meant: this node's own, or the one that others serve under this name.
fn find(
    kernel: &Kernel,
    now: Timestamp,
    name: Option<&str>,
    own: Option<Own>,
    (wish, has_mesh): (&Preferences, bool),
) -> Result<Found, ApiError> {
    let (party, price) = (kernel.ledger().party(), kernel.ledger().book().price());
    let is_meant = |digest: ModelDigest, named: &str| {
        name.is_none_or(|name| name == named || name == digest.to_string())
    };
    if let Some((model, name, shape, quantisation)) = own
        && is_meant(model, &name)
    {
        let here = wish::wants(wish, party, &quantisation, price);
        let may = wish.allow_fallbacks && wish::takes(wish, party, &quantisation, price);
        return Ok(Found { model, name, shape, is_own: true, here, may: may || here });
    }
    let models = if has_mesh { wish::offered(kernel, now, name, wish) } else { Vec::new() };
    match (models.as_slice(), name) {
        ([one], _) | ([one, ..], Some(_)) => Ok(Found {
            model: one.model,
            name: one.name.clone(),
            shape: one.shape,
            is_own: false,
            here: false,
            may: false,
        }),
        ([], _) => Err(no_provider(
            "no provider: no node of the mesh serves such a model at this time; GET /v1/models \
             lists those there are"
                .to_owned(),
        )),
        (_, None) => Err(ApiError::invalid(
            "model_id",
            "the mesh serves several models; say which one is meant",
        )),
    }
}

fn no_provider(message: String) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found_error", "no_provider", message)
}
