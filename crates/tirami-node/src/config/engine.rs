//! The tables `[[engine]]` of the config file: servers elsewhere whose answers this node sells.

use std::path::{Path, PathBuf};

use tirami_core::ModelShape;
use tirami_proto::VECTOR_WIDTH_MAX;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::layer::{line_of, of_home};
use crate::models::Serves;

/// The key of these tables.
pub(super) const ENGINE: &str = "engine";
/// The only kind of engine that is set up by a table.
const KIND: &str = "openai";
/// Answers at the same time when the table does not say.
const JOBS_MAX_DEFAULT: u64 = 16;
/// The most that may be said.
const JOBS_MAX: u64 = 4_096;
/// Seconds to the first text when the table does not say, and the most that may be said.
const FIRST_TEXT_SECONDS_DEFAULT: u64 = 300;
const FIRST_TEXT_SECONDS_MAX: u64 = 86_400;
/// The longest context that may be said, in tokens.
const CONTEXT_TOKENS_MAX: u64 = 1 << 26;
/// Engines, and models of one.
const TABLES_MAX: usize = 64;
/// What such a table is, for messages and the reference page.
pub(super) const ALLOWED: &str = "tables [[engine]] with kind = \"openai\", url, and models = [{ \
                                  name, upstream, gguf }] or, without the model's file, [{ name, \
                                  upstream, shape = { parameters_active }, context_tokens }]; \
                                  api_key_env, jobs_max, first_text_seconds, context_tokens of a \
                                  model with its file, layers and attention_width of a shape, and \
                                  serves and embedding_width of a model may be left out; serves \
                                  is a list of \"chat\", \"completions\" and \"embeddings\"";

/// A server that speaks OpenAI's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSetting {
    /// Where its API is, such as `http://10.0.0.2:8000/v1`.
    pub url: String,
    /// The environment variable that has its API key.
    pub api_key_env: Option<String>,
    /// Answers at the same time.
    pub jobs_max: u32,
    /// Seconds that it may take to the first text of an answer: it may have to load the model.
    pub first_text_seconds: u32,
    /// The models it computes.
    pub models: Vec<EngineModel>,
}

/// A model of such a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineModel {
    /// What it is called here.
    pub name: String,
    /// What the server calls it.
    pub upstream: String,
    /// What counts its tokens, names it and says what a token costs.
    pub known_by: KnownBy,
    /// Tokens one conversation may hold at the server; 0 is as many as the file says.
    pub context_tokens: u32,
    /// What the server is asked for.
    pub serves: Serves,
}

/// What a node knows of a model that a server elsewhere computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownBy {
    /// Its file: the vocabulary in it counts tokens, its digest names the model, its shape says
    /// what a token costs. The weights in it are not loaded.
    Gguf(PathBuf),
    /// Its shape, as the owner says it: bytes of text are counted.
    Shape(ModelShape),
}

/// Where a table stands.
struct At<'a> {
    path: &'a Path,
    text: &'a str,
    home: &'a Path,
}

/// Reads the value of `engine`.
pub(super) fn engines(
    (path, text, home): (&Path, &str, &Path),
    value: &DeValue<'_>,
    offset: usize,
) -> Result<Vec<EngineSetting>, ConfigError> {
    let at = At { path, text, home };
    let DeValue::Array(tables) = value else {
        return Err(at.wrong(offset, "a value that is no list of tables"));
    };
    if tables.len() > TABLES_MAX {
        return Err(at.wrong(offset, &format!("more than {TABLES_MAX} tables")));
    }
    let read = tables.iter().map(|table| match table.get_ref() {
        DeValue::Table(fields) => at.engine(fields, table.span().start),
        _ => Err(at.wrong(table.span().start, "a value that is no table")),
    });
    read.collect()
}

impl At<'_> {
    fn engine(&self, fields: &DeTable<'_>, offset: usize) -> Result<EngineSetting, ConfigError> {
        let known = ["kind", "url", "api_key_env", "jobs_max", "first_text_seconds", "models"];
        self.only(fields, &known)?;
        let seconds = (1, FIRST_TEXT_SECONDS_DEFAULT, FIRST_TEXT_SECONDS_MAX);
        let missing = |key: &str| self.wrong(offset, &format!("a table without `{key}`"));
        match string(fields, "kind") {
            Some(KIND) => {}
            Some(kind) => {
                let fault = format!("kind = {kind:?}, which is not {KIND:?}");
                return Err(self.wrong(offset, &fault));
            }
            None => return Err(missing("kind")),
        }
        let url = string(fields, "url").ok_or_else(|| missing("url"))?;
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            let fault = format!("url = {url:?}, which begins with neither http:// nor https://");
            return Err(self.wrong(offset, &fault));
        }
        // Without its key the server would be asked all the same.
        let api_key_env = string(fields, "api_key_env").filter(|name| !name.is_empty());
        if api_key_env.is_none() && get(fields, "api_key_env").is_some() {
            return Err(self.wrong(offset, "an api_key_env that is no text"));
        }
        let Some(DeValue::Array(models)) = get(fields, "models") else {
            return Err(missing("models"));
        };
        if !(1..=TABLES_MAX).contains(&models.len()) {
            return Err(self.wrong(offset, &format!("models that are not 1 to {TABLES_MAX}")));
        }
        let models = models.iter().map(|model| match model.get_ref() {
            DeValue::Table(fields) => self.model(fields, model.span().start),
            _ => Err(self.wrong(model.span().start, "a model that is no table")),
        });
        Ok(EngineSetting {
            url: url.to_owned(),
            api_key_env: api_key_env.map(str::to_owned),
            jobs_max: self.number(fields, "jobs_max", (1, JOBS_MAX_DEFAULT, JOBS_MAX))?,
            first_text_seconds: self.number(fields, "first_text_seconds", seconds)?,
            models: models.collect::<Result<_, _>>()?,
        })
    }

    fn model(&self, fields: &DeTable<'_>, offset: usize) -> Result<EngineModel, ConfigError> {
        let known =
            ["name", "upstream", "gguf", "shape", "context_tokens", "serves", "embedding_width"];
        self.only(fields, &known)?;
        let text = |key: &str| {
            let text = string(fields, key).filter(|text| !text.is_empty());
            text.ok_or_else(|| self.wrong(offset, &format!("a model without `{key}`")))
        };
        let (name, upstream) = (text("name")?.to_owned(), text("upstream")?.to_owned());
        let (known_by, context_tokens) = match (get(fields, "gguf"), get(fields, "shape")) {
            (Some(_), Some(_)) => {
                return Err(self.wrong(offset, "a model with both `gguf` and `shape`"));
            }
            (None, Some(DeValue::Table(shape))) => {
                let context_max =
                    self.number(fields, "context_tokens", (1, 0, CONTEXT_TOKENS_MAX))?;
                if context_max == 0 {
                    return Err(self.wrong(offset, "a model with a shape and no `context_tokens`"));
                }
                (KnownBy::Shape(self.shape(shape, offset, context_max)?), context_max)
            }
            (None, Some(_)) => return Err(self.wrong(offset, "a shape that is no table")),
            (None, None) => {
                return Err(self.wrong(offset, "a model without `gguf` or `shape`"));
            }
            (Some(_), None) => {
                let gguf = of_home(Path::new(text("gguf")?), self.home, self.path.parent());
                let tokens = self.number(fields, "context_tokens", (0, 0, CONTEXT_TOKENS_MAX))?;
                (KnownBy::Gguf(gguf), tokens)
            }
        };
        let widest = VECTOR_WIDTH_MAX as u64;
        let embedding_width: u32 = self.number(fields, "embedding_width", (1, 0, widest))?;
        let serves = self.serves(fields, embedding_width)?;
        if embedding_width > 0 && serves.embeddings.is_none() {
            return Err(self.wrong(offset, "an embedding_width of a model that serves none"));
        }
        if serves.embeddings == Some(0) && matches!(known_by, KnownBy::Shape(_)) {
            return Err(self.wrong(offset, "embeddings of a shape and no `embedding_width`"));
        }
        Ok(EngineModel { name, upstream, known_by, context_tokens, serves })
    }

    /// What a model is asked for, with vectors of this width; the usual where nothing is said.
    fn serves(&self, fields: &DeTable<'_>, embedding_width: u32) -> Result<Serves, ConfigError> {
        let Some(value) = spanned(fields, "serves") else { return Ok(Serves::default()) };
        let wrong = |fault: &str| {
            let fault = format!("{fault} \"chat\", \"completions\" and \"embeddings\"");
            self.wrong(value.span().start, &fault)
        };
        let list = match value.get_ref() {
            DeValue::Array(list) if !list.is_empty() => list,
            _ => return Err(wrong("serves that is no list of")),
        };
        let mut serves = Serves { chat: false, completions: false, embeddings: None };
        for one in list.iter() {
            match one.get_ref().as_str() {
                Some("chat") => serves.chat = true,
                Some("completions") => serves.completions = true,
                Some("embeddings") => serves.embeddings = Some(embedding_width),
                Some(word) => return Err(wrong(&format!("{word:?} in serves, which is none of"))),
                None => return Err(wrong("a value in serves that is none of")),
            }
        }
        Ok(serves)
    }

    fn shape(
        &self,
        fields: &DeTable<'_>,
        offset: usize,
        context_max: u32,
    ) -> Result<ModelShape, ConfigError> {
        self.only(fields, &["parameters_active", "layers", "attention_width"])?;
        let number = |key, max| self.number(fields, key, (0, 0, u64::from(max)));
        let parameters_active =
            self.number(fields, "parameters_active", (1, 0, ModelShape::PARAMETERS_MAX))?;
        if parameters_active == 0 {
            return Err(self.wrong(offset, "a shape without `parameters_active`"));
        }
        Ok(ModelShape {
            parameters_active,
            layers: number("layers", ModelShape::LAYERS_MAX)?,
            attention_width: number("attention_width", ModelShape::ATTENTION_WIDTH_MAX)?,
            context_max,
        })
    }

    /// A typing error must not go unnoticed.
    fn only(&self, fields: &DeTable<'_>, known: &[&str]) -> Result<(), ConfigError> {
        for key in fields.keys() {
            if !known.contains(&key.get_ref().as_ref()) {
                let fault = format!("the key `{}`, which means nothing", key.get_ref());
                return Err(self.wrong(key.span().start, &fault));
            }
        }
        Ok(())
    }

    /// The number `key` from `min` to `max`, or the usual one where nothing is said.
    fn number<N: TryFrom<u64> + Default>(
        &self,
        fields: &DeTable<'_>,
        key: &str,
        (min, usual, max): (u64, u64, u64),
    ) -> Result<N, ConfigError> {
        let Some(value) = spanned(fields, key) else {
            return Ok(N::try_from(usual).unwrap_or_default());
        };
        let number = match value.get_ref() {
            DeValue::Integer(integer) => {
                u64::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            _ => None,
        };
        number
            .filter(|number| (min..=max).contains(number))
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| {
                let what = format!("a {key} that is no whole number from {min} to {max}");
                self.wrong(value.span().start, &what)
            })
    }

    fn wrong(&self, offset: usize, fault: &str) -> ConfigError {
        ConfigError::Table {
            place: format!("{}:{}", self.path.display(), line_of(self.text, offset)),
            key: ENGINE,
            fault: fault.to_owned(),
            allowed: ALLOWED.to_owned(),
        }
    }
}

fn spanned<'a, 'i>(fields: &'a DeTable<'i>, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
    fields.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
}

fn get<'a, 'i>(fields: &'a DeTable<'i>, key: &str) -> Option<&'a DeValue<'i>> {
    spanned(fields, key).map(Spanned::get_ref)
}

fn string<'a>(fields: &'a DeTable<'_>, key: &str) -> Option<&'a str> {
    get(fields, key)?.as_str()
}
