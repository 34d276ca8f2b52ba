//! `tirami agents`: accounts in the node's book.

use std::io::{IsTerminal, Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use tirami_sdk::types::{Agent, AgentList, Balance, Bundle, CreateAgent, ImportAgent, Limits};
use tirami_sdk::{Amount, Client, SignedAmount};

use super::limits::LimitFlags;
use super::{account, find};
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{self, Output, count, trm};
use crate::settings::Global;

/// Bytes a passphrase file or a bundle may have.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// What to do with agents.
#[derive(Debug, Args)]
pub(crate) struct AgentsArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the agents and what they and the node have; so does no action.
    List,
    /// Make an agent with its own key and account.
    Create {
        /// A name for people; 1 to 64 characters.
        name: String,
        /// TRM to move from the node's account at once.
        #[arg(long, value_name = "TRM")]
        fund: Option<Amount>,
        #[command(flatten)]
        limits: LimitFlags,
    },
    /// Move TRM from the node's account to an agent's; a negative amount comes back.
    Fund {
        /// The agent's name, its DID, or the beginning of one.
        #[arg(value_name = "AGENT")]
        agent: String,
        /// TRM, such as 12.5 or -3.
        #[arg(value_name = "TRM", allow_negative_numbers = true)]
        amount: SignedAmount,
    },
    /// Write an agent's key to a file that only a passphrase opens.
    Export {
        /// The agent's name, its DID, or the beginning of one.
        #[arg(value_name = "AGENT")]
        agent: String,
        /// The file to write; it must not exist.
        file: PathBuf,
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Take in an exported agent and give it an account here.
    Import {
        /// The file of the export.
        file: PathBuf,
        /// A name for people [default: the one in the file].
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Close an agent's open circuit breaker before its time.
    ResetBreaker {
        /// The agent's name, its DID, or the beginning of one.
        #[arg(value_name = "AGENT")]
        agent: String,
    },
}

#[derive(Debug, Args)]
struct PassphraseArgs {
    /// A file whose first line is the passphrase; `-` is stdin [default: ask at the terminal].
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: AgentsArgs, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Owner).await?;
    match args.action.unwrap_or(Action::List) {
        Action::List => {
            let AgentList { count, agents } = client.agents().await?;
            let node = account::of_node(global).await;
            let answer = json!({"count": count, "agents": agents, "node": node});
            out.answer(&answer, |out| list(&agents, node.as_ref(), out));
        }
        Action::Create { name, fund, limits } => {
            let limits = limits.over(Limits::default());
            let limits = (limits != Limits::default()).then_some(limits);
            let agent = client.create_agent(&CreateAgent { name, fund_trm: fund, limits }).await?;
            one(&client, &agent, out).await?;
        }
        Action::Fund { agent, amount } => {
            let did = find::agent(&client, &agent).await?;
            one(&client, &client.fund_agent(&did, amount).await?, out).await?;
        }
        Action::Export { agent, file, passphrase } => {
            let did = find::agent(&client, &agent).await?;
            let passphrase = passphrase.read(true)?;
            let bundle = client.export_agent(&did, &passphrase).await?;
            write_bundle(&file, &bundle)?;
            out.answer(&json!({"did": did, "file": file}), |out| {
                out.line(format_args!("wrote {}", file.display()));
            });
        }
        Action::Import { file, name, passphrase } => {
            let bundle = read_bundle(&file)?;
            let passphrase = passphrase.read(false)?;
            let request = ImportAgent { passphrase, bundle, name };
            one(&client, &client.import_agent(&request).await?, out).await?;
        }
        Action::ResetBreaker { agent } => {
            let did = find::agent(&client, &agent).await?;
            let done = client.reset_breaker(&did).await?;
            out.answer(&done, |out| out.line("the circuit breaker is closed"));
        }
    }
    Ok(Exit::Done)
}

fn list(agents: &[Agent], node: Option<&Balance>, out: Output) {
    let mut rows: Vec<Vec<String>> = agents
        .iter()
        .map(|agent| {
            let name = if agent.personal {
                format!("{} (personal)", agent.name)
            } else {
                agent.name.clone()
            };
            vec![
                name,
                agent.did.clone(),
                trm(agent.available_trm, agent.available_answers),
                agent.reserved_trm.to_string(),
                agent.spending.lifetime_trm.to_string(),
            ]
        })
        .collect();
    if let Some(node) = node {
        let left = trm(node.effective_balance, node.effective_balance_answers);
        rows.push(vec![
            "node".to_owned(),
            "its own account".to_owned(),
            left,
            "-".to_owned(),
            "-".to_owned(),
        ]);
    }
    out.table(
        &["name", "did", "available", "reserved", "spent"],
        &["available", "reserved", "spent"],
        &rows,
    );
    out.note(out.dim(&format!("{}; {}", count(agents.len() as u64, "agent"), account::ORIGIN)));
}

async fn one(client: &Client, agent: &Agent, out: Output) -> Result<(), Failure> {
    let answer_trm = client.pricing().await?.estimated_cost_1000_tokens.trm();
    out.answer(agent, |out| {
        let mut rows = vec![
            ("did", agent.did.clone()),
            ("name", agent.name.clone()),
            ("available", trm(agent.available_trm, agent.available_answers)),
            ("day limit", output::limit(agent.limits.day_max, answer_trm)),
        ];
        if let Some(until_ms) = agent.breaker_open_until_ms {
            rows.push(("breaker", format!("open until {} UTC", output::moment(until_ms))));
        }
        out.pairs(&rows);
    });
    Ok(())
}

impl PassphraseArgs {
    /// The passphrase: from the file, or asked at the terminal; `twice` for a first use.
    fn read(&self, twice: bool) -> Result<String, Failure> {
        let Some(path) = &self.passphrase_file else {
            return ask(twice);
        };
        let mut text = String::new();
        let result = if path.as_os_str() == "-" {
            std::io::stdin().lock().take(FILE_MAX_BYTES).read_to_string(&mut text)
        } else {
            std::fs::File::open(path)
                .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text))
        };
        result.map_err(|error| {
            Failure::usage(format_args!("cannot read {}: {error}", path.display()))
        })?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

fn ask(twice: bool) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask at; use --passphrase-file"));
    }
    let term = console::Term::stderr();
    let hidden = |prompt: &str| {
        term.write_str(prompt)
            .and_then(|()| term.read_secure_line())
            .map_err(|error| Failure::usage(format_args!("cannot read the passphrase: {error}")))
    };
    let passphrase = hidden("Passphrase: ")?;
    if twice && hidden("Once more: ")? != passphrase {
        return Err(Failure::usage("the two passphrases differ; nothing was written"));
    }
    Ok(passphrase)
}

fn write_bundle(path: &Path, bundle: &Bundle) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(
            Exit::Unexpected,
            format_args!("cannot write {}: {error}; nothing was overwritten", path.display()),
        )
    };
    let mut options = std::fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(failed)?;
    let text =
        serde_json::to_string_pretty(bundle).map_err(std::io::Error::from).map_err(failed)?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(failed)
}

fn read_bundle(path: &Path) -> Result<Bundle, Failure> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text))
        .map_err(|error| Failure::usage(format_args!("cannot read {}: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format_args!("{} is no exported agent: {error}", path.display()))
    })
}
