//! `tirami config`: what is set and where, and a config file to begin with.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use tirami_node::config::{Resolved, Value, default_file};

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::settings::{AllSettings, Global};

/// What to do with the settings.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Every setting, its value, and where it was set.
    Show {
        #[command(flatten)]
        settings: AllSettings,
    },
    /// Write a config file with every default and its meaning.
    Init {
        /// Where to write it [default: where it is read from].
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Replace a file that is there.
        #[arg(long)]
        force: bool,
    },
}

/// Runs the command.
pub(crate) fn run(global: &Global, args: ConfigArgs, out: Output) -> Result<Exit, Failure> {
    match args.action {
        Action::Show { settings } => show(&global.resolve(&settings.0)?, out),
        Action::Init { file, force } => init(global, file, force, out)?,
    }
    Ok(Exit::Done)
}

fn show(resolved: &Resolved, out: Output) {
    let settings: serde_json::Map<String, Json> = resolved
        .rows()
        .map(|(key, value, origin)| {
            let row = json!({"value": plain(value), "from": origin.to_string()});
            (key.field().name.to_owned(), row)
        })
        .collect();
    let answer = json!({"file": resolved.file, "settings": settings});
    out.answer(&answer, |out| {
        let rows: Vec<Vec<String>> = resolved
            .rows()
            .map(|(key, value, origin)| {
                let value = match plain(value) {
                    Json::String(text) => text,
                    other => other.to_string(),
                };
                vec![key.field().name.to_owned(), value, origin.to_string()]
            })
            .collect();
        out.table(&["setting", "value", "from"], &[], &rows);
    });
}

fn plain(value: &Value) -> Json {
    match value {
        Value::Directory(path) => Json::String(path.display().to_string()),
        Value::Text(text) => Json::String(text.clone()),
        Value::Address(address) => Json::String(address.to_string()),
        Value::Number(number) => Json::from(*number),
        Value::Flag(flag) => Json::from(*flag),
        Value::List(items) => Json::from(items.clone()),
    }
}

fn init(global: &Global, file: Option<PathBuf>, force: bool, out: Output) -> Result<(), Failure> {
    let path = match file.or_else(|| global.config.clone()) {
        Some(path) => path,
        None => global.resolve(&[])?.file,
    };
    let failed = |error: std::io::Error| {
        let message = match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("{} exists; --force replaces it", path.display())
            }
            _ => format!("cannot write {}: {error}", path.display()),
        };
        Failure::new(Exit::Config, message)
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut options = std::fs::File::options();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let mut target = options.open(&path).map_err(failed)?;
    target.write_all(default_file().as_bytes()).map_err(failed)?;
    out.answer(&json!({"file": path}), |out| {
        out.line(format_args!("wrote {}", path.display()));
    });
    Ok(())
}
