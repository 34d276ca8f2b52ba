//! Models that are known and not yet in memory.

use std::sync::Arc;

use crate::engine::{Engine, ModelInfo};

/// A model that can be loaded, and what is known of it before.
pub trait Loader: Send + Sync + 'static {
    /// What is loaded, the same as [`Engine::model`] says afterwards; but how many tokens a picture
    /// takes at most is only bounded before.
    fn model(&self) -> &ModelInfo;

    /// Memory the loaded model takes at most, in bytes, counted from its file and shape.
    fn memory_bytes(&self) -> u64;

    /// Loads it. Takes as long as reading the file, on the caller's thread.
    ///
    /// # Errors
    ///
    /// One sentence for the node's owner; nothing stays in memory.
    fn load(&self) -> Result<Arc<dyn Engine>, String>;
}
