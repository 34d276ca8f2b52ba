//! The node's side of the mesh: QUIC connections to other nodes, carried for the kernel.
//!
//! One connection for each pair of nodes; on it one control stream of messages, and one stream for
//! each job. Every decision (whom to dial, whom to let in, what to say) is the kernel's; this
//! module moves bytes, keeps what strangers can use up within bounds, and reports who is there.
//!
//! ```text
//! kernel ─effects, when durable─► Peers ─queue─► control stream ─► peer
//! kernel ◄─────── Handle::peer_input ◄─limits─── control stream ◄─ peer
//! ```

mod ask;
mod body;
mod control;
mod doors;
mod embed;
mod endpoint;
mod failover;
mod finding;
mod frames;
mod intake;
mod invite;
mod jobs;
mod join;
mod lan;
mod likelihood;
mod observed;
mod offer;
mod own;
mod peers;
mod provide;
mod remembered;
mod remote;
mod retold;
mod serve;
mod source;
mod work;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use iroh::Endpoint;
use iroh::endpoint::Incoming;
use tirami_core::{Digest, PartyId, SecretKey};
use tirami_kernel::mesh::{Faucet, MeshInput, MeshSettings, PeerEvent};
use tirami_ledger::lattice::Keep;
use tirami_proto::{ALPN, GoodbyeCode, Message};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use control::ALL_FRAMES_PER_SECOND;
pub use doors::{HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX};
pub use endpoint::STREAMS_PER_PEER_MAX;
pub use finding::{DnsOrigin, Finding, RELAYS_NAMED_MAX};
pub use frames::{FrameReceiver, FrameSender, StreamError};
pub use intake::{
    FRAME_BYTES_MIN, REQUEST_BYTES_MAX, REQUEST_BYTES_PER_PEER_MAX, REQUESTS_PER_PEER_MAX,
};
pub use invite::{INVITE_LIFE_MS, INVITE_USES};
pub use jobs::{INCOMING_JOBS_MAX, IncomingJob, JobStream, JobStreams, OpenError};
pub use join::JoinError;
pub use peers::{
    CONNECTIONS_MAX, INTRODUCING_MAX, INTRODUCING_PER_SOURCE_MAX, QUEUE_BYTES_MAX, QUEUE_FRAMES_MAX,
};
pub use remembered::REMEMBERED_MAX;
pub use serve::{SERVED_STREAMS_MAX, WINDOW_TOKENS_MAX};
pub use tirami_proto::{Invite, PeerAddress};

pub(crate) use ask::{GaveUp, Invalid, Journeyed, MeshAsk, Part, RouteError, Served};
pub(crate) use body::MeshJob;
pub(crate) use embed::{Embedded, embed};
pub(crate) use failover::{Started, begin};
pub(crate) use invite::{Terms, admission};
pub(crate) use join::ask as ask_to_join;
pub(crate) use offer::Offering;
pub(crate) use own::{OwnEngine, scope as cache_scope};
pub(crate) use peers::{Outgoing, Peers};
pub(crate) use provide::{Provider, set_serving};
pub(crate) use remote::{Client, WantedVectors};
pub(crate) use retold::Retold;
pub(crate) use serve::{EMBEDDINGS_PATH, Server, understanding_max};

use crate::clock::Clock;
use crate::config::Config;
use crate::handle::{Handle, SubmitError};
use crate::owner::OthersUse;
use crate::store::StoreReader;
use doors::{Doors, Source};
use finding::Relays;
use lan::Lan;
use observed::Observed;
use peers::Errand;
use remembered::Remembered;

/// Nodes dialled at the same time.
const DIALS_AT_ONCE: usize = 16;
/// How long a handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// How often own addresses, the clock and the ways to peers are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A clock that runs so far ahead of the steady one means that the machine slept.
const SLEPT: Duration = Duration::from_secs(3);
/// How long goodbyes may take when the node stops.
const GOODBYES_WITHIN: Duration = Duration::from_secs(2);
/// How long closing the endpoint may take when the node stops.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Whether and how a node takes part in a mesh.
#[derive(Debug, Clone, Default)]
pub struct MeshOptions {
    /// Where other nodes reach this one, over UDP; `None` for a mesh of one without any port.
    pub bind: Option<SocketAddr>,
    /// Whether the owner chose the port, so that no other one is taken when it is in use.
    pub is_port_chosen: bool,
    /// The mesh to join, where there is no account book yet.
    pub join: Option<Invite>,
    /// Nodes to connect to first.
    pub bootstrap: Vec<PeerAddress>,
    /// Whether nodes without an invite are let in.
    pub public: bool,
    /// What newcomers that nobody knows are given; none when nothing.
    pub faucet: Option<Faucet>,
    /// The time by which money is kept.
    pub clock: Clock,
    /// What other programs use of the processors, by which `serve_idle_percent` is kept.
    pub others_use: OthersUse,
    /// What helps nodes to find each other.
    pub finding: Finding,
    /// Which chains are kept; where nothing is said, all in a private mesh, and in a public one
    /// those that this node has to do with.
    pub keep: Option<Keep>,
}

impl MeshOptions {
    /// What the settings say.
    pub fn of(config: &Config) -> Self {
        let bind = SocketAddr::new(config.mesh_bind, config.mesh_port);
        Self {
            bind: config.mesh_enabled.then_some(bind),
            is_port_chosen: false,
            join: None,
            bootstrap: config.bootstrap_peers.clone(),
            public: config.mesh_public,
            faucet: config.faucet(),
            clock: Clock::default(),
            others_use: OthersUse::default(),
            finding: Finding {
                relay_urls: config.mesh_relay_urls.clone(),
                // Nobody beyond this machine could connect.
                lan: config.mesh_lan && !config.mesh_bind.is_loopback(),
                pkarr_url: config.mesh_pkarr_url.clone(),
                dns: config.mesh_dns_origin.clone(),
            },
            keep: match config.keep_chains.as_str() {
                "own" => Some(Keep::Own),
                "all" => Some(Keep::All),
                _ => None,
            },
        }
    }

    /// What helps to find peers, with the relays that the owner named with a peer.
    pub(crate) fn finding(&self) -> Finding {
        let invited = self.join.iter().flat_map(|invite| &invite.peers);
        self.finding.clone().naming(self.bootstrap.iter().chain(invited))
    }
}

/// Why a node cannot take part in a mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// The UDP address cannot be used.
    #[error(
        "{address} cannot be used for the mesh: {reason}; choose another mesh_port or \
         mesh_bind, or mesh_enabled = false for a node on its own"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        reason: String,
    },
    /// A relay's URL is none.
    #[error("{url} is not the URL of a relay; correct mesh_relay_urls")]
    Relay {
        /// What was set.
        url: String,
    },
    /// A pkarr server's URL is none.
    #[error("{url} is not the URL of a pkarr server; correct mesh_pkarr_url")]
    Pkarr {
        /// What was set.
        url: String,
    },
    /// How many may come by invite cannot be written down.
    #[error("{path} cannot be written: {reason}; no invite was made")]
    Invite {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// The kernel has stopped.
    #[error(transparent)]
    Stopped(#[from] SubmitError),
}

/// What the mesh is made of.
pub(crate) struct Parts {
    pub(crate) handle: Handle,
    pub(crate) reader: StoreReader,
    pub(crate) peers: Arc<Peers>,
    /// What the kernel wants dialled or worked on.
    pub(crate) errands: mpsc::Receiver<Errand>,
}

/// The node's part in a mesh, running.
pub(crate) struct Mesh {
    shared: Arc<Shared>,
    jobs: Mutex<Option<mpsc::Receiver<IncomingJob>>>,
}

struct Shared {
    endpoint: Endpoint,
    relays: Arc<Relays>,
    handle: Handle,
    reader: StoreReader,
    peers: Arc<Peers>,
    incoming: mpsc::Sender<IncomingJob>,
    remembered: Mutex<Remembered>,
    settings: Mutex<Told>,
    data_dir: PathBuf,
    /// One invite at a time.
    inviting: tokio::sync::Mutex<()>,
    runtime: tokio::runtime::Handle,
    together: control::Together,
    dials: Semaphore,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What the kernel was told of this node.
struct Told {
    settings: MeshSettings,
    observed: Observed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mesh {
    /// Opens the endpoint and begins. `settings` needs no addresses: they are found here.
    pub(crate) async fn start(
        parts: Parts,
        key: &SecretKey,
        data_dir: &Path,
        (bind, finding): ((SocketAddr, bool), Finding),
        settings: MeshSettings,
    ) -> Result<Self, MeshError> {
        let remembered = Remembered::read(data_dir);
        let finding = finding.naming(remembered.peers());
        let (endpoint, relays) = endpoint::open(key, bind, &finding).await?;
        let (incoming, jobs) = mpsc::channel(INCOMING_JOBS_MAX);
        let Parts { handle, reader, peers, errands } = parts;
        let shared = Arc::new(Shared {
            endpoint,
            relays,
            handle,
            reader,
            peers,
            incoming,
            remembered: Mutex::new(remembered),
            settings: Mutex::new(Told { settings, observed: Observed::default() }),
            data_dir: data_dir.to_path_buf(),
            inviting: tokio::sync::Mutex::new(()),
            runtime: tokio::runtime::Handle::current(),
            together: control::Together::new(),
            dials: Semaphore::new(DIALS_AT_ONCE),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        shared.introduce().await?;
        shared.spawn(Arc::clone(&shared).accept());
        shared.spawn(Arc::clone(&shared).run_errands(errands));
        shared.spawn(Arc::clone(&shared).look());
        if finding.lan {
            let lan = Lan::open(&shared.endpoint, &shared.relays, shared.handle.mesh());
            shared.spawn(lan.tell(shared.handle.clone()));
        }
        Ok(Self { shared, jobs: Mutex::new(Some(jobs)) })
    }

    /// The node's key and where it can be reached.
    pub(crate) fn address(&self) -> PeerAddress {
        self.shared.own_address()
    }

    /// Reads the node's store.
    pub(crate) fn reader(&self) -> StoreReader {
        self.shared.reader.clone()
    }

    /// What another machine needs to join. The registrar enrols as many as by default, from a
    /// moment later on.
    pub(crate) fn invite(&self) -> Invite {
        let shared = Arc::clone(&self.shared);
        self.shared.runtime.spawn(async move {
            if let Err(error) = invite::make(&shared, Terms::default()).await {
                tracing::warn!(%error, "nobody is enrolled by this invite");
            }
        });
        invite::named(&self.shared)
    }

    /// Opens streams to providers.
    pub(crate) fn job_streams(&self) -> JobStreams {
        JobStreams::new(Arc::clone(&self.shared))
    }

    /// Streams that consumers open; only once.
    pub(crate) fn incoming_jobs(&self) -> Option<mpsc::Receiver<IncomingJob>> {
        lock(&self.jobs).take()
    }

    /// Says goodbye to everybody and closes the endpoint.
    pub(crate) async fn stop(self) {
        let shared = self.shared;
        // A node that is stopped a moment after it joined finds its mesh again.
        shared.remember();
        let ended = shared.peers.close();
        let goodbyes = async {
            for one in &ended {
                one.cancelled().await;
            }
        };
        let _ = timeout(GOODBYES_WITHIN, goodbyes).await;
        shared.stop.cancel();
        // What is not closed by then times out on the other side.
        let _ = timeout(CLOSE_WITHIN, shared.endpoint.close()).await;
        shared.tasks.close();
        let _ = timeout(CLOSE_WITHIN, shared.tasks.wait()).await;
        shared.remember();
    }
}

impl Shared {
    /// Runs a task until it ends or the mesh stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _ = stop.run_until_cancelled(task).await;
        });
    }

    /// Tells the kernel who this node is and whom it knew before.
    async fn introduce(&self) -> Result<(), SubmitError> {
        self.refresh_addresses();
        let settings = lock(&self.settings).settings.clone();
        self.handle.mesh_input(MeshInput::Settings(settings)).await?;
        let remembered = lock(&self.remembered).peers().to_vec();
        for peer in remembered {
            self.handle.mesh_input(MeshInput::Found(peer)).await?;
        }
        Ok(())
    }

    fn own_address(&self) -> PeerAddress {
        endpoint::own_address(&self.endpoint, lock(&self.settings).observed.addresses())
    }

    /// Whether the node can be reached elsewhere than it last said.
    fn refresh_addresses(&self) -> bool {
        let own = self.own_address().via.iter().map(ToString::to_string).collect();
        let told = &mut lock(&self.settings).settings.addresses;
        let changed = *told != own;
        *told = own;
        changed
    }

    /// Takes connections that others open.
    async fn accept(self: Arc<Self>) {
        let doors = Doors::default();
        while let Some(incoming) = self.endpoint.accept().await {
            if doors.is_busy() && !incoming.remote_addr_validated() {
                // Whoever forges its address does not come back.
                drop(incoming.retry());
                continue;
            }
            let place = doors.enter(Source::of(&incoming.remote_addr()));
            let shared = Arc::clone(&self);
            self.spawn(async move {
                let shaken = place.taken.run_until_cancelled(shake_hands(incoming)).await;
                drop(place);
                if let Some(Some(connection)) = shaken {
                    control::run(shared, connection, false).await;
                }
            });
        }
    }

    /// Dials whom the kernel wants, and does the work it wants.
    async fn run_errands(self: Arc<Self>, mut errands: mpsc::Receiver<Errand>) {
        while let Some(errand) = errands.recv().await {
            match errand {
                Errand::Dial(address) => self.dial(address),
                Errand::Work(task) => self.spawn(work::run(Arc::clone(&self), task)),
            }
        }
    }

    fn dial(self: &Arc<Self>, address: PeerAddress) {
        let peer = address.party();
        if self.peers.begin_dial(peer) {
            let shared = Arc::clone(self);
            self.spawn(async move { shared.dialled(address).await });
        }
    }

    /// Dials a peer by what was remembered of it.
    fn dial_known(shared: &Arc<Self>, peer: PartyId) {
        let known = lock(&shared.remembered).get(peer).cloned();
        if let Some(address) = known {
            shared.dial(address);
        }
    }

    async fn dialled(self: Arc<Self>, mut address: PeerAddress) {
        let peer = address.party();
        if let Some(known) = lock(&self.remembered).get(peer) {
            address.via.extend(known.via.iter().cloned());
        }
        let connecting = async {
            let _permit = self.dials.acquire().await.ok()?;
            endpoint::looked_up(&mut address).await;
            let connect = self.endpoint.connect(endpoint::dialled(&address, &self.relays)?, ALPN);
            timeout(HANDSHAKE_WITHIN, connect).await.ok()?.ok()
        };
        let connection = connecting.await;
        // From here on it can be dialled again; the table keeps one connection.
        self.peers.end_dial(peer);
        let reached = match connection {
            // It came by itself meanwhile, and jobs may run on that connection.
            Some(connection) if self.peers.is_connected(peer) => {
                peers::Close::Replaced.now(&connection);
                true
            }
            Some(connection) => control::run(Arc::clone(&self), connection, true).await,
            None => false,
        };
        if !reached && !self.peers.is_connected(peer) {
            tracing::debug!(%peer, "the peer was not reached");
            // A kernel that has stopped dials nobody.
            drop(self.handle.peer_input(peer, self.peers.number(), PeerEvent::Disconnected).await);
        }
    }

    /// What a message from a peer says about the connection itself.
    fn overhear(&self, peer: PartyId, message: &Message, (source, is_member): (Source, bool)) {
        let seen = match message {
            Message::Welcome(welcome) => welcome.your_address.as_ref(),
            Message::Goodbye(goodbye) => {
                self.peers.was_sent_away(peer, goodbye);
                return self.unwanted(peer, goodbye.code);
            }
            _ => return,
        };
        if let Some(Ok(seen)) = seen.map(|text| text.parse()) {
            lock(&self.settings).observed.heard(seen, source, is_member);
        }
    }

    /// Looks now and then at what nobody reports.
    async fn look(self: Arc<Self>) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = (Instant::now(), SystemTime::now());
        loop {
            ticks.tick().await;
            let steady = last.0.elapsed();
            let wall = last.1.elapsed().unwrap_or(steady);
            last = (Instant::now(), SystemTime::now());
            if wall > steady + SLEPT || steady > LOOK_EVERY + SLEPT {
                // The ways of before may lead nowhere; the kernel dials by the new time.
                self.endpoint.network_change().await;
            }
            if self.refresh_addresses() {
                let settings = lock(&self.settings).settings.clone();
                if self.handle.mesh_input(MeshInput::Settings(settings)).await.is_err() {
                    return;
                }
            }
            self.remember();
        }
    }

    /// Writes down who was reached where, when that changed.
    fn remember(&self) {
        let ways = self.peers.new_ways(endpoint::way_of);
        let to_write = {
            let mut remembered = lock(&self.remembered);
            ways.into_iter().for_each(|(peer, way)| remembered.reached(peer, way));
            remembered.take_changed()
        };
        if let Some((path, text)) = to_write {
            remembered::write(&path, &text);
        }
    }

    /// A peer said that this node is not wanted.
    fn unwanted(&self, peer: PartyId, code: GoodbyeCode) {
        if matches!(code, GoodbyeCode::WrongMesh | GoodbyeCode::NotAdmitted | GoodbyeCode::Blocked)
        {
            lock(&self.remembered).forget(peer);
        }
    }
}

async fn shake_hands(incoming: Incoming) -> Option<iroh::endpoint::Connection> {
    timeout(HANDSHAKE_WITHIN, incoming).await.ok()?.ok()
}

/// blake3 of token ids, each as four little-endian bytes: what vouchers and receipts name.
pub(crate) fn stream_digest(tokens: &[u32]) -> Digest {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    Digest::of(&bytes)
}

/// Name and version of this software, for other nodes' owners.
pub(crate) fn agent() -> String {
    format!("tirami/{}", env!("CARGO_PKG_VERSION"))
}
