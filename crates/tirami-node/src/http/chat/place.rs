//! Where a request is answered: here, or at another node of the mesh.

use bytes::Bytes;
use tirami_core::{Digest, ModelDigest, ModelShape, Ppm};
use tirami_infer::engine::{Call, Conversation, Message, PrepareError, RawPrompt};
use tirami_infer::image::IMAGE_TOKENS_MAX;
use tirami_kernel::Kernel;
use tirami_kernel::scheduler::{NO_DICE, Preferences, Query};

use super::Asker;
use super::request::Subject;
use crate::http::error::ApiError;
use crate::http::{AppState, wish};
use crate::mesh::{MeshAsk, OwnEngine};
use crate::models::Model;

/// Tokens that a chat template may add to a message, and to a conversation, where the model that
/// counts them is not here.
const MESSAGE_TOKENS: usize = 64;
const CONVERSATION_TOKENS: usize = 256;
/// Tokens that may come to a text that is continued as it stands.
const RAW_TOKENS: usize = 16;
/// Bytes that a template may write around a call, and around all tools together.
const CALL_BYTES: usize = 128;
const TOOLS_TOKENS: usize = 2_048;
/// Tokens that a template may write because of a variable, besides its value.
const VARIABLES_TOKENS: usize = 256;
/// How many times longer JSON may become when a template writes it out in its own way.
const WRITTEN_OUT: usize = 2;
/// Bytes of a token, for a guess.
const TOKEN_BYTES: usize = 4;
/// Beginnings of a conversation by which a provider is found that has them cached.
const PREFIXES_MAX: usize = 16;

/// A node that asks for more than so many times this node's price is no help when it is busy.
const DEAR_TIMES: u64 = 2;

/// Where a request is answered.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// By this node's own engine of this model.
    Here(Model),
    /// By whoever serves this model in the mesh.
    Mesh(ModelDigest),
}

/// Finds out, with this node's price.
///
/// A name may stand for several models; one that reads pictures goes first where there
/// `are_images`.
pub(super) async fn of(
    app: &AppState,
    model: &str,
    wish: &Preferences,
    are_images: bool,
) -> Result<(Place, Ppm), ApiError> {
    if let Some(model) = app.models.find(model) {
        let own = model.info();
        let price = app.handle.glance(|kernel, _| kernel.ledger().book().price()).await?;
        if wish::wants(wish, app.handle.party(), &own.quantisation, price) {
            return Ok((Place::Here(model), price));
        }
        return if app.mesh.is_some() {
            Ok((Place::Mesh(own.digest), price))
        } else {
            Err(super::no_provider(
                "the provider object excludes this node, and it is in no mesh with others"
                    .to_owned(),
            ))
        };
    }
    if app.mesh.is_none() {
        return Err(super::unknown_model(app, model));
    }
    let (named, wish) = (model.to_owned(), wish.clone());
    let found = app.handle.glance(move |kernel, now| {
        let offers = wish::offered(kernel, now, Some(&named), &wish);
        let reads = offers.iter().find(|offer| are_images && offer.image_tokens_max > 0);
        let model = reads.or(offers.first()).map(|offer| offer.model);
        (model, kernel.ledger().book().price())
    });
    let (found, price) = found.await?;
    let found = found.ok_or_else(|| super::unknown_model(app, model))?;
    Ok((Place::Mesh(found), price))
}

/// This node's engine as one that may go on with an answer begun elsewhere, where the request
/// allows it.
pub(super) fn successor(
    app: &AppState,
    model: ModelDigest,
    wish: &Preferences,
    price: Ppm,
) -> Option<OwnEngine> {
    let model = app.models.by_digest(model)?;
    let quantisation = &model.info().quantisation;
    let may = wish.allow_fallbacks && wish::takes(wish, app.handle.party(), quantisation, price);
    let models = app.models.clone();
    may.then_some(OwnEngine { models, model })
}

/// Whether a job would begin sooner at another node than here, because all places of this node's
/// engine are taken: the time answers took lately, shared among its places, against what was
/// measured of the best node with a free place. One that is much dearer is no help.
pub(in crate::http) async fn is_sooner_elsewhere(
    app: &AppState,
    query: Query,
) -> Result<bool, ApiError> {
    let Some(model) = app.models.by_digest(query.model) else { return Ok(false) };
    let load = model.load();
    let taken = load.running.saturating_add(load.queued).saturating_add(load.taken_by_others);
    let is_full = load.places > 0 && taken >= load.places;
    if !is_full || app.mesh.is_none() || !query.preferences.allow_fallbacks {
        return Ok(false);
    }
    let turns = u64::from(load.queued) + 1;
    let wait_ms = app.metrics.answer_ms() * turns / u64::from(load.places);
    let read = move |kernel: &Kernel, now| {
        let dear = u64::from(kernel.ledger().book().price().get()) * DEAR_TIMES;
        let candidates = kernel.rank(&query, now, NO_DICE).candidates;
        let free = candidates.iter().find(|one| one.is_free());
        free.is_some_and(|one| {
            u64::from(one.first_token_ms()) < wait_ms && u64::from(one.price.get()) <= dear
        })
    };
    Ok(app.handle.read(read).await?)
}

/// What is known of the prompt.
pub(super) enum Known {
    /// The model is here.
    Counted {
        /// Its shape.
        shape: ModelShape,
        /// Tokens of the prompt.
        tokens: u32,
    },
    /// The model is elsewhere.
    Elsewhere {
        /// Tokens that one picture takes at most.
        image_tokens: u32,
    },
}

/// Tokens that one picture takes at most at those who serve the model; what they say is believed
/// only up to a bound.
///
/// # Errors
///
/// None of them reads pictures.
pub(super) async fn image_tokens(app: &AppState, model: ModelDigest) -> Result<u32, ApiError> {
    let most = app.handle.read(move |kernel, now| {
        let offers = kernel.mesh().providers(now).filter_map(|one| one.signal.offer(model));
        offers.map(|offer| offer.image_tokens_max).max().unwrap_or(0)
    });
    match most.await?.min(IMAGE_TOKENS_MAX) {
        0 => Err(PrepareError::NoImages.into()),
        most => Ok(most),
    }
}

/// What the mesh is asked for.
pub(super) fn ask(
    asker: &Asker<'_>,
    (subject, body): (&Subject, &Bytes),
    (model, here, own): (ModelDigest, Known, Option<OwnEngine>),
    seed: u32,
) -> MeshAsk {
    let (counted, shape, image_tokens) = match here {
        Known::Counted { shape, tokens } => (Some(tokens), Some(shape), 0),
        Known::Elsewhere { image_tokens } => (None, None, image_tokens),
    };
    let (most, guess) = tokens_of(subject, image_tokens);
    let tokens = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let retold = asker.ask.retold(subject);
    let prefixes = match subject {
        Subject::Chat(conversation) => prefixes(conversation, model),
        Subject::Raw(_) => Vec::new(),
    };
    MeshAsk {
        actor: asker.actor.clone(),
        path: asker.kind.path(),
        body: body.clone(),
        model,
        shape: shape.or_else(|| own.as_ref().map(|own| own.model.info().shape)),
        seed,
        prompt_max: counted.unwrap_or_else(|| tokens(most)),
        prompt_guess: counted.unwrap_or_else(|| tokens(guess)),
        completion_max: asker.ask.completion_max,
        preferences: asker.wish.clone(),
        prefixes,
        own,
        retold,
        // A node that has the model has told the text itself.
        echoes: retold.text && counted.is_none(),
        gave_up: None,
    }
}

/// The most tokens a prompt may have, and a guess, where one picture takes `image_tokens` at most.
pub(super) fn tokens_of(subject: &Subject, image_tokens: u32) -> (usize, usize) {
    match subject {
        Subject::Chat(conversation) => of_chat(conversation, image_tokens),
        Subject::Raw(raw) => of_raw(raw),
    }
}

/// The same of a chat.
fn of_chat(conversation: &Conversation, image_tokens: u32) -> (usize, usize) {
    let messages = &conversation.messages;
    let of_calls = |one: &Message| {
        let written = |call: &Call| CALL_BYTES + call.name.len() + written_out(&call.arguments);
        one.calls.iter().map(written).sum::<usize>()
    };
    let of_name = |one: &Message| one.name.as_ref().map_or(0, String::len);
    let of_message =
        |one: &Message| one.content.len() + one.role.len() + of_name(one) + of_calls(one);
    let tools = &conversation.tools;
    let of_tools = if tools.is_empty() { 0 } else { TOOLS_TOKENS };
    let of_tools = of_tools + tools.iter().map(|tool| written_out(tool)).sum::<usize>();
    let variables = &conversation.variables;
    let of_variables = if variables.is_empty() { 0 } else { VARIABLES_TOKENS };
    let of_variables =
        of_variables + variables.named.values().map(|value| written_out(value)).sum::<usize>();
    let bytes = messages.iter().map(of_message).sum::<usize>() + of_tools + of_variables;
    let of_images = conversation.images().count() * image_tokens as usize;
    let most = bytes + of_images + MESSAGE_TOKENS * messages.len() + CONVERSATION_TOKENS;
    (most, bytes / TOKEN_BYTES + of_images + 8 * messages.len())
}

/// The same of a text that is continued as it stands.
fn of_raw(raw: &RawPrompt) -> (usize, usize) {
    let of_bytes = |bytes: usize| (bytes + RAW_TOKENS, bytes / TOKEN_BYTES + 1);
    match raw {
        RawPrompt::Text(text) => of_bytes(text.len()),
        RawPrompt::Infill { before, after } => of_bytes(before.len() + after.len()),
        RawPrompt::Tokens(tokens) => (tokens.len(), tokens.len()),
    }
}

/// The most bytes JSON may be in a prompt.
fn written_out(json: &str) -> usize {
    WRITTEN_OUT * json.len()
}

/// Digests of the conversation's beginnings, the longest first.
fn prefixes(conversation: &Conversation, model: ModelDigest) -> Vec<Digest> {
    let mut last = Digest::of(model.as_bytes());
    let mut all = Vec::with_capacity(conversation.messages.len());
    for message in &conversation.messages {
        let mut bytes = last.as_bytes().to_vec();
        bytes.extend_from_slice(message.role.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(message.content.as_bytes());
        for placed in &message.images {
            bytes.extend_from_slice(placed.image.digest().as_bytes());
        }
        last = Digest::of(&bytes);
        all.push(last);
    }
    all.reverse();
    all.truncate(PREFIXES_MAX);
    all
}
