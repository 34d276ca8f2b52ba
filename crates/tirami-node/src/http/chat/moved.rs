//! An answer that this node's engine gave up before it made anything of it, on its way to the
//! other nodes that serve the model.

use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::job::Job;
use crate::http::AppState;
use crate::mesh::{self, Client, GaveUp, MeshAsk, RouteError, Started};

/// What came of the search for another node.
pub(super) type Found = Result<Started, RouteError>;

/// Where an answer may go when this node's engine gives it up.
pub(super) struct Elsewhere {
    client: Client,
    ask: MeshAsk,
    tasks: TaskTracker,
}

impl Elsewhere {
    /// What `ask` asks of the nodes that `app` knows; none where it is in no mesh with others.
    pub(super) fn of(app: &AppState, ask: MeshAsk) -> Option<Self> {
        let client = app.mesh.clone()?;
        Some(Self { client, ask, tasks: app.jobs.clone() })
    }

    /// What they are asked after the job here.
    pub(super) fn after(self, gave_up: Option<GaveUp>) -> MeshAsk {
        MeshAsk { gave_up, ..self.ask }
    }

    /// Ends `job`, of which nothing was delivered, and looks for another node that takes it. What
    /// is found when nobody waits for it any more is ended in order.
    pub(super) fn search(
        self,
        job: Job,
        (prompt_tokens, reason): (u32, String),
    ) -> oneshot::Receiver<Found> {
        let (client, tasks) = (self.client.clone(), self.tasks.clone());
        let gave_up = job.order().map(|order| GaveUp { order, prompt_tokens, reason });
        let ask = self.after(gave_up);
        let (tell, found) = oneshot::channel();
        let of_journey = tasks.clone();
        tasks.spawn(async move {
            job.void(false).await;
            let begun = mesh::begin(client, ask, &of_journey).await;
            if let Err(Ok(started)) = tell.send(begun) {
                started.job.void().await;
            }
        });
        found
    }
}
