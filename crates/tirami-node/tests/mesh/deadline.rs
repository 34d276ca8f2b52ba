//! Times that run out on the way through the mesh: the request's own, and the one by which an
//! order has to be begun.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engines::{Odd, Trouble, Troubles};
use crate::jobs_support::{Mesh, Stream, ask, script, words};
use crate::support::{SOON, until};

/// Five minutes, in which an order has to be begun, and a second.
const NOT_BEGUN_MS: u64 = 301_000;

/// A chat whose answer may take so long.
fn within(timeout_ms: u32, stream: bool) -> Value {
    let mut request = ask(200, stream);
    request["timeout_ms"] = json!(timeout_ms);
    request
}

#[test]
fn a_request_through_a_peer_ends_in_time_and_only_what_came_is_paid() {
    let engine = Odd::with(130, 0, Troubles::new(&[Trouble::Tokens(3)]), |_| {});
    let mesh = Mesh::with(vec![engine]);
    // The provider would be given up after three seconds.
    let answer = mesh.user().post(&within(2_000, false));
    assert_eq!(answer["choices"][0]["message"]["content"], words(3), "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["x_tirami"]["ended_by"], "deadline");
    until("the provider's engine is free", SOON, || {
        mesh.provider(0).running() == 0 && mesh.provider(0).served_running() == 0
    });
    let (mine, theirs) = (mesh.user().trades(), mesh.provider(0).trades());
    assert_eq!((mine.len(), theirs.len()), (1, 1), "{mine:?} {theirs:?}");
    for field in ["trade_id", "trm_amount", "completion_tokens"] {
        assert_eq!(mine[0][field], theirs[0][field], "{field}");
    }
    assert_eq!(mine[0]["completion_tokens"], 3);
    assert_eq!(mesh.user().open_holds(), 0);
}

#[test]
fn a_request_through_a_peer_that_is_not_begun_in_time_costs_nothing() {
    let mesh = Mesh::of(&[script(5, Duration::from_secs(3_600))]);
    let (status, error) = mesh.user().raw(&within(1_000, false));
    assert_eq!((status, &error["error"]["code"]), (504, &json!("deadline_exceeded")), "{error}");
    let stream = Stream::open(mesh.user(), &within(1_000, true)).rest();
    assert_eq!(stream.chunks.last().unwrap()["error"]["code"], "deadline_exceeded");
    until("the job has ended on both sides", SOON, || {
        mesh.user().open_holds() == 0
            && mesh.provider(0).served_running() == 0
            && mesh.provider(0).running() == 0
    });
    assert_eq!((mesh.user().trades().len(), mesh.provider(0).trades().len()), (0, 0));
}

#[test]
fn an_order_that_waits_in_the_queue_beyond_its_time_is_given_back_and_costs_nothing() {
    let engine = Odd::with(5, 0, Troubles::new(&[Trouble::Queue]), |_| {});
    let mesh = Mesh::with(vec![engine]);
    let (status, error) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| mesh.user().raw(&ask(9, false)));
        until("the job waits", SOON, || mesh.provider(0).running() == 1);
        mesh.clock.pass_ms(NOT_BEGUN_MS);
        waiting.join().unwrap()
    });
    assert_eq!(status, 502, "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("0 TRM were charged"), "{message}");
    until("the job has ended on both sides", SOON, || {
        mesh.user().open_holds() == 0
            && mesh.provider(0).served_running() == 0
            && mesh.provider(0).running() == 0
    });
    assert_eq!((mesh.user().trades().len(), mesh.provider(0).trades().len()), (0, 0));
}
