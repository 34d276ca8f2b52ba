//! A typed client: one method for each route of the table.

use core::time::Duration;
use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::endpoints::{Method, Operation, percent_encode};
use crate::error::Refusal;
use crate::stream::ChatStream;
use crate::types::*;
use crate::{ClientError, SignedAmount};

mod mesh;
mod models;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for an answer that no model has to think about.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A node's HTTP interface. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<str>,
}

impl Client {
    /// A client of the node at `base_url`, such as `http://127.0.0.1:3000`, with an API key.
    /// Without one, a node on the same machine takes the caller for its personal agent.
    ///
    /// # Errors
    ///
    /// [`ClientError::Url`] and [`ClientError::ApiKey`]. Nothing is sent yet.
    pub fn new(base_url: &str, api_key: Option<&str>) -> Result<Self, ClientError> {
        let bad_url = || ClientError::Url { url: base_url.to_owned() };
        let url = reqwest::Url::parse(base_url).map_err(|_| bad_url())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(bad_url());
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = api_key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ClientError::ApiKey)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // A node never redirects, and an API key must not follow a redirection elsewhere.
        let builder = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        let http = transport(builder, &url).build().map_err(|_| bad_url())?;
        let base = base_url.trim_end_matches('/').trim_end_matches("/v1");
        Ok(Self { http, base: base.into() })
    }

    /// The node's base URL, without a slash at its end.
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Asks a model and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a refusal's code says which limit or gate it was.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatResponse, ClientError> {
        let request = ChatRequest { stream: None, stream_options: None, ..request.clone() };
        let call = self.call(Operation::Chat, &[], &[]).json(&request);
        self.read(self.send(call).await?).await
    }

    /// Asks a model and gives the answer piece by piece. The last chunk has `x_tirami`; usage is
    /// always asked for.
    ///
    /// # Errors
    ///
    /// [`ClientError`], before the first piece or as an item of the stream.
    pub async fn chat_stream(&self, request: &ChatRequest) -> Result<ChatStream, ClientError> {
        let request = ChatRequest {
            stream: Some(true),
            stream_options: Some(StreamOptions { include_usage: true }),
            ..request.clone()
        };
        let answer = self.send(self.call(Operation::Chat, &[], &[]).json(&request)).await?;
        let request_id = header(&answer, "x-request-id");
        let body = Box::pin(answer.bytes_stream());
        Ok(ChatStream::new(self.base.to_string(), request_id, body))
    }

    /// Continues texts as they stand and waits for all of it.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a refusal's code says which limit or gate it was.
    pub async fn complete(
        &self,
        request: &CompletionRequest,
    ) -> Result<CompletionResponse, ClientError> {
        let request = CompletionRequest { stream: None, stream_options: None, ..request.clone() };
        let call = self.call(Operation::Completions, &[], &[]).json(&request);
        self.read(self.send(call).await?).await
    }

    /// Continues a conversation as Anthropic's clients send it, and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a refusal's code says which limit or gate it was.
    pub async fn message(&self, request: &MessagesRequest) -> Result<MessageAnswer, ClientError> {
        let request = MessagesRequest { stream: None, ..request.clone() };
        let call = self.call(Operation::Messages, &[], &[]).json(&request);
        self.read(self.send(call).await?).await
    }

    /// The tokens of such a conversation.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `model_not_found` where the model is not at this node.
    pub async fn count_tokens(
        &self,
        request: &MessagesRequest,
    ) -> Result<MessageTokens, ClientError> {
        self.post(Operation::CountTokens, &[], request).await
    }

    /// Answers items and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a refusal's code says which limit or gate it was.
    pub async fn respond(&self, request: &ResponsesRequest) -> Result<ResponseObject, ClientError> {
        let request = ResponsesRequest { stream: None, ..request.clone() };
        let call = self.call(Operation::Responses, &[], &[]).json(&request);
        self.read(self.send(call).await?).await
    }

    /// An answer that was kept for the caller's agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `unknown_response` when there is none.
    pub async fn response(&self, id: &str) -> Result<ResponseObject, ClientError> {
        self.get(Operation::Response, &[id], &[]).await
    }

    /// Forgets an answer that was kept for the caller's agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `unknown_response` when there is none.
    pub async fn delete_response(&self, id: &str) -> Result<DeletedResponse, ClientError> {
        let call = self.call(Operation::DeleteResponse, &[id], &[]).timeout(ANSWER_TIMEOUT);
        self.read(self.send(call).await?).await
    }

    /// A page of the items that a kept answer was asked with: at most `limit`, in the `order` `asc`
    /// or `desc`, behind the page whose `last_id` is `after`.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `unknown_response` when there is no such answer.
    pub async fn response_input_items(
        &self,
        id: &str,
        order: Option<&str>,
        limit: Option<u32>,
        after: Option<&str>,
    ) -> Result<ResponseItemList, ClientError> {
        let query = [
            ("order", order.map(str::to_owned)),
            ("limit", limit.map(|limit| limit.to_string())),
            ("after", after.map(str::to_owned)),
        ];
        self.get(Operation::ResponseInputItems, &[id], &query).await
    }

    /// Whether the node answers.
    ///
    /// # Errors
    ///
    /// [`ClientError`], as for every method here.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get(Operation::Health, &[], &[]).await
    }

    /// The probe's `ok`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn healthz(&self) -> Result<String, ClientError> {
        self.text(Operation::Healthz).await
    }

    /// Whether the node takes requests. Not being ready is an answer, not an error.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn ready(&self) -> Result<Ready, ClientError> {
        let call = self.call(Operation::Readyz, &[], &[]).timeout(ANSWER_TIMEOUT);
        let answer = call.send().await.map_err(|source| self.broken(source))?;
        self.read(answer).await
    }

    /// The OpenAPI document, as JSON text.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn openapi(&self) -> Result<String, ClientError> {
        self.text(Operation::OpenApi).await
    }

    /// The metrics, as OpenMetrics text.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.text(Operation::Metrics).await
    }

    /// The models the node serves.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn models(&self) -> Result<ModelList, ClientError> {
        self.get(Operation::Models, &[], &[]).await
    }

    /// A model by name or digest.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `model_not_found` when it is not served.
    pub async fn model(&self, id: &str) -> Result<Model, ClientError> {
        self.get(Operation::Model, &[id], &[]).await
    }

    /// Texts as vectors that say what they mean.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a refusal's code says which limit or gate it was.
    pub async fn embeddings(&self, request: &EmbeddingsRequest) -> Result<Embeddings, ClientError> {
        let call = self.call(Operation::Embeddings, &[], &[]).json(request);
        self.read(self.send(call).await?).await
    }

    /// The tokens of a text or a chat.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `model_not_found` when the model is not here.
    pub async fn tokenize(&self, request: &TokenizeRequest) -> Result<Tokenized, ClientError> {
        self.post(Operation::Tokenize, &[], request).await
    }

    /// The text of tokens.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `model_not_found` when the model is not here.
    pub async fn detokenize(
        &self,
        request: &DetokenizeRequest,
    ) -> Result<Detokenized, ClientError> {
        self.post(Operation::Detokenize, &[], request).await
    }

    /// What an account has: the caller's own agent's, that of the agent with this DID, or with
    /// `node` the node's own.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn balance(&self, agent: Option<&str>) -> Result<Balance, ClientError> {
        self.get(Operation::Balance, &[], &[("agent", agent.map(str::to_owned))]).await
    }

    /// What work costs.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn pricing(&self) -> Result<Pricing, ClientError> {
        self.get(Operation::Pricing, &[], &[]).await
    }

    /// A page of trades, newest first: of one agent or of all the caller may see, at most
    /// `limit`, older than the page whose `next` is `before`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn trades(
        &self,
        agent: Option<&str>,
        limit: Option<u32>,
        before: Option<i64>,
    ) -> Result<TradeList, ClientError> {
        let query = [
            ("agent", agent.map(str::to_owned)),
            ("limit", limit.map(|limit| limit.to_string())),
            ("before", before.map(|before| before.to_string())),
        ];
        self.get(Operation::Trades, &[], &query).await
    }

    /// A trade with its signed documents. Check it with [`crate::verify_trade`].
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn trade(&self, id: &str) -> Result<TradeDetail, ClientError> {
        self.get(Operation::Trade, &[id], &[]).await
    }

    /// The mesh's totals and the state hash.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn network(&self) -> Result<Network, ClientError> {
        self.get(Operation::Network, &[], &[]).await
    }

    /// Kill switch, circuit breaker, limits and spending.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn safety(&self, agent: Option<&str>) -> Result<Safety, ClientError> {
        self.get(Operation::Safety, &[], &[("agent", agent.map(str::to_owned))]).await
    }

    /// The node at a glance.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get(Operation::Status, &[], &[]).await
    }

    /// What a chat would cost.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn estimate(&self, request: &EstimateRequest) -> Result<Estimate, ClientError> {
        self.post(Operation::Estimate, &[], request).await
    }

    /// The agents the caller may see.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn agents(&self) -> Result<AgentList, ClientError> {
        self.get(Operation::Agents, &[], &[]).await
    }

    /// Makes an agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn create_agent(&self, request: &CreateAgent) -> Result<Agent, ClientError> {
        self.post(Operation::CreateAgent, &[], request).await
    }

    /// Moves `amount` to an agent's account; a negative amount comes back.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn fund_agent(&self, did: &str, amount: SignedAmount) -> Result<Agent, ClientError> {
        self.post(Operation::FundAgent, &[did], &FundAgent { amount_trm: amount }).await
    }

    /// An agent's key, encrypted under a passphrase of at least 8 characters.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn export_agent(&self, did: &str, passphrase: &str) -> Result<Bundle, ClientError> {
        let request = ExportAgent { passphrase: passphrase.to_owned() };
        self.post(Operation::ExportAgent, &[did], &request).await
    }

    /// Takes in an exported agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn import_agent(&self, request: &ImportAgent) -> Result<Agent, ClientError> {
        self.post(Operation::ImportAgent, &[], request).await
    }

    /// Closes an agent's open circuit breaker.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn reset_breaker(&self, did: &str) -> Result<Done, ClientError> {
        let call = self.call(Operation::ResetBreaker, &[did], &[]).timeout(ANSWER_TIMEOUT);
        self.read(self.send(call).await?).await
    }

    /// Turns the kill switch.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn kill(&self, request: &KillRequest) -> Result<KillStatus, ClientError> {
        self.post(Operation::Kill, &[], request).await
    }

    /// Replaces limits.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn set_policy(&self, request: &PolicyRequest) -> Result<PolicyStatus, ClientError> {
        self.post(Operation::Policy, &[], request).await
    }

    /// The requests that wait for a person.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn approvals(&self) -> Result<ApprovalList, ClientError> {
        self.get(Operation::Approvals, &[], &[]).await
    }

    /// All requests that asked for a person, the answered and the lapsed ones too, for as long
    /// as the node remembers them.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn all_approvals(&self) -> Result<ApprovalList, ClientError> {
        let all = [("state", Some("all".to_owned()))];
        self.get(Operation::Approvals, &[], &all).await
    }

    /// Lets a waiting request run once, or denies it.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn decide_approval(&self, id: u64, approve: bool) -> Result<Done, ClientError> {
        let id = id.to_string();
        self.post(Operation::DecideApproval, &[&id], &ApprovalDecision { approve }).await
    }

    /// The API keys, without the keys.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn keys(&self) -> Result<KeyList, ClientError> {
        self.get(Operation::Keys, &[], &[]).await
    }

    /// Makes an API key; the answer is the only place where it is shown.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn create_key(&self, request: &CreateKey) -> Result<CreatedKey, ClientError> {
        self.post(Operation::CreateKey, &[], request).await
    }

    /// Replaces an API key; the old one works for `grace_ms` more.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn rotate_key(&self, id: &str, grace_ms: u64) -> Result<CreatedKey, ClientError> {
        self.post(Operation::RotateKey, &[id], &RotateKey { grace_ms }).await
    }

    /// Ends an API key at once.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn revoke_key(&self, id: &str) -> Result<Done, ClientError> {
        let call = self.call(Operation::RevokeKey, &[id], &[]).timeout(ANSWER_TIMEOUT);
        self.read(self.send(call).await?).await
    }
}

impl Client {
    async fn get<T: DeserializeOwned>(
        &self,
        operation: Operation,
        path: &[&str],
        query: &[(&str, Option<String>)],
    ) -> Result<T, ClientError> {
        let call = self.call(operation, path, query).timeout(ANSWER_TIMEOUT);
        self.read(self.send(call).await?).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        operation: Operation,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let call = self.call(operation, path, &[]).json(body).timeout(ANSWER_TIMEOUT);
        self.read(self.send(call).await?).await
    }

    async fn text(&self, operation: Operation) -> Result<String, ClientError> {
        let call = self.call(operation, &[], &[]).timeout(ANSWER_TIMEOUT);
        let answer = self.send(call).await?;
        answer.text().await.map_err(|source| self.broken(source))
    }

    fn call(
        &self,
        operation: Operation,
        path: &[&str],
        query: &[(&str, Option<String>)],
    ) -> reqwest::RequestBuilder {
        let mut url = format!("{}{}", self.base, operation.path_with(path));
        let mut separator = '?';
        for (name, value) in query {
            if let Some(value) = value {
                url.push(separator);
                url.push_str(&format!("{name}={}", percent_encode(value)));
                separator = '&';
            }
        }
        match operation.endpoint().method {
            Method::Get => self.http.get(url),
            Method::Post => self.http.post(url),
            Method::Delete => self.http.delete(url),
        }
    }

    /// Sends, and turns an answer that is a refusal into an error.
    async fn send(&self, call: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let answer = call.send().await.map_err(|source| self.broken(source))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let request_id = header(&answer, "x-request-id");
        let retry = header(&answer, RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
        let text = answer.text().await.map_err(|source| self.broken(source))?;
        let body = serde_json::from_str(&text).unwrap_or_else(|_| ErrorBody {
            error: ErrorDetail {
                message: format!("{} answered with status {status}", self.base),
                kind: "unknown".to_owned(),
                param: None,
                code: None,
            },
            x_tirami: None,
        });
        let refusal = Refusal::new(Some(status.as_u16()), body, request_id, retry);
        Err(ClientError::Refused(Box::new(refusal)))
    }

    async fn read<T: DeserializeOwned>(&self, answer: reqwest::Response) -> Result<T, ClientError> {
        let json = header(&answer, CONTENT_TYPE.as_str());
        let bytes = answer.bytes().await.map_err(|source| self.broken(source))?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Answer {
            reason: match json {
                Some(kind) if !kind.starts_with("application/json") => {
                    format!("it is {kind}, not JSON")
                }
                _ => source.to_string(),
            },
        })
    }

    fn broken(&self, source: reqwest::Error) -> ClientError {
        let url = self.base.to_string();
        if source.is_connect() {
            ClientError::Unreachable { url, source }
        } else {
            ClientError::Connection { url, source }
        }
    }
}

/// Plain HTTP needs no certificates, so a machine without any still reaches its own node; and a
/// proxy for the internet is no way to a node on the same machine.
pub(crate) fn transport(
    builder: reqwest::ClientBuilder,
    url: &reqwest::Url,
) -> reqwest::ClientBuilder {
    // Fails only when a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let builder = if loopback { builder.no_proxy() } else { builder };
    if url.scheme() == "https" {
        return builder;
    }
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    builder.tls_backend_preconfigured(tls)
}

fn header(answer: &reqwest::Response, name: &str) -> Option<String> {
    answer.headers().get(name)?.to_str().ok().map(str::to_owned)
}
