//! What all rows share: the engine of the bare loops, the servers, the questions.

use std::path::PathBuf;
use std::sync::Arc;

use tirami_infer::engine::{Conversation, Engine as _, Message, Prompt};
use tirami_infer::llama::{BareRun, BareSetting, LlamaEngine, LlamaOptions};

use crate::client::system_of;
use crate::picture::Curve;
use crate::report::Table;
use crate::servers::{Server, peers, tirami};
use crate::streams::ONE_BY_ONE_MAX;

/// Tokens each sequence of each contender can hold: the longest prompt and a short answer.
pub(crate) const CONTEXT_TOKENS: u32 = 2_304;
/// Streams each contender can run at once.
pub(crate) const SEQUENCES: u32 = 32;

/// The bare loops, with what they are called. The node is judged by the better one.
pub(crate) const BARE: [(BareSetting, &str); 2] = [
    (BareSetting::Engine, "bare loop, same setting"),
    (BareSetting::Usual, "bare loop, llama.cpp's usual setting"),
];

/// Asked in different words by each stream, so that no answer's prompt is another's; long enough
/// an answer follows.
const SUBJECTS: [&str; 32] = [
    "a lighthouse keeper",
    "a dragon",
    "two brothers",
    "an old clock",
    "the sea",
    "a lost dog",
    "a train in the snow",
    "a garden",
    "a violin",
    "the last apple",
    "a blue door",
    "a small shop",
    "the moon",
    "a river",
    "a forgotten letter",
    "a bicycle",
    "a storm",
    "a baker",
    "the desert",
    "an island",
    "a school",
    "a spider",
    "a mountain",
    "the winter",
    "a king",
    "a mirror",
    "a bridge",
    "a fox",
    "a painter",
    "a ship",
    "a forest",
    "the first robot",
];

/// The state of a run.
pub(crate) struct Bench {
    pub(crate) rounds: usize,
    pub(crate) engine: Arc<LlamaEngine>,
    pub(crate) table: Table,
    /// Aggregate tokens per second by streams.
    pub(crate) curves: Vec<Curve>,
    servers: Option<Vec<Server>>,
    quick: Option<Server>,
    asked: u32,
}

impl Bench {
    pub(crate) fn new(rounds: usize) -> Self {
        let options = LlamaOptions {
            context_tokens: Some(CONTEXT_TOKENS),
            sequences: 1,
            threads: Some(threads()),
            ..LlamaOptions::default()
        };
        let engine = LlamaEngine::load(&model_path(), &options).expect("a model");
        let table = Table::default();
        Self {
            rounds,
            engine: Arc::new(engine),
            table,
            curves: Vec::new(),
            servers: None,
            quick: None,
            asked: 0,
        }
    }

    /// The node first, then the peers that are here; started once.
    pub(crate) fn servers(&mut self) -> Vec<Server> {
        let table = &mut self.table;
        let start = || {
            let mut servers = vec![tirami(SEQUENCES, CONTEXT_TOKENS, true)];
            for peer in peers(SEQUENCES, CONTEXT_TOKENS) {
                match peer {
                    Ok(server) => {
                        if !server.batches {
                            table.note(left_out(&server));
                        }
                        servers.push(server);
                    }
                    Err(why) => table.note(why),
                }
            }
            servers
        };
        self.servers.get_or_insert_with(start).clone()
    }

    /// The same, and last a node that promises no reproducible answers; started once.
    pub(crate) fn contenders(&mut self) -> Vec<Server> {
        let mut all = self.servers();
        let quick = || tirami(SEQUENCES, CONTEXT_TOKENS, false);
        all.push(self.quick.get_or_insert_with(quick).clone());
        all
    }

    /// Runs a bare loop in each of the settings of [`BARE`]; `rates` gets what `rate` makes of it.
    pub(crate) fn run_bare(
        &self,
        (prompts, tokens): (&[Prompt], u32),
        rates: &mut [Vec<f64>; BARE.len()],
        rate: impl Fn(&BareRun) -> f64,
    ) {
        for ((setting, _), rates) in BARE.into_iter().zip(rates) {
            let run = self.engine.run_bare(prompts, tokens, setting).expect("a bare run");
            rates.push(rate(&run));
        }
    }

    /// A question that was not asked before and has a long answer.
    pub(crate) fn question(&mut self) -> String {
        self.asked += 1;
        let subject = SUBJECTS[self.asked as usize % SUBJECTS.len()];
        format!("{}. Write a long story about {subject}.", self.asked)
    }

    /// A text that was not asked before, and makes a prompt of about `tokens` tokens.
    pub(crate) fn text(&mut self, tokens: usize) -> String {
        self.asked += 1;
        let words = "the sea is wide and the road is long so we walk on until it is night again ";
        let mut text = format!("{}. ", self.asked);
        while self.prompt(&text).tokens.len() + 20 < tokens {
            text += words;
        }
        while self.prompt(&text).tokens.len() < tokens {
            text += " on";
        }
        text
    }

    pub(crate) fn prompt(&self, content: &str) -> Prompt {
        let system = Message::new("system", system_of(content));
        let messages = vec![system, Message::new("user", content)];
        self.engine.prepare(&Conversation::from(messages)).expect("a prompt")
    }
}

/// Where there are no figures of a server that answers one after another.
fn left_out(server: &Server) -> String {
    format!(
        "{} answers one request after another: the rows of more than {ONE_BY_ONE_MAX} streams, of \
         the longest stall and of memory leave it out",
        server.name
    )
}

/// Threads of each contender: what the engine takes by itself.
pub(crate) fn threads() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores.saturating_sub(1).max(1)).expect("few threads")
}

/// The model the tests use.
pub(crate) fn model_path() -> PathBuf {
    std::env::var_os("TIRAMI_TEST_MODEL").map(PathBuf::from).expect("TIRAMI_TEST_MODEL is set")
}
