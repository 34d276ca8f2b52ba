//! The client's methods about models in memory.

use std::time::Duration;

use super::{ANSWER_TIMEOUT, Client};
use crate::ClientError;
use crate::endpoints::Operation;
use crate::types::*;

/// A large model takes long to load.
const LOAD_TIMEOUT: Duration = Duration::from_secs(3_600);

impl Client {
    /// The models the node can load, and which are in memory.
    ///
    /// # Errors
    ///
    /// [`ClientError`], as for every method here.
    pub async fn model_states(&self) -> Result<ModelStateList, ClientError> {
        self.get(Operation::ModelStates, &[], &[]).await
    }

    /// Loads a model, and waits for it.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `model_not_found`, `model_too_large`, `no_memory`, `model_load_failed`.
    pub async fn load_model(
        &self,
        id: &str,
        request: &LoadModel,
    ) -> Result<ModelState, ClientError> {
        let call = self.call(Operation::LoadModel, &[id], &[]).json(request).timeout(LOAD_TIMEOUT);
        self.read(self.send(call).await?).await
    }

    /// Takes a model out of memory.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; `model_in_use` while somebody uses it.
    pub async fn unload_model(&self, id: &str) -> Result<ModelState, ClientError> {
        let call = self.call(Operation::UnloadModel, &[id], &[]).timeout(ANSWER_TIMEOUT);
        self.read(self.send(call).await?).await
    }
}
