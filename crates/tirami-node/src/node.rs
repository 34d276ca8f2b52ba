//! A node, put together: data directory, keys, store, kernel and HTTP, from start to stop.
//!
//! The first start is a series of steps, each durable before the next and each made only when it
//! is missing. A node killed in the middle of it goes on from there at the next start.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Unit;
use tirami_core::{AgentId, Digest, MeshId, ModelShape, Ppm, PublicKey, SecretKey, Signed, Trm};
use tirami_infer::engine::Engine;
use tirami_kernel::Kernel;
use tirami_kernel::mesh::MeshSettings;
use tirami_ledger::book::{
    KeyId, Limits, Scope, Target, answer_cost, default_limits, founder_line,
};
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{Charter, Lattice};
use tirami_ledger::{Keyring, Ledger, Rejection};
use tirami_proto::{Invite, PeerAddress};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::driver::{self, DriverStats, Running, now};
use crate::handle::{Handle, SubmitError};
use crate::http::{self, AppState, HttpConfig};
use crate::keys::{self, ApiKeyText, KeyDir, KeyFileError};
use crate::mesh::{
    self, Client, IncomingJob, JobStreams, JoinError, Mesh, MeshError, MeshOptions, Parts, Peers,
    Provider, ask_to_join,
};
use crate::metrics::Metrics;
use crate::owner::Rules;
use crate::store::{DirLock, Found, Genesis, Opening, StoreError, StoreStats};

/// What people call a mesh of one until they give it a name.
const MESH_NAME: &str = "private mesh";
/// The name of the personal agent's account.
const PERSONAL_NAME: &str = "personal";
/// The label of the admin API key in the data directory.
const ADMIN_LABEL: &str = "admin, from the data directory";

/// Newcomers whose default lines a founding charter has room for. It bounds what all
/// invited together can owe; a later version of the charter may allow more.
const INVITED_MAX: u64 = 64;
/// Where transfers are written down, in the data directory.
const TRANSFERS_FILE: &str = "transfers";
/// How often a newcomer looks whether it has a line yet.
const MEMBER_LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a node is made of.
pub struct NodeOptions {
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// Where the HTTP API listens; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The loaded model; none for a node that asks others.
    pub engine: Option<Arc<dyn Engine>>,
    /// The owner's settings.
    pub config: Config,
    /// Whether and how it takes part in a mesh.
    pub mesh: MeshOptions,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be made or entered.
    #[error("the data directory {path} cannot be used: {source}; choose another one")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The account book cannot be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A secret file cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// The node's key is not the one the book was begun with.
    #[error(
        "keys/node.key is not the key of the account book in {path}; nothing was changed; restore \
         the key and the book from the same backup"
    )]
    OtherKey {
        /// The data directory.
        path: PathBuf,
    },
    /// The file of the admin API key holds something else.
    #[error("{path} does not hold an API key; remove it and start again to get a new one")]
    ApiToken {
        /// The file.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on: {source}; choose another port or stop what uses it")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The mesh of an invite was not joined.
    #[error("{0}")]
    Join(#[from] JoinError),
    /// The node cannot take part in its mesh.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The node's first accounts could not be made.
    #[error("the node's accounts could not be prepared: {0}")]
    Accounts(#[from] SubmitError),
}

/// The shape that limits and figures of a node without a model are counted in: that of
/// `smollm2:135m`, the catalogue's default.
pub(crate) const REFERENCE_SHAPE: ModelShape = ModelShape {
    parameters_active: 134_515_008,
    layers: 30,
    attention_width: 576,
    context_max: 8_192,
};

/// Starts nodes.
#[derive(Debug, Clone, Copy)]
pub struct Node;

impl Node {
    /// Opens or creates the data directory, replays the book, prepares the accounts, and serves.
    ///
    /// # Errors
    ///
    /// [`StartError`]; what was durable stays so.
    pub async fn start(options: NodeOptions) -> Result<RunningNode, StartError> {
        Self::start_with(options, |http| http).await
    }

    /// As [`Node::start`], with other bounds of the HTTP interface than the production ones.
    ///
    /// # Errors
    ///
    /// [`StartError`]; what was durable stays so.
    pub async fn start_with(
        options: NodeOptions,
        bounds: impl FnOnce(HttpConfig) -> HttpConfig,
    ) -> Result<RunningNode, StartError> {
        let NodeOptions { data_dir, bind, engine, config, mesh } = options;
        let shape = engine.as_ref().map_or(REFERENCE_SHAPE, |engine| engine.model().shape);
        let price = Ppm::new(config.price_ppm);
        let Opened { opening, keys, node, kernel } =
            opened(&data_dir, founder_line(&shape, price), &mesh, &config.mesh_relay_urls).await?;
        let personal = opening.genesis().personal;
        let (store_stats, driver_stats) = (StoreStats::default(), DriverStats::default());
        let (store, reader) = opening.start(store_stats.clone())?;
        let (peers, dials) = Peers::new(kernel.ledger().party());
        let kernel = driver::start(kernel, store, Arc::clone(&peers), driver_stats.clone());
        let handle = kernel.handle.clone();
        let accounts = Accounts { handle: handle.clone(), personal, shape, price };
        let parts = Parts { handle: handle.clone(), reader: reader.clone(), peers, dials };
        let prepared = async {
            let is_member = accounts.prepare(config.personal_agent_answers).await?;
            accounts.admin_key(&data_dir).await?;
            let bound = TcpListener::bind(bind).await.and_then(|listener| {
                let address = listener.local_addr()?;
                Ok((listener, address))
            });
            let bound = bound.map_err(|source| StartError::Bind { address: bind, source })?;
            let joined = match mesh.bind {
                Some(udp) => {
                    let settings = mesh_settings(&keys, &config, &mesh)?;
                    let relays = config.mesh_relay_urls.as_slice();
                    Some(Mesh::start(parts, &node, &data_dir, (udp, relays), settings).await?)
                }
                None => None,
            };
            Ok((bound, joined, is_member))
        };
        let ((listener, api), mesh, is_member) = match prepared.await {
            Ok(bound) => bound,
            Err(error) => {
                // The first reason is the one to tell.
                drop(kernel.stop().await);
                return Err(error);
            }
        };
        let build = engine.as_ref().map_or_else(String::new, |one| one.model().build.clone());
        let metrics = Arc::new(Metrics::new(&build));
        add_metrics(&metrics, &store_stats, &driver_stats);
        let loopback = api.ip().to_canonical().is_loopback();
        let http = bounds(HttpConfig::new(config.body_max_bytes, loopback));
        let provider = match (&mesh, &engine) {
            (Some(mesh), Some(engine)) => {
                Some(Provider::start(mesh, handle.clone(), Arc::clone(engine), &config).await?)
            }
            _ => None,
        };
        handle.owner().keep_transfers(data_dir.join(TRANSFERS_FILE));
        let rules = engine.as_ref().filter(|_| provider.is_some());
        let rules = rules.map(|one| Rules::new(handle.clone(), Arc::clone(one), &config));
        let client = mesh.as_ref().map(|mesh| {
            let streams = mesh.job_streams();
            Client { handle: handle.clone(), streams }
        });
        let app =
            AppState::new(handle, reader, (engine, client), (personal, keys), metrics, http);
        let stop_http = CancellationToken::new();
        let drain = Duration::from_millis(config.drain_ms);
        let serving = tokio::spawn(http::serve(listener, app, stop_http.clone(), drain));
        if let Some(rules) = rules {
            tokio::spawn(stop_http.clone().run_until_cancelled_owned(rules.run()));
        }
        if !is_member {
            let newcomer = accounts.fill_when_member(config.personal_agent_answers);
            tokio::spawn(stop_http.clone().run_until_cancelled_owned(newcomer));
        }
        Ok(RunningNode { api, personal, kernel, mesh, provider, stop_http, serving })
    }
}

/// A node that serves.
pub struct RunningNode {
    /// Where the HTTP API listens.
    pub api: SocketAddr,
    personal: AgentId,
    kernel: Running,
    mesh: Option<Mesh>,
    provider: Option<Provider>,
    stop_http: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

impl RunningNode {
    /// Speaks to the node's kernel.
    pub fn handle(&self) -> Handle {
        self.kernel.handle.clone()
    }

    /// Who pays for callers on loopback without an API key.
    pub const fn personal_agent(&self) -> AgentId {
        self.personal
    }

    /// The node's key and where other nodes reach it; none outside of any mesh.
    pub fn peer_address(&self) -> Option<PeerAddress> {
        self.mesh.as_ref().map(Mesh::address)
    }

    /// What another machine needs to join the mesh of this node. In a private mesh whoever has it
    /// is let in.
    pub fn invite(&self) -> Option<Invite> {
        self.mesh.as_ref().map(Mesh::invite)
    }

    /// Opens streams of jobs to other nodes.
    pub fn job_streams(&self) -> Option<JobStreams> {
        self.mesh.as_ref().map(Mesh::job_streams)
    }

    /// Streams of jobs that other nodes open; only for the first who asks, which on a node with a
    /// model is the node itself.
    pub fn incoming_jobs(&self) -> Option<mpsc::Receiver<IncomingJob>> {
        self.mesh.as_ref().and_then(Mesh::incoming_jobs)
    }

    /// Takes no new request, lets running answers end for as long as the settings say, charges
    /// what was delivered, takes a snapshot and closes the store.
    ///
    /// # Errors
    ///
    /// The failure that stopped the store, if one did.
    pub async fn shutdown(self) -> Result<(), StoreError> {
        self.stop_http.cancel();
        if let Some(provider) = self.provider {
            provider.stop().await;
        }
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "serving HTTP failed"),
            Err(error) => tracing::error!(%error, "serving HTTP ended early"),
        }
        if let Some(mesh) = self.mesh {
            mesh.stop().await;
        }
        self.kernel.stop().await
    }

    /// Waits until the node cannot go on, and says why in one sentence. The process then ends
    /// with a failure; [`RunningNode::shutdown`] still closes what can be closed.
    pub async fn failed(&self) -> String {
        let mut failure: watch::Receiver<Option<String>> = self.kernel.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Stopped without a failure: there is nothing to wait for, and nothing to say.
            Err(_) => std::future::pending().await,
        }
    }
}

impl fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningNode").field("api", &self.api).finish_non_exhaustive()
    }
}

/// A data directory that was read and not yet written to, except for what a first start makes.
struct Opened {
    opening: Opening,
    keys: KeyDir,
    node: SecretKey,
    kernel: Kernel,
}

/// Opens the data directory, or begins it: with a mesh of one, or with the mesh of the invite.
async fn opened(
    data_dir: &Path,
    line_total: Trm,
    mesh: &MeshOptions,
    relays: &[String],
) -> Result<Opened, StartError> {
    let dir = data_dir.to_path_buf();
    let (found, keys) = blocking(move || look(&dir)).await?;
    let charter = match (&mesh.join, &found) {
        (Some(invite), Found::Nothing(_)) => {
            let bind = mesh.bind.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
            let charter = ask_to_join(&keys.node_key()?, bind, relays, invite).await?;
            keep_secret(&keys, invite)?;
            Some(charter)
        }
        (Some(invite), Found::Book(opening)) => {
            let (found, wanted) = (opening.genesis().mesh, invite.mesh);
            if found != wanted {
                return Err(JoinError::OtherMesh { found, wanted }.into());
            }
            keep_secret(&keys, invite)?;
            None
        }
        (None, _) => None,
    };
    let dir = data_dir.to_path_buf();
    blocking(move || open(&dir, found, keys, line_total, charter)).await
}

fn keep_secret(keys: &KeyDir, invite: &Invite) -> Result<(), KeyFileError> {
    invite.secret.map_or(Ok(()), |secret| keys.keep_mesh_secret(secret))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(StartError::Store(StoreError::Closed)))
}

/// What the data directory holds.
fn look(data_dir: &Path) -> Result<(Found, KeyDir), StartError> {
    keys::create_data_dir(data_dir)
        .map_err(|source| StartError::DataDir { path: data_dir.to_path_buf(), source })?;
    let lock = DirLock::take(data_dir)?;
    let found = Opening::open(data_dir, lock)?;
    Ok((found, KeyDir::open(data_dir)?))
}

fn open(
    data_dir: &Path,
    found: Found,
    keys: KeyDir,
    line_total: Trm,
    charter: Option<Signed<Charter>>,
) -> Result<Opened, StartError> {
    let (opening, node) = match found {
        // A book without its key must not get a new one.
        Found::Book(_) if !keys.has_node_key() => {
            return Err(StartError::OtherKey { path: data_dir.to_path_buf() });
        }
        // The admin API key is the last thing a first start makes.
        Found::Book(opening)
            if opening.records() == 0 && keys::api_token_path(data_dir).exists() =>
        {
            let what = "it is empty although this node was in use; its log is missing";
            return Err(opening.contradiction(what).into());
        }
        Found::Book(opening) => (*opening, keys.node_key()?),
        Found::Nothing(lock) => {
            let node = keys.node_key()?;
            let charter = match charter {
                Some(charter) => charter,
                None => mesh_of_one(&node, line_total)?,
            };
            let genesis = genesis(&keys, &node, &charter)?;
            (Opening::create(data_dir, &genesis, lock)?, node)
        }
    };
    let ledger = replay(&opening)?;
    let current = ledger.lattice().chain(ledger.party()).map(|chain| chain.key());
    if current.unwrap_or_else(|| PublicKey::from(ledger.party())) != node.public() {
        return Err(StartError::OtherKey { path: data_dir.to_path_buf() });
    }
    let mut keyring = Keyring::new(SecretKey::from_seed(node.seed()));
    keys.agents()?.into_iter().for_each(|key| keyring.add_agent(key));
    warn_of_missing_keys(&ledger, &keys)?;
    let kernel = Kernel::new(ledger, keyring);
    Ok(Opened { opening, keys, node, kernel })
}

/// An agent without its key can be looked at but cannot spend.
fn warn_of_missing_keys(ledger: &Ledger, keys: &KeyDir) -> Result<(), KeyFileError> {
    let held = keys.agent_names()?;
    for agent in ledger.book().agents().keys().filter(|agent| !held.contains(agent)) {
        let path = keys.agent_path(*agent);
        tracing::warn!(
            agent = agent.did(),
            path = %path.display(),
            "the key of an agent is missing, so it cannot spend; restore the file from a backup, \
             or import the agent's bundle"
        );
    }
    Ok(())
}

/// The charter of a mesh of one, with room for the lines of those its owner invites.
fn mesh_of_one(node: &SecretKey, own_line: Trm) -> Result<Signed<Charter>, StartError> {
    let mut charter = Charter::founder(MESH_NAME, node.public(), own_line);
    let invited = charter.params.line_default.micro().saturating_mul(INVITED_MAX);
    charter.line_total = Trm::from_micro(own_line.micro().saturating_add(invited));
    Signed::sign(Charter::founding_mesh(), node, charter).map_err(|error| {
        // The charter of a mesh of one is a few hundred bytes long.
        StartError::Accounts(SubmitError::Stopped { reason: error.to_string() })
    })
}

/// The beginning of a book in the mesh that `charter` founds, and the agent of its owner. An
/// agent's key that a killed first start left behind is used.
fn genesis(
    keys: &KeyDir,
    node: &SecretKey,
    charter: &Signed<Charter>,
) -> Result<Genesis, StartError> {
    let personal = match keys.agents()?.into_iter().next() {
        Some(key) => key,
        None => {
            let key = keys::new_key()?;
            keys.keep_agent(&key)?;
            key
        }
    };
    Ok(Genesis {
        mesh: MeshId::from_bytes(*charter.id().as_bytes()),
        party: node.public().party(),
        personal: personal.public().agent(),
        charter: charter.bytes().to_vec(),
        charter_signature: charter.signature(),
        created_at: now(),
    })
}

/// What the kernel has to know of the owner's wishes.
fn mesh_settings(
    keys: &KeyDir,
    config: &Config,
    mesh: &MeshOptions,
) -> Result<MeshSettings, KeyFileError> {
    // The nodes in an invite were asked once and answered; they are the first to ask again.
    let invited = mesh.join.iter().flat_map(|invite| &invite.peers);
    Ok(MeshSettings {
        secret: Some(keys.mesh_secret()?),
        public: mesh.public,
        trusted: config.trusted_peers.iter().copied().collect(),
        blocked: config.blocked_peers.iter().copied().collect(),
        bootstrap: mesh.bootstrap.iter().chain(invited).cloned().collect(),
        addresses: Vec::new(),
        agent: mesh::agent(),
    })
}

/// The state at the end of the journal, from the newest snapshot or from the beginning.
fn replay(opening: &Opening) -> Result<Ledger, StoreError> {
    let mut ledger = match opening.snapshot() {
        Some(snapshot) => {
            let ledger = Ledger::restore(&snapshot.body)
                .map_err(|error| opening.contradiction(error.to_string()))?;
            if ledger.state_hash() != snapshot.state_hash {
                return Err(opening.contradiction("its snapshot does not have its state's hash"));
            }
            ledger
        }
        None => beginning(opening.genesis()).map_err(|what| opening.contradiction(what))?,
    };
    opening.replay(|event| ledger.apply(&event))?;
    ledger.check_invariants().map_err(|what| opening.contradiction(what))?;
    Ok(ledger)
}

fn beginning(genesis: &Genesis) -> Result<Ledger, String> {
    let charter = Signed::from_store(
        Charter::founding_mesh(),
        genesis.charter.clone(),
        genesis.charter_signature,
    );
    let charter = charter.map_err(|error| error.to_string())?;
    let lattice = Lattice::found(&charter).map_err(|error| error.to_string())?;
    if lattice.mesh() != genesis.mesh {
        return Err("its charter is of another mesh".to_owned());
    }
    Ok(Ledger::new(lattice, genesis.party))
}

/// The steps of a start that go through the ledger.
struct Accounts {
    handle: Handle,
    personal: AgentId,
    shape: ModelShape,
    price: Ppm,
}

/// What the ledger already has.
struct Standing {
    price: Ppm,
    line_total: Trm,
    has_chain: bool,
    /// Whether this node founded its mesh, and so gives itself its line.
    is_founder: bool,
    has_agent: bool,
    /// Whether an earlier start got as far as the admin key, its last step.
    is_prepared: bool,
}

impl Accounts {
    /// Ends what the last run left open, then makes what is missing of chain, personal agent and
    /// limits, and fills the agent's account up to `answers`. `false` when the chain is still to
    /// come: in a mesh of others somebody has to give this node its line first.
    async fn prepare(&self, answers: u32) -> Result<bool, SubmitError> {
        self.submit(Command::Recover).await?;
        let personal = self.personal;
        let standing = self
            .handle
            .read(move |kernel, _| {
                let (ledger, book) = (kernel.ledger(), kernel.ledger().book());
                Standing {
                    price: book.price(),
                    line_total: ledger.lattice().charter().line_total,
                    has_chain: ledger.lattice().chain(ledger.party()).is_some(),
                    is_founder: ledger.lattice().charter().registrar == ledger.party(),
                    has_agent: book.agents().contains_key(&personal),
                    is_prepared: !book.keys().is_empty(),
                }
            })
            .await?;
        if standing.price != self.price {
            self.submit(Command::SetPrice { price: self.price }).await?;
        }
        if !standing.has_chain && standing.is_founder {
            // A start that was killed may have founded the mesh for a smaller model.
            let line = founder_line(&self.shape, self.price).min(standing.line_total);
            self.submit(Command::OpenChain { line }).await?;
        }
        if !standing.has_agent {
            let name = PERSONAL_NAME.to_owned();
            self.submit(Command::CreateAgent { agent: personal, name }).await?;
        }
        if !standing.is_prepared {
            let limits = default_limits(&self.shape, self.price);
            for target in [Target::Node, Target::Agent(personal)] {
                self.submit(Command::SetLimits { target, limits }).await?;
            }
        }
        self.fill(answers).await?;
        Ok(standing.has_chain || standing.is_founder)
    }

    /// Fills the personal agent's account up to `answers` when less than a tenth of that is left,
    /// with at most half of what the node can give. While the kill switch is on nothing moves.
    async fn fill(&self, answers: u32) -> Result<(), SubmitError> {
        let agent = self.personal;
        let answer = answer_cost(&self.shape, self.price).micro();
        let wanted = Trm::from_micro(answer.saturating_mul(answers.into()));
        let (has, half, is_frozen) = self
            .handle
            .read(move |kernel, _| {
                let ledger = kernel.ledger();
                let account = ledger.book().agents().get(&agent);
                let has = account.map_or(Trm::ZERO, |account| account.balance());
                let half = Trm::from_micro(ledger.fundable().micro() / 2);
                (has, half, ledger.book().kill().is_some())
            })
            .await?;
        let amount = wanted.saturating_sub(has).min(half);
        let is_low = has.micro() < wanted.micro() / 10;
        if is_low && !is_frozen && !amount.is_zero() {
            self.submit(Command::FundAgent { agent, amount }).await?;
        }
        Ok(())
    }

    /// In a mesh that others founded: fills the account once this node has a chain there.
    async fn fill_when_member(self, answers: u32) {
        loop {
            let member = |kernel: &Kernel, _| {
                let ledger = kernel.ledger();
                (ledger.lattice().chain(ledger.party()).is_some(), !ledger.fundable().is_zero())
            };
            match self.handle.read(member).await {
                Ok((true, true)) => break,
                Ok(_) | Err(SubmitError::Busy) => tokio::time::sleep(MEMBER_LOOK_EVERY).await,
                Err(_) => return,
            }
        }
        if let Err(error) = self.fill(answers).await {
            tracing::warn!(%error, "the personal agent's account was not filled");
        }
    }

    /// Makes the admin API key: first its file, synced, then its record. A file that was removed
    /// is replaced by a new key; whoever owns the directory owns the node.
    async fn admin_key(&self, data_dir: &Path) -> Result<(), StartError> {
        let ApiKeyText { key, text } = match keys::read_api_token(data_dir)? {
            Some(text) => {
                let path = keys::api_token_path(data_dir);
                let key = key_id(&text).ok_or(StartError::ApiToken { path })?;
                ApiKeyText { key, text }
            }
            None => {
                let drawn = keys::new_api_key()?;
                keys::write_api_token(data_dir, &drawn.text)?;
                drawn
            }
        };
        let known = move |kernel: &Kernel, _| kernel.ledger().book().keys().contains_key(&key);
        if self.handle.read(known).await? {
            return Ok(());
        }
        let create = Command::CreateKey {
            key,
            secret: Digest::of(text.as_bytes()),
            label: ADMIN_LABEL.to_owned(),
            scope: Scope::Admin,
            agent: Some(self.personal),
            limits: Limits::default(),
            expires_at: None,
        };
        Ok(self.submit(create).await?)
    }

    async fn submit(&self, command: Command) -> Result<(), SubmitError> {
        match self.handle.submit(Actor::Node, command).await {
            // The chain of a start that was killed just here.
            Ok(_) | Err(SubmitError::Rejected(Rejection::Exists { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The public name in an API key's text.
fn key_id(text: &str) -> Option<KeyId> {
    let (name, secret) = text.strip_prefix("tirami_")?.split_once('_')?;
    let well_formed = name.len() == 8 && secret.len() == 43;
    name.parse().ok().filter(|_| well_formed)
}

/// Shows what store and kernel measure.
fn add_metrics(metrics: &Metrics, store: &StoreStats, driver: &DriverStats) {
    let seconds = || Some(Unit::Seconds);
    metrics.add("store_sync", "Syncs of the store", seconds(), store.sync_seconds.clone());
    metrics.add(
        "store_write",
        "From the beginning of a group of records to its sync",
        seconds(),
        store.write_seconds.clone(),
    );
    metrics.add(
        "store_group_records",
        "Records made durable by one sync",
        None,
        store.group_records.clone(),
    );
    metrics.add("store_records", "Records written", None, store.records.clone());
    metrics.add(
        "kernel_decision",
        "Decisions of the kernel, without any sync",
        seconds(),
        driver.decision_seconds.clone(),
    );
    metrics.add(
        "kernel_snapshot",
        "Snapshots of the ledger",
        seconds(),
        driver.snapshot_seconds.clone(),
    );
}
