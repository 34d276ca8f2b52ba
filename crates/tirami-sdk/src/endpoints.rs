//! The one table of routes: method, path, who may call, what goes in and comes out.
//!
//! The server's router, the OpenAPI document and the client walk it. [`Operation`] has exactly
//! one variant for each row, so a `match` over it in the router makes a route without a row, or a
//! row without a route, fail to compile.

use std::borrow::Cow;

use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::types::{self, Scope};

/// An HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Reads.
    Get,
    /// Changes.
    Post,
    /// Ends.
    Delete,
}

impl Method {
    /// The method as it stands in a request.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody who reaches the socket.
    Public,
    /// A caller with at least this scope.
    Scope(Scope),
}

/// What a request or an answer carries.
#[derive(Clone, Copy)]
pub enum Payload {
    /// Nothing.
    Empty,
    /// A JSON value of a type.
    Json(Type),
    /// A JSON value, or a stream of server-sent events when the request asks for one.
    JsonOrEvents(Type, Type),
    /// Text of a media type.
    Text(&'static str),
}

/// A type of the contract: its name and its schema.
#[derive(Clone, Copy)]
pub struct Type {
    name: fn() -> Cow<'static, str>,
    schemas: fn(&mut Vec<(String, RefOr<Schema>)>),
}

impl Type {
    /// The type `T`.
    pub const fn of<T: ToSchema>() -> Self {
        Self { name: T::name, schemas: collect::<T> }
    }

    /// The type's name in the OpenAPI document.
    pub fn name(&self) -> String {
        (self.name)().into_owned()
    }

    /// Appends the schemas of the type and of all it is made of.
    pub(crate) fn schemas(&self, into: &mut Vec<(String, RefOr<Schema>)>) {
        (self.schemas)(into);
    }
}

fn collect<T: ToSchema>(into: &mut Vec<(String, RefOr<Schema>)>) {
    into.push((T::name().into_owned(), T::schema()));
    T::schemas(into);
}

/// A query parameter.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// Its name.
    pub name: &'static str,
    /// Whether it is a whole number; otherwise text.
    pub number: bool,
    /// What it does.
    pub description: &'static str,
}

/// A row of the table.
#[derive(Clone, Copy)]
pub struct Endpoint {
    /// The method.
    pub method: Method,
    /// The path; `{name}` stands for one segment.
    pub path: &'static str,
    /// Who may call.
    pub access: Access,
    /// The operation's id in the OpenAPI document; also the metric label.
    pub id: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// What it can be asked for in the URL.
    pub query: &'static [Query],
    /// What the request carries.
    pub request: Payload,
    /// What the answer carries.
    pub response: Payload,
}

macro_rules! operations {
    ($(
        $variant:ident: $method:ident $path:literal, $access:expr, $id:literal, $summary:literal,
        $query:expr, $request:expr => $response:expr;
    )+) => {
        /// Everything a node can be asked over HTTP, one variant for each row of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Operation {
            $(#[doc = $summary] $variant,)+
        }

        impl Operation {
            /// All operations, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The operation's row.
            pub const fn endpoint(self) -> Endpoint {
                match self {
                    $(Self::$variant => Endpoint {
                        method: Method::$method,
                        path: $path,
                        access: $access,
                        id: $id,
                        summary: $summary,
                        query: $query,
                        request: $request,
                        response: $response,
                    },)+
                }
            }
        }
    };
}

const PUBLIC: Access = Access::Public;
const READ: Access = Access::Scope(Scope::Read);
const INFERENCE: Access = Access::Scope(Scope::Inference);
const ECONOMY: Access = Access::Scope(Scope::Economy);
const ADMIN: Access = Access::Scope(Scope::Admin);

const AGENT: Query = Query {
    name: "agent",
    number: false,
    description: "An agent's DID, or `node` for the node's own account. Callers below the scope \
                  economy see only their own agent.",
};
const LIMIT: Query =
    Query { name: "limit", number: true, description: "Rows at most, 1 to 1000; 50 when unset." };
const BEFORE: Query =
    Query { name: "before", number: true, description: "The `next` of the page before." };

const ITEMS: Query =
    Query { name: "limit", number: true, description: "Items at most, 1 to 100; 20 when unset." };
const ORDER: Query = Query {
    name: "order",
    number: false,
    description: "`desc`, the default, for the last item first, or `asc`.",
};
const AFTER: Query =
    Query { name: "after", number: false, description: "The `last_id` of the page before." };

const STATE: Query = Query {
    name: "state",
    number: false,
    description: "`waiting`, the default, or `all`: approved, denied and lapsed ones too, for as \
                  long as the node remembers them.",
};

const MODEL: Query = Query {
    name: "model",
    number: false,
    description: "The model's name or digest; unset, the one served here or the only one there is.",
};
const MAX_TOKENS: Query = Query {
    name: "max_tokens",
    number: true,
    description: "Tokens of the answer; 1000 when unset.",
};
const SORT: Query = Query {
    name: "sort",
    number: false,
    description: "What counts first: `price`, `throughput` or `latency`.",
};
const MAX_TRM: Query =
    Query { name: "max_trm", number: false, description: "The most the answer may cost, in TRM." };

const EMPTY: Payload = Payload::Empty;

const fn json<T: ToSchema>() -> Payload {
    Payload::Json(Type::of::<T>())
}

operations! {
    Health: Get "/health", PUBLIC, "health", "Says that the process answers.",
        &[], EMPTY => json::<types::Health>();
    Healthz: Get "/healthz", PUBLIC, "healthz", "Says that the process answers, for probes.",
        &[], EMPTY => Payload::Text("text/plain");
    Readyz: Get "/readyz", PUBLIC, "readyz", "Says whether requests can be taken; 503 when not.",
        &[], EMPTY => json::<types::Ready>();
    OpenApi: Get "/openapi.json", PUBLIC, "openapi", "This document.",
        &[], EMPTY => Payload::Text("application/json");
    Home: Get "/", PUBLIC, "home", "Leads to the page to read and try this document with.",
        &[], EMPTY => Payload::Text("text/html");
    Docs: Get "/docs", PUBLIC, "docs", "A page to read and try this document with.",
        &[], EMPTY => Payload::Text("text/html");
    DocsFolder: Get "/docs/", PUBLIC, "docsFolder", "The same page.",
        &[], EMPTY => Payload::Text("text/html");
    DocsFile: Get "/docs/{file}", PUBLIC, "docsFile", "A file of that page.",
        &[], EMPTY => Payload::Text("*/*");
    Metrics: Get "/metrics", READ, "metrics", "Figures for Prometheus, in OpenMetrics.",
        &[], EMPTY => Payload::Text("application/openmetrics-text");

    Models: Get "/v1/models", READ, "listModels", "Lists the models served here and in the mesh.",
        &[], EMPTY => json::<types::ModelList>();
    Model: Get "/v1/models/{id}", READ, "getModel", "Describes a model by name or digest.",
        &[], EMPTY => json::<types::Model>();
    Chat: Post "/v1/chat/completions", INFERENCE, "createChatCompletion",
        "Continues a chat; the paying agent is the caller's.",
        &[], json::<types::ChatRequest>() => Payload::JsonOrEvents(
            Type::of::<types::ChatResponse>(), Type::of::<types::ChatChunk>());
    Completions: Post "/v1/completions", INFERENCE, "createCompletion",
        "Continues texts as they stand, without a chat template.",
        &[], json::<types::CompletionRequest>() => Payload::JsonOrEvents(
            Type::of::<types::CompletionResponse>(), Type::of::<types::CompletionResponse>());
    Messages: Post "/v1/messages", INFERENCE, "createMessage",
        "Continues a conversation as Anthropic's clients send it; refusals have their envelope.",
        &[], json::<types::MessagesRequest>() => Payload::JsonOrEvents(
            Type::of::<types::MessageAnswer>(), Type::of::<types::MessageEvent>());
    CountTokens: Post "/v1/messages/count_tokens", READ, "countTokens",
        "Counts the tokens of such a conversation, with a model that is here.",
        &[], json::<types::MessagesRequest>() => json::<types::MessageTokens>();
    Responses: Post "/v1/responses", INFERENCE, "createResponse",
        "Answers items, and keeps the answer so that others can go on from it.",
        &[], json::<types::ResponsesRequest>() => Payload::JsonOrEvents(
            Type::of::<types::ResponseObject>(), Type::of::<types::ResponseEvent>());
    Response: Get "/v1/responses/{id}", INFERENCE, "getResponse",
        "An answer that was kept for the caller's agent.",
        &[], EMPTY => json::<types::ResponseObject>();
    DeleteResponse: Delete "/v1/responses/{id}", INFERENCE, "deleteResponse",
        "Forgets an answer that was kept for the caller's agent.",
        &[], EMPTY => json::<types::DeletedResponse>();
    ResponseInputItems: Get "/v1/responses/{id}/input_items", INFERENCE, "listResponseInputItems",
        "Lists what such an answer was asked with, and what that went on from.",
        &[ITEMS, ORDER, AFTER], EMPTY => json::<types::ResponseItemList>();
    Embeddings: Post "/v1/embeddings", INFERENCE, "createEmbeddings",
        "Turns texts into vectors that say what they mean; the paying agent is the caller's.",
        &[], json::<types::EmbeddingsRequest>() => json::<types::Embeddings>();

    Tokenize: Post "/tokenize", INFERENCE, "tokenize",
        "Cuts a text or a chat into the model's tokens, free of charge.",
        &[], json::<types::TokenizeRequest>() => json::<types::Tokenized>();
    Detokenize: Post "/detokenize", INFERENCE, "detokenize",
        "Gives the text of tokens, free of charge.",
        &[], json::<types::DetokenizeRequest>() => json::<types::Detokenized>();

    ModelStates: Get "/v1/tirami/models", READ, "listModelStates",
        "Lists the models this node can load, and which are in memory.",
        &[], EMPTY => json::<types::ModelStateList>();
    LoadModel: Post "/v1/tirami/models/{id}/load", ADMIN, "loadModel",
        "Loads a model by name or digest; others that rest may be unloaded for it.",
        &[], json::<types::LoadModel>() => json::<types::ModelState>();
    UnloadModel: Post "/v1/tirami/models/{id}/unload", ADMIN, "unloadModel",
        "Takes a model that nobody uses out of memory.",
        &[], EMPTY => json::<types::ModelState>();

    Balance: Get "/v1/tirami/balance", READ, "getBalance",
        "What the caller's agent, or the node, has.",
        &[AGENT], EMPTY => json::<types::Balance>();
    Pricing: Get "/v1/tirami/pricing", READ, "getPricing", "What work costs.",
        &[], EMPTY => json::<types::Pricing>();
    Trades: Get "/v1/tirami/trades", READ, "listTrades", "Lists trades, newest first.",
        &[AGENT, LIMIT, BEFORE], EMPTY => json::<types::TradeList>();
    Trade: Get "/v1/tirami/trades/{id}", READ, "getTrade",
        "A trade with its signed documents, verified on the spot.",
        &[], EMPTY => json::<types::TradeDetail>();
    Network: Get "/v1/tirami/network", READ, "getNetwork", "The mesh's totals and state hash.",
        &[], EMPTY => json::<types::Network>();
    Peers: Get "/v1/tirami/peers", READ, "listPeers", "Lists the nodes this one is connected to.",
        &[], EMPTY => json::<types::PeerList>();
    Refusals: Get "/v1/tirami/refusals", READ, "listRefusals",
        "Lists what other nodes tried here and was refused.",
        &[], EMPTY => json::<types::RefusalList>();
    Providers: Get "/v1/tirami/providers", READ, "listProviders",
        "Lists the nodes that say they serve models.",
        &[], EMPTY => json::<types::ProviderList>();
    Topology: Get "/v1/tirami/topology", READ, "getTopology",
        "Nodes and connections, as this node sees them.",
        &[], EMPTY => json::<types::Topology>();
    Protocol: Get "/v1/tirami/protocol", READ, "getProtocol",
        "What this node speaks with other nodes.",
        &[], EMPTY => json::<types::Protocol>();
    Schedule: Post "/v1/tirami/schedule", READ, "schedule",
        "Says who would answer a request, and why, without sending it.",
        &[], json::<types::ScheduleRequest>() => json::<types::Schedule>();
    BestRoute: Get "/v1/tirami/route", READ, "getRoute",
        "The node that suits a model and a wish best.",
        &[MODEL, MAX_TOKENS, SORT, MAX_TRM], EMPTY => json::<types::BestRoute>();
    Transfer: Post "/v1/tirami/transfer", ECONOMY, "transfer",
        "Gives TRM of the node's own account to another node.",
        &[], json::<types::TransferRequest>() => json::<types::ChainEntry>();

    MeshInvite: Post "/v1/tirami/mesh/invite", ADMIN, "inviteToMesh",
        "Makes the word with which other machines join; without a body on the usual terms.",
        &[], json::<types::InviteRequest>() => json::<types::MeshInvite>();
    MeshJoin: Post "/v1/tirami/mesh/join", ADMIN, "joinMesh",
        "Dials the nodes of an invite to this mesh; a node that has a book cannot join another.",
        &[], json::<types::JoinRequest>() => json::<types::Done>();
    MeshCharter: Get "/v1/tirami/mesh/charter", READ, "getCharter",
        "The mesh's constitution in force, and drafts of the next one.",
        &[], EMPTY => json::<types::MeshCharter>();
    ApproveCharter: Post "/v1/tirami/mesh/charter/approve", ADMIN, "approveCharter",
        "Approves a draft of the next charter as a witness; there is no way back.",
        &[], json::<types::ApproveCharter>() => json::<types::CharterDraft>();
    ChangeWitnesses: Post "/v1/tirami/mesh/witnesses", ADMIN, "changeWitnesses",
        "Drafts a charter with one witness more or less; a witness approves it at once.",
        &[], json::<types::WitnessChange>() => json::<types::CharterDraft>();
    Sponsor: Post "/v1/tirami/mesh/sponsor", ADMIN, "sponsor",
        "Lends a newcomer a welcome line out of this node's own money.",
        &[], json::<types::SponsorRequest>() => json::<types::ChainEntry>();
    Enrol: Post "/v1/tirami/mesh/enrol", ADMIN, "enrol",
        "Grants a member a line, as the mesh's registrar.",
        &[], json::<types::EnrolRequest>() => json::<types::ChainEntry>();
    Pause: Post "/v1/tirami/mesh/pause", ADMIN, "pauseServing",
        "Takes no more jobs of other nodes; running ones go on elsewhere.",
        &[], EMPTY => json::<types::Serving>();
    Resume: Post "/v1/tirami/mesh/resume", ADMIN, "resumeServing",
        "Takes jobs of other nodes again, as far as the owner's rules allow.",
        &[], EMPTY => json::<types::Serving>();
    Serving: Get "/v1/tirami/serving", READ, "getServing",
        "To whom and how far this node serves, and whether it does now.",
        &[], EMPTY => json::<types::Serving>();
    ChangeServing: Post "/v1/tirami/serving", ADMIN, "changeServing",
        "Changes to whom and how far this node serves.",
        &[], json::<types::ServingChange>() => json::<types::Serving>();

    Safety: Get "/v1/tirami/safety", READ, "getSafety",
        "Kill switch, circuit breaker, limits and what was spent against them.",
        &[AGENT], EMPTY => json::<types::Safety>();
    Status: Get "/v1/tirami/status", READ, "getStatus", "The node at a glance.",
        &[], EMPTY => json::<types::Status>();
    Estimate: Post "/v1/tirami/estimate", READ, "estimate",
        "Quotes what a chat would cost, without running it.",
        &[], json::<types::EstimateRequest>() => json::<types::Estimate>();

    Agents: Get "/v1/tirami/agents", READ, "listAgents", "Lists the agents the caller may see.",
        &[], EMPTY => json::<types::AgentList>();
    CreateAgent: Post "/v1/tirami/agents", ECONOMY, "createAgent",
        "Makes an agent with its own key and account.",
        &[], json::<types::CreateAgent>() => json::<types::Agent>();
    FundAgent: Post "/v1/tirami/agents/{did}/fund", ECONOMY, "fundAgent",
        "Moves TRM between the node's account and an agent's.",
        &[], json::<types::FundAgent>() => json::<types::Agent>();
    ExportAgent: Post "/v1/tirami/agents/{did}/export", ADMIN, "exportAgent",
        "Gives out an agent's key, encrypted under a passphrase.",
        &[], json::<types::ExportAgent>() => json::<types::Bundle>();
    ImportAgent: Post "/v1/tirami/agents/import", ADMIN, "importAgent",
        "Takes in an agent's key and opens an account for it.",
        &[], json::<types::ImportAgent>() => json::<types::Agent>();
    ResetBreaker: Post "/v1/tirami/agents/{did}/breaker/reset", ADMIN, "resetBreaker",
        "Closes an agent's open circuit breaker before its time.",
        &[], EMPTY => json::<types::Done>();

    Kill: Post "/v1/tirami/kill", ADMIN, "setKillSwitch",
        "Freezes all spending and ends running jobs, or lifts the freeze.",
        &[], json::<types::KillRequest>() => json::<types::KillStatus>();
    Policy: Post "/v1/tirami/policy", ADMIN, "setLimits",
        "Replaces the limits of the node, an agent or an API key.",
        &[], json::<types::PolicyRequest>() => json::<types::PolicyStatus>();
    Approvals: Get "/v1/tirami/approvals", ADMIN, "listApprovals",
        "Lists the requests that wait for a person.",
        &[STATE], EMPTY => json::<types::ApprovalList>();
    DecideApproval: Post "/v1/tirami/approvals/{id}", ADMIN, "decideApproval",
        "Lets a waiting request run once, or denies it.",
        &[], json::<types::ApprovalDecision>() => json::<types::Done>();

    Keys: Get "/v1/tirami/keys", ADMIN, "listKeys", "Lists the API keys, without the keys.",
        &[], EMPTY => json::<types::KeyList>();
    CreateKey: Post "/v1/tirami/keys", ADMIN, "createKey", "Makes an API key and shows it once.",
        &[], json::<types::CreateKey>() => json::<types::CreatedKey>();
    RotateKey: Post "/v1/tirami/keys/{id}/rotate", ADMIN, "rotateKey",
        "Replaces an API key by a new one with the same rights.",
        &[], json::<types::RotateKey>() => json::<types::CreatedKey>();
    RevokeKey: Delete "/v1/tirami/keys/{id}", ADMIN, "revokeKey", "Ends an API key at once.",
        &[], EMPTY => json::<types::Done>();
}

impl Operation {
    /// The operation's path with the segments in braces replaced, in order. Each value is
    /// percent-encoded.
    ///
    /// # Examples
    ///
    /// ```
    /// use tirami_sdk::endpoints::Operation;
    /// assert_eq!(Operation::Model.path_with(&["a/b"]), "/v1/models/a%2Fb");
    /// ```
    pub fn path_with(self, values: &[&str]) -> String {
        let mut values = values.iter();
        let segments = self.endpoint().path.split('/').map(|segment| {
            if segment.starts_with('{') {
                values.next().map(|value| percent_encode(value)).unwrap_or_default()
            } else {
                segment.to_owned()
            }
        });
        segments.collect::<Vec<_>>().join("/")
    }
}

/// Encodes everything but the unreserved characters and `:`, which a path segment may carry.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_and_routes_are_unique() {
        let rows = || Operation::ALL.iter().map(|operation| operation.endpoint());
        let ids: BTreeSet<_> = rows().map(|row| row.id).collect();
        let routes: BTreeSet<_> = rows().map(|row| (row.method, row.path)).collect();
        assert_eq!((ids.len(), routes.len()), (Operation::ALL.len(), Operation::ALL.len()));
    }

    #[test]
    fn only_what_shows_nothing_private_is_public() {
        let public: Vec<_> = Operation::ALL
            .iter()
            .filter(|operation| operation.endpoint().access == Access::Public)
            .map(|operation| operation.endpoint().path)
            .collect();
        assert_eq!(
            public,
            [
                "/health",
                "/healthz",
                "/readyz",
                "/openapi.json",
                "/",
                "/docs",
                "/docs/",
                "/docs/{file}"
            ]
        );
    }

    #[test]
    fn whatever_changes_something_for_others_needs_more_than_inference() {
        for operation in Operation::ALL {
            let row = operation.endpoint();
            let harmless = matches!(
                operation,
                Operation::Chat
                    | Operation::Completions
                    | Operation::CountTokens
                    | Operation::DeleteResponse
                    | Operation::Messages
                    | Operation::Responses
                    | Operation::Embeddings
                    | Operation::Tokenize
                    | Operation::Detokenize
                    | Operation::Estimate
                    | Operation::Schedule
            );
            if row.method != Method::Get && !harmless {
                assert!(
                    matches!(row.access, Access::Scope(Scope::Economy | Scope::Admin)),
                    "{}",
                    row.path
                );
            }
        }
    }
}
