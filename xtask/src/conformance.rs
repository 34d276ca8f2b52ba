//! `cargo xtask conformance`: clients that others wrote, each call of theirs against a real node
//! with the real model, as a table; and two checks that take too long for `cargo xtask test`.
//!
//! A client's script prints a JSON object for each call; what it prints is shown as it comes and
//! becomes a row of the table. Versions stand in files, and what is installed stays outside the
//! tree, once for each change of the pins.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::clients::{FOLDER, install_node, install_python, key_with, unlimited, venv};
use crate::json::{Json, literal};
use crate::node::NodeDir;
use crate::process::cargo;
use crate::{Failure, Outcome, model, workspace};

const PAGE: &str = "docs/reference/conformance.md";

/// The scripts, in the order of the table's columns.
const SCRIPTS: [&str; 6] = [
    "openai_python.py",
    "openai_node.mjs",
    "litellm_rows.py",
    "langchain_rows.py",
    "llm_rows.py",
    "anthropic_rows.py",
];

/// The calls, in the order of the table's rows.
const CALLS: [&str; 15] = [
    "chat",
    "stream",
    "tools",
    "tools streamed",
    "random tools",
    "json_schema",
    "logprobs",
    "n",
    "completions",
    "responses",
    "embeddings",
    "models",
    "bad key",
    "budget",
    "cancel",
];

/// Random requests with tools, none of which may be answered with a malformed piece: to a node with
/// the scripted engine, and with the model.
const RANDOM_REQUESTS: &str = "10000";
const RANDOM_REQUESTS_MODEL: &str = "300";
/// Completion tokens of each with the model, so that all of them take some minutes.
const RANDOM_TOKENS: &str = "64";

/// What came of one call of one client.
struct Row {
    client: String,
    version: String,
    call: String,
    passed: bool,
    detail: String,
}

/// Runs all clients, shows the table, and writes its page; with `as_json` the rows go to stdout.
pub(crate) fn conformance(as_json: bool) -> Outcome<()> {
    let folder = workspace::root().join(FOLDER);
    let node_programs = install_python()?;
    let node_folder = install_node(&node_programs)?;
    let python = venv("conformance", &folder.join("conformance/requirements.txt"))?;
    let node = NodeDir::empty("conformance")?.start()?;
    unlimited(&node)?;
    let key = key_with(&node, "{}")?;
    // A millionth of a TRM is less than any answer costs.
    let budget = key_with(&node, r#"{"lifetime_max_trm": 0.000001}"#)?;
    let mut rows = Vec::new();
    for script in SCRIPTS {
        let mut command = match script.ends_with(".mjs") {
            true => of(&node_programs.join("node"), &node_folder.join(script)),
            false => of(&python.join("python"), &folder.join("conformance").join(script)),
        };
        command
            .env("OPENAI_BASE_URL", format!("http://{}/v1", node.admin.address))
            .env("OPENAI_API_KEY", &key)
            .env("BUDGET_API_KEY", &budget)
            .env("CLIENT_MODEL", model::DEFAULT)
            .env("CONFORMANCE_TOOL_REQUESTS", RANDOM_REQUESTS_MODEL)
            .env("CONFORMANCE_TOOL_TOKENS", RANDOM_TOKENS);
        rows.extend(rows_of(command, script, as_json)?);
    }
    node.stop()?;
    random_tools()?;
    same_tokens()?;
    let table = table(&rows);
    if !as_json {
        println!("\n{table}");
    }
    workspace::write(&workspace::root().join(PAGE), &page(&table))?;
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.passed)
        .map(|row| format!("{} {}: {}: {}", row.client, row.version, row.call, row.detail))
        .collect();
    match failed.as_slice() {
        [] => Ok(()),
        failed => {
            Err(Failure::new(format!("{} calls failed:\n{}", failed.len(), failed.join("\n"))))
        }
    }
}

/// Ten thousand random requests with tools, streamed: `cargo xtask test` asks some of them.
fn random_tools() -> Outcome<()> {
    let one = ["--test", "http", "random_request_with_tools", "--", "--nocapture"];
    let mut command = cargo(["test", "--release", "--workspace"]);
    crate::process::run(command.args(one).env("TIRAMI_TOOL_REQUESTS", RANDOM_REQUESTS))
}

/// The same requests alone, among others, from the cache and read back: `cargo xtask test` has
/// fewer long prompts, and shorter answers.
fn same_tokens() -> Outcome<()> {
    let one = ["--test", "real_model", "twenty_prompts", "--", "--nocapture"];
    let mut command = cargo(["test", "--release", "--workspace"]);
    command.args(one).env("TIRAMI_TEST_LONG", "1").env("TIRAMI_TEST_MODEL", model::fetch()?);
    crate::process::run(&mut command)
}

fn of(program: &Path, script: &PathBuf) -> Command {
    let mut command = Command::new(program);
    command.arg(script);
    command
}

/// Runs a script and reads its rows, showing each as it comes.
fn rows_of(mut command: Command, script: &str, as_json: bool) -> Outcome<Vec<Row>> {
    let failed = |why: String| Failure::new(format!("{script}: {why}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let mut rows = Vec::new();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let Ok(row) = row(&line) else { continue };
            match as_json {
                true => println!("{}", shown(&row)),
                false => {
                    let word = if row.passed { "ok" } else { "FAILED" };
                    println!("  {word:8} {} {}: {}", row.client, row.version, row.call);
                }
            }
            rows.push(row);
        }
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if rows.is_empty() || !status.success() {
        return Err(failed(format!("ended with {status} after {} calls", rows.len())));
    }
    Ok(rows)
}

fn row(line: &str) -> Outcome<Row> {
    let json = Json::parse(line)?;
    let text = |name: &str| json.text(name).map(str::to_owned);
    Ok(Row {
        client: text("client")?,
        version: text("version")?,
        call: text("call")?,
        passed: json.at("passed") == Some(&Json::Bool(true)),
        detail: text("detail")?,
    })
}

fn shown(row: &Row) -> String {
    format!(
        r#"{{"client": {}, "version": {}, "call": {}, "passed": {}, "detail": {}}}"#,
        literal(&row.client),
        literal(&row.version),
        literal(&row.call),
        row.passed,
        literal(&row.detail)
    )
}

/// A column for each client, a row for each call.
fn table(rows: &[Row]) -> String {
    let mut clients: Vec<(&str, &str)> = Vec::new();
    let mut words = BTreeMap::new();
    for row in rows {
        if !clients.iter().any(|(client, _)| *client == row.client) {
            clients.push((&row.client, &row.version));
        }
        let word = if row.passed { "passed" } else { "**failed**" };
        words.insert((row.client.as_str(), row.call.as_str()), word);
    }
    let mut text = String::from("| call |");
    for (client, version) in &clients {
        let _ = write!(text, " {client} {version} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(clients.len()));
    let rest = rows.iter().map(|row| row.call.as_str()).filter(|call| !CALLS.contains(call));
    let mut calls: Vec<&str> = CALLS.to_vec();
    calls.extend(rest.collect::<std::collections::BTreeSet<_>>());
    for call in calls {
        let _ = write!(text, "\n| {call} |");
        for (client, _) in &clients {
            let _ = write!(text, " {} |", words.get(&(*client, call)).unwrap_or(&"—"));
        }
    }
    text.push('\n');
    text
}

fn page(table: &str) -> String {
    format!(
        "# Clients\n\nWritten by `cargo xtask conformance`: each cell is a real call of a client \
         that others wrote, at the version\nnamed, against a node with the default model; the \
         answer was parsed by the client and checked. A dash is a call\nthat is not tried with \
         that client. The scripts and pins stand in `tests/clients/`.\n\n{table}\n\
         What the calls check: `stream` is the same text as one answer, with its usage; tools and \
         schemas are valid by their\nschema; `bad key` and `budget` raise the client's own \
         exception; after `cancel`, which leaves a stream that would go on\nfor much longer, the \
         node says within two seconds that it answers nobody. openai-python refuses every answer \
         that\nhas not the fields and types that it declares, except where its own declarations \
         are not what OpenAI sends.\n\n\
         `random tools` are {RANDOM_REQUESTS_MODEL} requests with random tools, streamed, at most \
         {RANDOM_TOKENS} completion tokens each: every piece is well formed,\nand what is called \
         is valid by its schema. The same run asked a node with the scripted engine \
         {RANDOM_REQUESTS} such requests, and\ncompared with the model what a request is \
         answered alone, among seven others, from the cache and read back: the same\ntokens, with \
         the same log-probabilities to the bit.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_dash_where_a_client_has_no_such_call() {
        let row = |client: &str, call: &str, passed| Row {
            client: client.to_owned(),
            version: "1".to_owned(),
            call: call.to_owned(),
            passed,
            detail: String::new(),
        };
        let table = table(&[row("a", "chat", true), row("b", "chat", false), row("b", "n", true)]);
        assert!(table.starts_with("| call | a 1 | b 1 |\n|---|---|---|\n"), "{table}");
        assert!(table.contains("\n| chat | passed | **failed** |\n"), "{table}");
        assert!(table.contains("\n| n | — | passed |\n"), "{table}");
    }

    #[test]
    fn a_row_is_read_as_it_is_shown() {
        let line = r#"{"client": "a", "version": "1", "call": "n", "passed": true, "detail": "x"}"#;
        assert_eq!(shown(&row(line).unwrap()), line);
        assert!(row("Aborted!").is_err());
    }
}
