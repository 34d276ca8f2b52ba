//! Which models there are: this node's own, and those that other nodes of the mesh serve.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::response::Response;
use tirami_core::{Flop, ModelDigest, ModelShape, PartyId, Ppm, Timestamp};
use tirami_kernel::Kernel;
use tirami_proto::Offer;
use tirami_sdk::types::{Model, ModelDetail, ModelList};

use super::error::ApiError;
use super::query::Segment;
use super::{AppState, json};
use crate::models::Model as Known;

pub(super) async fn models(State(app): State<AppState>) -> Result<Response, ApiError> {
    let data = all(&app).await?;
    let id = |model: &Model| model.id.clone();
    let (first_id, last_id) = (data.first().map(id), data.last().map(id));
    let object = "list".to_owned();
    Ok(json::ok(&ModelList { object, data, has_more: false, first_id, last_id }))
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

/// The longest context that those who serve a model of this name or digest say it has; none where
/// nobody does.
pub(super) async fn context_tokens(app: &AppState, model: &str) -> Result<Option<u32>, ApiError> {
    let here = app.models.find(model).map(|model| model.info().context_tokens);
    if here.is_some() || app.mesh.is_none() {
        return Ok(here);
    }
    let named = model.to_owned();
    let read = move |kernel: &Kernel, now| {
        let signals = kernel.mesh().providers(now).map(|one| one.signal);
        let offers = signals.flat_map(|signal| &signal.models);
        let its = offers.filter(|one| one.name == named || one.model.to_string() == named);
        its.map(|offer| offer.context_tokens).max()
    };
    Ok(app.handle.read(read).await?)
}

/// Nodes that are named beside a model at most.
const NAMED_MAX: usize = 64;

/// A model that others serve.
struct Served {
    offer: Offer,
    /// All of them with their prices, the cheapest first.
    providers: BTreeSet<(Ppm, PartyId)>,
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
        let elsewhere = others.remove(&model.info().digest);
        let elsewhere = elsewhere.map(|served| served.providers).unwrap_or_default();
        let detail = here(&model, price, (own, &elsewhere));
        all.push(listed(model.info().name.clone(), created, own, detail));
    }
    for served in others.into_values() {
        let Some((price, provider)) = served.providers.first().copied() else { continue };
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
            let known = all
                .entry(offer.model)
                .or_insert_with(|| Served { offer: offer.clone(), providers: BTreeSet::new() });
            let width = known.offer.embedding_width.max(offer.embedding_width);
            known.offer.embedding_width = width;
            let tokens = known.offer.image_tokens_max.max(offer.image_tokens_max);
            known.offer.image_tokens_max = tokens;
            known.providers.insert((signal.price, signal.provider));
        }
    }
    all
}

fn listed(id: String, created: u64, owner: PartyId, x_tirami: ModelDetail) -> Model {
    Model {
        display_name: id.clone(),
        id,
        object: "model".to_owned(),
        kind: "model".to_owned(),
        created,
        lifecycle: "active".to_owned(),
        created_at: Timestamp::from_ms(created.saturating_mul(1_000)).to_string(),
        owned_by: owner.to_string(),
        max_model_len: x_tirami.context_tokens,
        x_tirami,
    }
}

fn here(
    known: &Known,
    price: Ppm,
    (own, others): (PartyId, &BTreeSet<(Ppm, PartyId)>),
) -> ModelDetail {
    let model = known.info();
    let embedding_width = model.embedding_width;
    let price = others.first().map_or(price, |(cheapest, _)| price.min(*cheapest));
    let mut capabilities = capabilities(known.answers_chats(), embedding_width);
    // Tokens are cut where the model's file is.
    if known.has_vocabulary() {
        capabilities.push("tokenize".to_owned());
    }
    ModelDetail {
        digest: model.digest.to_string(),
        architecture: model.architecture.clone(),
        quantisation: model.quantisation.clone(),
        size_bytes: model.size_bytes,
        context_tokens: model.context_tokens,
        parameters_active: model.shape.parameters_active,
        build: model.build.clone(),
        trm_per_token: per_token(&model.shape, price),
        price_trm: per_billion(price),
        context_max: model.shape.context_max,
        modalities: modalities(model.image_tokens_max),
        capabilities,
        embedding_width,
        loaded: known.is_loaded(),
        providers: count(others).saturating_add(1),
        served_by: named([own].into_iter().chain(others.iter().map(|(_, party)| *party))),
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
        price_trm: per_billion(price),
        context_max: offer.shape.context_max,
        modalities: modalities(offer.image_tokens_max),
        // Which of the models that others serve answer no chats, they do not say.
        capabilities: capabilities(true, offer.embedding_width),
        embedding_width: offer.embedding_width,
        loaded: true,
        providers: count(&served.providers),
        served_by: named(served.providers.iter().map(|(_, party)| *party)),
    }
}

fn capabilities(chats: bool, embedding_width: u32) -> Vec<String> {
    let chats = chats.then_some(["chat", "tools"]).into_iter().flatten();
    let embeds = (embedding_width > 0).then_some("embeddings");
    chats.chain(embeds).map(str::to_owned).collect()
}

fn modalities(image_tokens_max: u32) -> Vec<String> {
    let image = (image_tokens_max > 0).then_some("image");
    ["text"].into_iter().chain(image).map(str::to_owned).collect()
}

fn count(providers: &BTreeSet<(Ppm, PartyId)>) -> u32 {
    u32::try_from(providers.len()).unwrap_or(u32::MAX)
}

fn named(parties: impl Iterator<Item = PartyId>) -> Vec<String> {
    parties.take(NAMED_MAX).map(|party| party.to_string()).collect()
}

fn per_billion(price: Ppm) -> tirami_sdk::Amount {
    Flop::new(1_000_000_000).cost_ceil(price).into()
}

fn per_token(shape: &ModelShape, price: Ppm) -> tirami_sdk::Amount {
    Flop::new(shape.parameters_active.saturating_mul(2)).cost_ceil(price).into()
}
