//! Merges file, environment and flags, in this order: what comes later wins.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::ConfigError;
use super::field::{FIELDS, Key, Value, nearest};
use super::layer::{self, Layer, Origin};
use super::{CONFIG_FILE, Config, HOME_DIR};
use crate::models::KeepAlive;

/// The variable that names the config file.
pub const ENV_CONFIG: &str = "TIRAMI_CONFIG";
/// The variable that names the node the commands talk to.
pub const ENV_URL: &str = "TIRAMI_URL";
/// The variable that holds the API key the commands use.
pub const ENV_API_KEY: &str = "TIRAMI_API_KEY";

/// The variable that names a mirror of the hub, as other programs of the hub read it.
pub const ENV_HUB: &str = "HF_ENDPOINT";

/// Variables with this prefix belong to tests and are nobody's typing error.
const ENV_TEST_PREFIX: &str = "TIRAMI_TEST_";

/// Everything settings can come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The home directory; `None` when there is none.
    pub home: Option<PathBuf>,
    /// The config file that was asked for on the command line.
    pub file: Option<PathBuf>,
    /// All environment variables that are valid UTF-8.
    pub env: Vec<(String, String)>,
    /// What was set on the command line.
    pub flags: Vec<(Key, Value)>,
}

/// Settings and where each of them was set.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The settings.
    pub config: Config,
    /// The config file that was read, or would be read if it existed.
    pub file: PathBuf,
    /// Variables that look like settings and are none, with the one that was probably meant.
    pub unknown_env: Vec<(String, Option<&'static str>)>,
    /// The mirror models are downloaded from, when a variable names one.
    pub hub: Option<String>,
    layer: Layer,
}

impl Resolved {
    /// Every setting in the order of the table, with its value and where it was set.
    pub fn rows(&self) -> impl Iterator<Item = (Key, &Value, &Origin)> {
        self.layer.iter().map(|(key, (value, origin))| (*key, value, origin))
    }

    /// Whether a setting was set somewhere, be it to what is the default.
    pub fn is_set(&self, key: Key) -> bool {
        self.layer.get(&key).is_some_and(|(_, origin)| *origin != Origin::Default)
    }
}

/// Reads all sources and merges them.
///
/// The file is the one of the flag, else the one of [`ENV_CONFIG`], else
/// `~/.tirami/config.toml`; only the last may be missing.
///
/// # Errors
///
/// The first of [`ConfigError`]'s variants that applies; nothing is half used.
pub fn resolve(sources: &Sources) -> Result<Resolved, ConfigError> {
    let home = sources.home.as_deref().ok_or(ConfigError::NoHome)?;
    let asked = sources.file.clone();
    let asked = asked.or_else(|| value_of(&sources.env, ENV_CONFIG).map(PathBuf::from));
    let file = asked.clone().unwrap_or_else(|| home.join(HOME_DIR).join(CONFIG_FILE));

    let (mut layer, mut engines) = (layer::defaults(home), Vec::new());
    if asked.is_some() || file.exists() {
        let (of_file, engines_of_file) = layer::from_file(&file, home)?;
        layer.extend(of_file);
        engines = engines_of_file;
    }
    layer.extend(layer::from_env(&sources.env, home)?);
    layer.extend(layer::from_flags(&sources.flags, home));

    let config = Config { engines, ..config_of(&layer) };
    let unknown_env = unknown_env(&sources.env);
    Ok(Resolved { config, file, unknown_env, hub: value_of(&sources.env, ENV_HUB), layer })
}

/// The settings in a layer that has all of them.
pub(super) fn config_of(layer: &Layer) -> Config {
    Config {
        data_dir: directory(layer, Key::DataDir),
        models_dir: directory(layer, Key::ModelsDir),
        models: list(layer, Key::Model),
        mmproj: text(layer, Key::Mmproj),
        engines: Vec::new(),
        bind: address(layer, Key::Bind),
        port: number(layer, Key::Port),
        cors_origins: list(layer, Key::CorsOrigins),
        threads: number(layer, Key::Threads),
        context_tokens: number(layer, Key::ContextTokens),
        sequences: number(layer, Key::Sequences),
        gpu_layers: auto_or(layer, Key::GpuLayers),
        keep_alive: text(layer, Key::KeepAlive).parse().unwrap_or(KeepAlive::FOREVER),
        memory_budget_mib: number(layer, Key::MemoryBudgetMib),
        reproducible: flag(layer, Key::Reproducible),
        body_max_bytes: number(layer, Key::BodyMaxBytes),
        drain_ms: number(layer, Key::DrainMs),
        price_ppm: number(layer, Key::PricePpm),
        personal_agent_answers: number(layer, Key::PersonalAgentAnswers),
        log: text(layer, Key::Log),
        mesh_enabled: flag(layer, Key::MeshEnabled),
        mesh_bind: address(layer, Key::MeshBind),
        mesh_port: number(layer, Key::MeshPort),
        mesh_public: flag(layer, Key::MeshPublic),
        faucet_day_trm: number(layer, Key::FaucetDayTrm),
        faucet_trm: number(layer, Key::FaucetTrm),
        faucet_work_bits: number(layer, Key::FaucetWorkBits),
        faucet_source_day: number(layer, Key::FaucetSourceDay),
        keep_chains: text(layer, Key::KeepChains),
        mesh_region: text(layer, Key::MeshRegion),
        mesh_http_endpoint: some_text(layer, Key::MeshHttpEndpoint),
        mesh_lan: flag(layer, Key::MeshLan),
        mesh_pkarr_url: some_text(layer, Key::MeshPkarrUrl),
        mesh_dns_origin: text(layer, Key::MeshDnsOrigin).parse().ok(),
        mesh_relay_urls: list(layer, Key::MeshRelayUrls),
        bootstrap_peers: list(layer, Key::BootstrapPeers),
        trusted_peers: list(layer, Key::TrustedPeers),
        blocked_peers: list(layer, Key::BlockedPeers),
        serve_hours: text(layer, Key::ServeHours).parse().ok(),
        serve_idle_percent: number(layer, Key::ServeIdlePercent),
        serve_jobs_max: number(layer, Key::ServeJobsMax),
        electricity_watts: number(layer, Key::ElectricityWatts),
        electricity_milli_per_kwh: number(layer, Key::ElectricityMilliPerKwh),
        electricity_trm_per_currency: number(layer, Key::ElectricityTrmPerCurrency),
    }
}

fn address(layer: &Layer, key: Key) -> IpAddr {
    match layer.get(&key) {
        Some((Value::Address(address), _)) => *address,
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

fn flag(layer: &Layer, key: Key) -> bool {
    matches!(layer.get(&key), Some((Value::Flag(true), _)))
}

/// Every item was read once when its list was parsed.
fn list<T: FromStr>(layer: &Layer, key: Key) -> Vec<T> {
    match layer.get(&key) {
        Some((Value::List(items), _)) => {
            items.iter().filter_map(|item| item.parse().ok()).collect()
        }
        _ => Vec::new(),
    }
}

fn directory(layer: &Layer, key: Key) -> PathBuf {
    match layer.get(&key) {
        Some((Value::Directory(path), _)) => path.clone(),
        _ => Path::new(key.field().default).to_path_buf(),
    }
}

fn text(layer: &Layer, key: Key) -> String {
    match layer.get(&key) {
        Some((Value::Text(text), _)) => text.clone(),
        _ => key.field().default.to_owned(),
    }
}

/// A text that may be empty.
fn some_text(layer: &Layer, key: Key) -> Option<String> {
    Some(text(layer, key)).filter(|text| !text.is_empty())
}

/// The table's bounds keep every number within the type it is used as; a test tries both ends.
fn number<T: TryFrom<u64> + Default>(layer: &Layer, key: Key) -> T {
    match layer.get(&key) {
        Some((Value::Number(number), _)) => T::try_from(*number).unwrap_or_default(),
        _ => T::default(),
    }
}

/// None for `auto`.
fn auto_or(layer: &Layer, key: Key) -> Option<u32> {
    match layer.get(&key) {
        Some((Value::Number(_), _)) => Some(number(layer, key)),
        _ => None,
    }
}

/// What a variable is set to; nothing counts as not set.
fn value_of(env: &[(String, String)], wanted: &str) -> Option<String> {
    let (_, value) = env.iter().find(|(name, value)| name == wanted && !value.is_empty())?;
    Some(value.clone())
}

fn unknown_env(env: &[(String, String)]) -> Vec<(String, Option<&'static str>)> {
    let known = || FIELDS.iter().map(|field| field.env).chain([ENV_CONFIG, ENV_URL, ENV_API_KEY]);
    env.iter()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("TIRAMI_") && !name.starts_with(ENV_TEST_PREFIX))
        .filter(|name| !known().any(|one| one == name.as_str()))
        .map(|name| (name.clone(), nearest(name, known())))
        .collect()
}
