//! The default model, fetched by the product's own command.

use std::path::PathBuf;
use std::process::Command;

use crate::json::Json;
use crate::process::{output, run};
use crate::{Failure, Outcome, workspace};

/// The model a node serves when nothing else is said.
pub(crate) const DEFAULT: &str = "smollm2:135m";

/// Downloads and verifies the default model unless it is there, with progress on the terminal.
pub(crate) fn fetch() -> Outcome<PathBuf> {
    let tirami = workspace::release_binary("tirami");
    run(Command::new(&tirami).args(["models", "pull", DEFAULT]))?;
    let shown = output(Command::new(&tirami).args(["models", "show", DEFAULT, "--json"]))?;
    let path = PathBuf::from(Json::parse(&shown)?.text("path")?);
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new(format!("{DEFAULT} was fetched, and {} is not there", path.display())))
}
