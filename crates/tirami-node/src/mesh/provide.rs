//! The provider's part of a node that has a model: it tells what it serves, and serves it.

use std::sync::Arc;
use std::time::Duration;

use tirami_core::Ppm;
use tirami_infer::engine::Engine;
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Mesh, Offering, Server};
use crate::config::Config;
use crate::handle::{Handle, SubmitError};

/// Jobs of other nodes at once at least, until the owner says otherwise: what the engine has no
/// place for waits in its queue.
const JOBS_MIN: u32 = 4;
/// How long running jobs may take to be handed over when the node stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A node's serving of others, running.
pub(crate) struct Provider {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Provider {
    /// Begins to serve. A node whose owner never said how far it may be indebted to begins with
    /// limits counted in answers of its model.
    pub(crate) async fn start(
        mesh: &Mesh,
        handle: Handle,
        engine: Arc<dyn Engine>,
        config: &Config,
    ) -> Result<Self, SubmitError> {
        let policy = handle.read(|kernel, _| kernel.ledger().book().serving().clone()).await?;
        if policy == ServingPolicy::default() {
            let jobs_max = config.sequences.max(JOBS_MIN);
            let price = Ppm::new(config.price_ppm);
            let policy = ServingPolicy::for_model(&engine.model().shape, price, jobs_max);
            handle.insist(Actor::Node, Command::SetServing(policy)).await?;
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (halted, word) = watch::channel(false);
        let offering = Offering {
            handle: handle.clone(),
            engine: Arc::clone(&engine),
            sequences: config.sequences.max(JOBS_MIN),
            region: config.mesh_region.clone(),
            halted,
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(offering.run()));
        if let Some(incoming) = mesh.incoming_jobs() {
            let (stop, served) = (stop.clone(), tasks.clone());
            let server = Server { handle, engine, halted: word, stop, tasks: served };
            tasks.spawn(server.run(incoming));
        }
        Ok(Self { stop, tasks })
    }

    /// Ends running jobs: their consumers go on elsewhere.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(STOP_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("a job of another node did not end in time");
        }
    }
}
