//! `tirami start`: loads a model, opens the account book, answers requests until told to stop.

use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use tirami_node::api_file::url_from_here;
use tirami_node::config::{Config, Key};
use tirami_node::keys::{API_KEY_FILE, create_data_dir};
use tirami_node::mesh::{Invite, MeshOptions, PeerAddress};
use tirami_node::models::Models;
use tirami_node::node::{Node, NodeOptions, RunningNode, StartError};
use tirami_node::store::{DirLock, StoreError};
use tracing_subscriber::EnvFilter;

use super::mesh::tolerance;
use crate::exit::{Exit, Failure, quit};
use crate::model;
use crate::output::{Output, duration};
use crate::settings::{AllSettings, Global};

/// With which settings to start.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The word that `tirami mesh invite` printed on another machine: this one joins its mesh.
    /// With a data directory that is in that mesh already it changes nothing.
    #[arg(long, value_name = "TOKEN")]
    join: Option<Invite>,
    /// Load no model of this machine: ask others, and servers elsewhere that the file names.
    #[arg(long, conflicts_with = "model")]
    no_model: bool,
    /// Let nodes without an invite in, as mesh_public.
    #[arg(long)]
    public: bool,
    /// A node to connect to first, besides those of bootstrap_peers; may be repeated.
    #[arg(long, value_name = "PEER")]
    bootstrap_peer: Vec<PeerAddress>,
    #[command(flatten)]
    settings: AllSettings,
}

/// Runs a node until Ctrl-C, SIGTERM, or a failure of its store.
pub(crate) async fn run(global: &Global, args: StartArgs, out: Output) -> Result<Exit, Failure> {
    let resolved = global.resolve(&args.settings.0)?;
    let store = model::store(&resolved);
    let is_port_chosen = resolved.is_set(Key::MeshPort);
    let config = resolved.config;
    log_to_stderr(&config.log)?;
    check_data_dir(&config.data_dir)?;
    check_free(&config, is_port_chosen)?;

    out.answer(&json!({"data_dir": config.data_dir}), |out| {
        out.line(format_args!("data dir: {}", config.data_dir.display()));
    });
    let models = match args.no_model {
        true => {
            let models = Models::new(config.model_bounds());
            model::add_elsewhere(&models, &config, &store, out).await?;
            models
        }
        false => model::load(&config, &store, out).await?,
    };
    tell_models(&models, out);

    // From here on there is something to settle, so a signal no longer just ends the process.
    let mut signals = Signals::listen()?;
    let mut mesh = MeshOptions::of(&config);
    mesh.is_port_chosen = is_port_chosen;
    mesh.public |= args.public;
    mesh.bootstrap.extend(args.bootstrap_peer);
    mesh.join = args.join;
    let node = start(&config, models, mesh).await?;
    let url = url_from_here(node.api);
    let key_file = config.data_dir.join(API_KEY_FILE);
    out.answer(&json!({"api": url}), |out| out.line(format_args!("API: {url}")));
    out.answer(&json!({"openai_base_url": format!("{url}/v1")}), |out| {
        out.line(format_args!("OpenAI base URL: {url}/v1"));
    });
    out.answer(&json!({"api_key": key_file}), |out| {
        out.line(format_args!("API key: {}", key_file.display()));
    });
    if let Some(peer) = node.peer_address() {
        let peer = peer.to_string();
        out.answer(&json!({"peer": peer}), |out| out.line(format_args!("peer: {peer}")));
    }
    tell_founded(&node, out);
    if !config.bind.is_loopback() {
        out.warn(format_args!(
            "{} can be reached from other machines; every request needs an API key",
            node.api
        ));
    }
    out.answer(&json!({"ready": true}), |out| out.line("ready"));
    until_stopped(node, &mut signals, &config, out).await
}

fn tell_models(models: &Models, out: Output) {
    if models.is_empty() {
        return out.answer(&json!({"model": null}), |out| {
            out.line("model: none; requests are answered by other nodes of the mesh");
        });
    }
    for model in models.all() {
        let (info, loaded) = (model.info(), model.is_loaded());
        let digest = info.digest.to_string();
        out.answer(&json!({"model": info.name, "digest": digest, "loaded": loaded}), |out| {
            let state = if loaded { "" } else { ", on disk" };
            out.line(format_args!("model: {} (digest {digest}){state}", info.name));
        });
    }
}

/// What the owner of a new mesh relies on.
fn tell_founded(node: &RunningNode, out: Output) {
    let Some(founded) = node.founded() else { return };
    let (mesh, lying, away) = (founded.mesh, founded.witnesses_tolerated, founded.away_tolerated);
    let shown = json!({
        "mesh_id": mesh.to_string(),
        "witnesses_tolerated": lying,
        "away_tolerated": away,
    });
    out.answer(&json!({"founded": shown}), |out| {
        let borne = tolerance(lying, away);
        out.line(format_args!("mesh: {mesh}, founded; this node is its witness, {borne}"));
    });
}

async fn start(config: &Config, models: Models, mesh: MeshOptions) -> Result<RunningNode, Failure> {
    let options = NodeOptions {
        data_dir: config.data_dir.clone(),
        bind: config.address(),
        models,
        config: config.clone(),
        mesh,
    };
    Node::start(options).await.map_err(|error| match error {
        StartError::Bind { source, .. } => cannot_listen(config, &source),
        StartError::Join(_) => Failure::new(Exit::Refused, error),
        StartError::Mesh(_) => Failure::new(Exit::Config, error),
        error if is_disk_full(&error) => Failure::new(
            Exit::Store,
            format_args!("{error}; the disk is full: nothing was lost, make room and start again"),
        ),
        error => Failure::new(Exit::Store, error),
    })
}

/// Whether a file outside the store met a full disk; the store has a sentence of its own.
fn is_disk_full(error: &StartError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = match error {
        StartError::Store(_) => None,
        error => Some(error),
    };
    while let Some(error) = cause {
        let shared = error.downcast_ref::<Arc<std::io::Error>>().map(AsRef::as_ref);
        let disk = error.downcast_ref::<std::io::Error>().or(shared);
        if disk.is_some_and(|disk| disk.kind() == std::io::ErrorKind::StorageFull) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Serves until a signal comes; then lets running answers end, settles and closes the book.
async fn until_stopped(
    node: RunningNode,
    signals: &mut Signals,
    config: &Config,
    out: Output,
) -> Result<Exit, Failure> {
    tokio::select! {
        () = signals.next() => {}
        reason = node.failed() => return Err(Failure::new(Exit::Store, reason)),
    }
    out.note(format_args!(
        "stopping: running answers have {} to end; Ctrl-C again stops at once",
        duration(config.drain_ms)
    ));
    tokio::select! {
        closed = node.shutdown() => {
            closed.map_err(|error| Failure::new(Exit::Store, error))?;
            out.note("stopped: every answer is settled and the account book is closed");
            Ok(Exit::Done)
        }
        () = signals.next() => {
            out.note("stopped at once; what was cut is settled at the next start");
            quit(Exit::Interrupted)
        }
    }
}

fn log_to_stderr(log: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(log).map_err(|error| {
        Failure::new(
            Exit::Config,
            format_args!(
                "log: {error}; use off, error, warn, info, debug or trace, or levels per part \
                 such as tirami_node=debug,warn"
            ),
        )
    })?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .init();
    Ok(())
}

/// Finds out whether the directory can be used, and by this node alone, before a large model is
/// loaded for nothing.
fn check_data_dir(dir: &Path) -> Result<(), Failure> {
    let unusable = |why: &dyn std::fmt::Display| {
        let shown = dir.display();
        Failure::new(
            Exit::Store,
            format_args!("the data directory {shown} {why}; choose another one with --data-dir"),
        )
    };
    if dir.exists() && !dir.is_dir() {
        return Err(unusable(&"is a file and no folder"));
    }
    create_data_dir(dir).map_err(|error| unusable(&format_args!("cannot be used ({error})")))?;
    DirLock::take(dir).map(drop).map_err(|error| match &error {
        StoreError::Io { source, .. } => {
            unusable(&format_args!("cannot be written ({source}); nothing was changed"))
        }
        _ => Failure::new(Exit::Store, &error),
    })
}

/// The same of the ports. A mesh port that nobody chose may be another one.
fn check_free(config: &Config, is_port_chosen: bool) -> Result<(), Failure> {
    TcpListener::bind(config.address()).map_err(|error| cannot_listen(config, &error))?;
    if config.mesh_enabled && is_port_chosen {
        let address = SocketAddr::new(config.mesh_bind, config.mesh_port);
        UdpSocket::bind(address).map_err(|error| {
            Failure::new(
                Exit::Config,
                format_args!(
                    "the mesh cannot use UDP {address} ({error}); stop what uses it, or choose \
                     another port with --mesh-port"
                ),
            )
        })?;
    }
    Ok(())
}

fn cannot_listen(config: &Config, reason: &io::Error) -> Failure {
    let address = config.address();
    let advice = match reason.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or choose another port with --port",
        _ => "choose another address with --bind, or another port with --port",
    };
    Failure::new(Exit::Config, format_args!("cannot listen on {address} ({reason}); {advice}"))
}

/// Ctrl-C, and where there is one, SIGTERM.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn listen() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |error| {
            Failure::new(Exit::Unexpected, format_args!("cannot listen for signals: {error}"))
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn listen() -> Result<Self, Failure> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without signals the process is ended from outside, and recovery settles.
            std::future::pending::<()>().await;
        }
    }
}
