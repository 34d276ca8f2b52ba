//! The mesh: who is in it, who serves what, who may change it, and the owner's part in it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Amount;

/// The nodes this one is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerList {
    /// How many.
    pub count: u64,
    /// The peers, in the order of their parties.
    pub peers: Vec<Peer>,
    /// The latest connections that one side ended with a reason, the last one first.
    #[serde(default)]
    pub farewells: Vec<Farewell>,
}

/// A connection that one side ended with a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Farewell {
    /// The other node's party.
    pub node_id: String,
    /// Whether the other node ended it; else this one did.
    pub by_peer: bool,
    /// `version`, `wrong_mesh`, `not_admitted`, `blocked`, `too_many`, `misbehaved`, `stopping` or
    /// `other`.
    pub code: String,
    /// The same in the words of whoever ended it.
    pub reason: String,
    /// When it happened last, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How often it happened.
    pub times: u64,
}

/// A node this one is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// Its party, which its connection proved.
    pub node_id: String,
    /// `open` when both sides accepted each other, else `introducing`.
    pub state: String,
    /// Whether this node dialled it.
    pub outgoing: bool,
    /// Where its connection comes from.
    pub address: Option<String>,
    /// How long a round trip to it takes, in microseconds, as its connection measures.
    pub rtt_us: Option<u64>,
    /// Name and version of its software, as it says.
    pub agent: String,
    /// The protocol version spoken with it; 0 before both sides agreed.
    pub protocol_version: u16,
    /// What it says of itself: any of `keeps_own`.
    #[serde(default)]
    pub features: Vec<String>,
    /// Since when it is connected, in milliseconds since the Unix epoch.
    pub connected_at_ms: u64,
    /// When its last message came.
    pub last_seen_ms: u64,
    /// When this node last held everything the peer was known to hold.
    pub synced_at_ms: Option<u64>,
    /// Chains of which it holds more than this node.
    pub chains_ahead: u64,
    /// Whether it is a witness of the mesh.
    pub witness: bool,
    /// Whether it is on the owner's list of trusted peers.
    pub trusted: bool,
    /// What it owes this node, running jobs at their maximum.
    pub owes_trm: Amount,
    /// The models it says it serves.
    pub models: Vec<String>,
    /// What it asks for 10⁹ FLOP; nothing when it serves none.
    pub price_trm: Option<Amount>,
    /// Jobs that could start there at once, as it says.
    pub slots_free: Option<u16>,
    /// When it last said so.
    pub signal_at_ms: Option<u64>,
    /// An HTTP endpoint of its own, as it says.
    pub http_endpoint: Option<String>,
}

/// What other nodes tried here and was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusalList {
    /// How many rows.
    pub count: u64,
    /// The newest first.
    pub refusals: Vec<Refusal>,
}

/// What one node tried and was refused, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// Who tried.
    pub node_id: String,
    /// Why it was refused: the code of an order's or voucher's refusal, `receipts` for receipts
    /// that did not agree with what was received, or `double_signed` for a party that is proven to
    /// have signed two entries for one place.
    pub code: String,
    /// How often.
    pub times: u64,
    /// When the last time was recorded, in milliseconds since the Unix epoch.
    pub last_at_ms: Option<u64>,
}

/// The nodes that say they serve models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProviderList {
    /// How many.
    pub count: u64,
    /// The providers, in the order of their parties.
    pub providers: Vec<Provider>,
}

/// A node that says it serves models, by its newest signed price signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    /// Its party.
    pub node_id: String,
    /// Whether it is this node.
    pub is_self: bool,
    /// Whether this node is connected to it.
    pub connected: bool,
    /// Whether it takes jobs at this time.
    pub serving: bool,
    /// Whether it is on the owner's list of trusted peers.
    pub trusted: bool,
    /// What it asks for 10⁹ FLOP.
    pub price_trm: Amount,
    /// Jobs that could start at once.
    pub slots_free: u16,
    /// Jobs that can run at the same time.
    pub slots: u16,
    /// Jobs that wait.
    pub queue: u16,
    /// Where it says it is; may be empty.
    pub region: String,
    /// What it says of itself: any of `keeps_own`.
    #[serde(default)]
    pub features: Vec<String>,
    /// An HTTP endpoint of its own, as it says.
    pub http_endpoint: Option<String>,
    /// What it serves.
    pub models: Vec<OfferedModel>,
    /// Jobs of this node that it answered, since this node started.
    pub jobs_measured: u32,
    /// Failures among them in millionths, the newest counting most; what nobody measured yet
    /// counts as 50 000.
    pub failure_ppm: u64,
    /// What this node paid it since this node started.
    pub bought_trm: Amount,
    /// What it paid this node since this node started.
    pub sold_trm: Amount,
    /// When its signal was signed, in milliseconds since the Unix epoch.
    pub issued_at_ms: u64,
    /// When its signal ends.
    pub expires_at_ms: u64,
}

/// A model as a provider offers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OfferedModel {
    /// Its name.
    pub model: String,
    /// Its digest, which says for certain what it is.
    pub model_id: String,
    /// Its quantisation.
    pub quantisation: String,
    /// The longest conversation served, in tokens.
    pub context_tokens: u32,
    /// Tokens per 1 000 s, as the provider says; nobody's money depends on it.
    pub tokens_per_second_milli: u32,
    /// Milliseconds to its first token, as this node measured.
    pub measured_first_token_ms: Option<u32>,
    /// Tokens per 1 000 s, as this node measured.
    pub measured_tokens_per_second_milli: Option<u32>,
    /// What one token costs there before attention.
    pub trm_per_token: Amount,
    /// Engine, version and back-end.
    pub build: String,
}

/// Nodes and connections, as this node sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Topology {
    /// This node's party.
    pub node_id: String,
    /// The mesh.
    pub mesh_id: String,
    /// Nodes that are connected, serve, or have an office in the mesh; this node first.
    pub nodes: Vec<TopologyNode>,
    /// This node's connections. Those of others are not known here.
    pub links: Vec<TopologyLink>,
}

/// A node in the topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopologyNode {
    /// Its party.
    pub node_id: String,
    /// Its offices: any of `self`, `witness`, `clerk`, `registrar`, `provider`.
    pub roles: Vec<String>,
    /// Whether this node is connected to it, or is it.
    pub connected: bool,
    /// The models it says it serves.
    pub models: Vec<String>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopologyLink {
    /// Who dialled.
    pub from: String,
    /// Who was dialled.
    pub to: String,
    /// Where the other node's connection comes from.
    pub address: Option<String>,
}

/// What this node speaks with other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Protocol {
    /// The newest version it speaks.
    pub protocol_version: u16,
    /// The oldest version it speaks.
    pub min_protocol_version: u16,
    /// Optional abilities of this version: any of `keeps_own`.
    pub features: Vec<String>,
    /// `quic`.
    pub transport: String,
    /// `cbor`.
    pub wire_codec: String,
    /// The name under which QUIC finds the protocol.
    pub alpn: String,
    /// Bytes of a message between nodes at most.
    pub control_frame_bytes_max: u64,
    /// Bytes of a request that is forwarded at most.
    pub job_frame_bytes_max: u64,
    /// How long a price signal is valid at most, in milliseconds.
    pub signal_life_ms_max: u64,
}

/// Whom the requester wants to answer. What is missing is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderWish {
    /// Nodes to take in this order, before all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
    /// No others than these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// Not these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// Whether another node may be taken when those in `order`, or the best one, cannot; true
    /// when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_fallbacks: Option<bool>,
    /// No other quantisations than these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantizations: Vec<String>,
    /// The most to pay for 10⁹ FLOP, in TRM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price: Option<Amount>,
    /// What counts first: `price`, `throughput` or `latency`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    /// The least tokens per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_throughput: Option<f64>,
    /// Who may see the prompt: `any`, or `trusted` nodes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// Asks who would answer a request, without sending it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRequest {
    /// The model's name or digest; the one served here, or the only one in the mesh, when it is
    /// missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// Tokens of the prompt; 0 when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u32>,
    /// Tokens of the answer at most; 1 000 when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Whom the requester wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderWish>,
}

/// Who would answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// The node that would be asked first.
    pub provider: String,
    /// `local` when it is this node, else `mesh`.
    pub kind: String,
    /// The model's name.
    pub model: String,
    /// The model's digest.
    pub model_id: String,
    /// What the request would cost at most there.
    pub estimated_trm_cost: Amount,
    /// Tokens of the prompt the estimate is for.
    pub prompt_tokens: u32,
    /// Tokens of the answer the estimate is for.
    pub max_tokens: u32,
    /// Other nodes that could answer, in the order in which they would be tried.
    pub candidates: Vec<ScheduleCandidate>,
    /// How many other nodes were looked at.
    pub asked: u32,
    /// Why some were left out, each reason with how many.
    pub excluded: Vec<ScheduleExclusion>,
}

/// Another node that could answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleCandidate {
    /// Its party.
    pub provider: String,
    /// How it compares with the best, which has 1 000 000.
    pub score: u64,
    /// What it asks for 10⁹ FLOP.
    pub price_trm: Amount,
    /// What the request would cost there at most.
    pub estimated_trm_cost: Amount,
    /// Why it stands where it stands, the decisive reason first.
    pub why: Vec<String>,
}

/// Nodes that were left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleExclusion {
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u32,
}

/// The node that suits a wish best.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BestRoute {
    /// Its party.
    pub provider: String,
    /// The model's name.
    pub model: String,
    /// The model's digest.
    pub model_id: String,
    /// What an answer costs there at most.
    pub estimated_trm: Amount,
    /// How it compares with the best other node, which has 1 000 000; the same for this node.
    pub score: u64,
    /// Why, the decisive reason first.
    pub why: Vec<String>,
}

/// Asks for an invite. What is missing is as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// How many newcomers it brings in with the charter's default line, 64 at most; 8 when it is
    /// missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// For how many seconds it does; a week when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u64>,
    /// Whether the mesh's secret is replaced first, so that this node lets in nobody by an earlier
    /// invite.
    #[serde(default)]
    pub renew: bool,
}

/// What another machine needs to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeshInvite {
    /// One word to hand over; in a private mesh whoever has it is let in.
    pub invite: String,
    /// The mesh.
    pub mesh_id: String,
    /// How many nodes it names to ask.
    pub peers: u64,
    /// Whether it carries the secret of a private mesh.
    pub secret: bool,
    /// How many newcomers are enrolled from now on, those of earlier invites included; 0 where
    /// another node is the registrar, which keeps the count.
    #[serde(default)]
    pub enrolments_left: u64,
    /// Until when, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

/// Asks a running node to join another mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The invite.
    pub invite: String,
}

/// The mesh's constitution in force, and drafts of the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeshCharter {
    /// The mesh.
    pub mesh_id: String,
    /// What people call it.
    pub name: String,
    /// 1 for the first, then one more for each change.
    pub version: u32,
    /// The charter's id.
    pub charter_id: String,
    /// The parties that acknowledge entries.
    pub witnesses: Vec<String>,
    /// How many of them make an entry final.
    pub quorum: u32,
    /// How many dishonest witnesses change nothing.
    pub witnesses_tolerated: u64,
    /// How many witnesses may be away while entries still become final.
    pub away_tolerated: u64,
    /// Who writes checkpoints.
    pub clerk: String,
    /// Who enrols members.
    pub registrar: String,
    /// The most that the lines enrolled may sum to.
    pub line_total_trm: Amount,
    /// The line of a member when nobody says otherwise.
    pub line_default_trm: Amount,
    /// The most that a sponsor lends a newcomer.
    pub welcome_trm: Amount,
    /// The share of a payment that is burned, in ppm.
    pub fee_ppm: u32,
    /// The last checkpoint known here; none in a mesh that is only beginning.
    pub checkpoint: Option<LastCheckpoint>,
    /// This node's welcome line, or its search for one; none when it neither has nor wants any.
    pub welcome: Option<WelcomeLine>,
    /// This node's faucet, while it is open.
    pub faucet: Option<FaucetState>,
    /// Drafts of the next version that wait for approvals.
    pub drafts: Vec<CharterDraft>,
}

/// The last checkpoint of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastCheckpoint {
    /// Its number, from 1.
    pub number: u64,
    /// Its entry.
    pub entry: String,
    /// The time it states, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// What a newcomer may begin with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WelcomeLine {
    /// `searching`, `open`, `settled` or `defaulted`.
    pub state: String,
    /// How far below its line the node may go for jobs.
    pub amount_trm: Amount,
    /// Who sponsors it; while it searches, who is asked.
    pub sponsor: Option<String>,
    /// When it has to be settled, in milliseconds since the Unix epoch.
    pub deadline_ms: Option<u64>,
    /// Why the last one asked did not sponsor this node.
    pub refused: Option<String>,
}

/// What a node gives to newcomers that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FaucetState {
    /// What is locked for one newcomer.
    pub amount_trm: Amount,
    /// What was locked within the last day.
    pub given_trm: Amount,
    /// The most that is locked within a day.
    pub day_max_trm: Amount,
    /// The work a newcomer shows, in bits.
    pub work_bits: u8,
}

/// A draft of the next charter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CharterDraft {
    /// Its name: the blake3 digest of its bytes.
    pub draft: String,
    /// The version it would be.
    pub version: u32,
    /// The parties that would acknowledge entries.
    pub witnesses: Vec<String>,
    /// How many of them would make an entry final.
    pub quorum: u32,
    /// How many dishonest witnesses would change nothing.
    pub witnesses_tolerated: u64,
    /// How many witnesses could be away while entries still became final.
    pub away_tolerated: u64,
    /// Witnesses in force that have approved it, as far as is known here.
    pub approvals: u32,
    /// Witnesses in force that must.
    pub approvals_needed: u32,
    /// Whether this node has approved it, from which there is no way back.
    pub approved_here: bool,
    /// Whether it is in force.
    pub in_force: bool,
}

/// Adds a witness to the mesh, or removes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WitnessChange {
    /// What to do.
    pub action: WitnessAction,
    /// The witness's party.
    pub party: String,
}

/// What to do with a witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WitnessAction {
    /// It acknowledges entries from the next charter on.
    Add,
    /// It no longer does.
    Remove,
}

/// Approves a draft as a witness. There is no way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveCharter {
    /// The draft's name.
    pub draft: String,
}

/// Lends a newcomer a welcome line out of this node's own money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SponsorRequest {
    /// The newcomer's party.
    pub party: String,
    /// What is locked for it; the most that the charter allows when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount_trm: Option<Amount>,
}

/// Grants a member a line, as the mesh's registrar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The member's party.
    pub party: String,
    /// Whom it belongs to, for people; at most 64 bytes.
    #[serde(default)]
    pub owner: String,
    /// How far below zero it may go; the charter's default when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_trm: Option<Amount>,
}

/// Gives TRM of the node's own account to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// The receiver's party.
    pub to: String,
    /// How much.
    pub amount_trm: Amount,
    /// A word of the caller's choice, 1 to 64 visible characters. The same word never gives
    /// twice.
    pub idempotency_key: String,
}

/// An entry on this node's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChainEntry {
    /// Its id.
    pub entry: String,
    /// Whether enough witnesses have acknowledged it, so that nothing can undo it.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Whether it was signed by an earlier request with the same idempotency key.
    pub repeated: bool,
}

/// To whom and how far this node serves, and whether it does now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Serving {
    /// Whether jobs of other nodes are taken now.
    pub serving: bool,
    /// Why not, each reason a sentence; empty while it serves.
    pub reasons: Vec<String>,
    /// Whether the owner paused it.
    pub paused_by_owner: bool,
    /// Jobs of other nodes at once at most.
    pub jobs_max: u32,
    /// Jobs of other nodes that run.
    pub jobs_running: u32,
    /// What the node asks for 10⁹ FLOP.
    pub price_trm: Amount,
    /// What a consumer may owe before its first job is paid; it doubles with each one paid.
    pub exposure_start_trm: Amount,
    /// What a consumer may owe at most.
    pub exposure_max_trm: Amount,
    /// What all consumers that are not enrolled may owe together for one day's jobs.
    pub exposure_unknown_day_trm: Amount,
    /// How old the last word on a consumer's money may be, in milliseconds.
    pub fresh_ms: u64,
    /// What other nodes owe this one now, running jobs at their maximum.
    pub owed_trm: Amount,
    /// What this node earned by final payments, ever.
    pub earned_trm: Amount,
    /// Parties that are not served.
    pub blocked: Vec<String>,
    /// Parties that need not earn their exposure.
    pub trusted: Vec<String>,
    /// While other nodes' jobs take so many places or more, only nodes that served this one get
    /// the rest; 0 for no such rule.
    pub contributors_above: u32,
    /// The owner's rules from the settings.
    pub rules: ServingRules,
}

/// The owner's rules from the settings, and what was measured for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServingRules {
    /// The hours of serving; empty for all.
    pub hours: String,
    /// The share of the machine's processor time that other programs may use, in percent; 0 when
    /// it does not matter.
    pub idle_percent: u32,
    /// What other programs use now; null when it was not measured.
    pub busy_percent: Option<u32>,
    /// What the electricity for 10⁹ FLOP costs, the lowest price; null when it is not known.
    pub price_floor_trm: Option<Amount>,
    /// The speed that was measured for it, in 10⁶ FLOP per second.
    pub megaflops: Option<u64>,
}

/// Changes how the node serves. What is missing stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServingChange {
    /// Jobs of other nodes at once at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs_max: Option<u32>,
    /// What a consumer may owe before its first job is paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure_start_trm: Option<Amount>,
    /// What a consumer may owe at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure_max_trm: Option<Amount>,
    /// What all consumers that are not enrolled may owe together for one day's jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure_unknown_day_trm: Option<Amount>,
    /// How old the last word on a consumer's money may be, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_ms: Option<u64>,
    /// All parties that are not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Vec<String>>,
    /// All parties that need not earn their exposure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted: Option<Vec<String>>,
    /// From so many jobs of other nodes on, only nodes that served this one are served; 0 for no
    /// such rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contributors_above: Option<u32>,
}
