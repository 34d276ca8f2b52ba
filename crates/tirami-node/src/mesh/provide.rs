//! The provider's part of a node that has a model: it tells what it serves, and serves it.

use std::collections::BTreeSet;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use tirami_core::{ModelShape, PartyId, Ppm};
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::intake::Intake;
use super::serve::understanding_max;
use super::{Mesh, Offering, Server};
use crate::config::Config;
use crate::handle::{Handle, SubmitError};
use crate::http::READERS_MAX;
use crate::models::Models;

/// Jobs of other nodes at once at least, until the owner says otherwise: what the engine has no
/// place for waits in its queue.
const JOBS_MIN: u32 = 4;
/// How long running jobs may take to be handed over when the node stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Sets what the settings say of whom the owner trusts and blocks, in place of what they said at
/// the last start and in addition to what was set while the node ran. A node with a model whose
/// owner never said how far others may be indebted to it begins with limits counted in answers of
/// the model.
pub(crate) async fn set_serving(
    handle: &Handle,
    served: Option<&ModelShape>,
    config: &Config,
) -> Result<(), SubmitError> {
    let known = handle.read(|kernel, _| kernel.ledger().book().serving().clone()).await?;
    let mut policy = known.clone();
    let (trusted, by_settings) = (take(&mut policy.trusted), take(&mut policy.trusted_by_settings));
    let trusted = renewed(&trusted, &by_settings, &config.trusted_peers);
    let (blocked, by_settings) = (take(&mut policy.blocked), take(&mut policy.blocked_by_settings));
    let blocked = renewed(&blocked, &by_settings, &config.blocked_peers);
    if let Some(shape) = served
        && policy == ServingPolicy::default()
    {
        let jobs_max = config.sequences.max(JOBS_MIN);
        policy = ServingPolicy::for_model(shape, Ppm::new(config.price_ppm), jobs_max);
    }
    (policy.trusted, policy.trusted_by_settings) = trusted;
    (policy.blocked, policy.blocked_by_settings) = blocked;
    if policy != known {
        handle.insist(Actor::Node, Command::SetServing(policy)).await?;
    }
    Ok(())
}

/// A list in which whom the settings name now takes the place of whom they added `before`; and whom
/// they add now. Whom the owner put there is not theirs to take off.
fn renewed(
    list: &BTreeSet<PartyId>,
    before: &BTreeSet<PartyId>,
    named: &[PartyId],
) -> (BTreeSet<PartyId>, BTreeSet<PartyId>) {
    let kept: BTreeSet<PartyId> = list.difference(before).copied().collect();
    let added: BTreeSet<PartyId> =
        named.iter().copied().filter(|party| !kept.contains(party)).collect();
    (kept.union(&added).copied().collect(), added)
}

/// A node's serving of others, running.
pub(crate) struct Provider {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Provider {
    /// Begins to serve.
    pub(crate) async fn start(
        mesh: &Mesh,
        handle: Handle,
        models: Models,
        config: &Config,
    ) -> Result<Self, SubmitError> {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (halted, word) = watch::channel(false);
        let offering = Offering {
            handle: handle.clone(),
            models: models.clone(),
            sequences: config.sequences.max(JOBS_MIN),
            region: config.mesh_region.clone(),
            http_endpoint: config.mesh_http_endpoint.clone(),
            halted,
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(offering.run()));
        if let Some(incoming) = mesh.incoming_jobs() {
            let (stop, served) = (stop.clone(), tasks.clone());
            let reader = mesh.reader();
            let (intake, readers) = (Intake::new(), Arc::new(Semaphore::new(READERS_MAX)));
            let server = Server {
                handle,
                reader,
                models,
                halted: word,
                stop,
                tasks: served,
                intake,
                readers,
                understanding: Arc::new(Semaphore::new(understanding_max())),
                crowd: Arc::default(),
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_take_off_a_list_only_whom_they_added() {
        let [owners, theirs] = [1, 2].map(|byte| PartyId::from_bytes([byte; 32]));
        let (list, before) = (BTreeSet::from([owners]), BTreeSet::new());
        let (list, added) = renewed(&list, &before, &[owners, theirs]);
        assert_eq!((&list, &added), (&BTreeSet::from([owners, theirs]), &[theirs].into()));
        // The next start says the same.
        assert_eq!(renewed(&list, &added, &[owners, theirs]), (list.clone(), added.clone()));
        assert_eq!(renewed(&list, &added, &[]), ([owners].into(), BTreeSet::new()));
    }
}
