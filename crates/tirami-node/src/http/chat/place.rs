//! Where a request is answered: here, or at another node of the mesh.

use std::collections::BTreeMap;

use tirami_core::{Digest, ModelDigest, ModelShape, PartyId, Timestamp};
use tirami_infer::engine::{Call, Conversation, Message};
use tirami_kernel::Kernel;
use tirami_kernel::scheduler::Preferences;
use tirami_ledger::command::Actor;

use super::request::Ask;
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::mesh::MeshAsk;

/// Tokens that a chat template may add to a message, and to a conversation, where the model that
/// counts them is not here.
const MESSAGE_TOKENS: usize = 64;
const CONVERSATION_TOKENS: usize = 256;
/// Bytes that a template may write around a call, and around all tools together.
const CALL_BYTES: usize = 128;
const TOOLS_TOKENS: usize = 2_048;
/// How many times longer JSON may become when a template writes it out in its own way, and what a
/// character becomes that means something in HTML.
const WRITTEN_OUT: usize = 2;
const ESCAPED_BYTES: usize = 6;
/// Bytes of a token, for a guess.
const TOKEN_BYTES: usize = 4;
/// Beginnings of a conversation by which a provider is found that has them cached.
const PREFIXES_MAX: usize = 16;

/// Where a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// By this node's engine.
    Here,
    /// By whoever serves this model in the mesh.
    Mesh(ModelDigest),
}

/// Finds out.
pub(super) async fn of(app: &AppState, model: &str, wish: &Preferences) -> Result<Place, ApiError> {
    let own = app.engine.as_ref().map(|engine| engine.model());
    let own = own.filter(|own| model == own.name || model == own.digest.to_string());
    if let Some(own) = own {
        if is_wanted(app, wish, &own.quantisation).await? {
            return Ok(Place::Here);
        }
        return if app.mesh.is_some() {
            Ok(Place::Mesh(own.digest))
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
    let (named, wish, party) = (model.to_owned(), wish.clone(), app.handle.party());
    let found = app.handle.read(move |kernel, now| offered(kernel, now, &named, &wish, party));
    found.await?.map(Place::Mesh).ok_or_else(|| super::unknown_model(app, model))
}

/// Whether the requester takes this node's answer.
async fn is_wanted(
    app: &AppState,
    wish: &Preferences,
    quantisation: &str,
) -> Result<bool, ApiError> {
    let own = app.handle.party();
    let named = |list: &[PartyId]| list.is_empty() || list.contains(&own);
    let first = wish.order.first().is_none_or(|first| *first == own);
    let quantised = wish.quantizations.is_empty()
        || wish.quantizations.iter().any(|name| name.eq_ignore_ascii_case(quantisation));
    if !first || !named(&wish.only) || wish.ignore.contains(&own) || !quantised {
        return Ok(false);
    }
    let Some(max) = wish.max_price else { return Ok(true) };
    let price = app.handle.read(|kernel, _| kernel.ledger().book().price()).await?;
    Ok(price <= max)
}

/// The model that others serve under this name or digest; of several with one name, the one that
/// most nodes serve.
fn offered(
    kernel: &Kernel,
    now: Timestamp,
    name: &str,
    wish: &Preferences,
    own: PartyId,
) -> Option<ModelDigest> {
    let mut served = BTreeMap::<ModelDigest, u32>::new();
    for provider in kernel.mesh().providers(now).filter(|known| known.signal.provider != own) {
        for offer in &provider.signal.models {
            let quantised = wish.quantizations.is_empty()
                || wish
                    .quantizations
                    .iter()
                    .any(|one| one.eq_ignore_ascii_case(&offer.quantisation));
            if (offer.name == name && quantised) || offer.model.to_string() == name {
                let weight = if provider.connected && provider.signal.serving { 1_000 } else { 1 };
                *served.entry(offer.model).or_default() += weight;
            }
        }
    }
    served.into_iter().max_by_key(|(_, count)| *count).map(|(model, _)| model)
}

/// What the mesh is asked for. `here` are the model's shape and the prompt's tokens where the
/// model is here.
pub(super) fn ask(
    actor: Actor,
    body: &[u8],
    (ask, wish): (&Ask, &Preferences),
    (model, here): (ModelDigest, Option<(ModelShape, u32)>),
    seed: u32,
) -> MeshAsk {
    let messages = &ask.conversation.messages;
    let of_calls = |one: &Message| {
        let written = |call: &Call| CALL_BYTES + call.name.len() + written_out(&call.arguments);
        one.calls.iter().map(written).sum::<usize>()
    };
    let of_message = |one: &Message| one.content.len() + one.role.len() + of_calls(one);
    let tools = &ask.conversation.tools;
    let of_tools = if tools.is_empty() { 0 } else { TOOLS_TOKENS };
    let of_tools = of_tools + tools.iter().map(|tool| written_out(tool)).sum::<usize>();
    let bytes = messages.iter().map(of_message).sum::<usize>() + of_tools;
    let most = bytes + MESSAGE_TOKENS * messages.len() + CONVERSATION_TOKENS;
    let guess = bytes / TOKEN_BYTES + 8 * messages.len();
    let tokens = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let counted = here.map(|(_, tokens)| tokens);
    MeshAsk {
        actor,
        body: body.to_vec(),
        model,
        shape: here.map(|(shape, _)| shape),
        seed,
        prompt_max: counted.unwrap_or_else(|| tokens(most)),
        prompt_guess: counted.unwrap_or_else(|| tokens(guess)),
        completion_max: ask.completion_max,
        preferences: wish.clone(),
        prefixes: prefixes(&ask.conversation, model),
    }
}

/// The most bytes JSON may be in a prompt.
fn written_out(json: &str) -> usize {
    let escaped = json.bytes().filter(|byte| b"<>&'".contains(byte)).count();
    WRITTEN_OUT * json.len() + ESCAPED_BYTES * escaped
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
        last = Digest::of(&bytes);
        all.push(last);
    }
    all.reverse();
    all.truncate(PREFIXES_MAX);
    all
}
