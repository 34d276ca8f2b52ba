//! A client for servers of others that speak OpenAI's API: it asks for nothing of Tirami's own, and
//! takes no more of an answer than its text, the tools it calls, and why it ended, or its vectors.

use core::fmt;
use core::pin::Pin;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use serde::{Deserialize, Serialize};

use crate::ClientError;
use crate::client::transport;
use crate::stream::EventParser;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 4_096;
/// Bytes of a server's words that are told.
const REASON_BYTES_MAX: usize = 300;

/// A server elsewhere. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Upstream {
    http: reqwest::Client,
    /// Its address, without a slash at the end.
    base: Arc<str>,
    hidden: Hidden,
}

/// The key, to be left out of the server's words: they reach logs, and some servers repeat it.
#[derive(Clone)]
struct Hidden(Option<Arc<str>>);

/// What such a server may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamEndpoint {
    /// Chats are continued.
    Chat,
    /// Texts are continued as they stand.
    Completions,
    /// Texts become vectors.
    Embeddings,
}

impl UpstreamEndpoint {
    /// Its path at OpenAI.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// Its path below a server's address, which has the version in it.
    const fn below(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
        }
    }
}

/// How an answer is to be chosen. What is `None` is not sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UpstreamSampling {
    /// Completion tokens at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Only so many of the likeliest tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Only tokens at least this part as likely as the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// As OpenAI has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// As OpenAI has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Seed of the sampler.
    pub seed: u32,
}

/// One chat, as every such server understands it. What is `None` is not sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UpstreamChat {
    /// The server's own name of the model.
    pub model: String,
    /// The messages, oldest first.
    pub messages: Vec<UpstreamMessage>,
    /// How the answer is to be chosen.
    #[serde(flatten)]
    pub sampling: UpstreamSampling,
    /// What the answer must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<serde_json::Value>,
    /// The tools that may be called, as OpenAI has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<serde_json::Value>,
    /// Which of them have to be called, as OpenAI has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<serde_json::Value>,
    /// Whether there may be several calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// What the chat template is told besides, as vLLM, SGLang and llama-server have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<serde_json::Value>,
}

/// One text to go on with as it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UpstreamCompletion {
    /// The server's own name of the model.
    pub model: String,
    /// The text.
    pub prompt: String,
    /// How the answer is to be chosen.
    #[serde(flatten)]
    pub sampling: UpstreamSampling,
}

/// Texts that are to become vectors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UpstreamEmbeddings {
    /// The server's own name of the model.
    pub model: String,
    /// The texts.
    pub input: Vec<String>,
}

/// A vector as a server gives it. Nothing about it is looked at.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct UpstreamVector {
    /// Its text's place in the request; servers that do not say keep the order.
    #[serde(default)]
    pub index: Option<u32>,
    /// Its numbers.
    pub embedding: Vec<f32>,
}

/// A message of a chat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UpstreamMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// The tools that the assistant called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<UpstreamCall>,
    /// The call whose result this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who said it among those of one role, or the tool whose result it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A tool that was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamCall {
    /// Names the call in the chat.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object as text.
    pub arguments: String,
}

impl Serialize for UpstreamCall {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { id, name, arguments } = self;
        let function = serde_json::json!({"name": name, "arguments": arguments});
        serde_json::json!({"id": id, "type": "function", "function": function})
            .serialize(serializer)
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamPiece {
    /// What the model thought before its text, where the server tells it apart.
    pub thought: String,
    /// Text that was added.
    pub text: String,
    /// Calls of tools that began or went on.
    pub calls: Vec<UpstreamCallPart>,
    /// Why the answer ended, in the server's word, such as `stop` or `length`.
    pub finish: Option<String>,
}

/// A part of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamCallPart {
    /// Its place among the answer's calls; servers that do not say are read as saying 0.
    pub index: u32,
    /// What the server names the call, where it begins; empty where the server does not say.
    pub id: String,
    /// The tool, where the call begins.
    pub name: String,
    /// What its arguments go on with: all of them together are a JSON object as text.
    pub arguments: String,
}

/// Why a server gives no answer. None of these sentences has the key or the address in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It cannot be reached, or the connection broke before it answered.
    #[error("the server cannot be reached: {reason}")]
    Unreachable {
        /// What the connection said.
        reason: String,
    },
    /// It refused the request.
    #[error("the server refused the request with {status}: {reason}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The beginning of its own words: one line of at most 300 bytes, or nothing.
        reason: String,
        /// How long to wait before it is asked again, where it says so in seconds.
        retry_after: Option<Duration>,
    },
    /// Its answer ended before its end.
    #[error("the server broke the answer off: {reason}")]
    BrokenOff {
        /// What the connection said, or the server.
        reason: String,
    },
    /// Its answer is nothing that was asked for.
    #[error("the server's answer is not understood: {reason}")]
    Answer {
        /// What does not fit.
        reason: String,
    },
}

impl UpstreamChat {
    /// Variables of the chat template, each given as JSON text; none where there are none. What is
    /// no JSON is left out.
    pub fn variables(named: &BTreeMap<String, String>) -> Option<serde_json::Value> {
        let value = |text: &String| serde_json::from_str::<serde_json::Value>(text).ok();
        let named = named.iter().filter_map(|(name, text)| Some((name.clone(), value(text)?)));
        let named: serde_json::Map<String, serde_json::Value> = named.collect();
        (!named.is_empty()).then(|| named.into())
    }

    /// The format of an answer that is one JSON object.
    pub fn json_object() -> serde_json::Value {
        serde_json::json!({"type": "json_object"})
    }

    /// The format of an answer after a schema, which is given as its text, and whether all of it
    /// has to be followed; none when that is no JSON.
    pub fn json_schema(schema: &str, strict: bool) -> Option<serde_json::Value> {
        let schema: serde_json::Value = serde_json::from_str(schema).ok()?;
        let named = serde_json::json!({"name": "answer", "strict": strict, "schema": schema});
        Some(serde_json::json!({"type": "json_schema", "json_schema": named}))
    }
}

impl Upstream {
    /// A client of the server whose chats are at `{base_url}/chat/completions`, and its other
    /// endpoints beside them. A proxy that the environment names is used for `https` only, where it
    /// sees nothing of the key.
    ///
    /// # Errors
    ///
    /// [`ClientError::Url`], also for an address with a password or a query in it, and
    /// [`ClientError::ApiKey`]. Nothing is sent yet.
    pub fn new(base_url: &str, api_key: Option<&str>) -> Result<Self, ClientError> {
        let bad_url = || ClientError::Url { url: base_url.to_owned() };
        let url = reqwest::Url::parse(base_url).map_err(|_| bad_url())?;
        let is_plain = url.username().is_empty() && url.password().is_none();
        let is_base = is_plain && url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !is_base {
            return Err(bad_url());
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = api_key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ClientError::ApiKey)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // The key goes to this server and nowhere else.
        let builder = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        let builder = if url.scheme() == "http" { builder.no_proxy() } else { builder };
        let http = transport(builder, &url).build().map_err(|_| bad_url())?;
        let hidden = Hidden(api_key.filter(|key| !key.is_empty()).map(Arc::from));
        Ok(Self { http, base: base_url.trim_end_matches('/').into(), hidden })
    }

    /// Asks, and gives the answer piece by piece. Dropping the stream closes the connection, which
    /// tells the server to stop.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`], before the first piece or as the last item of the stream.
    pub async fn chat(&self, chat: &UpstreamChat) -> Result<UpstreamStream, UpstreamError> {
        self.stream(UpstreamEndpoint::Chat, chat).await
    }

    /// The same of a text that is gone on with as it stands.
    ///
    /// # Errors
    ///
    /// As [`Upstream::chat`].
    pub async fn complete(
        &self,
        text: &UpstreamCompletion,
    ) -> Result<UpstreamStream, UpstreamError> {
        self.stream(UpstreamEndpoint::Completions, text).await
    }

    /// The vectors of texts, in an answer of at most `bytes_max` bytes.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`].
    pub async fn embed(
        &self,
        texts: &UpstreamEmbeddings,
        bytes_max: usize,
    ) -> Result<UpstreamVectors, UpstreamError> {
        let mut body = self.asked(UpstreamEndpoint::Embeddings, texts).await?;
        let mut bytes = Vec::new();
        while let Some(more) = body.next().await {
            let more = more.map_err(|error| {
                let reason = self.hidden.cause(error);
                UpstreamError::BrokenOff { reason }
            })?;
            if bytes.len().saturating_add(more.len()) > bytes_max {
                let reason = format!("it has more than {bytes_max} bytes");
                return Err(UpstreamError::Answer { reason });
            }
            bytes.extend_from_slice(&more);
        }
        Ok(UpstreamVectors { bytes, hidden: self.hidden.clone() })
    }

    async fn stream(
        &self,
        endpoint: UpstreamEndpoint,
        asked: &impl Serialize,
    ) -> Result<UpstreamStream, UpstreamError> {
        Ok(UpstreamStream {
            body: self.asked(endpoint, &Streamed { asked, stream: true }).await?,
            parser: EventParser::default(),
            ready: VecDeque::new(),
            is_done: false,
            hidden: self.hidden.clone(),
        })
    }

    /// Asks, and gives the body of an answer that is no refusal.
    async fn asked(
        &self,
        endpoint: UpstreamEndpoint,
        asked: &impl Serialize,
    ) -> Result<Body, UpstreamError> {
        let url = format!("{}{}", self.base, endpoint.below());
        let answer = self.http.post(url).json(asked).send().await.map_err(|error| {
            let reason = self.hidden.cause(error);
            UpstreamError::Unreachable { reason }
        })?;
        let status = answer.status();
        let retry_after = retry_after(answer.headers());
        let mut body: Body = Box::pin(answer.bytes_stream());
        if !status.is_success() {
            let reason = self.hidden.shortened(&beginning(&mut body).await);
            return Err(UpstreamError::Refused { status: status.as_u16(), reason, retry_after });
        }
        Ok(body)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

/// An answer with vectors, as it came.
pub struct UpstreamVectors {
    bytes: Vec<u8>,
    hidden: Hidden,
}

impl UpstreamVectors {
    /// The vectors as the server gives them. Many of them keep a core busy for a while.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Answer`].
    pub fn read(&self) -> Result<Vec<UpstreamVector>, UpstreamError> {
        let list: VectorList = serde_json::from_slice(&self.bytes).map_err(|error| {
            let reason = self.hidden.shortened(&error.to_string());
            UpstreamError::Answer { reason }
        })?;
        Ok(list.data)
    }
}

impl fmt::Debug for UpstreamVectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamVectors").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

type Body = Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>;

/// The pieces of an answer, in order.
pub struct UpstreamStream {
    body: Body,
    parser: EventParser,
    ready: VecDeque<String>,
    is_done: bool,
    hidden: Hidden,
}

impl UpstreamStream {
    /// The next piece; nothing after the end that the server marks, or after an error. An answer
    /// that breaks off before that ends with an error.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`].
    pub async fn next(&mut self) -> Result<Option<UpstreamPiece>, UpstreamError> {
        loop {
            if self.is_done {
                return Ok(None);
            }
            if let Some(data) = self.ready.pop_front() {
                if data.trim() == "[DONE]" {
                    self.is_done = true;
                    return Ok(None);
                }
                let piece = piece(&data, &self.hidden);
                self.is_done = piece.is_err();
                return piece.map(Some);
            }
            let wrong = match self.body.next().await {
                Some(Ok(bytes)) => match self.parser.push(&bytes, &mut self.ready) {
                    Ok(()) => continue,
                    Err(reason) => UpstreamError::Answer { reason: reason.to_owned() },
                },
                Some(Err(error)) => UpstreamError::BrokenOff { reason: self.hidden.cause(error) },
                None => UpstreamError::BrokenOff { reason: "its stream has no end".to_owned() },
            };
            self.is_done = true;
            return Err(wrong);
        }
    }
}

impl fmt::Debug for UpstreamStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamStream").finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Streamed<'a, T> {
    #[serde(flatten)]
    asked: &'a T,
    stream: bool,
}

#[derive(Deserialize)]
struct VectorList {
    data: Vec<UpstreamVector>,
}

/// Of a chunk, what is read; servers add much more, and leave out what they have nothing to say of.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    /// Of a chat.
    #[serde(default)]
    delta: Option<Delta>,
    /// Of a text that is gone on with.
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    // vLLM and SGLang have one of these words, Ollama and OpenRouter the other; some have both.
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: Option<u32>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<FunctionDelta>,
}

#[derive(Default, Deserialize)]
struct FunctionDelta {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

impl From<CallDelta> for UpstreamCallPart {
    fn from(CallDelta { index, id, function }: CallDelta) -> Self {
        let function = function.unwrap_or_default();
        Self {
            index: index.unwrap_or_default(),
            id: id.unwrap_or_default(),
            name: function.name.unwrap_or_default(),
            arguments: function.arguments.unwrap_or_default(),
        }
    }
}

fn piece(data: &str, hidden: &Hidden) -> Result<UpstreamPiece, UpstreamError> {
    let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
        let reason = hidden.shortened(&error.to_string());
        UpstreamError::Answer { reason }
    })?;
    if let Some(error) = chunk.error {
        return Err(UpstreamError::BrokenOff { reason: hidden.shortened(&said(&error)) });
    }
    let first = chunk.choices.into_iter().next();
    let read = |Choice { delta, text, finish_reason }| {
        let Delta { content, reasoning_content, reasoning, tool_calls } = delta.unwrap_or_default();
        UpstreamPiece {
            thought: [reasoning_content, reasoning]
                .into_iter()
                .flatten()
                .find(|thought| !thought.is_empty())
                .unwrap_or_default(),
            text: content.or(text).unwrap_or_default(),
            calls: tool_calls.into_iter().flatten().map(Into::into).collect(),
            // Some servers have an empty word until there is one.
            finish: finish_reason.filter(|word| !word.is_empty()),
        }
    };
    Ok(first.map_or_else(UpstreamPiece::default, read))
}

/// The server's own sentence, where it says one.
fn said(error: &serde_json::Value) -> String {
    let message = error.get("message").and_then(serde_json::Value::as_str);
    message.map_or_else(|| error.to_string(), str::to_owned)
}

/// The wait that a server asks for in seconds, no longer than a century; a date is not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

async fn beginning(body: &mut Body) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < REFUSAL_BYTES_MAX {
        match body.next().await {
            Some(Ok(more)) => bytes.extend_from_slice(&more),
            _ => break,
        }
    }
    bytes.truncate(REFUSAL_BYTES_MAX);
    let text = String::from_utf8_lossy(&bytes);
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    // Some servers have no object around what OpenAI has in `error`.
    let words = json.as_ref().map(|json| said(json.get("error").unwrap_or(json)));
    words.unwrap_or_else(|| text.into_owned())
}

impl Hidden {
    /// One line, not too long, without the key and without anything that a terminal obeys.
    fn shortened(&self, text: &str) -> String {
        let safe = self.0.as_ref().map_or_else(|| text.to_owned(), |key| text.replace(&**key, "…"));
        let plain = safe.chars().map(|c| if c.is_control() { ' ' } else { c });
        let mut plain: String = plain.collect();
        plain.truncate(plain.floor_char_boundary(REASON_BYTES_MAX));
        plain.trim().to_owned()
    }

    /// What broke a connection. Its words name the address, which is nobody's business.
    fn cause(&self, error: reqwest::Error) -> String {
        let error = error.without_url();
        let mut cause: &dyn core::error::Error = &error;
        let mut reason = cause.to_string();
        while let Some(source) = cause.source() {
            reason = source.to_string();
            cause = source;
        }
        self.shortened(&reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_different_servers_are_read() {
        let text = |text: &str| UpstreamPiece { text: text.to_owned(), ..Default::default() };
        for (data, expected) in [
            (r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#, text("")),
            (r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}],"x":1}"#, text("Hi")),
            (r#"{"choices":[{"delta":{"content":null}}],"usage":null}"#, text("")),
            (r#"{"choices":[{"index":0,"text":"Hi","logprobs":null}]}"#, text("Hi")),
            (
                r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#,
                UpstreamPiece { finish: Some("length".to_owned()), ..Default::default() },
            ),
            (r#"{"choices":[],"usage":{"prompt_tokens":-3,"completion_tokens":"7"}}"#, text("")),
            (
                r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"id":"a","type":"function",
                    "function":{"name":"f","arguments":""}},{"function":{"arguments":"{}"}}]}}]}"#,
                UpstreamPiece {
                    calls: vec![
                        UpstreamCallPart {
                            index: 1,
                            id: "a".to_owned(),
                            name: "f".to_owned(),
                            ..Default::default()
                        },
                        UpstreamCallPart { arguments: "{}".to_owned(), ..Default::default() },
                    ],
                    ..Default::default()
                },
            ),
            (r#"{"choices":[{"delta":{"tool_calls":null}}]}"#, text("")),
            (r#"{"choices":[{"delta":null,"finish_reason":""}]}"#, text("")),
        ] {
            assert_eq!(piece(data, &Hidden(None)), Ok(expected), "{data}");
        }
        for (data, reason) in [
            ("{", "EOF"),
            (r#"{"error":{"message":"out\nof memory"}}"#, "broke the answer off: out of memory"),
            (r#"{"error":"no"}"#, "broke the answer off: \"no\""),
        ] {
            let told = piece(data, &Hidden(None)).unwrap_err().to_string();
            assert!(told.contains(reason), "{told}");
        }
    }

    #[test]
    fn what_a_server_says_is_short_and_without_the_key() {
        let hidden = Hidden(Some("sk-secret".into()));
        assert_eq!(hidden.shortened("no key\nsk-secret \u{1b}[2J"), "no key …  [2J");
        // What is left of a key that stands at the cut is no part of it.
        let long = format!("{}sk-secret", "x".repeat(REASON_BYTES_MAX - 4));
        assert_eq!(hidden.shortened(&long), long.replace("sk-secret", "…"));
        let wide = format!("x{}", "é".repeat(REASON_BYTES_MAX));
        assert_eq!(hidden.shortened(&wide).len(), REASON_BYTES_MAX - 1);
    }

    #[test]
    fn a_schema_is_as_strict_as_it_was_asked() {
        for strict in [false, true] {
            let format = UpstreamChat::json_schema("{}", strict).unwrap();
            assert_eq!(format["json_schema"]["strict"], strict);
        }
        assert_eq!(UpstreamChat::json_schema("{", true), None);
    }

    #[test]
    fn an_address_carries_no_password_and_no_query() {
        for (url, is_fine) in [
            ("http://10.0.0.2:8000/v1", true),
            ("https://example.org/v1/", true),
            ("http://me:secret@10.0.0.2/v1", false),
            ("http://me@10.0.0.2/v1", false),
            ("http://10.0.0.2/v1?key=secret", false),
            ("http://10.0.0.2/v1#a", false),
            ("ftp://10.0.0.2/v1", false),
            ("10.0.0.2", false),
        ] {
            assert_eq!(Upstream::new(url, Some("key")).is_ok(), is_fine, "{url}");
        }
        assert!(Upstream::new("http://10.0.0.2", Some("two\nlines")).is_err());
    }
}
