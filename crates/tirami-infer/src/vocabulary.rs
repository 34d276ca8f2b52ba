//! What turns conversations into tokens for a model that runs elsewhere.

use tirami_core::{ModelDigest, ModelShape};

use crate::engine::{Conversation, ModelInfo, PrepareError, Prompt, RawPrompt, Variables};

/// Bytes of text that are one token of a [`ByteVocabulary`]: what a token of the vocabularies of
/// today's models has on the average of English text.
pub const BYTES_PER_TOKEN: usize = 4;
/// The variables that are taken for a model whose template is not at hand: what such templates read
/// most. Any other name might be one that its server takes for an order of its owner's.
const TAKEN: [&str; 3] = ["enable_thinking", "reasoning_effort", "thinking"];
/// What UTF-8 never has: it fills the tokens of fewer bytes.
const FILLER: u8 = 0xff;

/// The words of a model, without its weights.
pub trait Vocabulary: Send + Sync + 'static {
    /// The model.
    fn model(&self) -> &ModelInfo;

    /// As [`crate::engine::Engine::prepare`].
    ///
    /// # Errors
    ///
    /// [`PrepareError`].
    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError>;

    /// What whoever computes is told of the variables of a conversation that is prepared, so that
    /// its template writes what was counted here: those that are named, and how much to think where
    /// the template is known to take it.
    fn variables(&self, conversation: &Conversation) -> Variables {
        Variables { named: conversation.variables.named.clone(), ..Variables::default() }
    }

    /// As [`crate::engine::Engine::prepare_raw`].
    ///
    /// # Errors
    ///
    /// [`PrepareError`].
    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError>;

    /// As [`crate::engine::Engine::tokenize`].
    ///
    /// # Errors
    ///
    /// [`PrepareError`].
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError>;

    /// As [`crate::engine::Engine::token_bytes`].
    fn token_bytes(&self, token: u32) -> Vec<u8>;

    /// As [`crate::engine::Engine::spelling`].
    fn spelling(&self, token: u32) -> Option<Vec<u8>>;

    /// As [`crate::engine::Engine::begin_token`].
    fn begin_token(&self) -> Option<u32>;

    /// As [`crate::engine::Engine::end_token`].
    fn end_token(&self) -> Option<u32> {
        None
    }

    /// As [`crate::engine::Engine::has_vocabulary`].
    fn is_the_models(&self) -> bool {
        true
    }
}

/// A vocabulary for a model whose own is not at hand: each [`BYTES_PER_TOKEN`] bytes of text are a
/// token, the last one may have fewer. Whoever has the text can count them, and nobody has to
/// believe the server that computes.
#[derive(Debug, Clone)]
pub struct ByteVocabulary {
    info: ModelInfo,
}

/// What its owner says of a model whose file is not at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldModel {
    /// What it is called here.
    pub name: String,
    /// What its server calls it: models of that name and of one shape are the same model.
    pub upstream: String,
    /// The numbers work is metered by.
    pub shape: ModelShape,
}

impl ByteVocabulary {
    /// The vocabulary of `model`. `build` names who computes the answers.
    pub fn new(model: ToldModel, build: &str) -> Self {
        let ToldModel { name, upstream, shape } = model;
        Self {
            info: ModelInfo {
                name,
                digest: digest_of(&upstream, &shape),
                shape,
                architecture: "unknown".to_owned(),
                quantisation: "unknown".to_owned(),
                size_bytes: 0,
                context_tokens: shape.context_max,
                embedding_width: 0,
                image_tokens_max: 0,
                build: build.to_owned(),
            },
        }
    }
}

/// The prompt of these tokens, where the context has room for one more.
fn fitting(tokens: Vec<u32>, model: &ModelInfo) -> Result<Prompt, PrepareError> {
    let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    let context_tokens = model.context_tokens;
    if prompt_tokens >= context_tokens {
        return Err(PrepareError::ContextLength { prompt_tokens, context_tokens });
    }
    Ok(Prompt::from(tokens))
}

/// No file's digest: of what the model is called at its server, and of its shape.
fn digest_of(upstream: &str, shape: &ModelShape) -> ModelDigest {
    let mut hasher = blake3::Hasher::new_derive_key("tirami 1 model that is told");
    let ModelShape { parameters_active, layers, attention_width, context_max } = shape;
    hasher.update(&parameters_active.to_le_bytes());
    for number in [layers, attention_width, context_max] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(upstream.as_bytes());
    ModelDigest::from_bytes(*hasher.finalize().as_bytes())
}

impl Vocabulary for ByteVocabulary {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    /// Counts each message with its role and a token for where it begins and ends, and the tools
    /// with it, as chat templates write them; and the variables, whatever becomes of them there.
    /// Any that is not one of `TAKEN` is refused.
    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        if conversation.messages.iter().any(|message| !message.images.is_empty()) {
            return Err(PrepareError::NoImages);
        }
        conversation.variables.given(&TAKEN.map(str::to_owned).into())?;
        let mut tokens = Vec::new();
        for tool in &conversation.tools {
            tokens.extend(self.tokenize(tool)?);
        }
        for (name, value) in &conversation.variables.named {
            tokens.extend(self.tokenize(name)?);
            tokens.extend(self.tokenize(value)?);
        }
        for message in &conversation.messages {
            tokens.extend(self.tokenize(&format!("<|{}|>", message.role))?);
            tokens.extend(self.tokenize(&message.content)?);
            for call in &message.calls {
                tokens.extend(self.tokenize(&call.name)?);
                tokens.extend(self.tokenize(&call.arguments)?);
            }
        }
        fitting(tokens, &self.info)
    }

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        let unable = |what| Err(PrepareError::Unsupported { what });
        match raw {
            RawPrompt::Text(text) if text.is_empty() => Err(PrepareError::Empty),
            RawPrompt::Text(text) => fitting(self.tokenize(text)?, &self.info),
            RawPrompt::Tokens(_) => unable("to read tokens without the model's file"),
            RawPrompt::Infill { .. } => unable("to fill a gap in a text"),
        }
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        let token = |bytes: &[u8]| {
            bytes.iter().fold(u32::MAX, |token, byte| (token << 8) | u32::from(*byte))
        };
        Ok(text.as_bytes().chunks(BYTES_PER_TOKEN).map(token).collect())
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.spelling(token).unwrap_or_default()
    }

    fn spelling(&self, token: u32) -> Option<Vec<u8>> {
        let bytes: Vec<u8> =
            token.to_be_bytes().into_iter().skip_while(|byte| *byte == FILLER).collect();
        (!bytes.is_empty() && !bytes.contains(&FILLER)).then_some(bytes)
    }

    fn begin_token(&self) -> Option<u32> {
        None
    }

    fn is_the_models(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Message;

    fn words(upstream: &str, context_max: u32) -> ByteVocabulary {
        let shape = ModelShape {
            parameters_active: 1_000_000,
            layers: 2,
            attention_width: 64,
            context_max,
        };
        let (name, upstream) = ("told".to_owned(), upstream.to_owned());
        ByteVocabulary::new(ToldModel { name, upstream, shape }, "openai")
    }

    #[test]
    fn four_bytes_are_a_token_and_tokens_are_their_bytes_again() {
        let words = words("M", 4_096);
        for (text, count) in
            [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("größer", 2), ("日本語", 3)]
        {
            let tokens = words.tokenize(text).unwrap();
            assert_eq!(tokens.len(), count, "{text}");
            let bytes: Vec<u8> =
                tokens.iter().flat_map(|token| words.token_bytes(*token)).collect();
            assert_eq!(bytes, text.as_bytes());
        }
        for no_token in [u32::MAX, 0xffff_41ff, 0x41ff_4141] {
            assert_eq!(words.spelling(no_token), None, "{no_token:x}");
        }
    }

    #[test]
    fn everything_that_a_server_reads_is_counted() {
        let words = words("M", 64);
        let messages = vec![Message::new("user", "12345678")];
        let mut conversation = Conversation::from(messages);
        let count =
            |conversation: &Conversation| words.prepare(conversation).map(|p| p.tokens.len());
        assert_eq!(count(&conversation), Ok(2 + 2));
        conversation.tools.push("{\"type\": \"function\"}".to_owned());
        assert_eq!(count(&conversation), Ok(2 + 2 + 5));
        let with_one = Conversation {
            variables: Variables {
                named: [("thinking".to_owned(), "false".to_owned())].into(),
                thinks: Some(false),
                effort: Some("none".to_owned()),
            },
            ..conversation.clone()
        };
        assert_eq!(count(&with_one), Ok(2 + 2 + 5 + 2 + 2));
        let told = words.variables(&with_one);
        assert_eq!((told.named.len(), told.thinks, told.effort), (1, None, None));
        for name in ["colour", "chat_template", "documents"] {
            let named = [(name.to_owned(), "1".to_owned())].into();
            let variables = Variables { named, ..Variables::default() };
            let refused = count(&Conversation { variables, ..conversation.clone() });
            let reads = "enable_thinking, reasoning_effort, thinking".to_owned();
            assert_eq!(refused, Err(PrepareError::Variable { name: name.to_owned(), reads }));
        }
        conversation.messages.push(Message::new("user", "x".repeat(240)));
        let context_tokens = 64;
        let long = PrepareError::ContextLength { prompt_tokens: 71, context_tokens };
        assert_eq!(count(&conversation), Err(long));
    }

    #[test]
    fn a_text_is_gone_on_with_and_tokens_and_gaps_need_the_models_file() {
        let words = words("M", 64);
        let prompt = |raw| words.prepare_raw(&raw).map(|prompt| prompt.tokens.len());
        assert_eq!(prompt(RawPrompt::Text("12345".to_owned())), Ok(2));
        let context_tokens = 64;
        let long = PrepareError::ContextLength { prompt_tokens: 64, context_tokens };
        assert_eq!(prompt(RawPrompt::Text("x".repeat(256))), Err(long));
        let gap = RawPrompt::Infill { before: "a".to_owned(), after: "b".to_owned() };
        for raw in [RawPrompt::Tokens(vec![0x3132_3334]), gap] {
            assert!(matches!(prompt(raw), Err(PrepareError::Unsupported { .. })));
        }
        assert_eq!(prompt(RawPrompt::Text(String::new())), Err(PrepareError::Empty));
    }

    #[test]
    fn a_told_model_is_known_by_its_servers_name_and_its_shape() {
        let digest = |upstream, context| words(upstream, context).model().digest;
        assert_eq!(digest("M", 64), digest("M", 64));
        assert_ne!(digest("M", 64), digest("N", 64));
        assert_ne!(digest("M", 64), digest("M", 65));
    }
}
