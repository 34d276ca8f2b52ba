//! Which models there are: this node's own, and those that other nodes of the mesh serve.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use tirami_core::{Flop, ModelDigest, ModelShape, PartyId, Ppm, Timestamp};
use tirami_infer::engine::ModelInfo;
use tirami_kernel::Kernel;
use tirami_proto::Offer;
use tirami_sdk::types::{Model, ModelDetail, ModelList};

use super::error::ApiError;
use super::query::Segment;
use super::{AppState, json};

pub(super) async fn models(State(app): State<AppState>) -> Result<Response, ApiError> {
    Ok(json::ok(&ModelList { object: "list".to_owned(), data: all(&app).await? }))
}

pub(super) async fn model(
    State(app): State<AppState>,
    Segment(id): Segment,
) -> Result<Response, ApiError> {
    let is_it = |model: &Model| model.id == id || model.x_tirami.digest == id;
    match all(&app).await?.into_iter().find(is_it) {
        Some(model) => Ok(json::ok(&model)),
        None => Err(super::chat::unknown_model(&app, &id)),
    }
}

/// A model that others serve.
struct Served {
    offer: Offer,
    /// The cheapest of them, and its price.
    cheapest: (Ppm, PartyId),
    providers: u32,
}

/// This node's own first.
async fn all(app: &AppState) -> Result<Vec<Model>, ApiError> {
    let own = app.handle.party();
    let (price, mut others) = app
        .handle
        .read(move |kernel, now| (kernel.ledger().book().price(), served(kernel, now, own)))
        .await?;
    let created = app.started_at_ms / 1_000;
    let mut all = Vec::new();
    for model in app.models.all() {
        let model = model.info();
        let elsewhere = others.remove(&model.digest).map_or(0, |served| served.providers);
        let detail = here(model, price, elsewhere.saturating_add(1));
        all.push(listed(model.name.clone(), created, own, detail));
    }
    for served in others.into_values() {
        let (price, provider) = served.cheapest;
        let (name, detail) = (served.offer.name.clone(), elsewhere(&served, price));
        all.push(listed(name, created, provider, detail));
    }
    Ok(all)
}

fn served(kernel: &Kernel, now: Timestamp, own: PartyId) -> BTreeMap<ModelDigest, Served> {
    let mut all = BTreeMap::<ModelDigest, Served>::new();
    let providers = kernel.mesh().providers(now);
    let serving = providers.filter(|one| one.signal.serving && !one.lost);
    for signal in serving.map(|one| one.signal).filter(|signal| signal.provider != own) {
        for offer in &signal.models {
            let cheapest = (signal.price, signal.provider);
            let known = all.entry(offer.model).or_insert_with(|| Served {
                offer: offer.clone(),
                cheapest,
                providers: 0,
            });
            known.cheapest = known.cheapest.min(cheapest);
            known.providers = known.providers.saturating_add(1);
        }
    }
    all
}

fn listed(id: String, created: u64, owner: PartyId, x_tirami: ModelDetail) -> Model {
    Model { id, object: "model".to_owned(), created, owned_by: owner.to_string(), x_tirami }
}

fn here(model: &ModelInfo, price: Ppm, providers: u32) -> ModelDetail {
    ModelDetail {
        digest: model.digest.to_string(),
        architecture: model.architecture.clone(),
        quantisation: model.quantisation.clone(),
        size_bytes: model.size_bytes,
        context_tokens: model.context_tokens,
        parameters_active: model.shape.parameters_active,
        build: model.build.clone(),
        trm_per_token: per_token(&model.shape, price),
        providers,
    }
}

fn elsewhere(served: &Served, price: Ppm) -> ModelDetail {
    let offer = &served.offer;
    ModelDetail {
        digest: offer.model.to_string(),
        architecture: String::new(),
        quantisation: offer.quantisation.clone(),
        size_bytes: 0,
        context_tokens: offer.context_tokens,
        parameters_active: offer.shape.parameters_active,
        build: offer.build.clone(),
        trm_per_token: per_token(&offer.shape, price),
        providers: served.providers,
    }
}

fn per_token(shape: &ModelShape, price: Ppm) -> tirami_sdk::Amount {
    Flop::new(shape.parameters_active.saturating_mul(2)).cost_ceil(price).into()
}
