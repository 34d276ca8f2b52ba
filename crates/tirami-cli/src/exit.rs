//! How a command ends: the table of exit codes, and the error every command returns.

use std::fmt;
use std::io::Write as _;

use tirami_node::config::ConfigError;
use tirami_sdk::ClientError;

/// The exit codes. A released number never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It was done.
    Done = 0,
    /// Something nobody foresaw.
    Unexpected = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The config file, a variable or an option is wrong.
    Config = 3,
    /// The account book cannot be used.
    Store = 4,
    /// The model or its engine cannot be used.
    Model = 5,
    /// No node answers.
    Unreachable = 6,
    /// The node refused.
    Refused = 7,
    /// A download failed.
    Network = 8,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// Every code with its meaning, for the help and the reference page.
    pub(crate) const TABLE: [(Self, &'static str); 10] = [
        (Self::Done, "done"),
        (Self::Unexpected, "something unexpected went wrong"),
        (Self::Usage, "the command line is wrong"),
        (Self::Config, "the config file or a variable is wrong"),
        (Self::Store, "the account book is damaged, locked, read-only, or the disk is full"),
        (Self::Model, "the model or its engine cannot be used"),
        (Self::Unreachable, "no node answers"),
        (Self::Refused, "the node refused the request"),
        (Self::Network, "a download failed"),
        (Self::Interrupted, "interrupted"),
    ];

    /// The number the process ends with.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }
}

/// Ends the process now. Neither a thread of the model, which may be in the middle of its work,
/// nor an open connection can delay or spoil it: nothing of theirs is taken down first.
pub(crate) fn quit(exit: Exit) -> ! {
    let _ = std::io::stdout().lock().flush();
    #[cfg(unix)]
    signal_hook::low_level::exit(i32::from(exit.code()));
    #[cfg(not(unix))]
    std::process::exit(i32::from(exit.code()));
}

/// Why a command did not do what it was asked: an exit code and a sentence that says what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// What happened and what to do.
    pub(crate) message: String,
    /// The node's stable code, when the node refused.
    pub(crate) code: Option<String>,
}

impl Failure {
    /// A failure of this kind.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), code: None }
    }

    /// The command line asks for something that makes no sense.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Url { .. } | ClientError::ApiKey => Exit::Config,
            ClientError::Unreachable { .. } | ClientError::Connection { .. } => Exit::Unreachable,
            ClientError::Refused(_) => Exit::Refused,
            ClientError::Answer { .. } => Exit::Unexpected,
        };
        let mut message = error.to_string();
        if let Some(extra) = error.refusal().and_then(|refusal| refusal.extra.as_ref()) {
            let id = extra.approval_id;
            message = format!(
                "this would cost up to {} TRM and waits for a person; run `tirami approve {id}`, \
                 then repeat it",
                extra.max_amount_trm
            );
        }
        Self { exit, message, code: error.code().map(ToOwned::to_owned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_number_once_and_in_order() {
        let codes: Vec<u8> = Exit::TABLE.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 130]);
    }
}
