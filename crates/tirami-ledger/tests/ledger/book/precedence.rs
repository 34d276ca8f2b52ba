//! The order in which refusals win, as one table: a job that offends against everything is told
//! the first reason, and mending one after another tells them all, in the order of MONEY §10.

use super::play::Play;
use crate::script;

/// What mends a reason, and the reason that then comes first.
const ORDER: [(&str, &str); 18] = [
    ("", "kill_switch"),
    ("kill off", "insufficient_scope"),
    // From here on with a key that may ask models, but was revoked.
    ("use kRevoked", "invalid_api_key"),
    ("use kA", "request_limit level=key"),
    ("limits kA hour=3 day=3 life=3 minute=3", "request_limit level=agent"),
    ("limits alice hour=3 day=3 life=3 minute=3 approval=1 spends=1", "request_limit level=node"),
    ("limits node hour=3 day=3 life=3 minute=3", "budget_limit level=key period=hour"),
    ("limits kA day=3 life=3 minute=3", "budget_limit level=agent period=hour"),
    (
        "limits alice day=3 life=3 minute=3 approval=1 spends=1",
        "budget_limit level=node period=hour",
    ),
    ("limits node day=3 life=3 minute=3", "budget_limit level=key period=day"),
    ("limits kA life=3 minute=3", "budget_limit level=agent period=day"),
    ("limits alice life=3 minute=3 approval=1 spends=1", "budget_limit level=node period=day"),
    ("limits node life=3 minute=3", "budget_limit level=key period=life"),
    ("limits kA minute=3", "budget_limit level=agent period=life"),
    ("limits alice minute=3 approval=1 spends=1", "budget_limit level=node period=life"),
    ("limits node minute=3", "velocity_limit level=key period=minute"),
    ("limits kA", "velocity_limit level=agent period=minute"),
    ("limits alice approval=1 spends=1", "velocity_limit level=node period=minute"),
];

#[test]
fn the_first_reason_in_the_order_is_the_one_told() {
    let mut play = Play::new();
    let mut take = |text: &str| script::read(text).iter().for_each(|step| play.step(step));
    take(
        "agent alice fund=4
         key kRead scope=read agent=alice
         key kRevoked scope=inference agent=alice request=3
         key kA scope=inference agent=alice request=3 hour=3 day=3 life=3 minute=3
         limits alice spends=1
         start first by=kA max=1            # opens the breaker and leaves 2 TRM
         limits alice request=3 hour=3 day=3 life=3 minute=3 approval=1 spends=1
         limits node request=3 hour=3 day=3 life=3 minute=3
         revoke kRevoked
         kill on everything",
    );
    let mut by = "kRead";
    for (mend, reason) in ORDER {
        match mend.strip_prefix("use ") {
            Some(key) => by = key,
            None => take(mend),
        }
        take(&format!("start j by={by} max=5 -> {reason}"));
    }
    take(
        "limits node
         start j by=kA max=5 -> breaker_open
         reset alice
         start j by=kA max=5 -> pending approval=1
         deny 1
         start j by=kA max=5 -> approval_denied
         after 1h
         tick
         start j by=kA max=5 -> pending approval=2
         approve 2
         start j by=kA max=5 -> insufficient_balance needed=6 available=4
         fund alice 2
         start j by=kA max=5 -> ok available=0",
    );
}
