//! What travels in requests and answers. Names are those of the JSON.

mod agents;
mod chat;
mod completions;
mod economy;
mod embeddings;
mod error;
mod keys;
mod mesh;
mod messages;
mod models;
mod responses;
mod safety;
mod status;
mod tokens;

pub use agents::{
    Agent, AgentList, Bundle, CreateAgent, Cryption, ExportAgent, FundAgent, ImportAgent,
};
pub use chat::{
    AllowedChoice, AllowedTools, CalledFunction, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta,
    ChatMessage, ChatRequest, ChatResponse, ChoiceLogprobs, Content, ContentPart, Function,
    FunctionDelta, FunctionName, ImageUrl, NamedTool, PromptDetails, Route, RouteAttempt, Stop,
    StreamOptions, TiramiInfo, TokenLogprob, Tool, ToolCall, ToolCallDelta, ToolChoice, TopLogprob,
    Usage,
};
pub use completions::{
    CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, TextPrompt,
};
pub use economy::{
    Balance, Estimate, EstimateRequest, Network, Pricing, SignedDocument, Trade, TradeDetail,
    TradeList,
};
pub use embeddings::{
    Embedding, EmbeddingInput, EmbeddingVector, Embeddings, EmbeddingsRequest, EmbeddingsUsage,
};
pub use error::{ErrorBody, ErrorDetail, ErrorExtra};
pub use keys::{CreateKey, CreatedKey, KeyInfo, KeyList, RotateKey, Scope};
pub use mesh::{
    ApproveCharter, BestRoute, ChainEntry, CharterDraft, EnrolRequest, Farewell, FaucetState,
    InviteRequest, JoinRequest, LastCheckpoint, MeshCharter, MeshInvite, OfferedModel, Peer,
    PeerList, Protocol, Provider, ProviderList, ProviderWish, Refusal, RefusalList, Schedule,
    ScheduleCandidate, ScheduleExclusion, ScheduleRequest, Serving, ServingChange, ServingRules,
    SponsorRequest, Topology, TopologyLink, TopologyNode, TransferRequest, WelcomeLine,
    WitnessAction, WitnessChange,
};
pub use messages::{
    BlockDelta, ContentBlock, ImageSource, InputMessage, MessageAnswer, MessageContent, MessageEnd,
    MessageError, MessageErrorDetail, MessageEvent, MessageMetadata, MessageTokens, MessageTool,
    MessageToolChoice, MessageUsage, MessagesRequest,
};
pub use models::{KeepAlive, LoadModel, Model, ModelDetail, ModelList, ModelState, ModelStateList};
pub use responses::{
    DeletedResponse, IncompleteDetails, InputDetails, OutputContent, OutputDetails, OutputItem,
    ResponseError, ResponseEvent, ResponseEventKind, ResponseInput, ResponseItemList,
    ResponseObject, ResponseReasoning, ResponseText, ResponseTool, ResponseUsage, ResponsesRequest,
};
pub use safety::{
    Approval, ApprovalDecision, ApprovalList, Done, KillRequest, KillStatus, LimitAmount, Limits,
    LimitsReport, PolicyRequest, PolicyStatus, Safety, Spending,
};
pub use status::{EngineStatus, Health, Ready, ReadyComponents, Status};
pub use tokens::{DetokenizeRequest, Detokenized, TokenizeRequest, Tokenized};

/// Completion tokens that make one answer where a cost or a limit is shown in answers.
pub const ANSWER_TOKENS: u32 = 1_000;
