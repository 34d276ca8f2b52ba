//! What is told of a prompt before its answer, where the request asks for it: the text of its
//! tokens, and how likely each of them was.

use tirami_infer::engine::{Engine, Likely, TokenLogprobs};
use tirami_proto::{
    LIKELIHOODS_PER_FRAME_MAX, Likelihood, TEXT_BYTES_MAX, TOKEN_BYTES_MAX, ToConsumer,
};

use super::likelihood;

/// Tokens whose text fits one frame, however long each of them is.
const TOKENS_PER_FRAME: usize = TEXT_BYTES_MAX / TOKEN_BYTES_MAX;
/// Bytes of memory that all of what a provider tells of one prompt may take: twice what the
/// likelihoods of 131 072 tokens take that come with five others each.
const TOLD_BYTES_MAX: usize = 64 << 20;

/// What a request asks of its prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Retold {
    /// The text of its tokens: it came as tokens and is to be repeated.
    pub(crate) text: bool,
    /// How likely each of its tokens was.
    pub(crate) likelihoods: bool,
}

impl Retold {
    pub(super) const fn is_anything(self) -> bool {
        self.text || self.likelihoods
    }
}

/// What a provider is to tell of a prompt.
pub(super) struct Retelling {
    /// Tokens of the prompt.
    count: usize,
    /// The same tokens, where their text is asked for.
    tokens: Vec<u32>,
    likelihoods: bool,
}

impl Retelling {
    /// What `asked` asks of a prompt; none for nothing.
    pub(super) fn new(asked: Retold, tokens: &[u32]) -> Option<Self> {
        let Retold { text, likelihoods } = asked;
        let of_text = if text { tokens.to_vec() } else { Vec::new() };
        asked.is_anything().then_some(Self { count: tokens.len(), tokens: of_text, likelihoods })
    }

    /// The frames that tell it, where the engine has `scored` the prompt.
    pub(super) fn frames<'a>(
        &'a self,
        engine: &'a dyn Engine,
        scored: &'a [TokenLogprobs],
    ) -> impl Iterator<Item = ToConsumer> + 'a {
        let scored = if self.likelihoods { scored } else { &[] };
        frames(engine, (self.count, self.tokens.as_slice()), scored)
    }
}

/// What was told of a prompt, all of it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Told {
    /// The bytes of its tokens; empty where they are not asked for.
    pub(super) text: Vec<u8>,
    /// One for each token; empty where they are not asked for.
    pub(super) likely: Vec<TokenLogprobs>,
}

/// The text of tokens as they stand in a prompt; nothing where the engine cannot tell.
pub(super) fn text_of(engine: &dyn Engine, tokens: &[u32]) -> Vec<u8> {
    let bytes = |token: &u32| engine.token_bytes(*token).unwrap_or_default();
    tokens.iter().flat_map(|token| bytes(token).into_iter().take(TOKEN_BYTES_MAX)).collect()
}

/// The frames that tell of a prompt of `count` tokens: their text, for those in `tokens`, and how
/// likely they were, for those in `likely`; none where nothing is asked.
fn frames<'a>(
    engine: &'a dyn Engine,
    (count, tokens): (usize, &'a [u32]),
    likely: &'a [TokenLogprobs],
) -> impl Iterator<Item = ToConsumer> + 'a {
    let step = if likely.is_empty() { TOKENS_PER_FRAME } else { LIKELIHOODS_PER_FRAME_MAX };
    (0..count).step_by(step).map(move |start| {
        let end = count.min(start + step);
        let text = text_of(engine, tokens.get(start..end).unwrap_or_default());
        let likely = likely.get(start..end).unwrap_or_default();
        ToConsumer::Prompt {
            tokens: u32::try_from(end - start).unwrap_or(u32::MAX),
            text,
            likelihoods: likely.iter().map(likelihood::told).collect(),
        }
    })
}

/// What a provider tells of a prompt, until it has told of all tokens.
pub(super) struct Hearing {
    /// Tokens that it has not told of.
    left: u32,
    wants: Retold,
    /// Bytes of memory that what is left may take.
    room: usize,
    told: Told,
}

impl Hearing {
    pub(super) fn new(prompt_tokens: u32, wants: Retold) -> Self {
        Self { left: prompt_tokens, wants, room: TOLD_BYTES_MAX, told: Told::default() }
    }

    /// Adds a frame; whether all tokens are told of now.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn add(
        &mut self,
        tokens: u32,
        text: Vec<u8>,
        likelihoods: Vec<Likelihood>,
    ) -> Result<bool, &'static str> {
        let left = self.left.checked_sub(tokens).filter(|_| tokens > 0);
        self.left = left.ok_or("it told of other tokens than the prompt has")?;
        // With every frame, so that all of it is bounded by the tokens of the prompt.
        if text.len().div_ceil(TOKEN_BYTES_MAX) > tokens as usize {
            return Err("it told too much of the prompt");
        }
        let of_text = if self.wants.text { text } else { Vec::new() };
        let likelihoods = if self.wants.likelihoods { likelihoods } else { Vec::new() };
        if self.wants.likelihoods && likelihoods.len() != tokens as usize {
            return Err("it left out how likely the prompt was");
        }
        let likely: Vec<_> = likelihoods.into_iter().map(likelihood::heard).collect();
        let bytes = likely.iter().map(bytes_of).fold(of_text.len(), usize::saturating_add);
        self.room = self.room.checked_sub(bytes).ok_or("it told too much of the prompt")?;
        self.told.text.extend(of_text);
        self.told.likely.extend(likely);
        Ok(self.left == 0)
    }

    pub(super) fn told(self) -> Told {
        self.told
    }
}

/// The memory that a token's likelihood takes.
fn bytes_of(logprobs: &TokenLogprobs) -> usize {
    let all = logprobs.top.iter().chain([&logprobs.chosen]);
    all.map(|likely| size_of::<Likely>() + likely.bytes.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tirami_infer::fake::{FakeEngine, FakeScript};

    use super::*;

    fn engine() -> FakeEngine {
        let script = FakeScript { tokens_per_answer: 1, delay: Duration::ZERO, fail_after: None };
        FakeEngine::new(script)
    }

    fn logprobs(token: u32) -> TokenLogprobs {
        let likely = |bytes: &[u8]| Likely { bytes: bytes.to_vec(), logprob: -0.5 };
        TokenLogprobs { chosen: likely(&token.to_le_bytes()), top: vec![likely(b"x"); 5] }
    }

    /// What is heard of the frames.
    fn heard(count: u32, wants: Retold, frames: &[ToConsumer]) -> Result<Option<Told>, &str> {
        let mut hearing = Hearing::new(count, wants);
        let mut is_all = false;
        for frame in frames {
            let ToConsumer::Prompt { tokens, text, likelihoods } = frame else { panic!() };
            is_all = hearing.add(*tokens, text.clone(), likelihoods.clone())?;
        }
        Ok(is_all.then(|| hearing.told()))
    }

    #[test]
    fn what_is_told_of_a_prompt_is_heard_whole_or_not_at_all() {
        let engine = engine();
        let tokens: Vec<u32> = (0..300).map(|n| 97 + n % 26).collect();
        let likely: Vec<_> = tokens.iter().copied().map(logprobs).collect();
        for (text, likelihoods) in [(true, false), (false, true), (true, true)] {
            let wants = Retold { text, likelihoods };
            let of = |wanted: bool| if wanted { tokens.as_slice() } else { &[] };
            let likely = if likelihoods { likely.as_slice() } else { &[] };
            let frames: Vec<_> = frames(&engine, (tokens.len(), of(text)), likely).collect();
            let told = heard(300, wants, &frames).unwrap().unwrap();
            assert_eq!(told.text, text_of(&engine, of(text)));
            assert_eq!(told.likely, likely);
            assert_eq!(heard(300, wants, &frames[1..]), Ok(None), "a part is missing");
            assert!(heard(299, wants, &frames).is_err(), "it is more than the prompt");
        }
    }

    #[test]
    fn a_provider_that_tells_nonsense_of_a_prompt_is_not_believed() {
        let wants = Retold { text: false, likelihoods: true };
        let one = likelihood::told(&logprobs(7));
        for (tokens, likelihoods) in [(0, vec![]), (1, vec![]), (2, vec![one])] {
            assert!(Hearing::new(3, wants).add(tokens, Vec::new(), likelihoods).is_err());
        }
        for (bytes, is_right) in [(2 * TOKEN_BYTES_MAX, true), (2 * TOKEN_BYTES_MAX + 1, false)] {
            let mut hearing = Hearing::new(3, Retold { text: true, likelihoods: false });
            let heard = hearing.add(2, vec![b'x'; bytes], Vec::new());
            assert_eq!(heard.is_ok(), is_right, "{bytes} bytes of two tokens");
        }
        let long = Likely { bytes: vec![b'x'; TOKEN_BYTES_MAX], logprob: -1.0 };
        let large = TokenLogprobs { chosen: long.clone(), top: vec![long; 20] };
        let large = vec![likelihood::told(&large); LIKELIHOODS_PER_FRAME_MAX];
        let mut hearing = Hearing::new(u32::MAX, wants);
        let most = TOLD_BYTES_MAX / (LIKELIHOODS_PER_FRAME_MAX * 21 * TOKEN_BYTES_MAX);
        let of = |large: &Vec<_>| (large.len() as u32, Vec::new(), large.clone());
        let taken = (0..=most).take_while(|_| {
            let (tokens, text, likelihoods) = of(&large);
            hearing.add(tokens, text, likelihoods).is_ok()
        });
        assert!(taken.count() <= most, "what is held is bounded");
    }
}
