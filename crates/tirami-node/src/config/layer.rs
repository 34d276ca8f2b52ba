//! One place settings come from: the defaults, the file, the environment, or the flags.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::engine::{ENGINE, EngineSetting, engines as read_engines};
use super::error::ConfigError;
use super::field::{FIELDS, Field, Key, Kind, Value, nearest};

/// Bytes a config file may have.
const FILE_MAX_BYTES: u64 = 256 * 1024;

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere; it is the default.
    Default,
    /// In the config file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// In the environment, by this variable.
    Env(&'static str),
    /// On the command line, by this flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// Values and where each of them was set.
pub(super) type Layer = BTreeMap<Key, (Value, Origin)>;

/// The defaults of the owner of the directory `home`.
pub(super) fn defaults(home: &Path) -> Layer {
    let mut layer = Layer::new();
    for field in &FIELDS {
        // Every default parses; a test walks the table.
        if let Ok(value) = field.parse(field.default) {
            layer.insert(field.key, (expand(value, home, None), Origin::Default));
        }
    }
    layer
}

/// What the file sets. Unknown keys and tables are refused.
pub(super) fn from_file(
    path: &Path,
    home: &Path,
) -> Result<(Layer, Vec<EngineSetting>), ConfigError> {
    let text = read(path)?;
    let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
        path: path.to_path_buf(),
        line: line_of(&text, error.span().map_or(0, |span| span.start)),
        message: error.message().trim().replace('\n', "; "),
    })?;
    let base = path.parent();
    let (mut layer, mut engines) = (Layer::new(), Vec::new());
    for (key, value) in table.get_ref() {
        let line = line_of(&text, key.span().start);
        let name = key.get_ref().as_ref();
        if name == ENGINE {
            engines = read_engines((path, &text, home), value.get_ref(), key.span().start)?;
            continue;
        }
        let Some(field) = FIELDS.iter().find(|field| field.name == name) else {
            return Err(ConfigError::UnknownKey {
                path: path.to_path_buf(),
                line,
                key: name.to_owned(),
                suggestion: nearest(name, FIELDS.iter().map(|field| field.name))
                    .map(ToOwned::to_owned),
            });
        };
        let parsed = from_toml(field, value.get_ref()).ok_or_else(|| ConfigError::Value {
            place: format!("{}:{line}", path.display()),
            key: field.name,
            allowed: field.allowed(),
            found: text.get(value.span()).unwrap_or("this").to_owned(),
        })?;
        let origin = Origin::File { path: path.to_path_buf(), line };
        layer.insert(field.key, (expand(parsed, home, base), origin));
    }
    Ok((layer, engines))
}

/// What the environment sets. `env` has the names and values of all variables.
pub(super) fn from_env(env: &[(String, String)], home: &Path) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for field in &FIELDS {
        let Some((_, text)) = env.iter().find(|(name, _)| name == field.env) else {
            continue;
        };
        // A variable that is set to nothing counts as not set, as shells and units do it.
        if text.is_empty() {
            continue;
        }
        let value = field.parse(text).map_err(|allowed| ConfigError::Value {
            place: field.env.to_owned(),
            key: field.name,
            allowed,
            found: format!("{text:?}"),
        })?;
        layer.insert(field.key, (expand(value, home, None), Origin::Env(field.env)));
    }
    Ok(layer)
}

/// What the command line sets.
pub(super) fn from_flags(flags: &[(Key, Value)], home: &Path) -> Layer {
    flags
        .iter()
        .map(|(key, value)| {
            (*key, (expand(value.clone(), home, None), Origin::Flag(key.field().flag)))
        })
        .collect()
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_path_buf(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes > FILE_MAX_BYTES {
        let path = path.to_path_buf();
        return Err(ConfigError::TooLarge { path, bytes, max: FILE_MAX_BYTES });
    }
    let mut text = String::new();
    file.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn from_toml(field: &Field, value: &DeValue<'_>) -> Option<Value> {
    match (field.kind, value) {
        (Kind::Number { .. } | Kind::AutoOr { .. }, DeValue::Integer(integer)) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
            field.parse(&u64::try_from(number).ok()?.to_string()).ok()
        }
        (Kind::Flag, DeValue::Boolean(flag)) => Some(Value::Flag(*flag)),
        (Kind::Models, DeValue::String(name)) => field.models([name.as_ref()].into_iter()).ok(),
        (Kind::Models, DeValue::Array(items)) => {
            let items: Option<Vec<&str>> =
                items.iter().map(|item| item.get_ref().as_str()).collect();
            field.models(items?.into_iter()).ok()
        }
        (Kind::KeepAlive, DeValue::Integer(integer)) => field.parse(integer.as_str()).ok(),
        (Kind::List(_), DeValue::Array(items)) => {
            let items: Option<Vec<&str>> =
                items.iter().map(|item| item.get_ref().as_str()).collect();
            field.parse(&items?.join(",")).ok()
        }
        (Kind::Number { .. } | Kind::Flag | Kind::List(_) | Kind::Models, _) => None,
        (_, DeValue::String(text)) => field.parse(text).ok(),
        _ => None,
    }
}

/// Makes directories usable: `~/` is the home directory, and a relative one in a file is meant
/// from where the file is.
fn expand(value: Value, home: &Path, base: Option<&Path>) -> Value {
    let Value::Directory(path) = value else {
        return value;
    };
    Value::Directory(of_home(&path, home, base))
}

/// The path that is meant by one that may begin with `~/`, or be relative to `base`.
pub(super) fn of_home(path: &Path, home: &Path, base: Option<&Path>) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => base.map_or_else(|| path.to_path_buf(), |base| base.join(path)),
    }
}

pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let upto = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    upto.iter().filter(|byte| **byte == b'\n').count() + 1
}
