//! `tirami transfer`: gives TRM of the node's own account to another node.

use clap::Args;
use tirami_sdk::Amount;
use tirami_sdk::types::TransferRequest;

use super::mesh::signed;
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::settings::Global;

/// Whom to give how much.
#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    /// The receiver, by its 64 hexadecimal digits.
    party: String,
    /// How much, in TRM.
    amount: Amount,
    /// A word for this transfer: repeated with the same word it is not made twice [default: a
    /// new one].
    #[arg(long, value_name = "WORD")]
    key: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: TransferArgs, out: Output) -> Result<Exit, Failure> {
    let client = connect(global, Need::Owner).await?;
    let idempotency_key = match args.key {
        Some(key) => key,
        None => new_key()?,
    };
    let request = TransferRequest { to: args.party, amount_trm: args.amount, idempotency_key };
    let sent = client.transfer(&request).await.map_err(|error| {
        let mut failure = Failure::from(error);
        if failure.exit == Exit::Unreachable {
            failure.message.push_str(&format!(
                "; it may have been made: repeat it with --key {}, which never pays twice",
                request.idempotency_key
            ));
        }
        failure
    });
    signed(&sent?, out);
    Ok(Exit::Done)
}

fn new_key() -> Result<String, Failure> {
    let drawn = tirami_node::keys::random::<12>();
    let drawn = drawn.map_err(|error| Failure::new(Exit::Unexpected, error))?;
    Ok(drawn.iter().map(|byte| format!("{byte:02x}")).collect())
}
