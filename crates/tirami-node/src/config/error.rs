//! Why settings cannot be used. Each message names the place and what is allowed there.

use std::path::PathBuf;

/// Why there is no [`Config`](super::Config).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no home directory to put things in.
    #[error("no home directory is known; set HOME")]
    NoHome,
    /// The file that was asked for cannot be read.
    #[error("cannot read the config file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than a config file can be.
    #[error("{} has {bytes} bytes; a config file has at most {max}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// The file has a key that means nothing.
    #[error("{}:{line}: unknown key `{key}`{}", path.display(), hint(suggestion.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key as written.
        key: String,
        /// The key that was probably meant.
        suggestion: Option<String>,
    },
    /// A value is not one of those allowed.
    #[error("{place}: {key} must be {allowed}, not {found}")]
    Value {
        /// File and line, or the name of the variable.
        place: String,
        /// The setting.
        key: &'static str,
        /// What would be accepted.
        allowed: String,
        /// What was found.
        found: String,
    },
    /// A table is not one of those allowed.
    #[error("{place}: {key} has {fault}; it must be {allowed}")]
    Table {
        /// File and line.
        place: String,
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        fault: String,
        /// What would be accepted.
        allowed: String,
    },
}

fn hint(suggestion: Option<&str>) -> String {
    match suggestion {
        Some(key) => format!("; did you mean `{key}`?"),
        None => format!("; the keys are {}", super::field::key_names().join(", ")),
    }
}
