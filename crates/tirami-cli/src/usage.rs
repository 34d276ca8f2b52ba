//! A command line that is not understood, and the help that was asked for.

use std::ffi::OsStr;

use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::json;

use crate::cli::Cli;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Prints what `error` asks for: the help, the version, or one sentence about the mistake.
pub(crate) fn end(error: &clap::Error) -> Exit {
    let words = || std::env::args_os().skip(1).take_while(|word| word != "--");
    let out = Output::new(words().any(|word| word == "--json"));
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp => {
            out.answer(&json!({"help": text}), |_| drop(error.print()));
            return Exit::Done;
        }
        ErrorKind::DisplayVersion => {
            let version = env!("CARGO_PKG_VERSION");
            out.answer(&json!({"version": version}), |_| drop(error.print()));
            return Exit::Done;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if !out.is_json() => {
            let _ = error.print();
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let command = command_of(words());
            let message = format!("something is missing after `{command}`; see `{command} --help`");
            out.failure(&Failure::usage(message));
        }
        _ => out.failure(&Failure::usage(sentence(&text, &command_of(words())))),
    }
    Exit::Usage
}

/// The mistake, what was probably meant, and where to read on, from the parser's paragraphs.
fn sentence(text: &str, command: &str) -> String {
    let mut paragraphs = text.split("\n\n").map(|paragraph| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        words.join(" ")
    });
    let mistake = paragraphs.next().unwrap_or_default();
    let mistake = mistake.strip_prefix("error: ").unwrap_or(&mistake);
    let meant = paragraphs.find(|text| text.starts_with("tip: ") && text.contains("similar"));
    let meant = meant.map(|tip| tip.replacen("tip: ", "; ", 1)).unwrap_or_default();
    format!("{mistake}{meant}; see `{command} --help`")
}

/// The command the words name, as far as they name one.
fn command_of(words: impl Iterator<Item = impl AsRef<OsStr>>) -> String {
    let mut command = Cli::command();
    let mut path = command.get_name().to_owned();
    for word in words {
        if let Some(found) = command.find_subcommand(word.as_ref()).cloned() {
            path = format!("{path} {}", found.get_name());
            command = found;
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_mistake_is_one_sentence_that_says_where_to_read_on() {
        let cases: [(&[&str], &str); 6] = [
            (&["--jsn"], "unexpected argument '--jsn' found; a similar argument exists: '--json'"),
            (
                &["identiti"],
                "unrecognized subcommand 'identiti'; a similar subcommand exists: 'identity'",
            ),
            (&["kill"], "required arguments were not provided: <STATE>; see `tirami kill --help`"),
            (&["kill", "x"], "invalid value 'x' for '<STATE>' [possible values: on, off]; see"),
            (
                &["start", "--port", "x"],
                "it must be a whole number from 0 to 65535; see `tirami st",
            ),
            (&["keys", "rotate", "a", "--grace", "1"], "see `tirami keys rotate --help`"),
        ];
        for (words, expected) in cases {
            let line = [&["tirami"], words].concat();
            let text = Cli::try_parse_from(line).unwrap_err().render().to_string();
            let sentence = sentence(&text, &command_of(words.iter()));
            assert!(sentence.contains(expected), "{sentence}");
            assert!(!sentence.contains('\n') && !sentence.starts_with("error"), "{sentence}");
        }
    }
}
