//! From a conversation to tokens, and from a token to its bytes.

use std::collections::BTreeMap;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::places::same;
use super::vision::Vision;
use crate::engine::{
    Conversation, Message, PrepareError, Prompt, PromptImage, RawPrompt, image_tokens,
};
use crate::image::Image;
use crate::template::{ChatTemplate, ControlTexts, Segment};

/// Texts up to this many bytes are tokenised on the caller's stack.
const OWN_STACK_BYTES_MAX: usize = 4_096;
/// Stack for longer texts: some vocabularies split text by recursion, some frames for each byte.
const STACK_BYTES_MIN: usize = 16 << 20;
const STACK_BYTES_FOR_TEXT_BYTE: usize = 2_048;
/// The most stack that is asked for; it is only reserved until used.
const STACK_BYTES_MAX: usize = 2 << 30;

/// What turns conversations into prompts for one model.
#[derive(Debug)]
pub(super) struct Tokenizer {
    template: ChatTemplate,
    controls: ControlTexts,
    context_tokens: u32,
    /// The begin token, where the model wants one.
    bos: Option<LlamaToken>,
    /// The end token, where the model wants one after a text.
    eos: Option<LlamaToken>,
    /// The tokens before the text before a gap, before the text after it, and before what fills
    /// it, where the model has them.
    infill: Option<[LlamaToken; 3]>,
    /// Bytes of the longest token.
    token_bytes_max: usize,
}

impl Tokenizer {
    pub(super) fn new(
        model: &LlamaModel,
        template: Option<&str>,
        context_tokens: u32,
    ) -> Result<Self, String> {
        let vocab = model.vocab();
        let count = vocab.n_tokens();
        let valid = |token: LlamaToken| (0..count).contains(&token.0).then_some(token);
        let text = |token: LlamaToken| {
            let text = valid(token).and_then(|token| vocab.text(token));
            text.map_or_else(String::new, |text| text.to_string_lossy().into_owned())
        };
        let template = ChatTemplate::new(template, &text(vocab.bos()), &text(vocab.eos()))
            .map_err(|error| error.to_string())?;
        let controls = vocab.tokens().filter(|token| vocab.is_control(*token)).map(text);
        // The spelling in the vocabulary is never shorter than the bytes it stands for.
        let token_bytes_max = vocab.tokens().map(|token| text(token).len()).max().unwrap_or(1);
        let infill = [vocab.fim_pre(), vocab.fim_suf(), vocab.fim_mid()];
        Ok(Self {
            template,
            controls: ControlTexts::new(controls),
            context_tokens,
            infill: infill.iter().all(|token| valid(*token).is_some()).then_some(infill),
            bos: valid(vocab.bos()).filter(|_| vocab.should_add_bos()),
            eos: valid(vocab.eos()).filter(|_| vocab.should_add_eos()),
            token_bytes_max: token_bytes_max.max(1),
        })
    }

    pub(super) fn prepare(
        &self,
        model: &LlamaModel,
        vision: Option<&Vision>,
        conversation: &Conversation,
    ) -> Result<Prompt, PrepareError> {
        let segments = self.controls.render_shielded(&self.template, conversation)?;
        let pictures = pictures(vision, conversation)?;
        if pictures.is_empty() {
            return self.filled(self.begun(self.tokenize(model, &segments)?));
        }
        let is_picture = |segment: &Segment| matches!(segment, Segment::Image(_));
        let all = (0..pictures.len()).map(Segment::Image);
        if !segments.iter().filter(|segment| is_picture(segment)).cloned().eq(all) {
            let reason = "it leaves out a picture or changes their order".to_owned();
            return Err(PrepareError::Template { reason });
        }
        let mut texts = segments.split(is_picture);
        let mut tokens = self.begun(self.tokenize(model, texts.next().unwrap_or_default())?);
        let mut images = Vec::with_capacity(pictures.len());
        for ((image, count), text) in pictures.into_iter().zip(texts) {
            images.push(PromptImage { start: tokens.len(), tokens: count, image: image.clone() });
            let run = image_tokens(image, count).map(|token| LlamaToken(token.cast_signed()));
            tokens.extend(run);
            tokens.extend(self.tokenize(model, text)?);
        }
        if images.last().is_some_and(|last| last.start + last.tokens == tokens.len()) {
            let reason = "it ends with a picture".to_owned();
            return Err(PrepareError::Template { reason });
        }
        Ok(Prompt { images, ..self.filled(tokens)? })
    }

    /// The variables that the template is told with a conversation.
    pub(super) fn told(
        &self,
        conversation: &Conversation,
    ) -> Result<BTreeMap<String, String>, PrepareError> {
        self.template.told(conversation)
    }

    fn filled(&self, tokens: Vec<LlamaToken>) -> Result<Prompt, PrepareError> {
        if tokens.is_empty() {
            let reason = "it renders these messages to nothing".to_owned();
            return Err(PrepareError::Template { reason });
        }
        self.fitting(tokens)
    }

    /// A prompt that is no chat.
    pub(super) fn prepare_raw(
        &self,
        model: &LlamaModel,
        raw: &RawPrompt,
    ) -> Result<Prompt, PrepareError> {
        let count = model.vocab().n_tokens().cast_unsigned();
        let read = |text: &str| self.tokenize(model, &[Segment::Template(text.to_owned())]);
        let tokens = match raw {
            RawPrompt::Text(text) => self.begun(read(text)?),
            RawPrompt::Infill { before, after } => {
                let unable = PrepareError::Unsupported { what: "to fill a gap in a text" };
                let [pre, suf, mid] = self.infill.ok_or(unable)?;
                let (before, after) = (read(before)?, read(after)?);
                let parts = [vec![pre], before, vec![suf], after, vec![mid]];
                self.begun(parts.concat())
            }
            RawPrompt::Tokens(tokens) if tokens.iter().all(|token| *token < count) => {
                tokens.iter().map(|token| LlamaToken(token.cast_signed())).collect()
            }
            RawPrompt::Tokens(_) => Vec::new(),
        };
        if tokens.is_empty() {
            return Err(PrepareError::Tokens { last: count.saturating_sub(1) });
        }
        self.fitting(tokens)
    }

    /// The tokens after the begin token, which many templates write themselves.
    fn begun(&self, mut tokens: Vec<LlamaToken>) -> Vec<LlamaToken> {
        if let Some(bos) = self.bos.filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        tokens
    }

    fn fitting(&self, tokens: Vec<LlamaToken>) -> Result<Prompt, PrepareError> {
        if tokens.len() >= self.context_tokens as usize {
            return Err(self.too_long(tokens.len()));
        }
        Ok(Prompt::from(ids(&tokens)))
    }

    /// The tokens of a text that is no chat.
    pub(super) fn tokenize_text(
        &self,
        model: &LlamaModel,
        text: &str,
    ) -> Result<Vec<u32>, PrepareError> {
        self.tokenize(model, &[Segment::Quoted(text.to_owned())]).map(|tokens| ids(&tokens))
    }

    /// The tokens that all chats of one user message begin with.
    pub(super) fn common_beginning(&self, model: &LlamaModel) -> Vec<u32> {
        let tokens = |content: &str| {
            let message = Message::new("user", content);
            let prompt = self.prepare(model, None, &Conversation::from(vec![message]));
            prompt.map_or_else(|_| Vec::new(), |prompt| prompt.tokens)
        };
        let (mut one, other) = (tokens("A"), tokens("7"));
        one.truncate(same(&one, &other));
        one
    }

    fn too_long(&self, tokens: usize) -> PrepareError {
        PrepareError::ContextLength {
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            context_tokens: self.context_tokens,
        }
    }

    /// Tokenises, unless there are surely more tokens than the context holds.
    fn tokenize(
        &self,
        model: &LlamaModel,
        segments: &[Segment],
    ) -> Result<Vec<LlamaToken>, PrepareError> {
        let bytes = segments.iter().map(|segment| segment.text().len()).sum::<usize>();
        let tokens_min = bytes / self.token_bytes_max;
        if tokens_min > self.context_tokens as usize {
            Err(self.too_long(tokens_min))
        } else if bytes <= OWN_STACK_BYTES_MAX {
            Ok(tokenize_here(model, segments))
        } else {
            tokenize_with_stack(model, segments, bytes)
        }
    }

    pub(super) fn begin_token(&self) -> Option<u32> {
        self.bos.map(|token| token.0.cast_unsigned())
    }

    pub(super) fn end_token(&self) -> Option<u32> {
        self.eos.map(|token| token.0.cast_unsigned())
    }

    /// The bytes of a token as it is spelled; `None` for unknown ids.
    pub(super) fn spelling(&self, model: &LlamaModel, token: u32) -> Option<Vec<u8>> {
        let (vocab, token) = (model.vocab(), LlamaToken(token.cast_signed()));
        (0..vocab.n_tokens()).contains(&token.0).then(|| vocab.token_to_piece(token, true, None))
    }

    pub(super) fn piece(&self, model: &LlamaModel, token: u32) -> Vec<u8> {
        piece(model, LlamaToken(token.cast_signed()))
    }
}

/// The pictures of a conversation with their numbers of tokens.
fn pictures<'c>(
    vision: Option<&Vision>,
    conversation: &'c Conversation,
) -> Result<Vec<(&'c Image, usize)>, PrepareError> {
    let images = (1..).zip(conversation.images());
    images
        .map(|(number, image)| {
            let vision = vision.ok_or(PrepareError::NoImages)?;
            let count = vision.count(image);
            let count = count.map_err(|reason| PrepareError::Image { number, reason })?;
            Ok((image, count))
        })
        .collect()
}

fn ids(tokens: &[LlamaToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.0.cast_unsigned()).collect()
}

fn tokenize_with_stack(
    model: &LlamaModel,
    segments: &[Segment],
    bytes: usize,
) -> Result<Vec<LlamaToken>, PrepareError> {
    let stack = bytes.saturating_mul(STACK_BYTES_FOR_TEXT_BYTE).max(STACK_BYTES_MIN);
    let stack = stack.min(STACK_BYTES_MAX);
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("tirami-tokens".to_owned())
            .stack_size(stack)
            .spawn_scoped(scope, || tokenize_here(model, segments))
            .ok()
            .and_then(|thread| thread.join().ok())
    })
    .ok_or_else(|| PrepareError::Template {
        reason: "the machine has no memory to read this much text".to_owned(),
    })
}

fn tokenize_here(model: &LlamaModel, segments: &[Segment]) -> Vec<LlamaToken> {
    let vocab = model.vocab();
    let mut tokens = Vec::new();
    for segment in segments {
        let control = matches!(segment, Segment::Template(_));
        vocab.tokenize_into(segment.text().as_bytes(), &mut tokens, false, control);
    }
    tokens
}

/// The bytes of a token in an answer; nothing for control tokens and unknown ids.
pub(super) fn piece(model: &LlamaModel, token: LlamaToken) -> Vec<u8> {
    let vocab = model.vocab();
    if !(0..vocab.n_tokens()).contains(&token.0) {
        return Vec::new();
    }
    vocab.token_to_piece(token, false, None)
}

impl Segment {
    fn text(&self) -> &str {
        match self {
            Self::Template(text) | Self::Quoted(text) => text,
            Self::Image(_) => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use llama_cpp_2::model::params::LlamaModelParams;

    use super::super::backend;
    use super::*;
    use crate::gguf::tests::{Maker, integers, texts, typed};

    const BOS: u32 = 4;
    /// None of them has a name that llama.cpp knows, so they mean what the metadata says.
    const GAP_KEYS: [(&str, u32); 3] = [
        ("tokenizer.ggml.fim_mid_token_id", 3),
        ("tokenizer.ggml.fim_suf_token_id", 5),
        ("tokenizer.ggml.fim_pre_token_id", 7),
    ];

    /// The words of a small file whose metadata names these tokens for a gap.
    fn words(gap_keys: &[(&str, u32)]) -> (LlamaModel, Tokenizer) {
        words_ended(gap_keys, false)
    }

    /// The same, and whether the file wants an end token after a text.
    fn words_ended(gap_keys: &[(&str, u32)], ended: bool) -> (LlamaModel, Tokenizer) {
        let mut maker = Maker::model();
        let tokens = ["a", "b", "ab", "<3>", "<4>", "<5>", "<6>", "<7>", "Ċ"];
        maker.set("tokenizer.ggml.tokens", texts(&tokens));
        maker.set("tokenizer.ggml.token_type", integers(&[1, 1, 1, 3, 3, 3, 3, 3, 1]));
        maker.set("tokenizer.ggml.merges", texts(&["a b"]));
        maker.set("tokenizer.ggml.add_bos_token", typed(7, &[1]));
        maker.set("tokenizer.ggml.add_eos_token", typed(7, &[u8::from(ended)]));
        let ends = [("tokenizer.ggml.bos_token_id", BOS), ("tokenizer.ggml.eos_token_id", 6)];
        for (key, token) in ends.iter().chain(gap_keys) {
            maker.set(key, typed(4, &token.to_le_bytes()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.gguf");
        std::fs::write(&path, maker.bytes()).unwrap();
        let only_words = LlamaModelParams::default().with_vocab_only(true);
        let backend = backend::backend().unwrap();
        let model = LlamaModel::load_from_file(backend, &path, &only_words).unwrap();
        let tokenizer = Tokenizer::new(&model, None, 64).unwrap();
        (model, tokenizer)
    }

    fn gap(before: &str, after: &str) -> RawPrompt {
        RawPrompt::Infill { before: before.to_owned(), after: after.to_owned() }
    }

    #[test]
    fn what_fills_a_gap_comes_after_the_texts_before_and_after_it() {
        let (model, tokenizer) = words(&GAP_KEYS);
        let [before, after] = ["aab", "b"].map(|text| tokenizer.tokenize_text(&model, text));
        let [before, after] = [before.unwrap(), after.unwrap()];
        assert_eq!((before.as_slice(), after.as_slice()), (&[0, 2][..], &[1][..]));
        let prompt = tokenizer.prepare_raw(&model, &gap("aab", "b")).unwrap();
        assert_eq!(prompt.tokens, [BOS, 7, 0, 2, 5, 1, 3]);
        // A gap may stand at the beginning or at the end, and in nothing.
        for (before, after, tokens) in [
            ("", "b", &[BOS, 7, 5, 1, 3][..]),
            ("b", "", &[BOS, 7, 1, 5, 3]),
            ("", "", &[BOS, 7, 5, 3]),
        ] {
            let prompt = tokenizer.prepare_raw(&model, &gap(before, after)).unwrap();
            assert_eq!(prompt.tokens, tokens);
        }
        let long = tokenizer.prepare_raw(&model, &gap(&"a".repeat(60), "b"));
        let refused = PrepareError::ContextLength { prompt_tokens: 65, context_tokens: 64 };
        assert_eq!(long, Err(refused));
    }

    #[test]
    fn an_end_token_is_wanted_where_the_file_says_so() {
        assert_eq!(words_ended(&[], true).1.end_token(), Some(6));
        assert_eq!(words_ended(&[], false).1.end_token(), None);
    }

    #[test]
    fn a_model_that_lacks_one_of_the_three_fills_no_gap() {
        for lacking in 0..GAP_KEYS.len() {
            let keys: Vec<_> = (0..3).filter(|at| *at != lacking).map(|at| GAP_KEYS[at]).collect();
            let (model, tokenizer) = words(&keys);
            let unable = PrepareError::Unsupported { what: "to fill a gap in a text" };
            assert_eq!(tokenizer.prepare_raw(&model, &gap("a", "b")), Err(unable));
        }
    }
}
