//! Who would answer: the choice of a provider, without a request.

use std::collections::BTreeSet;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tirami_core::{ModelDigest, ModelShape, PartyId, Ppm, Timestamp, Trm};
use tirami_kernel::Kernel;
use tirami_kernel::scheduler::{Candidate, Data, Preferences, Query, Sort};
use tirami_proto::Offer;
use tirami_sdk::types::{
    BestRoute, ProviderWish, Schedule, ScheduleCandidate, ScheduleExclusion, ScheduleRequest,
};

use super::error::ApiError;
use super::query::Parameters;
use super::{AppState, json, mesh};

/// Tokens of an answer when nobody says how many.
const ANSWER_TOKENS: u32 = tirami_sdk::types::ANSWER_TOKENS;
/// Parties and quantisations in each list of a wish.
const LIST_MAX: usize = 256;
/// The best score there is.
const SCORE_MAX: u64 = 1_000_000;

pub(super) async fn schedule(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: ScheduleRequest = json::read(request, &app.config).await?;
    let wish = preferences(asked.provider.unwrap_or_default())?;
    let tokens =
        (asked.prompt_tokens.unwrap_or_default(), asked.max_tokens.unwrap_or(ANSWER_TOKENS));
    Ok(json::ok(&plan(&app, asked.model_id, wish, tokens).await?))
}

pub(super) async fn route(
    State(app): State<AppState>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let sort = parameters.text("sort").map(sort).transpose()?;
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
    /// Whether this node serves it and its wish does not exclude it.
    here: bool,
}

async fn plan(
    app: &AppState,
    model: Option<String>,
    wish: Preferences,
    (prompt_tokens, max_tokens): (u32, u32),
) -> Result<Schedule, ApiError> {
    let own = app.engine.as_ref().map(|engine| {
        let model = engine.model();
        (model.digest, model.name.clone(), model.shape, model.quantisation.clone())
    });
    let plan = app.handle.read(move |kernel, now| {
        let found = find(kernel, now, model.as_deref(), own, &wish)?;
        let query = Query {
            model: found.model,
            shape: found.here.then_some(found.shape),
            prompt_tokens,
            completion_tokens: max_tokens,
            prefixes: Vec::new(),
            tried: BTreeSet::new(),
            preferences: wish,
        };
        let ranking = kernel.rank(&query, now, NO_DICE);
        let work = found.shape.work(0, prompt_tokens.saturating_add(max_tokens));
        let cost = |price: Ppm| work.cost_ceil(price);
        let candidates: Vec<_> =
            ranking.candidates.iter().map(|one| candidate(one, cost(one.price))).collect();
        let (kind, provider, estimated) = match (found.here, candidates.first()) {
            (true, _) => {
                let price = kernel.ledger().book().price();
                (LOCAL, kernel.ledger().party().to_string(), cost(price).into())
            }
            (false, Some(first)) => ("mesh", first.provider.clone(), first.estimated_trm_cost),
            (false, None) => return Err(no_provider(ranking.refusal())),
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

/// A dry run tries nobody out.
const NO_DICE: u64 = u64::MAX;

fn candidate(candidate: &Candidate, cost: Trm) -> ScheduleCandidate {
    ScheduleCandidate {
        provider: candidate.provider.to_string(),
        score: candidate.score,
        price_trm: mesh::price(candidate.price),
        estimated_trm_cost: cost.into(),
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
    wish: &Preferences,
) -> Result<Found, ApiError> {
    let party = kernel.ledger().party();
    let is_meant = |digest: ModelDigest, named: &str| {
        name.is_none_or(|name| name == named || name == digest.to_string())
    };
    if let Some((model, name, shape, quantisation)) = own
        && is_meant(model, &name)
    {
        let price = kernel.ledger().book().price();
        let here = takes_this_node(wish, party, &quantisation, price);
        return Ok(Found { model, name, shape, here });
    }
    let known = kernel.mesh().providers(now).filter(|known| !known.lost);
    let offers = known.filter(|known| known.signal.provider != party);
    let offers = offers.flat_map(|known| known.signal.models.iter());
    let mut models: Vec<&Offer> =
        offers.filter(|offer| is_meant(offer.model, &offer.name)).collect();
    models.sort_by_key(|offer| offer.model);
    models.dedup_by_key(|offer| offer.model);
    match (models.as_slice(), name) {
        ([one], _) | ([one, ..], Some(_)) => {
            Ok(Found { model: one.model, name: one.name.clone(), shape: one.shape, here: false })
        }
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

/// As a chat decides it: whoever names others, or less than this node asks, does not want it.
fn takes_this_node(wish: &Preferences, own: PartyId, quantisation: &str, price: Ppm) -> bool {
    let same = |name: &String| name.eq_ignore_ascii_case(quantisation);
    wish.order.first().is_none_or(|first| *first == own)
        && (wish.only.is_empty() || wish.only.contains(&own))
        && !wish.ignore.contains(&own)
        && (wish.quantizations.is_empty() || wish.quantizations.iter().any(same))
        && wish.max_price.is_none_or(|max| price <= max)
}

fn preferences(wish: ProviderWish) -> Result<Preferences, ApiError> {
    if wish.quantizations.len() > LIST_MAX {
        let message = "provider.quantizations must be a list of at most 256 texts";
        return Err(ApiError::invalid("provider.quantizations", message));
    }
    let data = match wish.data.as_deref() {
        None | Some("any") => Data::Any,
        Some("trusted") => Data::Trusted,
        Some(_) => {
            let message = "provider.data must be any or trusted";
            return Err(ApiError::invalid("provider.data", message));
        }
    };
    let max = wish.max_price.map(|max| u32::try_from(max.trm().micro()).unwrap_or(u32::MAX));
    Ok(Preferences {
        order: parties("provider.order", &wish.order)?,
        only: parties("provider.only", &wish.only)?,
        ignore: parties("provider.ignore", &wish.ignore)?,
        allow_fallbacks: wish.allow_fallbacks.unwrap_or(true),
        quantizations: wish.quantizations,
        max_price: max.map(Ppm::new),
        sort: wish.sort.as_deref().map(sort).transpose()?,
        min_throughput_milli: wish.min_throughput.map(|speed| speed.saturating_mul(1_000)),
        data,
    })
}

fn sort(text: &str) -> Result<Sort, ApiError> {
    match text {
        "price" => Ok(Sort::Price),
        "throughput" => Ok(Sort::Throughput),
        "latency" => Ok(Sort::Latency),
        _ => Err(ApiError::invalid("sort", "sort must be price, throughput or latency")),
    }
}

/// Reads parties named in `param`, at most [`LIST_MAX`].
pub(super) fn parties(param: &str, texts: &[String]) -> Result<Vec<PartyId>, ApiError> {
    if texts.len() > LIST_MAX {
        let message = format!("{param} must be a list of at most {LIST_MAX} nodes");
        return Err(ApiError::invalid(param, message));
    }
    texts.iter().map(|text| party(param, text)).collect()
}

/// Reads the party of a node.
pub(super) fn party(param: &str, text: &str) -> Result<PartyId, ApiError> {
    text.parse().map_err(|_| {
        let message = format!("{param} must name a node by its 64 hexadecimal digits");
        ApiError::invalid(param, message)
    })
}

fn no_provider(message: String) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found_error", "no_provider", message)
}
