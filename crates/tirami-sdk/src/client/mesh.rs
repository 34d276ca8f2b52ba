//! The client's methods about the mesh.

use super::{ANSWER_TIMEOUT, Client};
use crate::ClientError;
use crate::endpoints::Operation;
use crate::types::*;

impl Client {
    /// The nodes this one is connected to.
    ///
    /// # Errors
    ///
    /// [`ClientError`], as for every method here.
    pub async fn peers(&self) -> Result<PeerList, ClientError> {
        self.get(Operation::Peers, &[], &[]).await
    }

    /// What other nodes tried here and was refused.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn refusals(&self) -> Result<RefusalList, ClientError> {
        self.get(Operation::Refusals, &[], &[]).await
    }

    /// The nodes that say they serve models.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn providers(&self) -> Result<ProviderList, ClientError> {
        self.get(Operation::Providers, &[], &[]).await
    }

    /// Nodes and connections, as the node sees them.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn topology(&self) -> Result<Topology, ClientError> {
        self.get(Operation::Topology, &[], &[]).await
    }

    /// What the node speaks with other nodes.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn protocol(&self) -> Result<Protocol, ClientError> {
        self.get(Operation::Protocol, &[], &[]).await
    }

    /// Who would answer a request, and why.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `no_provider` when nobody would.
    pub async fn schedule(&self, request: &ScheduleRequest) -> Result<Schedule, ClientError> {
        self.post(Operation::Schedule, &[], request).await
    }

    /// The node that suits best: for `model`, an answer of `max_tokens`, sorted by `price`,
    /// `throughput` or `latency`, for `max_trm` at most.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `no_provider` when there is none.
    pub async fn route(
        &self,
        model: Option<&str>,
        max_tokens: Option<u32>,
        sort: Option<&str>,
        max_trm: Option<crate::Amount>,
    ) -> Result<BestRoute, ClientError> {
        let query = [
            ("model", model.map(str::to_owned)),
            ("max_tokens", max_tokens.map(|tokens| tokens.to_string())),
            ("sort", sort.map(str::to_owned)),
            ("max_trm", max_trm.map(|max| max.to_string())),
        ];
        self.get(Operation::BestRoute, &[], &query).await
    }

    /// Gives TRM of the node's own account to another node, once for each idempotency key.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `transfer_uncertain` when the node was stopped in the middle of it.
    pub async fn transfer(&self, request: &TransferRequest) -> Result<ChainEntry, ClientError> {
        self.post(Operation::Transfer, &[], request).await
    }

    /// The word with which other machines join.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `no_mesh` on a node without a mesh port.
    pub async fn mesh_invite(&self, request: &InviteRequest) -> Result<MeshInvite, ClientError> {
        self.post(Operation::MeshInvite, &[], request).await
    }

    /// Asks the node to join the mesh of an invite. One that is in that mesh already says so.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `join_needs_start` says how to join with a new data directory.
    pub async fn mesh_join(&self, invite: &str) -> Result<Done, ClientError> {
        let request = JoinRequest { invite: invite.to_owned() };
        self.post(Operation::MeshJoin, &[], &request).await
    }

    /// The mesh's constitution, and drafts of the next one.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn mesh_charter(&self) -> Result<MeshCharter, ClientError> {
        self.get(Operation::MeshCharter, &[], &[]).await
    }

    /// Approves a draft as a witness. There is no way back.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn approve_charter(&self, draft: &str) -> Result<CharterDraft, ClientError> {
        let request = ApproveCharter { draft: draft.to_owned() };
        self.post(Operation::ApproveCharter, &[], &request).await
    }

    /// Drafts a charter with one witness more or less.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn change_witnesses(
        &self,
        action: WitnessAction,
        party: &str,
    ) -> Result<CharterDraft, ClientError> {
        let request = WitnessChange { action, party: party.to_owned() };
        self.post(Operation::ChangeWitnesses, &[], &request).await
    }

    /// Lends a newcomer a welcome line.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn sponsor(&self, request: &SponsorRequest) -> Result<ChainEntry, ClientError> {
        self.post(Operation::Sponsor, &[], request).await
    }

    /// Grants a member a line.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn enrol(&self, request: &EnrolRequest) -> Result<ChainEntry, ClientError> {
        self.post(Operation::Enrol, &[], request).await
    }

    /// Takes no more jobs of other nodes.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn pause(&self) -> Result<Serving, ClientError> {
        self.ask(Operation::Pause).await
    }

    /// Takes jobs of other nodes again.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn resume(&self) -> Result<Serving, ClientError> {
        self.ask(Operation::Resume).await
    }

    /// To whom and how far the node serves.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn serving(&self) -> Result<Serving, ClientError> {
        self.get(Operation::Serving, &[], &[]).await
    }

    /// Changes to whom and how far the node serves.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn change_serving(&self, change: &ServingChange) -> Result<Serving, ClientError> {
        self.post(Operation::ChangeServing, &[], change).await
    }

    /// A POST without a body.
    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        operation: Operation,
    ) -> Result<T, ClientError> {
        let call = self.call(operation, &[], &[]).timeout(ANSWER_TIMEOUT);
        self.read(self.send(call).await?).await
    }
}
