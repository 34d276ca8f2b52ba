//! The model a node serves: found, downloaded when it is not there, loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tirami_infer::catalogue;
use tirami_infer::download::Progress;
use tirami_infer::engine::Engine;
use tirami_infer::gguf::GgufFile;
use tirami_infer::llama::{LlamaEngine, LlamaOptions};
use tirami_infer::models::{ModelStore, StoreError};
use tirami_node::config::{Config, Resolved};

use crate::exit::{Exit, Failure};
use crate::output::{Output, bytes};

/// After so long a person wants to see that something goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// The models folder of the settings, which downloads from the hub they name.
pub(crate) fn store(resolved: &Resolved) -> ModelStore {
    let store = ModelStore::new(&resolved.config.models_dir);
    match &resolved.hub {
        Some(hub) => store.with_hub(hub),
        None => store,
    }
}

/// The engine of the configured model; a model of the catalogue that is not on disk is
/// downloaded first.
pub(crate) async fn load(
    config: &Config,
    store: &ModelStore,
    out: Output,
) -> Result<Arc<dyn Engine>, Failure> {
    let path = match store.resolve(&config.model) {
        Err(StoreError::NotDownloaded { name }) => pull(store, &name, out).await?,
        found => found.map_err(failed)?,
    };
    let options = LlamaOptions {
        name: catalogue::find(&config.model).map(|entry| entry.name.to_owned()),
        threads: nonzero(config.threads),
        context_tokens: nonzero(config.context_tokens),
        sequences: config.sequences,
        gpu_layers: nonzero(config.gpu_layers),
        reproducible: config.reproducible,
        digest_cache: Some(store.digest_cache()),
        ..LlamaOptions::default()
    };
    let shown = path.clone();
    let loading = tokio::task::spawn_blocking(move || LlamaEngine::load(&path, &options));
    let engine = patiently(&shown, loading)
        .await
        .map_err(|error| Failure::new(Exit::Model, format_args!("cannot load: {error}")))?
        .map_err(|error| Failure::new(Exit::Model, error))?;
    Ok(Arc::new(engine))
}

/// Downloads a model of the catalogue with a progress bar, and verifies it; one that is there is
/// left as it is.
pub(crate) async fn pull(store: &ModelStore, name: &str, out: Output) -> Result<PathBuf, Failure> {
    if catalogue::find(name).is_none() {
        return Err(failed(StoreError::Unknown { name: name.to_owned() }));
    }
    if let Ok(path) = store.resolve(name) {
        out.note(format_args!("{name} is already here"));
        return Ok(path);
    }
    out.note(format_args!("downloading {name} to {}", store.folder().display()));
    let bar = ProgressBar::no_length()
        .with_style(style("{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta} left"));
    let shown = bar.clone();
    let path = store
        .pull(name, &move |progress: Progress| {
            if let Some(total) = progress.total_bytes {
                shown.set_length(total);
            }
            shown.set_position(progress.received_bytes);
        })
        .await;
    bar.finish_and_clear();
    let path = path.map_err(failed)?;
    let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    out.note(format_args!("downloaded and verified {name}, {}", bytes(size)));
    Ok(path)
}

/// What can be said of the configured model without loading it.
pub(crate) fn examine(config: &Config) -> Result<String, Failure> {
    let store = ModelStore::new(&config.models_dir);
    let path = match store.resolve(&config.model) {
        Err(StoreError::NotDownloaded { name }) => {
            return Ok(format!("{name} is not downloaded yet; `tirami start` does it"));
        }
        found => found.map_err(failed)?,
    };
    let file = GgufFile::open(&path).map_err(|error| {
        Failure::new(Exit::Model, format_args!("cannot use {}: {error}", path.display()))
    })?;
    Ok(format!("{}: {} {}", path.display(), file.architecture, file.quantisation))
}

/// The failure of a command for a failure of the models folder.
pub(crate) fn failed(error: StoreError) -> Failure {
    let exit = match &error {
        StoreError::Download(_) | StoreError::Wheel(_) => Exit::Network,
        StoreError::Unknown { .. } | StoreError::NotDownloaded { .. } | StoreError::Disk { .. } => {
            Exit::Model
        }
    };
    Failure::new(exit, error)
}

/// Waits for `loading`, with a sign of life when it takes long.
async fn patiently<T>(path: &Path, loading: impl Future<Output = T>) -> T {
    tokio::pin!(loading);
    if let Ok(loaded) = tokio::time::timeout(PATIENCE, &mut loading).await {
        return loaded;
    }
    let spinner = ProgressBar::new_spinner()
        .with_style(style("{spinner} loading {msg} ({elapsed})"))
        .with_message(path.display().to_string());
    spinner.enable_steady_tick(TICK);
    let loaded = loading.await;
    spinner.finish_and_clear();
    loaded
}

/// The templates are constants of this file; a wrong one would only look plain.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

const fn nonzero(number: u32) -> Option<u32> {
    if number == 0 { None } else { Some(number) }
}
