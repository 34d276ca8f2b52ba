//! The settings of this run: the flags made from the node's table, and where they come together.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use tirami_node::config::{FIELDS, Field, Key, Kind, Resolved, Sources, Value, resolve};

use crate::exit::Failure;
use crate::output::Output;

/// The heading of the flags every command has.
const EVERYWHERE: &str = "Flags of every command";
/// The heading of the flags that are settings.
const SETTINGS: &str = "Settings, also in the config file and as TIRAMI_* variables";

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Print JSON and nothing else on stdout; errors are JSON on stderr.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub(crate) json: bool,

    /// The node to talk to [default: the one of the settings, or else of the data directory].
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_name = "URL",
        env = "TIRAMI_URL",
        hide_env_values = true
    )]
    pub(crate) url: Option<String>,

    /// The API key to use [default: on the node's machine, the admin key where one is needed].
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_name = "KEY",
        env = "TIRAMI_API_KEY",
        hide_env_values = true
    )]
    pub(crate) api_key: Option<String>,

    /// The config file [default: ~/.tirami/config.toml].
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        value_name = "FILE",
        env = "TIRAMI_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,

    /// Where accounts and keys are kept [default: ~/.tirami] [env: TIRAMI_DATA_DIR].
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl Global {
    /// Says which variables look like settings and are none, with the one that was probably meant.
    /// What else is wrong with the settings, the command that needs them says.
    pub(crate) fn warn_of_unknown_env(&self, out: Output) {
        let unknown = self.resolve(&[]).map(|resolved| resolved.unknown_env).unwrap_or_default();
        for (name, suggestion) in unknown {
            match suggestion {
                Some(meant) => {
                    out.warn(format_args!(
                        "the variable {name} means nothing; did you mean {meant}?"
                    ));
                }
                None => out.warn(format_args!(
                    "the variable {name} means nothing; `tirami start --help` shows the settings"
                )),
            }
        }
    }

    /// All settings, with `flags` of the command on top.
    pub(crate) fn resolve(&self, flags: &[(Key, Value)]) -> Result<Resolved, Failure> {
        let mut flags = flags.to_vec();
        if let Some(dir) = &self.data_dir {
            flags.push((Key::DataDir, Value::Directory(dir.clone())));
        }
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let file = self.config.clone().filter(|path| !path.as_os_str().is_empty());
        Ok(resolve(&Sources { home: std::env::home_dir(), file, env, flags })?)
    }
}

/// A flag for every setting except the data directory, which every command has.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllSettings(pub(crate) Vec<(Key, Value)>);

/// The flag for the models' directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelsSetting(pub(crate) Vec<(Key, Value)>);

/// What the short help shows; `--help` shows every setting.
const COMMON: [Key; 8] = [
    Key::Model,
    Key::ModelsDir,
    Key::Bind,
    Key::Port,
    Key::Threads,
    Key::ContextTokens,
    Key::Sequences,
    Key::GpuLayers,
];

fn all() -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().filter(|field| field.key != Key::DataDir)
}

fn models_only() -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().filter(|field| field.key == Key::ModelsDir)
}

fn augment(command: Command, fields: impl Iterator<Item = &'static Field>) -> Command {
    fields.fold(command, |command, field| {
        let value_name = match field.kind {
            Kind::Directory => "DIR",
            Kind::Models => "NAME|PATH",
            Kind::KeepAlive => "TIME",
            Kind::AutoOr { .. } => "auto|N",
            Kind::Text | Kind::Label { .. } => "TEXT",
            Kind::Url => "URL",
            Kind::Choice(_) => "WORD",
            Kind::Hours => "HH:MM-HH:MM",
            Kind::Origin => "DOMAIN",
            Kind::Flag => "true|false",
            Kind::List(_) => "LIST",
            Kind::Address => "ADDR",
            Kind::Number { .. } => "N",
        };
        let help = match field.default {
            "" => brief(field.doc),
            default => format!("{} [default: {default}]", brief(field.doc)),
        };
        command.arg(
            Arg::new(field.name)
                .long(field.flag)
                .value_name(value_name)
                .help_heading(SETTINGS)
                .hide_short_help(!COMMON.contains(&field.key))
                .help(help)
                .action(match field.kind {
                    Kind::Models => ArgAction::Append,
                    _ => ArgAction::Set,
                })
                .allow_hyphen_values(matches!(field.kind, Kind::Number { .. } | Kind::KeepAlive))
                .value_parser(move |text: &str| {
                    field.parse(text).map_err(|allowed| format!("it must be {allowed}"))
                }),
        )
    })
}

/// The first sentence, and what 0 means where it means something of its own.
fn brief(doc: &str) -> String {
    let mut sentences = doc.split(". ");
    let first = sentences.next().unwrap_or_default().trim_end_matches('.');
    let zero = sentences.find(|sentence| sentence.starts_with("0 "));
    match zero.and_then(|sentence| sentence.split(';').next()) {
        Some(zero) => format!("{first}; {}", zero.trim_end_matches('.')),
        None => first.to_owned(),
    }
}

fn values(matches: &ArgMatches, fields: impl Iterator<Item = &'static Field>) -> Vec<(Key, Value)> {
    fields
        .filter_map(|field| {
            let mut values = matches.get_many::<Value>(field.name)?.cloned();
            let first = values.next()?;
            Some((field.key, values.fold(first, joined)))
        })
        .collect()
}

/// A flag that was repeated: its lists one after the other.
fn joined(all: Value, more: Value) -> Value {
    match (all, more) {
        (Value::List(mut all), Value::List(more)) => {
            all.extend(more);
            Value::List(all)
        }
        (_, last) => last,
    }
}

/// Makes a type's flags from rows of the table.
macro_rules! flags_from_table {
    ($type:ident, $fields:ident) => {
        impl Args for $type {
            fn augment_args(command: Command) -> Command {
                augment(command, $fields())
            }

            fn augment_args_for_update(command: Command) -> Command {
                augment(command, $fields())
            }
        }

        impl FromArgMatches for $type {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(values(matches, $fields())))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = values(matches, $fields());
                Ok(())
            }
        }
    };
}

flags_from_table!(AllSettings, all);
flags_from_table!(ModelsSetting, models_only);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_has_the_first_sentence_and_what_zero_means() {
        assert_eq!(
            brief(Key::Port.field().doc),
            "The port of the HTTP API; 0 lets the system choose a free one"
        );
        let threads = brief(Key::Threads.field().doc);
        assert_eq!(
            threads,
            "Threads that compute answers; 0 is one less than the machine has cores"
        );
        assert_eq!(brief(Key::Bind.field().doc), "The address the HTTP API listens on");
        assert!(FIELDS.iter().all(|field| brief(field.doc).len() <= 130));
    }
}
