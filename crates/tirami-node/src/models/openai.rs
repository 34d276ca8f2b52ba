//! An engine that is a server elsewhere: vLLM, SGLang, llama-server, Ollama, another node.
//!
//! The server reads the conversation and computes; this node holds, counts and charges. Tokens are
//! counted with the model's own vocabulary, which is at hand here, and never by what the server
//! says: whoever runs it has no reason to say less.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tirami_infer::calls;
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Finish, Format, Generation, ModelInfo, PIECES_AHEAD_MAX,
    Piece, PrepareError, Progress, Prompt, Sampling, StartError,
};
use tirami_infer::vocabulary::Vocabulary;
use tirami_sdk::upstream::{Upstream, UpstreamChat, UpstreamMessage};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};

/// Engine and version of such engines in receipts: what the server runs, nobody here can say.
pub const BUILD: &str = "openai";

/// How long a server may take to its first text: it may have to load the model.
const FIRST_WITHIN: Duration = Duration::from_secs(300);
/// How long it may take from text to text; signs of life without text do not count.
const NEXT_WITHIN: Duration = Duration::from_secs(60);
/// Requests that may wait for a place, for each place.
const QUEUED_PER_PLACE: u32 = 4;
/// Text that is counted as a whole, in bytes. Where it is cut there may be a token more than in
/// the whole; it is cut before a blank, where tokens begin, or else at the larger length.
const COUNTED_BYTES: usize = 512;
const COUNTED_BYTES_MAX: usize = 2_048;
/// Bytes that may come without a token.
const UNCOUNTED_BYTES_MAX: usize = 2 * COUNTED_BYTES_MAX;

/// A model that a server elsewhere computes.
pub struct OpenAiEngine {
    vocabulary: Arc<dyn Vocabulary>,
    upstream: Upstream,
    /// The server's own name of the model.
    name_there: String,
    places: u32,
    free: Arc<Semaphore>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    running: AtomicU32,
    queued: AtomicU32,
    completion_tokens_total: AtomicU64,
    prompt_tokens_total: AtomicU64,
}

impl OpenAiEngine {
    /// An engine that asks `upstream` for its model `name_there`, for at most `places` answers at
    /// the same time.
    pub fn new(
        vocabulary: Arc<dyn Vocabulary>,
        upstream: Upstream,
        (name_there, places): (String, u32),
    ) -> Self {
        let free = Arc::new(Semaphore::new(places as usize));
        Self { vocabulary, upstream, name_there, places, free, counters: Arc::default() }
    }

    fn request(&self, conversation: &Conversation, sampling: &Sampling) -> UpstreamChat {
        let written = calls::as_text(conversation);
        let message = |message: tirami_infer::engine::Message| UpstreamMessage {
            role: message.role,
            content: message.content,
        };
        let given = |number: f32, usual: f32| (!is_same(number, usual)).then_some(number);
        UpstreamChat {
            model: self.name_there.clone(),
            messages: written.messages.into_iter().map(message).collect(),
            max_tokens: sampling.completion_max,
            temperature: sampling.temperature,
            top_p: given(sampling.top_p, 1.0),
            top_k: Some(sampling.top_k).filter(|count| *count > 0),
            min_p: given(sampling.min_p, 0.0),
            presence_penalty: given(sampling.presence_penalty, 0.0),
            frequency_penalty: given(sampling.frequency_penalty, 0.0),
            seed: sampling.seed,
            stop: sampling.stop.clone(),
            response_format: match &sampling.format {
                Format::JsonObject => Some(UpstreamChat::json_object()),
                Format::JsonSchema(schema) => UpstreamChat::json_schema(schema),
                Format::Text | Format::Calls(_) => None,
            },
        }
    }
}

impl fmt::Debug for OpenAiEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiEngine").field("model", self.model()).finish_non_exhaustive()
    }
}

impl Engine for OpenAiEngine {
    fn model(&self) -> &ModelInfo {
        self.vocabulary.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        let prompt = self.vocabulary.prepare(conversation)?;
        Ok(Prompt { conversation: Some(Arc::new(conversation.clone())), ..prompt })
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        self.vocabulary.tokenize(text)
    }

    fn token_bytes(&self, token: u32) -> Result<Vec<u8>, PrepareError> {
        Ok(self.vocabulary.token_bytes(token))
    }

    /// The server is told to follow the format. Calls of tools are not asked for: without a
    /// grammar of this node's own nobody promises that they follow their schema.
    fn check_format(&self, format: &Format) -> Result<(), PrepareError> {
        match format {
            Format::Text | Format::JsonObject => Ok(()),
            Format::JsonSchema(schema) if UpstreamChat::json_schema(schema).is_some() => Ok(()),
            Format::JsonSchema(_) => {
                Err(PrepareError::Format { reason: "the schema is not JSON".to_owned() })
            }
            Format::Calls(_) => Err(PrepareError::Unsupported { what: "to call tools" }),
        }
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        let unsupported = |what| StartError::Unsupported { what };
        let Some(conversation) = &prompt.conversation else {
            return Err(unsupported("to continue a text that is no chat"));
        };
        if !prompt.resumed.is_empty() {
            return Err(unsupported("to go on with an answer that another one began"));
        }
        if let Some(what) = beyond(&sampling) {
            return Err(unsupported(what));
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::Stopped)?;
        let queue_max = self.places.saturating_mul(QUEUED_PER_PLACE);
        let queued = Place::take(&self.counters, |counters| &counters.queued);
        let others = self.counters.queued.load(Ordering::Relaxed).saturating_sub(1);
        if others >= queue_max {
            return Err(StartError::Busy { queued: others });
        }
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        let progress = Arc::new(Progress::default());
        let answering = Answering {
            chat: self.request(conversation, &sampling),
            upstream: self.upstream.clone(),
            count: Count::new(Arc::clone(&self.vocabulary), sampling.completion_max),
            prompt_tokens: u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX),
            progress: Arc::clone(&progress),
            counters: Arc::clone(&self.counters),
            sender: sender.clone(),
        };
        let free = Arc::clone(&self.free);
        runtime.spawn(async move {
            // A reader that has gone needs no answer: what runs for it is dropped, and with it the
            // connection.
            let work = async move {
                let Ok(_place) = free.acquire_owned().await else { return };
                drop(queued);
                answering.run().await;
            };
            tokio::select! {
                () = sender.closed() => {}
                () = work => {}
            }
        });
        Ok(Generation::new(pieces, progress))
    }

    fn load(&self) -> EngineLoad {
        EngineLoad {
            places: self.places,
            running: self.counters.running.load(Ordering::Relaxed),
            queued: self.counters.queued.load(Ordering::Relaxed),
            completion_tokens_total: self.counters.completion_tokens_total.load(Ordering::Relaxed),
            prompt_tokens_total: self.counters.prompt_tokens_total.load(Ordering::Relaxed),
            ..EngineLoad::default()
        }
    }
}

/// What of `sampling` such servers do not have in common.
fn beyond(sampling: &Sampling) -> Option<&'static str> {
    let asked = [
        (sampling.top_logprobs.is_some(), "to tell log-probabilities"),
        (!sampling.logit_bias.is_empty(), "to bias tokens"),
        (sampling.typical_p < 1.0, "to sample with typical_p"),
        (!is_same(sampling.repeat_penalty, 1.0), "to sample with repeat_penalty"),
    ];
    asked.into_iter().find_map(|(is_asked, what)| is_asked.then_some(what))
}

fn is_same(one: f32, other: f32) -> bool {
    (one - other).abs() < f32::EPSILON
}

/// One more of what a counter counts, until it is dropped.
struct Place {
    counters: Arc<Counters>,
    which: fn(&Counters) -> &AtomicU32,
}

impl Place {
    fn take(counters: &Arc<Counters>, which: fn(&Counters) -> &AtomicU32) -> Self {
        which(counters).fetch_add(1, Ordering::Relaxed);
        Self { counters: Arc::clone(counters), which }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request on its way.
struct Answering {
    chat: UpstreamChat,
    upstream: Upstream,
    count: Count,
    prompt_tokens: u32,
    progress: Arc<Progress>,
    counters: Arc<Counters>,
    sender: mpsc::Sender<Piece>,
}

impl Answering {
    async fn run(mut self) {
        let _running = Place::take(&self.counters, |counters| &counters.running);
        let last = match self.answer().await {
            Ok(Some(finish)) => Piece::End { text: self.count.rest(), finish },
            Ok(None) => return,
            Err(reason) => Piece::Failed { reason },
        };
        let _ = self.sender.send(last).await;
    }

    /// Why the answer ended; nothing when nobody reads it any more.
    async fn answer(&mut self) -> Result<Option<Finish>, String> {
        let late = |_| "the server gave no text for too long".to_owned();
        let mut latest = Instant::now() + FIRST_WITHIN;
        let asked = timeout_at(latest, self.upstream.chat(&self.chat)).await.map_err(late)?;
        let mut stream = asked.map_err(|error| error.to_string())?;
        let (mut finish, mut has_begun) = (None, false);
        loop {
            let piece = match timeout_at(latest, stream.next()).await.map_err(late)? {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(Some(finish.unwrap_or(Finish::Stop))),
                // Some servers close the connection instead of marking the end.
                Err(_) if finish.is_some() => return Ok(finish),
                Err(error) => return Err(error.to_string()),
            };
            if !has_begun {
                has_begun = true;
                self.read();
            }
            for part in parts(&piece.text) {
                let (tokens, text) = self.count.add(part)?;
                if !tokens.is_empty() {
                    if self.deliver(tokens, text).await.is_err() {
                        return Ok(None);
                    }
                    latest = Instant::now() + NEXT_WITHIN;
                }
                if self.count.is_full() {
                    return Ok(Some(Finish::Length));
                }
            }
            finish = finish.or(piece.finish.map(|word| match word.as_str() {
                "length" => Finish::Length,
                _ => Finish::Stop,
            }));
        }
    }

    /// Notes that the server has read the prompt.
    fn read(&self) {
        self.progress.read(self.prompt_tokens);
        let read = u64::from(self.prompt_tokens);
        self.counters.prompt_tokens_total.fetch_add(read, Ordering::Relaxed);
    }

    /// Hands over tokens and their text; an error when nobody takes them.
    async fn deliver(
        &self,
        tokens: Vec<u32>,
        text: String,
    ) -> Result<(), mpsc::error::SendError<Piece>> {
        let made = tokens.len() as u64;
        self.counters.completion_tokens_total.fetch_add(made, Ordering::Relaxed);
        self.sender.send(Piece::Delta { tokens, text, logprobs: Vec::new() }).await
    }
}

/// The text in parts that can be counted at once.
fn parts(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (part, rest) = text.split_at(text.floor_char_boundary(COUNTED_BYTES_MAX));
        text = rest;
        (!part.is_empty()).then_some(part)
    })
}

/// Counts the tokens of a text that comes in pieces.
struct Count {
    vocabulary: Arc<dyn Vocabulary>,
    /// The text that is counted as a whole, and its tokens so far.
    text: String,
    tokens: usize,
    /// Bytes of it that were handed over: what makes the last token longer and adds none waits for
    /// the next one.
    given: usize,
    /// Tokens that there may be.
    room: usize,
}

impl Count {
    fn new(vocabulary: Arc<dyn Vocabulary>, room: u32) -> Self {
        Self { vocabulary, text: String::new(), tokens: 0, given: 0, room: room as usize }
    }

    /// The tokens that `more` adds, and their text, as far as there is room.
    fn add(&mut self, more: &str) -> Result<(Vec<u32>, String), String> {
        let is_long = self.text.len() >= COUNTED_BYTES && more.starts_with(char::is_whitespace);
        if is_long || self.text.len() >= COUNTED_BYTES_MAX {
            self.text.drain(..self.given);
            (self.given, self.tokens) = (0, 0);
        }
        self.text.push_str(more);
        if self.text.len() - self.given > UNCOUNTED_BYTES_MAX {
            return Err("the server's text has no tokens of the model".to_owned());
        }
        let all = self.vocabulary.tokenize(&self.text).map_err(|error| error.to_string())?;
        let mut new = all.get(self.tokens..).unwrap_or_default().to_vec();
        if new.is_empty() {
            return Ok((new, String::new()));
        }
        if new.len() > self.room {
            new.truncate(self.room);
            let paid = all.iter().take(self.tokens + self.room);
            let bytes = paid.map(|token| self.vocabulary.token_bytes(*token).len()).sum();
            self.text.truncate(self.text.floor_char_boundary(bytes).max(self.given));
        }
        self.tokens = all.len();
        self.room -= new.len();
        Ok((new, self.rest()))
    }

    /// What was not handed over yet.
    fn rest(&mut self) -> String {
        let rest = self.text.split_at(self.given).1.to_owned();
        self.given = self.text.len();
        rest
    }

    const fn is_full(&self) -> bool {
        self.room == 0
    }
}
