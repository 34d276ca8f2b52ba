//! The table of settings: name, type, range, default and meaning of each.

use std::net::IpAddr;
use std::path::PathBuf;

use tirami_proto::{REGION_BYTES_MAX, WORK_BITS_MAX};

use super::list::{Item, is_url};
use crate::mesh::DnsOrigin;
use crate::models::{KeepAlive, MODELS_MAX};
use crate::owner::Hours;

/// Names a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `data_dir`
    DataDir,
    /// `models_dir`
    ModelsDir,
    /// `model`
    Model,
    /// `mmproj`
    Mmproj,
    /// `bind`
    Bind,
    /// `port`
    Port,
    /// `cors_origins`
    CorsOrigins,
    /// `threads`
    Threads,
    /// `context_tokens`
    ContextTokens,
    /// `sequences`
    Sequences,
    /// `gpu_layers`
    GpuLayers,
    /// `keep_alive`
    KeepAlive,
    /// `memory_budget_mib`
    MemoryBudgetMib,
    /// `reproducible`
    Reproducible,
    /// `body_max_bytes`
    BodyMaxBytes,
    /// `drain_ms`
    DrainMs,
    /// `price_ppm`
    PricePpm,
    /// `personal_agent_answers`
    PersonalAgentAnswers,
    /// `log`
    Log,
    /// `mesh_enabled`
    MeshEnabled,
    /// `mesh_bind`
    MeshBind,
    /// `mesh_port`
    MeshPort,
    /// `mesh_public`
    MeshPublic,
    /// `faucet_day_trm`
    FaucetDayTrm,
    /// `faucet_trm`
    FaucetTrm,
    /// `faucet_work_bits`
    FaucetWorkBits,
    /// `faucet_source_day`
    FaucetSourceDay,
    /// `keep_chains`
    KeepChains,
    /// `mesh_region`
    MeshRegion,
    /// `mesh_http_endpoint`
    MeshHttpEndpoint,
    /// `mesh_lan`
    MeshLan,
    /// `mesh_pkarr_url`
    MeshPkarrUrl,
    /// `mesh_dns_origin`
    MeshDnsOrigin,
    /// `mesh_relay_urls`
    MeshRelayUrls,
    /// `bootstrap_peers`
    BootstrapPeers,
    /// `trusted_peers`
    TrustedPeers,
    /// `blocked_peers`
    BlockedPeers,
    /// `serve_hours`
    ServeHours,
    /// `serve_idle_percent`
    ServeIdlePercent,
    /// `serve_jobs_max`
    ServeJobsMax,
    /// `electricity_watts`
    ElectricityWatts,
    /// `electricity_milli_per_kwh`
    ElectricityMilliPerKwh,
    /// `electricity_trm_per_currency`
    ElectricityTrmPerCurrency,
}

/// The type of a setting and what is allowed in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory; `~/` is the home directory.
    Directory,
    /// Any text that is not empty.
    Text,
    /// An IP address.
    Address,
    /// Yes or no.
    Flag,
    /// Any number of these, up to [`LIST_MAX`](super::LIST_MAX).
    List(Item),
    /// One model or more, up to [`MODELS_MAX`].
    Models,
    /// How long a model stays in memory.
    KeepAlive,
    /// A word of at most so many bytes, or nothing.
    Label {
        /// The most bytes.
        bytes_max: usize,
    },
    /// An `https://` or `http://` URL, or nothing.
    Url,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Hours of the day, or nothing.
    Hours,
    /// A domain of nodes, with or without the server that knows it, or nothing.
    Origin,
    /// The word `auto`, or a whole number up to this one.
    AutoOr {
        /// The largest.
        max: u64,
    },
    /// A whole number within these bounds, both allowed.
    Number {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
}

/// The value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Directory`].
    Directory(PathBuf),
    /// Of [`Kind::Text`], [`Kind::Label`], [`Kind::Url`], [`Kind::Choice`], [`Kind::Hours`],
    /// [`Kind::Origin`], [`Kind::KeepAlive`], and the word of [`Kind::AutoOr`].
    Text(String),
    /// Of [`Kind::Address`].
    Address(IpAddr),
    /// Of [`Kind::Number`] and [`Kind::AutoOr`].
    Number(u64),
    /// Of [`Kind::Flag`].
    Flag(bool),
    /// Of [`Kind::List`] and [`Kind::Models`]; each item parses.
    List(Vec<String>),
}

/// Everything there is to know about one setting.
#[derive(Debug)]
pub struct Field {
    /// Which setting.
    pub key: Key,
    /// Its name in the config file.
    pub name: &'static str,
    /// The environment variable that sets it.
    pub env: &'static str,
    /// The flag that sets it, without the dashes.
    pub flag: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// The default, as it would be written in the environment.
    pub default: &'static str,
    /// What it does, in one or two sentences.
    pub doc: &'static str,
}

/// Every setting, in the order in which people meet them.
pub const FIELDS: [Field; 43] = [
    Field {
        key: Key::DataDir,
        name: "data_dir",
        env: "TIRAMI_DATA_DIR",
        flag: "data-dir",
        kind: Kind::Directory,
        default: "~/.tirami",
        doc: "Where the store, the keys and the admin API key are kept.",
    },
    Field {
        key: Key::ModelsDir,
        name: "models_dir",
        env: "TIRAMI_MODELS_DIR",
        flag: "models-dir",
        kind: Kind::Directory,
        default: "~/.tirami/models",
        doc: "Where models are downloaded to and looked for.",
    },
    Field {
        key: Key::Model,
        name: "model",
        env: "TIRAMI_MODEL",
        flag: "model",
        kind: Kind::Models,
        default: "smollm2:135m",
        doc: "The models to serve, each a name from `tirami models list` or the path of a GGUF \
              file; the first is the default. In the file a text or a list of texts, in the \
              environment separated by commas; the flag may be repeated. They are loaded at the \
              start as far as the memory budget goes; the others, and other files in models_dir, \
              when this node's own callers ask for them. Other nodes are offered those named \
              here while they are in memory.",
    },
    Field {
        key: Key::Mmproj,
        name: "mmproj",
        env: "TIRAMI_MMPROJ",
        flag: "mmproj",
        kind: Kind::Text,
        default: "auto",
        doc: "The projector with which the first model reads pictures: a GGUF file, or none. \
              auto takes, for every model, mmproj-NAME.gguf beside NAME.gguf, or the only \
              mmproj*.gguf in a folder with one model. With a projector a model is another \
              model to the mesh than without.",
    },
    Field {
        key: Key::Bind,
        name: "bind",
        env: "TIRAMI_BIND",
        flag: "bind",
        kind: Kind::Address,
        default: "127.0.0.1",
        doc: "The address the HTTP API listens on. On any other than a loopback address every \
              request needs an API key.",
    },
    Field {
        key: Key::Port,
        name: "port",
        env: "TIRAMI_PORT",
        flag: "port",
        kind: Kind::Number { min: 0, max: 65_535 },
        default: "3000",
        doc: "The port of the HTTP API. 0 lets the system choose a free one.",
    },
    Field {
        key: Key::CorsOrigins,
        name: "cors_origins",
        env: "TIRAMI_CORS_ORIGINS",
        flag: "cors-origins",
        kind: Kind::List(Item::Site),
        default: "",
        doc: "Origins whose pages may call the HTTP API from a browser, such as https://app.example. \
              They need an API key; with none listed, a browser lets no page of another origin in.",
    },
    Field {
        key: Key::Threads,
        name: "threads",
        env: "TIRAMI_THREADS",
        flag: "threads",
        kind: Kind::Number { min: 0, max: 1_024 },
        default: "0",
        doc: "Threads that compute answers. 0 is one less than the machine has cores; using all \
              of them makes answers many times slower when the machine does anything else.",
    },
    Field {
        key: Key::ContextTokens,
        name: "context_tokens",
        env: "TIRAMI_CONTEXT_TOKENS",
        flag: "context-tokens",
        kind: Kind::Number { min: 0, max: 1_048_576 },
        default: "0",
        doc: "Tokens one conversation may hold, question and answer together. 0 takes the \
              model's own number, at most 4096.",
    },
    Field {
        key: Key::Sequences,
        name: "sequences",
        env: "TIRAMI_SEQUENCES",
        flag: "sequences",
        kind: Kind::Number { min: 1, max: 32 },
        default: "4",
        doc: "Requests that are answered at the same time; more wait in a queue.",
    },
    Field {
        key: Key::GpuLayers,
        name: "gpu_layers",
        env: "TIRAMI_GPU_LAYERS",
        flag: "gpu-layers",
        kind: Kind::AutoOr { max: 10_000 },
        default: "auto",
        doc: "Layers of each model kept on a GPU. auto keeps all of them there where the build \
              has a GPU back-end and the machine a GPU, and none elsewhere.",
    },
    Field {
        key: Key::KeepAlive,
        name: "keep_alive",
        env: "TIRAMI_KEEP_ALIVE",
        flag: "keep-alive",
        kind: Kind::KeepAlive,
        default: "-1",
        doc: "How long a model stays in memory after its last use, such as 5m. A request may say \
              otherwise with its own keep_alive. -1 keeps it until another needs the room; 0 \
              unloads it at once.",
    },
    Field {
        key: Key::MemoryBudgetMib,
        name: "memory_budget_mib",
        env: "TIRAMI_MEMORY_BUDGET_MIB",
        flag: "memory-budget-mib",
        kind: Kind::Number { min: 0, max: 1 << 30 },
        default: "0",
        doc: "Memory that all loaded models may take together, in MiB. 0 is three quarters of \
              the machine's, where that is known. Models that rest are \
              unloaded for others; one that does not fit is refused.",
    },
    Field {
        key: Key::Reproducible,
        name: "reproducible",
        env: "TIRAMI_REPRODUCIBLE",
        flag: "reproducible",
        kind: Kind::Flag,
        default: "true",
        doc: "Whether a request gives the same answer to the bit, alone and among others, so that \
              it can be checked. false reads long questions faster, about 1.5 times at 2000 \
              tokens on a processor, and a seed promises nothing.",
    },
    Field {
        key: Key::BodyMaxBytes,
        name: "body_max_bytes",
        env: "TIRAMI_BODY_MAX_BYTES",
        flag: "body-max-bytes",
        kind: Kind::Number { min: 1_024, max: 67_108_864 },
        default: "4194304",
        doc: "Bytes the body of a request may have; a larger one is answered with 413.",
    },
    Field {
        key: Key::DrainMs,
        name: "drain_ms",
        env: "TIRAMI_DRAIN_MS",
        flag: "drain-ms",
        kind: Kind::Number { min: 0, max: 600_000 },
        default: "10000",
        doc: "How long running answers may go on after Ctrl-C, in milliseconds. What is cut \
              then costs what was delivered.",
    },
    Field {
        key: Key::PricePpm,
        name: "price_ppm",
        env: "TIRAMI_PRICE_PPM",
        flag: "price-ppm",
        kind: Kind::Number { min: 1, max: 1_000_000_000 },
        default: "1000000",
        doc: "The price of work in µTRM for 10⁹ FLOP. 1000000 is par: 1 TRM for 10⁹ FLOP.",
    },
    Field {
        key: Key::PersonalAgentAnswers,
        name: "personal_agent_answers",
        env: "TIRAMI_PERSONAL_AGENT_ANSWERS",
        flag: "personal-agent-answers",
        kind: Kind::Number { min: 0, max: 1_000_000 },
        default: "1000",
        doc: "A start fills the personal agent's account up to so many answers of 1000 tokens. \
              It does so from the node's own account when less than a tenth of that is left. 0 \
              leaves it as it is.",
    },
    Field {
        key: Key::Log,
        name: "log",
        env: "TIRAMI_LOG",
        flag: "log",
        kind: Kind::Text,
        default: "info",
        doc: "How much is logged to stderr: off, error, warn, info, debug or trace. Levels per \
              part are possible too, such as tirami_node=debug,warn.",
    },
    Field {
        key: Key::MeshEnabled,
        name: "mesh_enabled",
        env: "TIRAMI_MESH_ENABLED",
        flag: "mesh-enabled",
        kind: Kind::Flag,
        default: "true",
        doc: "Whether other nodes can connect. Without it the node is a mesh of one and opens no \
              port besides its HTTP API.",
    },
    Field {
        key: Key::MeshBind,
        name: "mesh_bind",
        env: "TIRAMI_MESH_BIND",
        flag: "mesh-bind",
        kind: Kind::Address,
        default: "0.0.0.0",
        doc: "The address on which other nodes reach this one, over UDP. 127.0.0.1 keeps them to \
              this machine.",
    },
    Field {
        key: Key::MeshPort,
        name: "mesh_port",
        env: "TIRAMI_MESH_PORT",
        flag: "mesh-port",
        kind: Kind::Number { min: 0, max: 65_535 },
        default: "3001",
        doc: "The UDP port on which other nodes reach this one; with 0 the system chooses a free \
              one. While something else has it, one that was set is an error, and instead of the \
              default the system chooses another one, which a warning names.",
    },
    Field {
        key: Key::MeshPublic,
        name: "mesh_public",
        env: "TIRAMI_MESH_PUBLIC",
        flag: "mesh-public",
        kind: Kind::Flag,
        default: "false",
        doc: "Whether nodes without an invite are let in. They have no line until a \
              member gives them one.",
    },
    Field {
        key: Key::FaucetDayTrm,
        name: "faucet_day_trm",
        env: "TIRAMI_FAUCET_DAY_TRM",
        flag: "faucet-day-trm",
        kind: Kind::Number { min: 0, max: 1_000_000_000_000 },
        default: "0",
        doc: "TRM of its own with which this node sponsors newcomers that show work, within a day. \
              What a newcomer does not settle is lost. 0 sponsors nobody.",
    },
    Field {
        key: Key::FaucetTrm,
        name: "faucet_trm",
        env: "TIRAMI_FAUCET_TRM",
        flag: "faucet-trm",
        kind: Kind::Number { min: 1, max: 1_000_000_000_000 },
        default: "1000",
        doc: "What the faucet locks for one newcomer, in TRM; at most what the charter allows.",
    },
    Field {
        key: Key::FaucetWorkBits,
        name: "faucet_work_bits",
        env: "TIRAMI_FAUCET_WORK_BITS",
        flag: "faucet-work-bits",
        kind: Kind::Number { min: 0, max: WORK_BITS_MAX as u64 },
        default: "24",
        doc: "The work a newcomer shows to the faucet: each bit more doubles it, 24 take some \
              seconds of one core.",
    },
    Field {
        key: Key::FaucetSourceDay,
        name: "faucet_source_day",
        env: "TIRAMI_FAUCET_SOURCE_DAY",
        flag: "faucet-source-day",
        kind: Kind::Number { min: 1, max: 4_096 },
        default: "2",
        doc: "Newcomers from one IPv4 address or IPv6 network that the faucet sponsors in a day. All \
              that come over relays count as one.",
    },
    Field {
        key: Key::KeepChains,
        name: "keep_chains",
        env: "TIRAMI_KEEP_CHAINS",
        flag: "keep-chains",
        kind: Kind::Choice(&["auto", "all", "own"]),
        default: "auto",
        doc: "Which chains of the mesh are kept: all, own (and those of parties it deals with), or \
              auto. auto is own where mesh_public, else all. Witnesses, clerk and registrar keep \
              all.",
    },
    Field {
        key: Key::MeshRegion,
        name: "mesh_region",
        env: "TIRAMI_MESH_REGION",
        flag: "mesh-region",
        kind: Kind::Label { bytes_max: REGION_BYTES_MAX },
        default: "",
        doc: "Where the node says it is, such as eu-north. It is shown to others and proves \
              nothing.",
    },
    Field {
        key: Key::MeshHttpEndpoint,
        name: "mesh_http_endpoint",
        env: "TIRAMI_MESH_HTTP_ENDPOINT",
        flag: "mesh-http-endpoint",
        kind: Kind::Url,
        default: "",
        doc: "Where people may reach this node's HTTP API, such as https://box.example. It is \
              shown to others and opens nothing by itself.",
    },
    Field {
        key: Key::MeshLan,
        name: "mesh_lan",
        env: "TIRAMI_MESH_LAN",
        flag: "mesh-lan",
        kind: Kind::Flag,
        default: "true",
        doc: "Whether nodes of this mesh in the same local network find each other by mDNS. The \
              network then sees the node's key and addresses. With a loopback mesh_bind nothing \
              is sent.",
    },
    Field {
        key: Key::MeshPkarrUrl,
        name: "mesh_pkarr_url",
        env: "TIRAMI_MESH_PKARR_URL",
        flag: "mesh-pkarr-url",
        kind: Kind::Url,
        default: "",
        doc: "A pkarr server at which this node leaves its addresses, signed, and looks for those \
              of peers that have moved. With none, nobody is asked.",
    },
    Field {
        key: Key::MeshDnsOrigin,
        name: "mesh_dns_origin",
        env: "TIRAMI_MESH_DNS_ORIGIN",
        flag: "mesh-dns-origin",
        kind: Kind::Origin,
        default: "",
        doc: "A domain below which peers that have moved are looked up, such as nodes.example. The \
              server that knows it may follow, as in nodes.example@192.0.2.53:53; otherwise those \
              of the system are asked. With none, nobody is.",
    },
    Field {
        key: Key::MeshRelayUrls,
        name: "mesh_relay_urls",
        env: "TIRAMI_MESH_RELAY_URLS",
        flag: "mesh-relay-urls",
        kind: Kind::List(Item::Relay),
        default: "",
        doc: "Relays over which nodes that cannot reach each other directly may connect. A relay \
              that a bootstrap peer or an invite names is used too, and no other.",
    },
    Field {
        key: Key::BootstrapPeers,
        name: "bootstrap_peers",
        env: "TIRAMI_BOOTSTRAP_PEERS",
        flag: "bootstrap-peers",
        kind: Kind::List(Item::Peer),
        default: "",
        doc: "Nodes to connect to first; one that answers is enough. They tell of the others.",
    },
    Field {
        key: Key::TrustedPeers,
        name: "trusted_peers",
        env: "TIRAMI_TRUSTED_PEERS",
        flag: "trusted-peers",
        kind: Kind::List(Item::Party),
        default: "",
        doc: "Parties whose machines may see requests that ask for trusted ones only. They are \
              always let in and need not earn how far they may be indebted. Those set while the \
              node ran stay beside them; who is taken out here is out from the next start on.",
    },
    Field {
        key: Key::BlockedPeers,
        name: "blocked_peers",
        env: "TIRAMI_BLOCKED_PEERS",
        flag: "blocked-peers",
        kind: Kind::List(Item::Party),
        default: "",
        doc: "Parties this node neither connects to nor serves. Those set while the node ran \
              stay beside them; who is taken out here is out from the next start on.",
    },
    Field {
        key: Key::ServeHours,
        name: "serve_hours",
        env: "TIRAMI_SERVE_HOURS",
        flag: "serve-hours",
        kind: Kind::Hours,
        default: "",
        doc: "The hours in UTC in which other nodes are served, such as 22:00-08:00. With an \
              offset, such as 22:00-08:00 +02:00, by the clock there. Empty serves at all hours.",
    },
    Field {
        key: Key::ServeIdlePercent,
        name: "serve_idle_percent",
        env: "TIRAMI_SERVE_IDLE_PERCENT",
        flag: "serve-idle-percent",
        kind: Kind::Number { min: 0, max: 100 },
        default: "0",
        doc: "Other nodes are served only while other programs use less than this share of the \
              processors. 0 serves however busy the machine is. Where the system does not say \
              how busy it is, nobody is served.",
    },
    Field {
        key: Key::ServeJobsMax,
        name: "serve_jobs_max",
        env: "TIRAMI_SERVE_JOBS_MAX",
        flag: "serve-jobs-max",
        kind: Kind::Number { min: 0, max: 4_096 },
        default: "0",
        doc: "Jobs of other nodes served at the same time, set at each start. 0 leaves it as it \
              is, at first as many as `sequences`.",
    },
    Field {
        key: Key::ElectricityWatts,
        name: "electricity_watts",
        env: "TIRAMI_ELECTRICITY_WATTS",
        flag: "electricity-watts",
        kind: Kind::Number { min: 0, max: 1_000_000 },
        default: "0",
        doc: "What the machine draws while it answers, in watts. With the two settings below the \
              price is never below what the electricity costs at the measured speed. 0 sets no \
              such bound.",
    },
    Field {
        key: Key::ElectricityMilliPerKwh,
        name: "electricity_milli_per_kwh",
        env: "TIRAMI_ELECTRICITY_MILLI_PER_KWH",
        flag: "electricity-milli-per-kwh",
        kind: Kind::Number { min: 0, max: 1_000_000_000 },
        default: "0",
        doc: "What a kilowatt-hour costs, in thousandths of the owner's currency: 300 is 0.30. \
              0 sets no such bound.",
    },
    Field {
        key: Key::ElectricityTrmPerCurrency,
        name: "electricity_trm_per_currency",
        env: "TIRAMI_ELECTRICITY_TRM_PER_CURRENCY",
        flag: "electricity-trm-per-currency",
        kind: Kind::Number { min: 0, max: 1_000_000_000_000 },
        default: "0",
        doc: "What one unit of the owner's currency is worth to the owner, in TRM. 0 sets no such \
              bound.",
    },
];

impl Key {
    /// What is known about the setting.
    pub fn field(self) -> &'static Field {
        // The table has one row per key, in the order of the enum; a test walks it.
        &FIELDS[self as usize]
    }
}

impl Field {
    /// Reads a value as it stands in the environment or behind a flag.
    ///
    /// # Errors
    ///
    /// What would be accepted, as the end of the sentence "it must be …".
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        match self.kind {
            Kind::List(item) => item.parse_all(text).ok_or_else(|| self.allowed()),
            Kind::Hours | Kind::Url | Kind::Origin if text.is_empty() => {
                Ok(Value::Text(String::new()))
            }
            Kind::Url if is_url(text) => Ok(Value::Text(text.to_owned())),
            Kind::Hours => match text.parse::<Hours>() {
                Ok(hours) => Ok(Value::Text(hours.to_string())),
                Err(()) => Err(self.allowed()),
            },
            Kind::Origin => match text.parse::<DnsOrigin>() {
                Ok(origin) => Ok(Value::Text(origin.to_string())),
                Err(()) => Err(self.allowed()),
            },
            Kind::Label { bytes_max } if text.len() <= bytes_max => {
                Ok(Value::Text(text.to_owned()))
            }
            Kind::Models => self.models(text.split(',')),
            _ if text.is_empty() => Err(self.allowed()),
            Kind::KeepAlive => match text.parse::<KeepAlive>() {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(()) => Err(self.allowed()),
            },
            Kind::AutoOr { .. } if text == "auto" => Ok(Value::Text(text.to_owned())),
            Kind::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::Label { .. } | Kind::Url | Kind::Choice(_) => Err(self.allowed()),
            Kind::Flag => match text {
                "true" | "yes" | "on" | "1" => Ok(Value::Flag(true)),
                "false" | "no" | "off" | "0" => Ok(Value::Flag(false)),
                _ => Err(self.allowed()),
            },
            Kind::Directory => Ok(Value::Directory(PathBuf::from(text))),
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Address => match text {
                "localhost" => Ok(Value::Address(IpAddr::from([127, 0, 0, 1]))),
                _ => text.parse().map(Value::Address).map_err(|_| self.allowed()),
            },
            Kind::AutoOr { max } => self.number(text, 0, max),
            Kind::Number { min, max } => self.number(text, min, max),
        }
    }

    fn number(&self, text: &str, min: u64, max: u64) -> Result<Value, String> {
        match text.replace('_', "").parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(Value::Number(number)),
            _ => Err(self.allowed()),
        }
    }

    /// Names or paths, each as it stands but for blanks around it.
    pub(super) fn models<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Value, String> {
        let names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
        let fits = (1..=MODELS_MAX).contains(&names.len());
        if fits && !names.iter().any(String::is_empty) {
            Ok(Value::List(names))
        } else {
            Err(self.allowed())
        }
    }

    /// What is accepted, for messages and reference pages.
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Directory => "a directory".to_owned(),
            Kind::Text => "a text that is not empty".to_owned(),
            Kind::Address => "an IP address such as 127.0.0.1 or ::1".to_owned(),
            Kind::Number { min, max } => format!("a whole number from {min} to {max}"),
            Kind::AutoOr { max } => format!("auto or a whole number up to {max}"),
            Kind::Models => format!("a model or a list of up to {MODELS_MAX} models"),
            Kind::KeepAlive => "a time such as 5m or 1h30m, 0, or -1".to_owned(),
            Kind::Flag => "true or false".to_owned(),
            Kind::Label { bytes_max } => format!("a text of at most {bytes_max} bytes"),
            Kind::Url => "a URL that begins with https:// or http://, or nothing".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Hours => "hours such as 22:00-08:00, or 22:00-08:00 +02:00".to_owned(),
            Kind::Origin => "DOMAIN, DOMAIN@IP:PORT, or nothing".to_owned(),
            Kind::List(item) => item.allowed().to_owned(),
        }
    }
}

/// The names of all settings.
pub(super) fn key_names() -> Vec<&'static str> {
    FIELDS.iter().map(|field| field.name).collect()
}

/// The candidate that was probably meant by `written`, if one is near enough.
pub(super) fn nearest<'a>(
    written: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    /// Below this likeness a suggestion confuses more than it helps.
    const LIKENESS_MIN: f64 = 0.8;
    candidates
        .map(|candidate| (strsim::jaro_winkler(written, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}
