//! `tirami chat`: one question, or a conversation.

use std::io::{IsTerminal, Read as _};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tirami_core::Trm;
use tirami_infer::catalogue::sampling_of;
use tirami_sdk::types::{ChatChunk, ChatMessage, ChatRequest, TiramiInfo, Trade, Usage};
use tirami_sdk::{Client, ClientError};

use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{Output, count, trm};
use crate::settings::Global;

/// Bytes of a prompt read from stdin.
const STDIN_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Tokens of an answer at most, unless said otherwise: a small model may repeat itself for as long
/// as its context lasts.
const ANSWER_TOKENS: u32 = 512;

/// How often and how long to look for the trade of an answer that was stopped.
const SETTLE_TRIES: u32 = 20;
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// How an answer ends that may be no longer.
const CUT: &str = "length";
/// Refusals that a shorter answer may pass.
const ROOM_CODES: [&str; 3] = ["request_limit", "budget_limit", "insufficient_balance"];

const HELP: &str = "/reset begins a new conversation, /exit leaves (so does Ctrl-D), Ctrl-C stops \
                    an answer";

/// What to ask and how.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The question; without one, a conversation at the terminal, or what comes on stdin.
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,
    /// The model to ask [default: the one the node serves, else the first of other nodes].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// How the model is to behave.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of the answer at most [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// 0 always takes the likeliest token, 1 follows the model's own probabilities; up to 2
    /// [default: what suits the model].
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = temperature)]
    temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability; up to 1 [default: what
    /// suits the model].
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = top_p)]
    top_p: Option<f32>,
    /// Seed of the sampler: the same question gives the same answer.
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
}

fn temperature(text: &str) -> Result<f32, &'static str> {
    let number = text.parse().ok().filter(|number| (0.0..=2.0).contains(number));
    number.ok_or("it must be a number from 0 to 2")
}

fn top_p(text: &str) -> Result<f32, &'static str> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or("it must be a number from 0 to 1")
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: ChatArgs, out: Output) -> Result<Exit, Failure> {
    let prompt = match args.prompt.join(" ") {
        given if !given.trim().is_empty() => Some(given),
        _ if std::io::stdin().is_terminal() => None,
        _ => Some(read_stdin()?),
    };
    if prompt.is_none() && out.is_json() {
        return Err(Failure::usage("--json needs a prompt"));
    }
    let client = connect(global, Need::Personal).await?;
    let mut talk = Talk::new(client, args, out).await?;
    match prompt {
        Some(prompt) if out.is_json() => talk.answer_as_json(prompt).await,
        Some(prompt) => {
            let stopped = talk.turn(prompt).await?;
            Ok(if stopped { Exit::Interrupted } else { Exit::Done })
        }
        None => talk.converse().await,
    }
}

/// The prompt that comes on stdin.
pub(super) fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(STDIN_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format_args!("cannot read the prompt: {error}")))?;
    if text.trim().is_empty() {
        return Err(Failure::usage("the prompt is empty; give one, or run this at a terminal"));
    }
    Ok(text)
}

/// The first model that other nodes serve, for a node that has none.
pub(super) async fn of_others(client: &Client) -> Result<String, Failure> {
    let models = client.models().await?.data;
    models.into_iter().next().map(|model| model.id).ok_or_else(|| {
        Failure::new(
            Exit::Refused,
            "this node has no model, and at this time no other node serves one; nothing was \
             charged; a node that has just joined hears of others within seconds; `tirami \
             providers` shows who serves, `tirami peers` who is connected",
        )
    })
}

/// A conversation with one model.
struct Talk {
    client: Client,
    /// The request of the next turn, with all messages so far.
    request: ChatRequest,
    /// Whether the length of an answer is the default, and not what was asked for.
    is_default_length: bool,
    /// Messages that begin every conversation.
    opening: Vec<ChatMessage>,
    /// What an answer of 1 000 tokens costs.
    answer_trm: Trm,
    out: Output,
}

/// What came of one question.
#[derive(Default)]
struct Answer {
    text: String,
    usage: Option<Usage>,
    info: Option<TiramiInfo>,
    /// The job's id, once a piece has come.
    job: Option<String>,
    /// Whether it ended because it may be no longer.
    cut: bool,
    /// Whether Ctrl-C stopped it.
    stopped: bool,
}

impl Talk {
    async fn new(client: Client, args: ChatArgs, out: Output) -> Result<Self, Failure> {
        let pricing = client.pricing().await?;
        let opening: Vec<ChatMessage> =
            args.system.map(|text| ChatMessage::new("system", text)).into_iter().collect();
        let model = match args.model {
            Some(model) => model,
            None if !pricing.model.is_empty() => pricing.model,
            None => of_others(&client).await?,
        };
        // People ask bare questions, and small models stray at the interface's default of 1.
        let suits = sampling_of(&model);
        let request = ChatRequest {
            model,
            messages: opening.clone(),
            max_completion_tokens: Some(args.max_tokens.unwrap_or(ANSWER_TOKENS)),
            temperature: args.temperature.or(Some(suits.temperature)),
            top_p: args.top_p.or(Some(suits.top_p)),
            seed: args.seed,
            ..ChatRequest::default()
        };
        let answer_trm = pricing.estimated_cost_1000_tokens.trm();
        let is_default_length = args.max_tokens.is_none();
        Ok(Self { client, request, is_default_length, opening, answer_trm, out })
    }

    /// The same request without a length, where only the default one was too long for the context,
    /// the limits or the TRM: the answer is then as long as they leave room for, which is less.
    fn as_long_as_fits(&self, error: &ClientError) -> Option<ChatRequest> {
        let refusal = error.refusal().filter(|refusal| refusal.extra.is_none())?;
        let is_length = refusal.param.as_deref() == Some("max_completion_tokens")
            || refusal.code.as_deref().is_some_and(|code| ROOM_CODES.contains(&code));
        (self.is_default_length && is_length)
            .then(|| ChatRequest { max_completion_tokens: None, ..self.request.clone() })
    }

    /// Says that an answer of `written` tokens is not complete because it may be no longer.
    fn tell_cut(&self, written: u32) {
        if self.request.max_completion_tokens.is_some_and(|most| written >= most) {
            self.out.note(format_args!(
                "the answer was ended at {}; --max-tokens N lets it be longer",
                count(u64::from(written), "token")
            ));
        }
    }

    /// What comes of the request, which is sent again without a length where only that is refused.
    async fn asked<T>(
        &self,
        send: impl AsyncFn(&ChatRequest) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        match send(&self.request).await {
            Err(error) => match self.as_long_as_fits(&error) {
                Some(request) => send(&request).await,
                None => Err(error),
            },
            answer => answer,
        }
    }

    /// The whole answer as the node gave it.
    async fn answer_as_json(mut self, prompt: String) -> Result<Exit, Failure> {
        self.request.messages.push(ChatMessage::new("user", prompt));
        let asked = self.asked(async |request| self.client.chat(request).await);
        tokio::select! {
            answer = asked => {
                let answer = answer?;
                if answer.choices.first().is_some_and(|choice| choice.finish_reason == CUT) {
                    self.tell_cut(answer.usage.completion_tokens);
                }
                self.out.json(&answer);
                Ok(Exit::Done)
            }
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        }
    }

    /// Asks until the reader leaves. A refusal is told and the conversation goes on.
    async fn converse(mut self) -> Result<Exit, Failure> {
        let failed = |error: ReadlineError| {
            Failure::new(Exit::Unexpected, format_args!("cannot read from the terminal: {error}"))
        };
        let mut editor = DefaultEditor::new().map_err(failed)?;
        self.out.note(self.out.dim(&format!("{} — {HELP}", self.request.model)));
        loop {
            // The editor blocks its thread; signals and streams go on meanwhile.
            let reading = tokio::task::spawn_blocking(move || (editor.readline("> "), editor));
            let (line, back) = reading.await.map_err(|error| {
                Failure::new(Exit::Unexpected, format_args!("cannot read a line: {error}"))
            })?;
            editor = back;
            let line = match line {
                Ok(line) => line,
                Err(ReadlineError::Eof) => return Ok(Exit::Done),
                Err(ReadlineError::Interrupted) => {
                    self.out.note(self.out.dim("/exit leaves"));
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            // The history of this session only; what was asked is not left on the disk.
            let _ = editor.add_history_entry(line.as_str());
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => return Ok(Exit::Done),
                "/help" => self.out.note(HELP),
                "/reset" => self.request.messages = self.opening.clone(),
                command if command.starts_with('/') => {
                    self.out.note(format_args!("{command} is no command; {HELP}"));
                }
                _ => match self.turn(line).await {
                    Err(failure) if failure.exit == Exit::Refused => self.out.failure(&failure),
                    result => {
                        result?;
                    }
                },
            }
        }
    }

    /// Asks, prints the answer as it comes and what it cost; `true` when it was stopped.
    async fn turn(&mut self, prompt: String) -> Result<bool, Failure> {
        self.request.messages.push(ChatMessage::new("user", prompt));
        let mut answer = Answer::default();
        let asked = self.ask(&mut answer).await;
        if !answer.text.is_empty() && !answer.text.ends_with('\n') {
            self.out.piece("\n");
        }
        if let Err(error) = asked {
            // The question stays unasked, so that the next one does not carry it along.
            self.request.messages.pop();
            if error.refusal().is_some() && answer.job.is_some() {
                self.out.note(self.out.dim(&self.cost_of_cut("broken off", &answer).await));
            }
            return Err(error.into());
        }
        let cost = if answer.stopped {
            self.cost_of_cut("stopped", &answer).await
        } else {
            self.cost(&answer)
        };
        if let Some(usage) = answer.usage.filter(|_| answer.cut) {
            self.tell_cut(usage.completion_tokens);
        }
        self.out.note(self.out.dim(&cost));
        if answer.text.is_empty() {
            self.request.messages.pop();
        } else {
            self.request.messages.push(ChatMessage::new("assistant", answer.text));
        }
        Ok(answer.stopped)
    }

    /// Fills `answer` as it comes, until it is complete, fails, or Ctrl-C stops it.
    async fn ask(&self, answer: &mut Answer) -> Result<(), ClientError> {
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let begun = self.asked(async |request| self.client.chat_stream(request).await);
        let mut pieces = tokio::select! {
            pieces = begun => pieces?,
            _ = &mut interrupt => {
                answer.stopped = true;
                return Ok(());
            }
        };
        loop {
            tokio::select! {
                piece = pieces.next() => match piece {
                    Some(piece) => answer.take(piece?, self.out),
                    None => return Ok(()),
                },
                _ = &mut interrupt => {
                    answer.stopped = true;
                    return Ok(());
                }
            }
        }
    }

    fn cost(&self, answer: &Answer) -> String {
        let Some(info) = &answer.info else {
            return "the node did not say what this cost; see `tirami trades`".to_owned();
        };
        let left = info.effective_balance.trm();
        let answers = left.micro().checked_div(self.answer_trm.micro()).unwrap_or(0);
        let written = answer.usage.map_or(0, |usage| usage.completion_tokens);
        format!(
            "{}, {} TRM; {} left",
            count(u64::from(written), "token"),
            info.trm_cost,
            trm(left, answers)
        )
    }

    /// An answer that was cut costs what was delivered; its trade tells.
    async fn cost_of_cut(&self, how: &str, answer: &Answer) -> String {
        let Some(job) = answer.job.as_ref().filter(|_| !answer.text.is_empty()) else {
            return format!("{how}; nothing had been delivered and nothing is owed");
        };
        for _ in 0..SETTLE_TRIES {
            if let Ok(Some(trade)) = self.trade_of(job).await {
                return format!(
                    "{how}; {} were delivered and cost {} TRM",
                    count(u64::from(trade.completion_tokens), "token"),
                    trade.trm_amount
                );
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
        format!("{how}; `tirami trades` shows what was delivered and what it cost")
    }

    async fn trade_of(&self, job: &str) -> Result<Option<Trade>, ClientError> {
        const RECENT: u32 = 50;
        let page = self.client.trades(None, Some(RECENT), None).await?;
        Ok(page.trades.into_iter().find(|trade| trade.job_id == job))
    }
}

impl Answer {
    fn take(&mut self, chunk: ChatChunk, out: Output) {
        out.piece(chunk.text());
        self.text.push_str(chunk.text());
        if self.job.is_none() {
            self.job = chunk.id.strip_prefix("chatcmpl-").map(ToOwned::to_owned);
        }
        let ended = chunk.choices.first().and_then(|choice| choice.finish_reason.as_deref());
        self.cut |= ended == Some(CUT);
        self.usage = chunk.usage.or(self.usage);
        self.info = chunk.x_tirami.or(self.info.take());
    }
}
