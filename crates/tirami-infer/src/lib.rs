//! Inference: engines behind one trait, GGUF files, chat templates, the catalogue and downloads.
//!
//! Engines know no TRM. Whoever runs a generation is told which tokens were produced and never
//! what they cost.

pub mod calls;
pub mod catalogue;
pub mod digest;
pub mod download;
pub mod engine;
#[cfg(feature = "fake-engine")]
pub mod fake;
pub mod gguf;
pub mod image;
#[cfg(feature = "llama")]
pub mod llama;
pub mod loader;
pub mod models;
pub mod queue;
pub mod template;
pub mod text;
pub mod vocabulary;
pub mod wheel;
