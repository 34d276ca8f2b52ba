//! An engine that is a server elsewhere: vLLM, SGLang, llama-server, Ollama, another node.
//!
//! The server reads the conversation, or the texts, and computes; this node holds, counts and
//! charges. Tokens are counted with the model's own vocabulary, which is at hand here, and never by
//! what the server says: whoever runs it has no reason to say less. Calls of tools are handed over
//! whole, written as [`tirami_infer::calls`] says, and counted as they are written. Stop texts end
//! the answer here, so that which one it was is known. What the server has of each model is said
//! by its owner and never tried out.

mod asked;
mod broken;
mod places;
mod told;
mod vectors;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use asked::Asked;
use broken::{Broken, patiently};
use places::{Places, Standing};
use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Failure, Finish, Format, Generation, ModelInfo,
    PIECES_AHEAD_MAX, Piece, PrepareError, Progress, Prompt, RawPrompt, Sampling, Source,
    StartError, Vectors,
};
use tirami_infer::text::AnswerText;
use tirami_infer::vocabulary::Vocabulary;
use tirami_sdk::upstream::{Upstream, UpstreamChat, UpstreamPiece};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use told::Wording;

/// Engine and version of such engines in receipts: what the server runs, nobody here can say.
pub const BUILD: &str = "openai";

/// How long a server may take from text to text, if no less is given for the first; signs of life
/// without text do not count.
const NEXT_WITHIN_MAX: Duration = Duration::from_secs(60);
/// Text that is counted as a whole, in bytes. Where it is cut there may be a token more than in
/// the whole; it is cut before a blank, where tokens begin, or else at the larger length.
const COUNTED_BYTES: usize = 512;
const COUNTED_BYTES_MAX: usize = 2_048;
/// Bytes that are counted at a time, and so the tokens that are handed over together at most: a
/// consumer signs for what it has before it is given much more.
const PART_BYTES: usize = 32;
/// Bytes that hardly a token has on the average of a call's arguments.
const TOKEN_BYTES_MAX: usize = 32;
/// Bytes that may come without a token.
const UNCOUNTED_BYTES_MAX: usize = 2 * COUNTED_BYTES_MAX;
/// What stands around what a model thought before its text, as most models write it themselves.
const THOUGHT: (&str, &str) = ("<think>\n", "\n</think>\n\n");

/// A model that a server elsewhere computes.
pub struct OpenAiEngine {
    vocabulary: Arc<dyn Vocabulary>,
    /// The vocabulary's model, with what the server has of it.
    info: ModelInfo,
    serves: Serves,
    server: Server,
    /// The server's own name of it.
    name: String,
    counters: Arc<Counters>,
}

/// A server elsewhere. All of its models share its places.
#[derive(Clone)]
pub struct Server {
    upstream: Upstream,
    places: Arc<Places>,
    first_within: Duration,
}

impl Server {
    /// A server that gives as many answers at the same time as it has `places`, and may take
    /// `first_within` to the first text of one: it may have to load the model.
    pub fn new(upstream: Upstream, places: u32, first_within: Duration) -> Self {
        Self { upstream, places: Arc::new(Places::new(places)), first_within }
    }
}

#[derive(Debug, Default)]
struct Counters {
    standing: Standing,
    /// Whether the server was full when it was last asked.
    stands: AtomicBool,
    completion_tokens_total: AtomicU64,
    prompt_tokens_total: AtomicU64,
}

/// What a server elsewhere is asked for, of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serves {
    /// To answer chats.
    pub chat: bool,
    /// To go on with texts as they stand.
    pub completions: bool,
    /// To make vectors of texts, of so many numbers; 0 is as many as the model's file says.
    pub embeddings: Option<u32>,
}

/// What such servers have in common.
impl Default for Serves {
    fn default() -> Self {
        Self { chat: true, completions: true, embeddings: None }
    }
}

impl OpenAiEngine {
    /// An engine that asks `server` for the model it calls `name`, and for no vectors.
    pub fn new(vocabulary: Arc<dyn Vocabulary>, server: Server, name: &str) -> Self {
        let info = ModelInfo { embedding_width: 0, ..vocabulary.model().clone() };
        let (serves, name) = (Serves::default(), name.to_owned());
        Self { vocabulary, info, serves, server, name, counters: Arc::default() }
    }

    /// The same for a server that is asked for what it `serves`.
    #[must_use]
    pub fn serving(mut self, serves: Serves) -> Self {
        self.info.embedding_width = match serves.embeddings {
            Some(0) => self.vocabulary.model().embedding_width,
            width => width.unwrap_or(0),
        };
        Self { serves, ..self }
    }
}

impl fmt::Debug for OpenAiEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiEngine").field("model", self.model()).finish_non_exhaustive()
    }
}

impl Engine for OpenAiEngine {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        if !self.serves.chat {
            return Err(PrepareError::Unsupported { what: "to answer a chat" });
        }
        let prompt = self.vocabulary.prepare(conversation)?;
        let variables = self.vocabulary.variables(conversation);
        let conversation = Conversation { variables, ..conversation.clone() };
        Ok(Prompt { source: Some(Source::Chat(Arc::new(conversation))), ..prompt })
    }

    fn prepare_raw(&self, raw: &RawPrompt) -> Result<Prompt, PrepareError> {
        if !self.serves.completions {
            return Err(PrepareError::Unsupported { what: "to go on with a raw prompt" });
        }
        asked::raw(&*self.vocabulary, raw)
    }

    fn prepare_embedding(
        &self,
        tokens: Vec<u32>,
        text: Option<&str>,
    ) -> Result<Prompt, PrepareError> {
        asked::embedding(&*self.vocabulary, tokens, text)
    }

    fn embed_all(&self, texts: &Arc<[Prompt]>, progress: &Arc<Progress>) -> Option<Vectors> {
        Some(self.vectors(texts, progress))
    }

    fn answers_chats(&self) -> bool {
        self.serves.chat
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, PrepareError> {
        self.vocabulary.tokenize(text)
    }

    fn token_bytes(&self, token: u32) -> Result<Vec<u8>, PrepareError> {
        Ok(self.vocabulary.token_bytes(token))
    }

    fn spelling(&self, token: u32) -> Result<Option<Vec<u8>>, PrepareError> {
        Ok(self.vocabulary.spelling(token))
    }

    fn begin_token(&self) -> Option<u32> {
        self.vocabulary.begin_token()
    }

    fn end_token(&self) -> Option<u32> {
        self.vocabulary.end_token()
    }

    fn has_vocabulary(&self) -> bool {
        self.vocabulary.is_the_models()
    }

    /// The server is told to follow the format. That the arguments of a call are a JSON object and
    /// its tool is one that was offered is seen to here; that they follow the tool's schema is the
    /// server's affair.
    fn check_format(&self, format: &Format) -> Result<(), PrepareError> {
        match format.without_calls() {
            Some(Format::JsonSchema(schema))
                if UpstreamChat::json_schema(&schema.text, schema.strict).is_none() =>
            {
                Err(PrepareError::Format { reason: "the schema is not JSON".to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn start(&self, prompt: Prompt, sampling: Sampling) -> Result<Generation, StartError> {
        let unsupported = |what| StartError::Unsupported { what, param: None };
        let Some(source) = &prompt.source else {
            return Err(unsupported("to continue tokens without their text"));
        };
        if !prompt.resumed.is_empty() {
            return Err(unsupported("to go on with an answer that another one began"));
        }
        if let Some((param, what)) = asked::beyond(source, &sampling) {
            return Err(StartError::Unsupported { what, param: Some(param) });
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::Stopped)?;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        let progress = Arc::new(Progress::default());
        let turn = self.server.places.enter(&prompt, &progress, &self.counters.standing);
        let turn = turn.map_err(|queued| StartError::Busy { queued })?;
        let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
        let room = self.info.context_tokens;
        let fits = prompt_tokens.saturating_add(sampling.completion_max) < room;
        let answering = Answering {
            asked: Asked::new(&self.name, source, &sampling, fits),
            name: self.name.clone(),
            upstream: self.server.upstream.clone(),
            first_within: self.server.first_within,
            count: Count::new(Arc::clone(&self.vocabulary), sampling.completion_max),
            told: Wording::new(&sampling.format),
            text: AnswerText::new(&sampling.stop),
            thinks: match (source, sampling.format.without_calls()) {
                (Source::Chat(_), Some(Format::Text)) => Some(false),
                _ => None,
            },
            prompt_tokens,
            progress: Arc::clone(&progress),
            counters: Arc::clone(&self.counters),
            sender: sender.clone(),
        };
        runtime.spawn(async move {
            // A reader that has gone needs no answer: what waits or runs for it is dropped, and
            // with it the turn or the place, and the connection.
            let work = async move {
                match turn.comes().await {
                    Some(_place) => answering.run().await,
                    None => answering.gave_way(),
                }
            };
            tokio::select! {
                () = sender.closed() => {}
                () = work => {}
            }
        });
        Ok(Generation::new(pieces, progress))
    }

    fn load(&self) -> EngineLoad {
        let (places, standing) = (&self.server.places, &self.counters.standing);
        let (taken, running) = (places.all().saturating_sub(places.free()), standing.running());
        EngineLoad {
            places: places.all(),
            taken_by_others: taken.saturating_sub(running),
            running,
            queued: standing.waiting(),
            completion_tokens_total: self.counters.completion_tokens_total.load(Ordering::Relaxed),
            prompt_tokens_total: self.counters.prompt_tokens_total.load(Ordering::Relaxed),
            ..EngineLoad::default()
        }
    }
}

/// A request on its way.
struct Answering {
    asked: Asked,
    /// What the server calls the model.
    name: String,
    upstream: Upstream,
    first_within: Duration,
    count: Count,
    told: Wording,
    text: AnswerText,
    /// Whether the server tells what the model thinks now; none where the answer has no room for
    /// thoughts.
    thinks: Option<bool>,
    prompt_tokens: u32,
    progress: Arc<Progress>,
    counters: Arc<Counters>,
    sender: mpsc::Sender<Piece>,
}

impl Answering {
    /// Ends for want of room.
    fn gave_way(self) {
        self.progress.failed(Failure::Full);
        // The channel is new, so there is room; a reader that has gone needs no answer.
        drop(self.sender.try_send(Piece::Failed { reason: Failure::Full.to_string() }));
    }

    async fn run(mut self) {
        let last = match self.answer().await {
            Ok(Some(finish)) => {
                // One that was met beyond the room ended nothing.
                let met = self.text.met().filter(|_| finish == Finish::Stop);
                self.progress.stopped_by(met);
                Piece::End { text: self.count.rest(), finish }
            }
            Ok(None) => return,
            Err(Broken { failure, reason }) => {
                if let Some(failure) = failure {
                    self.progress.failed(failure);
                }
                Piece::Failed { reason }
            }
        };
        let _ = self.sender.send(last).await;
    }

    /// Why the answer ended; nothing when nobody reads it any more.
    async fn answer(&mut self) -> Result<Option<Finish>, Broken> {
        let mut latest = Instant::now() + self.first_within;
        let (asked, upstream) = (&self.asked, &self.upstream);
        let what = (asked.endpoint(), self.name.as_str());
        let stands = &self.counters.stands;
        let mut stream = patiently(latest, what, stands, || asked.of(upstream)).await?;
        let (mut finish, mut has_begun) = (None, false);
        // Thoughts that nobody gets are no longer than the answer could be.
        let (mut dropped, dropped_max) = (0, self.count.room_bytes());
        loop {
            let piece = match timeout_at(latest, stream.next()).await {
                Ok(Ok(piece)) => piece,
                // Some servers close the connection instead of marking the end.
                Ok(Err(_)) if finish.is_some() => None,
                // It has all that it may have, and the server does not say that it ends.
                Ok(Err(_)) | Err(_) if self.count.is_full() => return Ok(Some(Finish::Length)),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(Broken::of(Failure::Slow)),
            };
            let Some(piece) = piece else {
                let rest = self.told.end(finish == Some(Finish::Length))?;
                return self.ends(&rest, finish.unwrap_or(Finish::Stop)).await;
            };
            if !has_begun {
                has_begun = true;
                self.read();
            }
            if let Some(word) = &piece.finish {
                finish = finish.or(Some(finish_of(word)?));
            }
            let before = self.told.open_bytes();
            let has_thought = self.thinks.is_some() && !piece.thought.is_empty();
            if self.thinks.is_none() {
                dropped += piece.thought.len();
            }
            let piece = self.with_thoughts(piece);
            let said = self.told.push(piece)?;
            if self.told.open_bytes() > before || !said.is_empty() || has_thought {
                latest = Instant::now() + self.first_within.min(NEXT_WITHIN_MAX);
            }
            // A call that is so much longer than the room cannot become whole.
            if self.told.open_bytes() > self.count.room_bytes() || dropped > dropped_max {
                let said = said + &self.told.end(true)?;
                return self.ends(&said, Finish::Length).await;
            }
            if self.told.is_all() {
                return self.ends(&said, finish.unwrap_or(Finish::Stop)).await;
            }
            match self.say(&said).await? {
                Flow::On => {}
                Flow::Over(finish) => return Ok(Some(finish)),
                Flow::Left => return Ok(None),
            }
        }
    }

    /// The piece with what the model thought as a part of its text, as a model's own answer here
    /// has it: whoever pays for it gets it.
    fn with_thoughts(&mut self, mut piece: UpstreamPiece) -> UpstreamPiece {
        let Some(thinks) = &mut self.thinks else { return piece };
        let mut text = String::new();
        if !piece.thought.is_empty() {
            if !*thinks {
                text.push_str(THOUGHT.0);
            }
            text.push_str(&piece.thought);
            *thinks = true;
        }
        if *thinks && !(piece.text.is_empty() && piece.calls.is_empty()) {
            text.push_str(THOUGHT.1);
            *thinks = false;
        }
        piece.text.insert_str(0, &text);
        piece
    }

    /// Hands over the last text, and what waited for a stop text to go on.
    async fn ends(&mut self, said: &str, finish: Finish) -> Result<Option<Finish>, Broken> {
        let mut flow = self.say(said).await?;
        if flow == Flow::On {
            let held = self.text.finish();
            flow = self.hand_over(&held).await?;
        }
        Ok(match flow {
            Flow::On => Some(finish),
            Flow::Over(finish) => Some(finish),
            Flow::Left => None,
        })
    }

    /// Hands over what became certain with `text`.
    async fn say(&mut self, text: &str) -> Result<Flow, String> {
        let certain = self.text.push(text.as_bytes());
        match self.hand_over(&certain.text).await? {
            Flow::On if certain.stopped => Ok(Flow::Over(Finish::Stop)),
            flow => Ok(flow),
        }
    }

    /// Counts text and hands it over with its tokens, as far as there is room.
    async fn hand_over(&mut self, text: &str) -> Result<Flow, String> {
        for part in parts(text) {
            let (tokens, text) = self.count.add(part)?;
            if !tokens.is_empty() && self.deliver(tokens, text).await.is_err() {
                return Ok(Flow::Left);
            }
            if self.count.is_cut {
                return Ok(Flow::Over(Finish::Length));
            }
        }
        Ok(Flow::On)
    }

    /// Notes that the server has read the prompt.
    fn read(&self) {
        self.progress.queued(0);
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

/// Whether an answer goes on after a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Over(Finish),
    /// Nobody reads it any more.
    Left,
}

/// Why an answer ended, from a server's word for it; an error for one that is no end.
fn finish_of(word: &str) -> Result<Finish, Broken> {
    match word {
        "length" => Ok(Finish::Length),
        "abort" | "error" | "content_filter" => Err(Broken::of(Failure::BrokenOff)),
        _ => Ok(Finish::Stop),
    }
}

/// The text in parts that are counted at once, divided before blanks where there are any.
fn parts(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let most = text.floor_char_boundary(PART_BYTES);
        let blank = |(at, c): &(usize, char)| *at > 0 && c.is_whitespace();
        let blanks = || text[..most].char_indices().rfind(blank);
        let at = if most == text.len() { most } else { blanks().map_or(most, |(at, _)| at) };
        let (part, rest) = text.split_at(at);
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
    /// Whether there was more text than room.
    is_cut: bool,
}

impl Count {
    fn new(vocabulary: Arc<dyn Vocabulary>, room: u32) -> Self {
        let (text, room) = (String::new(), room as usize);
        Self { vocabulary, text, tokens: 0, given: 0, room, is_cut: false }
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
            self.is_cut = true;
            new.truncate(self.room);
            let paid = all.iter().take(self.tokens + self.room);
            let bytes = paid.map(|token| self.vocabulary.token_bytes(*token).len()).sum();
            self.text.truncate(self.text.floor_char_boundary(bytes).max(self.given));
        }
        self.tokens = all.len();
        self.room -= new.len();
        if new.is_empty() {
            // What still fits comes with the end.
            return Ok((new, String::new()));
        }
        Ok((new, self.rest()))
    }

    /// What was not handed over yet.
    fn rest(&mut self) -> String {
        let rest = self.text.split_at(self.given).1.to_owned();
        self.given = self.text.len();
        rest
    }

    /// Bytes that have more tokens than there is room for.
    const fn room_bytes(&self) -> usize {
        self.room.saturating_mul(TOKEN_BYTES_MAX)
    }

    const fn is_full(&self) -> bool {
        self.room == 0
    }
}
