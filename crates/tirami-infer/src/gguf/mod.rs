//! GGUF files: is this one a model the engine can load, and what are its numbers?
//!
//! A file is judged here before the engine sees it, so that a wrong file gets a sentence.

mod check;
mod header;
mod types;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use tirami_core::{ModelDigest, ModelShape};

pub use check::{CONTEXT_MAX, EXPERTS_MAX, LAYERS_MAX, VOCABULARY_MAX};
pub use header::{
    ARRAY_ITEMS_MAX, HEADER_BYTES_MAX, KEY_BYTES_MAX, KEYS_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_MAX,
    TEXT_BYTES_MAX,
};
use header::{Header, Tensor, Value};

/// Files one model may be split into.
pub const SHARDS_MAX: u64 = 1_024;

/// A model file, or the shards of one, that may be given to the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufFile {
    /// The file, or its shards in order; then the projector.
    pub paths: Vec<PathBuf>,
    /// What the model reads pictures with; it is the last of the `paths`.
    pub projector: Option<PathBuf>,
    /// Bytes of all files together.
    pub size_bytes: u64,
    /// `general.architecture`, such as `llama`.
    pub architecture: String,
    /// The quantisation, such as `Q4_1`.
    pub quantisation: String,
    /// The numbers work is metered by.
    pub shape: ModelShape,
    /// Numbers that stand for a token between two layers.
    pub width: u32,
    /// Keys and values that all layers keep of one token, in numbers.
    pub cached_per_token: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
    /// The chat template in Jinja, if the file has one.
    pub chat_template: Option<String>,
    /// What becomes a text's vector; none where the model ranks texts and makes no vectors.
    pub pooling: Option<Pooling>,
}

/// Which of the vectors of a text's tokens become the text's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all of them; so too where the file says nothing, or "none".
    Mean,
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
}

/// Why a file is not a model. One sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or read.
    #[error("it cannot be read: {0}")]
    Io(String),
    /// The first four bytes are not `GGUF`.
    #[error("it is not a GGUF file; choose a model file that ends in .gguf")]
    NotGguf,
    /// The file was written for machines with the other byte order.
    #[error("it is a big-endian GGUF; download the ordinary (little-endian) file")]
    BigEndian,
    /// The format's version is neither 2 nor 3.
    #[error("it is GGUF version {version}; versions 2 and 3 are supported")]
    Version {
        /// The version in the file.
        version: u32,
    },
    /// The file ends within the header.
    #[error(
        "it is truncated: its header does not end within its {file_bytes} bytes; download it again"
    )]
    Truncated {
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// A count or length is above its bound.
    #[error("it is damaged: it claims {count} {what}, and at most {max} are allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The claimed number.
        count: u64,
        /// The bound.
        max: u64,
    },
    /// A text that must be UTF-8 is not.
    #[error("it is damaged: {what} is not text")]
    Text {
        /// What is not text.
        what: &'static str,
    },
    /// A key or tensor is empty or stands twice.
    #[error("it is damaged: \"{name}\" stands in it twice or has no name")]
    Twice {
        /// The key or tensor.
        name: String,
    },
    /// A value has a type the format does not know.
    #[error("it is damaged: it has a value of the unknown type {kind}")]
    ValueType {
        /// The type's number.
        kind: u32,
    },
    /// A tensor has a type that is not known.
    #[error(
        "tensor \"{name}\" has the unknown type {kind}; convert the model to a usual quantisation"
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// The type's number.
        kind: u32,
    },
    /// A tensor's type does not suit what it is used for.
    #[error(
        "tensor \"{name}\" cannot be of type {kind}; the file is damaged or of an unusual kind"
    )]
    TensorUse {
        /// The tensor.
        name: String,
        /// The type's name.
        kind: &'static str,
    },
    /// A tensor's dimensions are empty, too large, or do not fill its blocks.
    #[error("it is damaged: tensor \"{name}\" has impossible dimensions")]
    TensorSize {
        /// The tensor.
        name: String,
    },
    /// A tensor does not begin where the one before it ends.
    #[error("it is damaged: tensor \"{name}\" is not where it should be")]
    Offset {
        /// The tensor.
        name: String,
    },
    /// A tensor's data is not in the file.
    #[error(
        "it is truncated: tensor \"{name}\" ends at byte {needed_bytes} and the file has \
         {file_bytes}; download it again"
    )]
    TensorBeyondEnd {
        /// The tensor.
        name: String,
        /// Bytes the file must have for it.
        needed_bytes: u64,
        /// Bytes the file has.
        file_bytes: u64,
    },
    /// The model's architecture cannot be run here.
    #[error("its architecture \"{architecture}\" is not supported")]
    Architecture {
        /// `general.architecture`.
        architecture: String,
    },
    /// A key the engine needs is missing or of the wrong type.
    #[error("it has no usable \"{key}\"; it is no complete text model")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value contradicts the rest of the file.
    #[error("it is damaged: \"{key}\" must be {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The file has no tensors.
    #[error("it has no weights; it holds only a vocabulary or settings")]
    NoTensors,
    /// The file is to be a projector and is none.
    #[error(
        "it is no projector for pictures but of the architecture \"{architecture}\"; projectors \
         are usually called mmproj-NAME.gguf"
    )]
    NoProjector {
        /// `general.architecture`.
        architecture: String,
    },
    /// A file of a split model is missing or is not the one its name says.
    #[error("it is one of {count} parts, and {} is missing or another file; put all parts beside it", .part.display())]
    Shard {
        /// Parts the model has.
        count: u64,
        /// The part that is wrong.
        part: PathBuf,
    },
}

impl GgufFile {
    /// Reads and judges the header of the file at `path`, and of the other parts of a split model
    /// wherever `path` is one of them.
    ///
    /// # Errors
    ///
    /// [`GgufError`] says in one sentence why the file cannot be used.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (mut header, mut size_bytes) = read_header(path)?;
        let mut paths = vec![path.to_owned()];
        let split = header.unsigned("split.count").unwrap_or(0);
        if split > 1 {
            paths = shard_paths(path, split)?;
            (header, size_bytes) = read_shards(&paths, split)?;
        }
        Self::judge(&header, paths, size_bytes)
    }

    fn judge(header: &Header, paths: Vec<PathBuf>, size_bytes: u64) -> Result<Self, GgufError> {
        let missing = |key: &str| GgufError::Missing { key: key.to_owned() };
        let architecture =
            header.text("general.architecture").ok_or_else(|| missing("general.architecture"))?;
        if header.tensors.is_empty() {
            return Err(GgufError::NoTensors);
        }
        let numbers = check::check(header, &architecture)?;
        let shape = ModelShape {
            parameters_active: parameters_active(&header.tensors, &numbers),
            layers: numbers.layers,
            attention_width: numbers.attention_width,
            context_max: numbers.context_max,
        };
        Ok(Self {
            paths,
            projector: None,
            size_bytes,
            architecture,
            quantisation: quantisation(header),
            shape,
            width: numbers.width,
            cached_per_token: numbers.cached_per_token,
            vocabulary: vocabulary(header),
            chat_template: header.text("tokenizer.chat_template"),
            pooling: numbers.pooling,
        })
    }

    /// The same model with the projector at `path`: its bytes are part of what the model is.
    ///
    /// # Errors
    ///
    /// [`GgufError`] when the file is no projector for pictures.
    pub fn with_projector(mut self, path: &Path) -> Result<Self, GgufError> {
        let (header, size_bytes) = read_header(path)?;
        let architecture = header.text("general.architecture").unwrap_or_default();
        if architecture != "clip" || !header.is_true("clip.has_vision_encoder") {
            return Err(GgufError::NoProjector { architecture });
        }
        self.paths.push(path.to_owned());
        self.projector = Some(path.to_owned());
        self.size_bytes = self.size_bytes.saturating_add(size_bytes);
        Ok(self)
    }

    /// Numbers of a text's vector; 0 where the model makes none.
    pub const fn embedding_width(&self) -> u32 {
        if self.pooling.is_some() { self.width } else { 0 }
    }

    /// blake3 over the bytes of the file, or of all shards in order, and of the projector. Reads
    /// everything.
    ///
    /// # Errors
    ///
    /// The file system's error.
    pub fn digest(&self) -> io::Result<ModelDigest> {
        let mut hasher = blake3::Hasher::new();
        for path in &self.paths {
            hasher.update_reader(File::open(path)?)?;
        }
        Ok(ModelDigest::from_bytes(*hasher.finalize().as_bytes()))
    }
}

/// Whether a file's name is a projector's by convention.
pub fn is_projector_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("mmproj") && name.ends_with(".gguf")
}

/// The projector that lies beside the model at `path`, as people lay them: `mmproj-` and the model's
/// own file name; or the only `mmproj*.gguf` of a folder with no other model.
pub fn projector_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let own = path.with_file_name(format!("mmproj-{name}"));
    if own.is_file() {
        return Some(own);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let files = std::fs::read_dir(folder.unwrap_or(Path::new("."))).ok()?;
    let files = files.filter_map(|file| Some(file.ok()?.path()));
    let is_gguf = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "gguf");
    let (projectors, models): (Vec<_>, Vec<_>) =
        files.filter(is_gguf).partition(|file| is_projector_name(file));
    match (projectors.as_slice(), models.as_slice()) {
        ([projector], [_]) => Some(projector.clone()),
        _ => None,
    }
}

fn read_header(path: &Path) -> Result<(Header, u64), GgufError> {
    let io = |error: io::Error| GgufError::Io(error.to_string());
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(GgufError::Io("it is not a file".to_owned()));
    }
    let header = Header::read(BufReader::with_capacity(1 << 20, file), metadata.len())?;
    Ok((header, metadata.len()))
}

/// The names of all parts: `NAME-00001-of-00003.gguf` and so on, from the name of any of them.
fn shard_paths(path: &Path, count: u64) -> Result<Vec<PathBuf>, GgufError> {
    if count > SHARDS_MAX {
        return Err(GgufError::TooMany { what: "parts", count, max: SHARDS_MAX });
    }
    let ending = format!("-of-{count:05}.gguf");
    let prefix = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(ending.as_str()))
        .and_then(|stem| stem.char_indices().rev().nth(5).map(|(i, _)| (&stem[..i], &stem[i..])))
        .filter(|(_, number)| {
            number.starts_with('-') && number[1..].bytes().all(|byte| byte.is_ascii_digit())
        })
        .map(|(prefix, _)| prefix)
        .ok_or_else(|| GgufError::Shard { count, part: path.to_owned() })?;
    Ok((1..=count).map(|i| path.with_file_name(format!("{prefix}-{i:05}{ending}"))).collect())
}

/// One header with the keys of the first part and the tensors of all.
fn read_shards(paths: &[PathBuf], count: u64) -> Result<(Header, u64), GgufError> {
    let mut whole: Option<Header> = None;
    let mut size_bytes = 0;
    for (i, path) in paths.iter().enumerate() {
        let wrong = || GgufError::Shard { count, part: path.clone() };
        if !path.exists() {
            return Err(wrong());
        }
        let (header, bytes) = read_header(path)?;
        let place = (header.unsigned("split.no"), header.unsigned("split.count"));
        if place != (Some(i as u64), Some(count)) {
            return Err(wrong());
        }
        size_bytes += bytes;
        match &mut whole {
            None => whole = Some(header),
            Some(whole) => whole.tensors.extend(header.tensors),
        }
    }
    whole.map(|header| (header, size_bytes)).ok_or(GgufError::NoTensors)
}

fn vocabulary(header: &Header) -> u64 {
    match header.values.get("tokenizer.ggml.tokens") {
        Some((_, Value::Texts(tokens))) => tokens.len() as u64,
        _ => 0,
    }
}

/// The weights a token meets on its way; see [`ModelShape::parameters_active`].
fn parameters_active(tensors: &[Tensor], numbers: &check::Numbers) -> u64 {
    let own_output = tensors.iter().any(|tensor| tensor.name == "output.weight");
    let active = tensors
        .iter()
        .filter(|tensor| !(own_output && tensor.name == "token_embd.weight"))
        .map(|tensor| {
            let elements = u128::from(tensor.elements);
            if tensor.name.contains("_exps.") && numbers.experts > 0 {
                elements * u128::from(numbers.experts_used) / u128::from(numbers.experts)
            } else {
                elements
            }
        })
        .sum::<u128>();
    u64::try_from(active).unwrap_or(u64::MAX)
}

/// The file's own label, or else the type that most of its bytes have.
fn quantisation(header: &Header) -> String {
    if let Some(label) = header.unsigned("general.file_type").and_then(types::file_type_label) {
        return label.to_owned();
    }
    let mut bytes_by_type = BTreeMap::<&str, u128>::new();
    for tensor in &header.tensors {
        *bytes_by_type.entry(tensor.kind.name).or_default() += u128::from(tensor.bytes);
    }
    bytes_by_type
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .map_or_else(String::new, |(name, _)| name.to_owned())
}

impl Header {
    fn text(&self, key: &str) -> Option<String> {
        match self.values.get(key) {
            Some((_, Value::Text(text))) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    }

    fn is_true(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some((_, Value::Bool(true))))
    }

    fn unsigned(&self, key: &str) -> Option<u64> {
        match self.values.get(key) {
            Some((_, Value::Unsigned(number))) => Some(*number),
            _ => None,
        }
    }
}

/// The keys that begin with the architecture's name.
struct NumberFields<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl NumberFields<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn value(&self, name: &str) -> Option<&(u32, Value)> {
        self.header.values.get(&self.key(name))
    }

    fn missing(&self, name: &str) -> GgufError {
        GgufError::Missing { key: self.key(name) }
    }

    fn bad(&self, name: &str, expected: &'static str) -> GgufError {
        GgufError::BadValue { key: self.key(name), expected }
    }

    /// A whole number that may be absent; the engine reads 32 bits.
    fn optional(&self, name: &str) -> Result<Option<u64>, GgufError> {
        match self.value(name) {
            None => Ok(None),
            Some((4, Value::Unsigned(number))) => Ok(Some(*number)),
            Some(_) => Err(self.missing(name)),
        }
    }

    fn between(&self, name: &str, min: u64, max: u64) -> Result<u64, GgufError> {
        let number = self.optional(name)?.ok_or_else(|| self.missing(name))?;
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(self.bad(name, "within the supported range"))
        }
    }

    /// One number for all layers or one for each; empty when absent.
    fn per_layer(&self, name: &str, layers: u64) -> Result<Vec<u64>, GgufError> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some((4, Value::Unsigned(number))) => Ok(vec![*number]),
            Some((_, Value::Numbers(array)))
                if matches!(array.item_type, 4 | 5) && array.items.len() as u64 == layers =>
            {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the items are whole 32-bit numbers; a negative one becomes 0 and is refused"
                )]
                let numbers = array.items.iter().map(|item| *item as u64).collect();
                Ok(numbers)
            }
            Some(_) => Err(self.missing(name)),
        }
    }
}
