//! The models a node serves: found, downloaded when they are not there, loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tirami_infer::catalogue;
use tirami_infer::download::Progress;
use tirami_infer::engine::Engine as _;
use tirami_infer::gguf::GgufFile;
use tirami_infer::llama::{LlamaFile, LlamaOptions, LlamaVocabulary, Projector};
use tirami_infer::models::{ModelStore, StoreError};
use tirami_infer::vocabulary::{ByteVocabulary, ToldModel, Vocabulary};
use tirami_node::config::{Config, EngineModel, KnownBy, Resolved};
use tirami_node::models::{LeaseError, MODELS_MAX, Models, OPENAI_BUILD, OpenAiEngine, Server};
use tirami_sdk::upstream::Upstream;

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

/// The models of the settings, in memory as far as the budget goes. Those of the catalogue that
/// are not on disk are downloaded first.
pub(crate) async fn load(
    config: &Config,
    store: &ModelStore,
    out: Output,
) -> Result<Models, Failure> {
    let models = Models::new(config.model_bounds());
    for (place, name) in config.models.iter().enumerate() {
        let path = match store.resolve(name) {
            Err(StoreError::NotDownloaded { name }) => pull(store, &name, out).await?,
            found => found.map_err(failed)?,
        };
        let named = catalogue::find(name).map(|entry| entry.name.to_owned());
        let projector = if place == 0 { projector(config, store)? } else { Projector::Beside };
        let options = LlamaOptions { projector, ..options(config, store, named) };
        let opening = tokio::task::spawn_blocking({
            let path = path.clone();
            move || LlamaFile::open(&path, options)
        });
        let file = patiently(format!("reading {}", path.display()), opening)
            .await
            .map_err(|error| broke_off(&path, &error))?
            .map_err(|error| Failure::new(Exit::Model, error))?;
        if !models.serve(Arc::new(file)) {
            out.warn(format_args!(
                "{name} is named twice, or is one more than the {MODELS_MAX} a node serves"
            ));
        }
    }
    read_in(&models, out).await?;
    add_elsewhere(&models, config, store, out).await?;
    let (store, config) = (store.clone(), config.clone());
    models.found_by(Box::new(move |models| find_more(models, &store, &config)));
    Ok(models)
}

/// The models that servers elsewhere compute.
pub(crate) async fn add_elsewhere(
    models: &Models,
    config: &Config,
    store: &ModelStore,
    out: Output,
) -> Result<(), Failure> {
    for engine in &config.engines {
        let key = engine.api_key_env.as_ref().map(|name| api_key(name)).transpose()?;
        let upstream = Upstream::new(&engine.url, key.as_deref())
            .map_err(|error| Failure::new(Exit::Config, error))?;
        let first_within = Duration::from_secs(engine.first_text_seconds.into());
        let server = Server::new(upstream, engine.jobs_max, first_within);
        for model in &engine.models {
            let words = words(model, config, store).await?;
            let engine = OpenAiEngine::new(words, server.clone(), &model.upstream);
            let engine = engine.serving(model.serves);
            if model.serves.embeddings.is_some() && engine.model().embedding_width == 0 {
                return Err(no_vectors(model));
            }
            if !models.serve_engine(Arc::new(engine)) {
                out.warn(format_args!(
                    "{} is left out: it is served already, by its name, file or shape, or is one \
                     more than the {MODELS_MAX} a node serves",
                    model.name
                ));
            }
        }
    }
    Ok(())
}

/// What counts the tokens of a model that a server elsewhere computes.
async fn words(
    model: &EngineModel,
    config: &Config,
    store: &ModelStore,
) -> Result<Arc<dyn Vocabulary>, Failure> {
    let path = match &model.known_by {
        KnownBy::Gguf(path) => path.clone(),
        KnownBy::Shape(shape) => {
            let (name, upstream) = (model.name.clone(), model.upstream.clone());
            let told = ToldModel { name, upstream, shape: *shape };
            return Ok(Arc::new(ByteVocabulary::new(told, OPENAI_BUILD)));
        }
    };
    let options = LlamaOptions {
        // What the server holds is what counts; none has more than the model was made for.
        context_tokens: nonzero(model.context_tokens).or(Some(u32::MAX)),
        ..options(config, store, Some(model.name.clone()))
    };
    let (reading, read) = (format!("reading {}", path.display()), path.clone());
    let opening =
        tokio::task::spawn_blocking(move || LlamaVocabulary::open(&path, &options, OPENAI_BUILD));
    let words = patiently(reading, opening)
        .await
        .map_err(|error| broke_off(&read, &error))?
        .map_err(|error| Failure::new(Exit::Model, error))?;
    Ok(Arc::new(words))
}

fn no_vectors(model: &EngineModel) -> Failure {
    let message = format!(
        "the file of {} says that it makes no vectors; leave embeddings out of its serves, or say \
         its embedding_width",
        model.name
    );
    Failure::new(Exit::Config, message)
}

fn broke_off(path: &Path, error: &tokio::task::JoinError) -> Failure {
    let text = format_args!(
        "reading {} broke off ({error}); that is a defect, please report it",
        path.display()
    );
    Failure::new(Exit::Model, text)
}

fn api_key(name: &str) -> Result<String, Failure> {
    std::env::var(name).ok().filter(|key| !key.is_empty()).ok_or_else(|| {
        let message = format!(
            "the variable {name}, which api_key_env of an engine names, has no API key; set it and \
             start again"
        );
        Failure::new(Exit::Config, message)
    })
}

/// Loads what fits. The first model must.
async fn read_in(models: &Models, out: Output) -> Result<(), Failure> {
    let (all, mut held) = (models.all(), Vec::new());
    for (place, model) in (1..).zip(&all) {
        let info = model.info();
        let of = if all.len() > 1 { format!(" ({place} of {})", all.len()) } else { String::new() };
        let what = format!("loading {}, {}{of}", info.name, bytes(info.size_bytes));
        match patiently(what, models.lease(model, None)).await {
            // What is loaded must not make room for the next.
            Ok(lease) => held.push(lease),
            Err(LeaseError::NoRoom { .. } | LeaseError::TooLarge { .. }) if !held.is_empty() => {
                let (name, needed) = (&info.name, bytes(model.memory_bytes()));
                out.note(format_args!(
                    "{name} stays on disk until it is asked for: it takes {needed}, and the \
                     models before it leave less"
                ));
            }
            Err(error) => return Err(Failure::new(Exit::Model, error)),
        }
    }
    Ok(())
}

/// The other files of the models folder, for this node's own callers.
fn find_more(models: &Models, store: &ModelStore, config: &Config) {
    let cards = store.list().unwrap_or_default();
    for card in cards.into_iter().filter(|card| card.fault.is_none()) {
        let Some(path) = card.path.filter(|_| models.find(&card.name).is_none()) else { continue };
        // What cannot be used is shown by `tirami models`.
        if let Ok(file) = LlamaFile::open(&path, options(config, store, Some(card.name))) {
            models.know(Arc::new(file));
        }
    }
}

/// The first model's projector.
fn projector(config: &Config, store: &ModelStore) -> Result<Projector, Failure> {
    Ok(match config.mmproj.as_str() {
        "auto" => Projector::Beside,
        "none" => Projector::None,
        path => Projector::At(store.resolve(path).map_err(failed)?),
    })
}

fn options(config: &Config, store: &ModelStore, name: Option<String>) -> LlamaOptions {
    LlamaOptions {
        name,
        threads: nonzero(config.threads),
        context_tokens: nonzero(config.context_tokens),
        sequences: config.sequences,
        gpu_layers: config.gpu_layers,
        reproducible: config.reproducible,
        digest_cache: Some(store.digest_cache()),
        ..LlamaOptions::default()
    }
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

/// What can be said of the configured models without loading them.
pub(crate) fn examine(config: &Config) -> Result<String, Failure> {
    let store = ModelStore::new(&config.models_dir);
    let all = config.models.iter().map(|name| examine_one(&store, name));
    Ok(all.collect::<Result<Vec<_>, _>>()?.join("; "))
}

fn examine_one(store: &ModelStore, name: &str) -> Result<String, Failure> {
    let path = match store.resolve(name) {
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
pub(crate) async fn patiently<T>(what: String, loading: impl Future<Output = T>) -> T {
    tokio::pin!(loading);
    if let Ok(loaded) = tokio::time::timeout(PATIENCE, &mut loading).await {
        return loaded;
    }
    let spinner = ProgressBar::new_spinner()
        .with_style(style("{spinner} {msg} ({elapsed})"))
        .with_message(what);
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
