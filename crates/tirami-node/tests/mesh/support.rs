//! Real nodes with a scripted engine, connected over QUIC on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tirami_core::{Digest, PartyId, Timestamp, Trm};
use tirami_infer::engine::Engine;
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_kernel::Kernel;
use tirami_node::Clock;
use tirami_node::config::Config;
use tirami_node::mesh::MeshOptions;
use tirami_node::models::Models;
use tirami_node::node::{Node, NodeOptions, RunningNode, StartError};
use tirami_proto::Invite;
use tokio::runtime::Runtime;

/// A node with threads of its own, so that a test can end it without any goodbye.
pub struct Peer {
    pub node: RunningNode,
    runtime: Option<Runtime>,
}

/// A clock that runs ahead of the machine's, as far as a test wants: hours pass at once.
#[derive(Clone, Default)]
pub struct Ahead(Arc<AtomicU64>);

impl Ahead {
    pub fn pass_ms(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }

    pub fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let machine = Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap());
        machine.plus_ms(self.0.load(Ordering::Relaxed))
    }

    pub fn clock(&self) -> Clock {
        let own = self.clone();
        Clock::new(move || own.now())
    }
}

pub fn on_loopback() -> MeshOptions {
    MeshOptions { bind: Some(([127, 0, 0, 1], 0).into()), ..MeshOptions::default() }
}

pub fn joining(invite: Invite) -> MeshOptions {
    MeshOptions { join: Some(invite), ..on_loopback() }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Peer {
    pub fn try_start(dir: &Path, mesh: MeshOptions) -> Result<Self, StartError> {
        let script = FakeScript { tokens_per_answer: 5, delay: Duration::ZERO, fail_after: None };
        let engine = Some(Arc::new(FakeEngine::new(script)) as Arc<dyn Engine>);
        Self::try_with(dir, mesh, engine, |_| {})
    }

    /// A node whose settings are changed by `change`.
    pub fn with_config(dir: &Path, mesh: MeshOptions, change: impl FnOnce(&mut Config)) -> Self {
        let script = FakeScript { tokens_per_answer: 5, delay: Duration::ZERO, fail_after: None };
        Self::try_with(dir, mesh, Some(Arc::new(FakeEngine::new(script))), change).unwrap()
    }

    pub fn with_engine(dir: &Path, mesh: MeshOptions, engine: Option<Arc<dyn Engine>>) -> Self {
        Self::try_with(dir, mesh, engine, |_| {}).unwrap()
    }

    /// The settings are changed before the start.
    pub fn try_with(
        dir: &Path,
        mesh: MeshOptions,
        engine: Option<Arc<dyn Engine>>,
        set: impl FnOnce(&mut Config),
    ) -> Result<Self, StartError> {
        Self::try_serving(dir, mesh, engine.into_iter().collect(), set)
    }

    /// A node with these models.
    pub fn try_serving(
        dir: &Path,
        mesh: MeshOptions,
        models: Models,
        set: impl FnOnce(&mut Config),
    ) -> Result<Self, StartError> {
        let mut config = Config::defaults(dir);
        config.drain_ms = 100;
        set(&mut config);
        let runtime = runtime();
        let node = runtime.block_on(Node::start(NodeOptions {
            data_dir: dir.to_path_buf(),
            bind: ([127, 0, 0, 1], 0).into(),
            models,
            config,
            mesh,
        }))?;
        Ok(Self { node, runtime: Some(runtime) })
    }

    pub fn start(dir: &Path, mesh: MeshOptions) -> Self {
        Self::try_start(dir, mesh).unwrap()
    }

    pub fn party(&self) -> PartyId {
        self.node.handle().party()
    }

    pub fn block_on<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(task)
    }

    pub fn read<T: Send + 'static>(&self, f: impl FnOnce(&Kernel) -> T + Send + 'static) -> T {
        let handle = self.node.handle();
        self.block_on(handle.read(move |kernel, _| f(kernel))).unwrap()
    }

    pub fn state(&self) -> Digest {
        self.read(|kernel| kernel.ledger().lattice().state_hash())
    }

    /// An owner's client.
    pub fn client(&self) -> tirami_sdk::Client {
        tirami_sdk::Client::new(&format!("http://{}", self.node.api), None).unwrap()
    }

    pub fn sees(&self, other: &Self) -> bool {
        let party = other.party();
        self.read(move |kernel| kernel.mesh().is_open(party))
    }

    pub fn line_of(&self, party: PartyId) -> Trm {
        self.read(move |kernel| kernel.ledger().lattice().line(party))
    }

    /// Balance and what waits to be collected, as this node sees it.
    pub fn worth_of(&self, party: PartyId) -> i128 {
        self.read(move |kernel| {
            let lattice = kernel.ledger().lattice();
            i128::from(lattice.signed_balance(party)) + lattice.uncollected_sum(party)
        })
    }

    pub fn is_member(&self) -> bool {
        let party = self.party();
        self.read(move |kernel| kernel.ledger().lattice().chain(party).is_some())
    }

    /// Stops as an owner stops it.
    pub fn stop(mut self) {
        let runtime = self.runtime.take().unwrap();
        runtime.block_on(self.node.shutdown()).unwrap();
        runtime.shutdown_timeout(Duration::from_secs(2));
    }

    /// Ends at once, as a machine that loses power: nothing is said, written or closed.
    pub fn kill(self) {
        let Self { node, runtime } = self;
        let runtime = runtime.unwrap();
        let inside = runtime.enter();
        drop(node);
        drop(inside);
        runtime.shutdown_background();
    }
}

/// Waits until `holds`, for at most `within`; says how long it took.
pub fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    started.elapsed()
}

/// Long enough for a slow machine that does other things.
pub const SOON: Duration = Duration::from_secs(30);
