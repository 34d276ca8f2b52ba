//! The table the bench prints, and small statistics.

use tirami_core::{AgentId, SecretKey, Signed, Timestamp, Trm};
use tirami_kernel::{Input, Kernel, RequestId};
use tirami_ledger::book::Target;
use tirami_ledger::command::{Actor, Command};
use tirami_ledger::lattice::{Charter, Lattice};
use tirami_ledger::{Keyring, Ledger};

/// One measured line.
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// The figure, with its unit.
    pub(crate) measured: String,
    /// The physical or rival limit it is to be read against, with its figure.
    pub(crate) limit: String,
    /// Measured ÷ limit, where both have one unit.
    pub(crate) ratio: Option<f64>,
    /// What it should be, and whether it is.
    pub(crate) target: Option<(&'static str, bool)>,
}

/// All measured lines.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a line and shows it at once on the error stream, for whoever waits.
    pub(crate) fn push(&mut self, row: Row) {
        eprintln!("{}: {}", row.what, row.measured);
        self.rows.push(row);
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| what | measured (median) | limit beside it | ratio | target | met |\n\
             |---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let (target, met) = row
                .target
                .map_or(("", ""), |(target, met)| (target, if met { "yes" } else { "no" }));
            text.push_str(&format!(
                "| {} | {} | {} | {ratio} | {target} | {met} |\n",
                row.what, row.measured, row.limit
            ));
        }
        text
    }
}

/// The middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which the share `at` of all values lies.
pub(crate) fn percentile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values[(last as f64 * at).round() as usize]
}

/// A kernel of a mesh of one, with an agent that has plenty and generous limits.
pub(crate) fn bench_kernel() -> (Kernel, AgentId) {
    let node = SecretKey::from_seed([1; 32]);
    let agent = SecretKey::from_seed([2; 32]);
    let line = Trm::from_micro(1 << 60);
    let charter = Charter::founder("bench", node.public(), line);
    let charter = Signed::sign(Charter::founding_mesh(), &node, charter).expect("signed");
    let lattice = Lattice::found(&charter).expect("founded");
    let party = node.public().party();
    let mut kernel = Kernel::new(Ledger::new(lattice, party), Keyring::new(node));
    let id = agent.public().agent();
    let now = Timestamp::from_ms(1_700_000_000_000);
    drop(kernel.handle(now, Input::AddAgentKey(agent)));
    let amount = Trm::from_micro(1 << 59);
    for command in [
        Command::OpenChain { line },
        Command::CreateAgent { agent: id, name: "bench".into() },
        Command::FundAgent { agent: id, amount },
        Command::SetLimits { target: Target::Agent(id), limits: crate::money::generous() },
    ] {
        let effects = kernel.handle(now, input(Actor::Node, command));
        assert!(matches!(effects.reply, Some((_, Ok(_)))), "{:?}", effects.reply);
    }
    (kernel, id)
}

/// A command as an input.
pub(crate) fn input(actor: Actor, command: Command) -> Input {
    Input::Command { request: RequestId::new(0), actor, command }
}
