//! `cargo xtask codegen`: reference pages written from the code that they describe.
//!
//! The program itself prints what it knows of its commands, settings, metrics and routes, so a
//! page cannot say what the program does not do.

mod http;
mod parameters;

use std::fs;
use std::process::Command;

use crate::process::{cargo, output, run_watched};
use crate::{Failure, Outcome, workspace};

/// Whether pages are written or compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Write what changed.
    Write,
    /// Fail when a page is not what the code says.
    Check,
}

/// The pages that `tirami __reference` prints, and their files.
const PRINTED: [(&str, &str); 4] = [
    ("cli", "docs/reference/cli.md"),
    ("config", "docs/reference/config.md"),
    ("env", "docs/reference/env.md"),
    ("metrics", "docs/reference/metrics.md"),
];

/// The golden document; a test of the SDK compares it too.
const OPENAPI: &str = "crates/tirami-sdk/tests/openapi.json";
const HTTP: &str = "docs/reference/http.md";
const PARAMETERS: &str = "docs/reference/parameters.md";

/// Builds the program and writes or compares all pages.
pub(crate) fn codegen(mode: Mode) -> Outcome<()> {
    run_watched(&mut cargo(["build", "--release", "--workspace", "--bins"]))?;
    pages(mode)
}

/// Writes or compares all pages with the program that is already built.
pub(crate) fn pages(mode: Mode) -> Outcome<()> {
    let mut pages = Vec::new();
    for (page, file) in PRINTED {
        pages.push((file, printed(page)?));
    }
    let openapi = printed("openapi")?;
    pages.push((HTTP, http::page(&openapi)?));
    pages.push((OPENAPI, openapi));
    pages.push((PARAMETERS, parameters::page()?));

    let mut stale = Vec::new();
    for (file, text) in pages {
        let path = workspace::root().join(file);
        if fs::read_to_string(&path).is_ok_and(|current| current == text) {
            continue;
        }
        match mode {
            Mode::Write => {
                workspace::write(&path, &text)?;
                println!("  wrote {file}");
            }
            Mode::Check => stale.push(file),
        }
    }
    if stale.is_empty() {
        println!("  the reference pages say what the code says");
        return Ok(());
    }
    Err(Failure::new(format!(
        "stale: {}\nwrite them with `cargo xtask codegen` and commit them",
        stale.join(", ")
    )))
}

/// A page as the program prints it.
fn printed(page: &str) -> Outcome<String> {
    let mut command = Command::new(workspace::release_binary("tirami"));
    // A page shows defaults, so nothing of this machine's settings may reach it.
    let text = output(command.args(["__reference", page]).env_clear())?;
    Ok(format!("{}\n", text.trim_end()))
}
