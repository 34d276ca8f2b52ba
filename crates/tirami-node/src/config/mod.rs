//! What an owner can set: one table of settings, read from file, environment and flags.
//!
//! A setting is described once, in [`FIELDS`]. The file parser, the environment, the command's
//! flags, `config show`, the generated default file and the reference pages all read that table.

mod engine;
mod error;
mod field;
mod layer;
mod list;
mod page;
mod resolve;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use tirami_core::{PartyId, TRM_MICRO, Trm};
use tirami_kernel::command::FaucetBounds;
use tirami_kernel::mesh::Faucet;
use tirami_proto::PeerAddress;

use crate::models::{Bounds, machine_bytes};

pub use crate::mesh::DnsOrigin;
pub use crate::models::KeepAlive;
pub use crate::owner::Hours;
pub use engine::{EngineModel, EngineSetting, KnownBy};
pub use error::ConfigError;
pub use field::{FIELDS, Field, Key, Kind, Value};
pub use layer::Origin;
pub use list::{Item, LIST_MAX};
pub use page::{config_markdown, default_file, env_markdown};
pub use resolve::{ENV_API_KEY, ENV_CONFIG, ENV_HUB, ENV_URL, Resolved, Sources, resolve};

/// The directory below the home directory in which everything is kept by default.
pub const HOME_DIR: &str = ".tirami";

/// The name of the config file in [`HOME_DIR`].
pub const CONFIG_FILE: &str = "config.toml";

/// Every setting with its final value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the store, the keys and the admin API key are.
    pub data_dir: PathBuf,
    /// Where models are downloaded to and looked for.
    pub models_dir: PathBuf,
    /// Catalogue names or paths of GGUF files; at least one.
    pub models: Vec<String>,
    /// The first model's projector: a GGUF file, `auto` or `none`.
    pub mmproj: String,
    /// Servers elsewhere whose answers are sold; only a file sets them.
    pub engines: Vec<EngineSetting>,
    /// The address the HTTP API listens on.
    pub bind: IpAddr,
    /// The port of the HTTP API; 0 lets the system choose.
    pub port: u16,
    /// Origins whose pages may call the HTTP API from a browser.
    pub cors_origins: Vec<String>,
    /// Threads that compute; 0 is one less than there are cores.
    pub threads: u32,
    /// Tokens one conversation may hold; 0 is what the model was trained for, within reason.
    pub context_tokens: u32,
    /// Requests answered at the same time; at least 1.
    pub sequences: u32,
    /// Layers of each model kept on a GPU; none to let the build and the machine decide.
    pub gpu_layers: Option<u32>,
    /// How long a model stays in memory after its last use.
    pub keep_alive: KeepAlive,
    /// Memory all loaded models may take together, in MiB; 0 is a share of the machine's.
    pub memory_budget_mib: u64,
    /// Whether a request gives the same bits alone and among others.
    pub reproducible: bool,
    /// Bytes a request's body may have.
    pub body_max_bytes: usize,
    /// How long running answers may go on after a stop was asked for, in milliseconds.
    pub drain_ms: u64,
    /// The price of work: µTRM for 10⁹ FLOP; 1 000 000 is par.
    pub price_ppm: u32,
    /// Up to so many answers of 1 000 tokens a start fills the personal agent's account.
    pub personal_agent_answers: u32,
    /// What is logged: a level, or levels per part such as `tirami_node=debug,warn`.
    pub log: String,
    /// Whether other nodes can connect.
    pub mesh_enabled: bool,
    /// The address on which other nodes reach this one.
    pub mesh_bind: IpAddr,
    /// The UDP port on which other nodes reach this one; 0 lets the system choose.
    pub mesh_port: u16,
    /// Whether nodes without an invite are let in.
    pub mesh_public: bool,
    /// What the faucet gives within a day, in TRM; 0 while it is shut.
    pub faucet_day_trm: u64,
    /// What the faucet locks for one newcomer, in TRM.
    pub faucet_trm: u64,
    /// The work shown to the faucet, in bits.
    pub faucet_work_bits: u8,
    /// Newcomers of a day from one place.
    pub faucet_source_day: u32,
    /// Which chains are kept: `auto`, `all` or `own`.
    pub keep_chains: String,
    /// Where the node says it is; may be empty.
    pub mesh_region: String,
    /// Where people may reach the HTTP API; shown to others.
    pub mesh_http_endpoint: Option<String>,
    /// Whether nodes in the local network find each other.
    pub mesh_lan: bool,
    /// A pkarr server to leave addresses at and to ask for them.
    pub mesh_pkarr_url: Option<String>,
    /// A domain below which peers are looked up.
    pub mesh_dns_origin: Option<DnsOrigin>,
    /// Relays; none by default.
    pub mesh_relay_urls: Vec<String>,
    /// Nodes to connect to first.
    pub bootstrap_peers: Vec<PeerAddress>,
    /// Parties whose machines may see requests that ask for trusted ones.
    pub trusted_peers: Vec<PartyId>,
    /// Parties this node neither connects to nor serves.
    pub blocked_peers: Vec<PartyId>,
    /// The hours in which others are served; none for all.
    pub serve_hours: Option<Hours>,
    /// Others are served only while other programs use less of the processors, in percent; 0 for
    /// always.
    pub serve_idle_percent: u32,
    /// Jobs of others at the same time; 0 leaves it as it is.
    pub serve_jobs_max: u32,
    /// What the machine draws while it answers, in watts; 0 when it is not known.
    pub electricity_watts: u32,
    /// Thousandths of the owner's currency for a kilowatt-hour; 0 when it is not known.
    pub electricity_milli_per_kwh: u32,
    /// What one unit of that currency is worth to the owner, in TRM; 0 when it is not known.
    pub electricity_trm_per_currency: u64,
}

impl Config {
    /// What holds when nothing is set, for the owner of the directory `home`.
    pub fn defaults(home: &Path) -> Self {
        resolve::config_of(&layer::defaults(home))
    }

    /// The faucet, when it is open.
    pub fn faucet(&self) -> Option<Faucet> {
        let trm = |trm: u64| Trm::from_micro(trm.saturating_mul(TRM_MICRO));
        (self.faucet_day_trm > 0).then(|| Faucet {
            amount: trm(self.faucet_trm),
            work_bits: self.faucet_work_bits,
            bounds: FaucetBounds {
                day_max: trm(self.faucet_day_trm),
                source_max: self.faucet_source_day,
            },
        })
    }

    /// How much memory models may take, and how long they stay.
    pub fn model_bounds(&self) -> Bounds {
        let share = || machine_bytes().map(|bytes| bytes / 4 * 3);
        let memory_bytes = match self.memory_budget_mib {
            0 => share(),
            mebibytes => Some(mebibytes << 20),
        };
        Bounds { memory_bytes, keep_alive: self.keep_alive }
    }

    /// Address and port of the HTTP API.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.port)
    }
}
