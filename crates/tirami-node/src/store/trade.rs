//! What of the journal is a trade: a job this node's agents paid for, whoever did it, and a job
//! it did for another node.

use tirami_core::{AgentId, PartyId};
use tirami_ledger::event::{BookEvent, HoldPosted, ServedFinished};

use super::reader::TradeRow;

/// In the place of the node where who it is does not matter.
pub(super) const NOBODY: PartyId = PartyId::from_bytes([0; 32]);

/// The trade that a fact of the book is, seen from the node `own`; none for any other fact.
pub(super) fn trade_of(event: &BookEvent, own: PartyId, cursor: i64) -> Option<TradeRow> {
    match event {
        BookEvent::HoldPosted(posted) => Some(paid(posted, own, cursor)),
        BookEvent::ServedFinished(finished) if !finished.amount.is_zero() => {
            Some(served(finished, own, cursor))
        }
        _ => None,
    }
}

/// Another node's order is signed by this node, a local one by the agent itself.
fn paid(posted: &HoldPosted, own: PartyId, cursor: i64) -> TradeRow {
    TradeRow {
        cursor,
        trade: posted.order,
        job: posted.job,
        payer: posted.agent,
        consumer: posted.provider.map_or(posted.agent.party(), |_| own),
        provider: posted.provider.unwrap_or(own),
        model: posted.model,
        prompt_tokens: posted.prompt_tokens,
        completion_tokens: posted.completion_tokens,
        flop: posted.flop,
        amount: posted.amount,
        paid: None,
        finish: posted.finish,
        receipt: posted.receipt,
        at: posted.at,
    }
}

fn served(finished: &ServedFinished, own: PartyId, cursor: i64) -> TradeRow {
    TradeRow {
        cursor,
        trade: finished.order,
        job: finished.job,
        payer: AgentId::from_bytes(*finished.consumer.as_bytes()),
        consumer: finished.consumer,
        provider: own,
        model: finished.model,
        prompt_tokens: finished.prompt_tokens,
        completion_tokens: finished.completion_tokens,
        flop: finished.flop,
        amount: finished.amount,
        paid: None,
        finish: finished.finish,
        receipt: finished.receipt,
        at: finished.at,
    }
}
