//! A node, put together: data directory, keys, store, kernel and HTTP, from start to stop.
//!
//! The first start is a series of steps, each durable before the next and each made only when it
//! is missing. A node killed in the middle of it goes on from there at the next start.

mod accounts;
mod opened;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tirami_core::{AgentId, ModelShape, Ppm};
use tirami_kernel::mesh::MeshSettings;
use tirami_ledger::book::founder_line;
use tirami_ledger::lattice::Keep;
use tirami_proto::{Invite, PeerAddress};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api_file::ApiFile;
use crate::config::Config;
use crate::driver::{self, DriverStats, Running};
use crate::handle::{Handle, SubmitError};
use crate::http::{self, AppState, HttpConfig};
use crate::keys::{KeyDir, KeyFileError};
use crate::mesh::{
    self, Client, IncomingJob, JobStreams, JoinError, Mesh, MeshError, MeshOptions, Parts, Peers,
    Provider, set_serving,
};
use crate::metrics::{self, Metrics};
use crate::models::{Model, Models};
use crate::owner::Rules;
use crate::responses::Responses;
use crate::store::{StoreError, StoreStats};
use accounts::Accounts;
use opened::{Opened, opened};

pub use opened::Founded;

/// Where transfers are written down, in the data directory.
const TRANSFERS_FILE: &str = "transfers";

/// Where answers are kept that their askers may come back to, in the data directory.
const RESPONSES_FILE: &str = "responses.sqlite";

/// What a node is made of.
pub struct NodeOptions {
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// Where the HTTP API listens; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The models it serves; none for a node that asks others.
    pub models: Models,
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
    ApiKeyFile {
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

/// A node on its way to serving.
pub type Starting = Pin<Box<dyn Future<Output = Result<RunningNode, StartError>> + Send>>;

/// Starts nodes.
#[derive(Debug, Clone, Copy)]
pub struct Node;

impl Node {
    /// Opens or creates the data directory, replays the book, prepares the accounts, and serves.
    ///
    /// # Errors
    ///
    /// [`StartError`]; what was durable stays so.
    pub fn start(options: NodeOptions) -> Starting {
        Self::start_with(options, |http| http)
    }

    /// As [`Node::start`], with other bounds of the HTTP interface than the production ones.
    ///
    /// # Errors
    ///
    /// [`StartError`]; what was durable stays so.
    pub fn start_with(
        options: NodeOptions,
        bounds: impl FnOnce(HttpConfig) -> HttpConfig,
    ) -> Starting {
        let loopback = options.bind.ip().to_canonical().is_loopback();
        let cors_origins = options.config.cors_origins.clone().into();
        let http = HttpConfig::new(options.config.body_max_bytes, loopback);
        Self::begun(options, bounds(HttpConfig { cors_origins, ..http }))
    }

    /// In one place and boxed: a future that is handed out as it is, with all that it holds, is
    /// compiled again by everyone who awaits it, which takes minutes for a whole node.
    #[inline(never)]
    fn begun(options: NodeOptions, http: HttpConfig) -> Starting {
        Box::pin(Self::run(options, http))
    }

    async fn run(options: NodeOptions, http: HttpConfig) -> Result<RunningNode, StartError> {
        crate::memory::return_large_blocks();
        let NodeOptions { data_dir, bind, models, config, mesh } = options;
        let first = models.first();
        let served = first.as_ref().map(|model| model.info().shape);
        let shape = served.unwrap_or(REFERENCE_SHAPE);
        let price = Ppm::new(config.price_ppm);
        let Opened { opening, keys, node, kernel, founded } =
            opened(&data_dir, founder_line(&shape, price), &mesh).await?;
        let personal = opening.genesis().personal;
        let (store_stats, driver_stats) = (StoreStats::default(), DriverStats::default());
        let (store, reader) = opening.start(store_stats.clone())?;
        let (peers, errands) = Peers::new(kernel.ledger().party());
        let kernel = driver::start(
            kernel,
            store,
            Arc::clone(&peers),
            driver_stats.clone(),
            mesh.clock.clone(),
        );
        let others_use = mesh.others_use.clone();
        let handle = kernel.handle.clone();
        let accounts = Accounts { handle: handle.clone(), personal, shape, price };
        let parts = Parts { handle: handle.clone(), reader: reader.clone(), peers, errands };
        let prepared = async {
            let is_member = accounts.prepare(&config).await?;
            accounts.admin_key(&data_dir).await?;
            set_serving(&handle, served.as_ref(), &config).await?;
            let bound = TcpListener::bind(bind).await.and_then(|listener| {
                let address = listener.local_addr()?;
                Ok((listener, address))
            });
            let bound = bound.map_err(|source| StartError::Bind { address: bind, source })?;
            let joined = match mesh.bind {
                Some(udp) => {
                    let admission = mesh::admission(&data_dir);
                    let settings = MeshSettings { admission, ..mesh_settings(&keys, &mesh)? };
                    let doors = ((udp, mesh.is_port_chosen), mesh.finding());
                    Some(Mesh::start(parts, &node, &data_dir, doors, settings).await?)
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
        let build = first.map_or_else(String::new, |one| one.info().build.clone());
        let metrics = Arc::new(Metrics::new(&metrics::Parts {
            build: &build,
            store: &store_stats,
            driver: &driver_stats,
            refusals: handle.owner().refusals(),
        }));
        let is_offered = models.all().iter().any(Model::is_offered);
        let provider = match &mesh {
            Some(mesh) if is_offered => {
                Some(Provider::start(mesh, handle.clone(), models.clone(), &config).await?)
            }
            _ => None,
        };
        handle.owner().keep_transfers(data_dir.join(TRANSFERS_FILE));
        let rules = provider
            .as_ref()
            .map(|_| Rules::new(handle.clone(), models.clone(), &config, others_use));
        let client = mesh.as_ref().map(|mesh| {
            let streams = mesh.job_streams();
            Client { handle: handle.clone(), streams }
        });
        let responses = Responses::at(data_dir.join(RESPONSES_FILE));
        let (ways, own) = ((models.clone(), client), (personal, keys, responses));
        let app = AppState::new(handle, reader, ways, own, metrics, http);
        let stop_http = CancellationToken::new();
        let drain = Duration::from_millis(config.drain_ms);
        let serving = tokio::spawn(http::serve(listener, app, stop_http.clone(), drain));
        tokio::spawn(stop_http.clone().run_until_cancelled_owned(models.clone().run()));
        if let Some(rules) = rules {
            tokio::spawn(stop_http.clone().run_until_cancelled_owned(rules.run()));
        }
        if !is_member {
            let newcomer = accounts.fill_when_member(config.personal_agent_answers);
            tokio::spawn(stop_http.clone().run_until_cancelled_owned(newcomer));
        }
        let file = ApiFile::write(&data_dir, api);
        Ok(RunningNode { api, file, founded, personal, kernel, mesh, provider, stop_http, serving })
    }
}

/// A node that serves.
pub struct RunningNode {
    /// Where the HTTP API listens.
    pub api: SocketAddr,
    /// Says so to commands of this machine.
    file: ApiFile,
    founded: Option<Founded>,
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

    /// The mesh that this start founded; none where the node was in one or joined one.
    pub const fn founded(&self) -> Option<Founded> {
        self.founded
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
    pub fn shutdown(self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>> {
        self.ended()
    }

    /// Boxed for the same reason as a start.
    #[inline(never)]
    fn ended(self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>> {
        Box::pin(self.end())
    }

    async fn end(self) -> Result<(), StoreError> {
        self.stop_http.cancel();
        if let Some(provider) = self.provider {
            provider.stop().await;
        }
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "serving HTTP failed"),
            Err(error) => tracing::error!(%error, "serving HTTP ended early"),
        }
        self.file.remove();
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

/// What the kernel has to know of the owner's wishes.
fn mesh_settings(keys: &KeyDir, mesh: &MeshOptions) -> Result<MeshSettings, KeyFileError> {
    // The nodes in an invite were asked once and answered; they are the first to ask again.
    let invited = mesh.join.iter().flat_map(|invite| &invite.peers);
    Ok(MeshSettings {
        secret: Some(keys.mesh_secret()?),
        public: mesh.public,
        admission: None,
        keep: mesh.keep.unwrap_or(if mesh.public { Keep::Own } else { Keep::All }),
        bootstrap: mesh.bootstrap.iter().chain(invited).cloned().collect(),
        addresses: Vec::new(),
        agent: mesh::agent(),
        faucet: mesh.faucet,
    })
}
