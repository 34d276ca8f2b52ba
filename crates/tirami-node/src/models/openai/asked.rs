//! What a server elsewhere is asked for: a chat, or a text to go on with as it stands.

use tirami_infer::engine::{
    Call, CallFormat, Conversation, Format, Message, PrepareError, Prompt, RawPrompt, Sampling,
    Source,
};
use tirami_infer::vocabulary::Vocabulary;
use tirami_sdk::upstream::{
    Upstream, UpstreamCall, UpstreamChat, UpstreamCompletion, UpstreamEndpoint, UpstreamError,
    UpstreamMessage, UpstreamSampling, UpstreamStream,
};

use super::told;

/// More tokens than any vocabulary has: servers whose own default is less take it for all.
const TOP_K_ALL: u32 = 1 << 20;

/// A request for an answer, as such servers have it.
pub(super) enum Asked {
    Chat(Box<UpstreamChat>),
    Text(UpstreamCompletion),
}

impl Asked {
    /// A request of the model that the server calls `model`, where `fits` says whether prompt and
    /// answer leave room in the context.
    pub(super) fn new(model: &str, source: &Source, sampling: &Sampling, fits: bool) -> Self {
        let model = model.to_owned();
        match source {
            Source::Chat(conversation) => {
                // Some servers refuse what does not fit by their own count, which may be a few
                // tokens more. Without a number they go on as far as they can, and the answer is
                // cut here.
                let max_tokens = fits.then_some(sampling.completion_max);
                let sampled = sampled(sampling, max_tokens);
                Self::Chat(Box::new(chat(model, conversation, sampling, sampled)))
            }
            // Without a number a text is gone on with for some tokens only.
            Source::Text(text) => Self::Text(UpstreamCompletion {
                model,
                prompt: text.to_string(),
                sampling: sampled(sampling, Some(sampling.completion_max)),
            }),
        }
    }

    pub(super) const fn endpoint(&self) -> UpstreamEndpoint {
        match self {
            Self::Chat(_) => UpstreamEndpoint::Chat,
            Self::Text(_) => UpstreamEndpoint::Completions,
        }
    }

    /// Asks `upstream`.
    pub(super) async fn of(&self, upstream: &Upstream) -> Result<UpstreamStream, UpstreamError> {
        match self {
            Self::Chat(chat) => upstream.chat(chat).await,
            Self::Text(text) => upstream.complete(text).await,
        }
    }
}

fn chat(
    model: String,
    conversation: &Conversation,
    sampling: &Sampling,
    sampled: UpstreamSampling,
) -> UpstreamChat {
    let calls = match &sampling.format {
        Format::Calls(calls) => Some(calls),
        _ => None,
    };
    let offered = calls.map_or(&[][..], |_| &conversation.tools);
    let tool_choice = calls.map(|calls| told::choice(calls, offered.len()));
    // Few servers know of tools that may not be called: these are told only where one is named.
    let is_named = tool_choice.as_ref().is_some_and(serde_json::Value::is_object);
    let is_told = |tool: &serde_json::Value| {
        let name = tool.pointer("/function/name").and_then(serde_json::Value::as_str);
        let may_be = |calls: &CallFormat| calls.tools.iter().any(|one| Some(&*one.name) == name);
        is_named || calls.is_some_and(may_be)
    };
    let tools = offered.iter().filter_map(|tool| serde_json::from_str(tool).ok());
    UpstreamChat {
        model,
        messages: messages(conversation),
        sampling: sampled,
        tools: tools.filter(is_told).collect(),
        tool_choice,
        parallel_tool_calls: calls.and_then(|calls| (!calls.several).then_some(false)),
        chat_template_kwargs: UpstreamChat::variables(&conversation.variables.named),
        response_format: match sampling.format.without_calls() {
            Some(Format::JsonObject) => Some(UpstreamChat::json_object()),
            Some(Format::JsonSchema(schema)) => {
                UpstreamChat::json_schema(&schema.text, schema.strict)
            }
            _ => None,
        },
    }
}

fn sampled(sampling: &Sampling, max_tokens: Option<u32>) -> UpstreamSampling {
    let given = |number: f32, usual: f32| (!is_same(number, usual)).then_some(number);
    UpstreamSampling {
        max_tokens,
        temperature: sampling.temperature,
        // Some servers leave tokens out unless they are told not to.
        top_p: Some(sampling.top_p),
        top_k: Some(if sampling.top_k > 0 { sampling.top_k } else { TOP_K_ALL }),
        min_p: Some(sampling.min_p),
        presence_penalty: given(sampling.presence_penalty, 0.0),
        frequency_penalty: given(sampling.frequency_penalty, 0.0),
        seed: sampling.seed,
    }
}

/// The conversation as such servers have it.
fn messages(conversation: &Conversation) -> Vec<UpstreamMessage> {
    let message = |message: &Message| {
        let calls = message.calls.iter().cloned();
        UpstreamMessage {
            role: message.role.clone(),
            content: message.content.clone(),
            tool_calls: calls
                .map(|Call { id, name, arguments }| UpstreamCall { id, name, arguments })
                .collect(),
            tool_call_id: message.call_id.clone(),
            name: message.name.clone(),
        }
    };
    conversation.messages.iter().map(message).collect()
}

/// What of `sampling` such servers do not have in common, where the answer goes on from `source`:
/// the field of a request, and what it asks for.
pub(super) fn beyond(source: &Source, sampling: &Sampling) -> Option<(&'static str, &'static str)> {
    let is_text = matches!(source, Source::Text(_));
    let asked = [
        (sampling.top_logprobs.is_some(), "logprobs", "to tell log-probabilities"),
        (!sampling.logit_bias.is_empty(), "logit_bias", "to bias tokens"),
        (sampling.typical_p < 1.0, "typical_p", "to sample with typical_p"),
        (!is_same(sampling.repeat_penalty, 1.0), "repeat_penalty", "to sample with repeat_penalty"),
        (
            is_text && sampling.format != Format::Text,
            "response_format",
            "to make an answer that is no chat follow a format",
        ),
    ];
    asked.into_iter().find_map(|(is_asked, param, what)| is_asked.then_some((param, what)))
}

fn is_same(one: f32, other: f32) -> bool {
    (one - other).abs() < f32::EPSILON
}

/// A prompt that is no chat, with its text: that is what a server is told.
pub(super) fn raw(words: &dyn Vocabulary, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
    let prompt = words.prepare_raw(raw)?;
    let text = match raw {
        RawPrompt::Text(text) => unspelled(words, &prompt.tokens, text).to_owned(),
        RawPrompt::Tokens(tokens) => text_of(words, begun(words, tokens), |text| {
            let prompt = words.prepare_raw(&RawPrompt::Text(text.to_owned()))?;
            Ok(begun(words, &prompt.tokens).to_vec())
        })?,
        RawPrompt::Infill { .. } => {
            return Err(PrepareError::Unsupported { what: "to fill a gap in a text" });
        }
    };
    Ok(Prompt { source: Some(Source::Text(text.into())), ..prompt })
}

/// A text to embed, which has these tokens; they were cut from `text`, or came without one.
pub(super) fn embedding(
    words: &dyn Vocabulary,
    tokens: Vec<u32>,
    text: Option<&str>,
) -> Result<Prompt, PrepareError> {
    let text = match text {
        Some(text) => text.to_owned(),
        None => {
            let tokens = begun(words, &tokens);
            let ended = tokens.split_last().filter(|(last, _)| Some(**last) == words.end_token());
            text_of(words, ended.map_or(tokens, |(_, rest)| rest), |text| words.tokenize(text))?
        }
    };
    Ok(Prompt { source: Some(Source::Text(text.into())), ..Prompt::from(tokens) })
}

/// The text that the server is to cut into these tokens again: `cut` does what the server will.
/// The tokens at its ends are not among them, because servers add these by themselves.
fn text_of(
    words: &dyn Vocabulary,
    tokens: &[u32],
    cut: impl Fn(&str) -> Result<Vec<u32>, PrepareError>,
) -> Result<String, PrepareError> {
    let unable = PrepareError::Unsupported { what: "to read tokens that no text is cut into" };
    let spelled = tokens.iter().map(|token| words.spelling(*token)).collect::<Option<Vec<_>>>();
    let text = spelled.and_then(|bytes| String::from_utf8(bytes.concat()).ok());
    let text = text.ok_or_else(|| unable.clone())?;
    // Some vocabularies put a blank before every text.
    for text in [Some(text.as_str()), text.strip_prefix(' ')].into_iter().flatten() {
        if cut(text)? == tokens {
            return Ok(text.to_owned());
        }
    }
    Err(unable)
}

/// The text after the begin token that it spells itself, where its `tokens` begin with one: servers
/// put one before it all the same.
fn unspelled<'t>(words: &dyn Vocabulary, tokens: &[u32], text: &'t str) -> &'t str {
    let begin = words.begin_token().filter(|begin| tokens.first() == Some(begin));
    let spelled = begin.and_then(|begin| words.spelling(begin)).unwrap_or_default();
    let spelled = std::str::from_utf8(&spelled).unwrap_or_default();
    text.strip_prefix(spelled).unwrap_or(text)
}

/// The tokens after the begin token, which servers put before a text by themselves.
fn begun<'t>(words: &dyn Vocabulary, tokens: &'t [u32]) -> &'t [u32] {
    let begun = tokens.split_first().filter(|(first, _)| Some(**first) == words.begin_token());
    begun.map_or(tokens, |(_, rest)| rest)
}
