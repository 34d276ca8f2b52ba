//! The use of a loaded model: while it lives, the model stays in memory.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use tirami_infer::engine::{Engine, Format, Generation, Prompt, Sampling, StartError};

use super::Model;

/// A loaded model in use.
pub struct Lease {
    model: Model,
    engine: Arc<dyn Engine>,
}

impl Lease {
    /// The model counts one more user, who gives it back by dropping this.
    pub(super) fn new(model: Model, engine: Arc<dyn Engine>) -> Self {
        Self { model, engine }
    }

    /// As [`Engine::start`]; the model stays in memory until the generation is dropped.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing was started.
    pub async fn start(
        &self,
        prompt: Prompt,
        sampling: Sampling,
    ) -> Result<Generation, StartError> {
        let lease = self.clone();
        let is_text = sampling.format == Format::Text;
        let start = move || {
            let started = lease.engine.start(prompt, sampling);
            started.map(|generation| generation.holding(lease))
        };
        if is_text {
            return start();
        }
        // A grammar keeps a core busy for a while; no other request may wait for it.
        tokio::task::spawn_blocking(start).await.unwrap_or(Err(StartError::Stopped))
    }
}

impl Deref for Lease {
    type Target = dyn Engine;

    fn deref(&self) -> &Self::Target {
        &*self.engine
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.model.used_again();
        Self { model: self.model.clone(), engine: Arc::clone(&self.engine) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.model.returned();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.model).finish()
    }
}

/// Why there is no engine for a request. Nothing was set aside and nothing is owed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Too many requests wait for models to be loaded.
    #[error(
        "too many requests wait for models to be loaded; nothing was charged; ask for {model} again later"
    )]
    Busy {
        /// What was asked for.
        model: String,
    },
    /// It does not fit, however many others were unloaded.
    #[error(
        "{model} takes {} of memory and all models together may take {}; nothing was charged; \
         serve it with fewer sequences, a shorter context or a larger memory_budget_mib",
        mebibytes(*needed), mebibytes(*budget)
    )]
    TooLarge {
        /// What was asked for.
        model: String,
        /// Bytes it takes.
        needed: u64,
        /// Bytes there may be.
        budget: u64,
    },
    /// What would have to be unloaded is in use.
    #[error(
        "{model} takes {} of memory, all models together may take {}, and those in memory are in \
         use; nothing was charged; ask again when they rest",
        mebibytes(*needed), mebibytes(*budget)
    )]
    NoRoom {
        /// What was asked for.
        model: String,
        /// Bytes it takes.
        needed: u64,
        /// Bytes there may be.
        budget: u64,
    },
    /// It is used, or cannot be loaded again.
    #[error("{model} is in use and stays in memory; ask again when it rests")]
    InUse {
        /// What was to be unloaded.
        model: String,
    },
    /// It could not be loaded.
    #[error("{model} could not be loaded: {reason}; nothing was charged")]
    Failed {
        /// What was asked for.
        model: String,
        /// One sentence.
        reason: String,
    },
}

/// Rounded up, for people.
fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
