//! `tirami models`: what is on disk, what can be downloaded, and what a running node has in
//! memory.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tirami_infer::catalogue::Sampling;
use tirami_infer::models::{ModelCard, ModelStore};
use tirami_sdk::types::{KeepAlive, LoadModel, ModelState, ModelStateList};

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::model::{self, failed, patiently, pull};
use crate::output::{Output, bytes, duration};
use crate::settings::{Global, ModelsSetting};

/// What to do with models.
#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the models that have a name and the files in the folder; so does no action.
    List {
        #[command(flatten)]
        dir: ModelsSetting,
    },
    /// Show which models the running node has in memory, and how long they rest.
    Loaded,
    /// Load a model of the running node; others that rest may be unloaded for it.
    Load {
        /// Its name or digest; a file that is new in the models folder by its name.
        name: String,
        /// How long it then stays after its last use, such as 5m; -1 until its room is needed.
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        keep_alive: Option<String>,
    },
    /// Take a model of the running node out of memory.
    Unload {
        /// Its name or digest.
        name: String,
    },
    /// Download a model and verify it; an interrupted download is continued.
    Pull {
        /// A name from `tirami models list`.
        name: String,
        #[command(flatten)]
        dir: ModelsSetting,
    },
    /// Remove a model's file.
    Rm {
        /// A name from `tirami models list`.
        name: String,
        /// Remove it although the running node serves it.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        dir: ModelsSetting,
    },
    /// Describe a model, and the file if it is on disk.
    Show {
        /// A name from `tirami models list`, or the path of a GGUF file.
        name: String,
        #[command(flatten)]
        dir: ModelsSetting,
    },
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: ModelsArgs, out: Output) -> Result<Exit, Failure> {
    let store =
        |dir: &ModelsSetting| global.resolve(&dir.0).map(|resolved| model::store(&resolved));
    match args.action.unwrap_or_else(|| Action::List { dir: ModelsSetting::default() }) {
        Action::List { dir } => list(&store(&dir)?, out)?,
        Action::Loaded => {
            let list = connect(global, Need::Personal).await?.model_states().await?;
            out.answer(&list, |out| loaded(&list, out));
        }
        Action::Load { name, keep_alive } => {
            let client = connect(global, Need::Owner).await?;
            let request = LoadModel { keep_alive: keep_alive.map(KeepAlive::Time) };
            let loading = client.load_model(&name, &request);
            let model = patiently(format!("loading {name}"), loading).await?;
            out.answer(&model, |out| out.line(sentence(&model)));
        }
        Action::Unload { name } => {
            let model = connect(global, Need::Owner).await?.unload_model(&name).await?;
            out.answer(&model, |out| out.line(sentence(&model)));
        }
        Action::Pull { name, dir } => {
            let path = pull(&store(&dir)?, &name, out).await?;
            out.answer(&json!({"name": name, "path": path}), |out| out.line(path.display()));
        }
        Action::Rm { name, yes, dir } => {
            if let Some(url) = served_at(global, &name).await.filter(|_| !yes) {
                return Err(Failure::usage(format_args!(
                    "the node at {url} serves {name} and cannot load it again without its file; \
                     nothing was removed; stop that node, or repeat the command with --yes"
                )));
            }
            store(&dir)?.remove(&name).map_err(failed)?;
            out.answer(&json!({"name": name, "removed": true}), |out| {
                out.line(format_args!("removed {name}"));
            });
        }
        Action::Show { name, dir } => {
            let store = store(&dir)?;
            // The digest reads the whole file.
            let card = tokio::task::spawn_blocking(move || store.show(&name))
                .await
                .map_err(|error| Failure::new(Exit::Unexpected, error))?
                .map_err(failed)?;
            show(&card, out);
        }
    }
    Ok(Exit::Done)
}

/// The address of the node of these settings, where it runs and serves the model.
async fn served_at(global: &Global, name: &str) -> Option<String> {
    // Where no node answers, none serves it.
    let client = connect(global, Need::Personal).await.ok()?;
    let models = client.model_states().await.ok()?.models;
    let is_served = |model: &ModelState| {
        (model.name == name || model.digest == name) && (model.offered || model.state != "on_disk")
    };
    models.iter().any(is_served).then(|| client.base_url().to_owned())
}

/// What a model is doing now.
fn sentence(model: &ModelState) -> String {
    match model.state.as_str() {
        "loaded" => format!("{} is in memory and takes {}", model.name, bytes(model.memory_bytes)),
        _ => format!("{} is on disk", model.name),
    }
}

fn loaded(list: &ModelStateList, out: Output) {
    let row = |model: &ModelState| {
        let state = if model.state == "on_disk" { "on disk" } else { model.state.as_str() };
        let idle = match model.idle_ms {
            Some(_) if model.running + model.queued > 0 => "in use".to_owned(),
            Some(idle_ms) => duration(idle_ms),
            None => "-".to_owned(),
        };
        let offered = if model.offered { "yes" } else { "no" };
        let (size, memory) = (bytes(model.size_bytes), bytes(model.memory_bytes));
        vec![model.name.clone(), state.to_owned(), size, memory, idle, offered.to_owned()]
    };
    let rows: Vec<_> = list.models.iter().map(row).collect();
    let head = ["name", "state", "file", "memory", "idle", "offered to others"];
    out.table(&head, &["file", "memory"], &rows);
    let taken = bytes(list.memory_bytes);
    match list.memory_budget_bytes {
        Some(budget) => out.line(format_args!("{taken} of {} are taken", bytes(budget))),
        None => out.line(format_args!("{taken} are taken; there is no bound")),
    }
}

fn list(store: &ModelStore, out: Output) -> Result<(), Failure> {
    let cards = store.list().map_err(failed)?;
    let models: Vec<Value> = cards.iter().map(as_json).collect();
    out.answer(&json!({"models_dir": store.folder(), "models": models}), |out| {
        let rows: Vec<Vec<String>> = cards
            .iter()
            .map(|card| {
                let state = match (&card.path, &card.fault) {
                    (_, Some(_)) => "unusable",
                    (Some(_), None) => "on disk",
                    (None, None) => "-",
                };
                vec![
                    card.name.clone(),
                    state.to_owned(),
                    card.size_bytes.map_or_else(|| "-".to_owned(), bytes),
                    card.licence.clone().unwrap_or_else(|| "-".to_owned()),
                    card.source.clone(),
                ]
            })
            .collect();
        out.table(&["name", "state", "size", "licence", "source"], &["size"], &rows);
    });
    Ok(())
}

fn show(card: &ModelCard, out: Output) {
    out.answer(&as_json(card), |out| {
        let unknown = || "unknown".to_owned();
        let mut rows = vec![
            ("name", card.name.clone()),
            ("source", card.source.clone()),
            ("file", card.file.clone()),
            ("size", card.size_bytes.map_or_else(unknown, bytes)),
            ("licence", card.licence.clone().unwrap_or_else(unknown)),
        ];
        if let Some(Sampling { temperature, top_p }) = card.sampling {
            rows.push(("best asked with", format!("temperature {temperature}, top-p {top_p}")));
        }
        if let Some(sha256) = &card.sha256 {
            rows.push(("sha256", sha256.clone()));
        }
        match &card.path {
            Some(path) => rows.push(("on disk", path.display().to_string())),
            None => rows.push(("on disk", format!("no; tirami models pull {}", card.name))),
        }
        if let Some(details) = &card.details {
            let tenths = details.shape.parameters_active / 100_000;
            rows.push(("architecture", details.architecture.clone()));
            rows.push(("quantisation", details.quantisation.clone()));
            rows.push(("active parameters", format!("{}.{} million", tenths / 10, tenths % 10)));
            rows.push(("context", format!("{} tokens", details.shape.context_max)));
            if let Some(digest) = details.digest {
                rows.push(("digest", digest.to_string()));
            }
        }
        if let Some(fault) = &card.fault {
            rows.push(("cannot be used", fault.to_string()));
        }
        out.pairs(&rows);
    });
}

fn as_json(card: &ModelCard) -> Value {
    json!({
        "name": card.name,
        "source": card.source,
        "file": card.file,
        "size_bytes": card.size_bytes,
        "licence": card.licence,
        "sha256": card.sha256,
        "sampling": card.sampling.map(|sampling| json!({
            "temperature": as_written(sampling.temperature),
            "top_p": as_written(sampling.top_p),
        })),
        "downloaded": card.path.is_some(),
        "path": card.path,
        "details": card.details.as_ref().map(|details| json!({
            "architecture": details.architecture,
            "quantisation": details.quantisation,
            "parameters_active": details.shape.parameters_active,
            "layers": details.shape.layers,
            "context_max": details.shape.context_max,
            "digest": details.digest.map(|digest| digest.to_string()),
        })),
        "fault": card.fault.as_ref().map(ToString::to_string),
    })
}

/// The number with the digits it is written with, which twice the precision would blur.
fn as_written(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}
