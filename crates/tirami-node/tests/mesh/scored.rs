//! What is told of a prompt through the mesh: providers that leave a part of it out, and those that
//! are lost when all is told.

use std::time::Duration;

use serde_json::{Value, json};
use tirami_core::{Ppm, Trm};
use tirami_kernel::scheduler::FAILURE_NEUTRAL_PPM;
use tirami_ledger::book::ServingPolicy;
use tirami_ledger::command::{Actor, Command};
use tirami_node::mesh::{IncomingJob, JobStream};
use tirami_proto::{Likelihood, Likely, TOKEN_BYTES_MAX, ToConsumer, ToProvider};

use crate::blame::{failures, offered};
use crate::jobs_support::{Mesh, TestNode, script};
use crate::orders::{Consumer, SHAPE};
use crate::support::{SOON, until};

const PATH: &str = "/v1/completions";

/// Asks `provider` first how likely "hi!" is, and for nothing after it.
fn request(provider: &TestNode) -> Value {
    json!({
        "model": "fake", "prompt": [104, 105, 33], "echo": true, "logprobs": 0, "max_tokens": 0,
        "provider": {"order": [provider.party().to_string()]},
    })
}

fn told(token: u8) -> ToConsumer {
    told_as(token, 1)
}

/// The same, with a text that repeats the token.
fn told_as(token: u8, times: usize) -> ToConsumer {
    let chosen = Likely { bytes: vec![token], logprob_bits: (-0.5_f32).to_bits() };
    let likelihoods = vec![Likelihood { chosen, top: Vec::new() }];
    ToConsumer::Prompt { tokens: 1, text: vec![token; times], likelihoods }
}

/// Takes a job and says this of its prompt.
async fn tells(job: &mut IncomingJob, said: &[ToConsumer]) {
    let Some(ToProvider::Request(_)) = job.receive.next().await.unwrap() else { panic!() };
    let accepted = ToConsumer::Accepted { prompt_tokens: 3, completion_max: 0, window_tokens: 32 };
    job.send.send(&accepted).await.unwrap();
    for frame in said {
        job.send.send(frame).await.unwrap();
    }
}

/// Takes a job, tells all that is asked of "hi!", and gets the voucher for it.
async fn is_signed_for(job: &mut IncomingJob) {
    tells(job, &b"hi!".map(told)).await;
    let signed = job.receive.next().await.unwrap();
    assert!(matches!(signed, Some(ToProvider::Voucher(_))), "{signed:?}");
}

/// The answer that the provider itself gives.
fn right(answer: &Value) -> bool {
    let logprobs = &answer["choices"][0]["logprobs"];
    answer["choices"][0]["text"] == "hi!"
        && logprobs["tokens"] == json!(["h", "i", "!"])
        && logprobs["token_logprobs"] == json!([null, -0.5, -0.5])
}

#[test]
fn a_provider_that_tells_too_little_or_too_much_of_a_scored_text_has_failed_and_another_reads_it() {
    let (tokens, text, likelihoods) = (vec![0], "word ".to_owned(), Vec::new());
    let token = ToConsumer::Tokens { tokens, text, likelihoods };
    let lies = [
        ("a part is left out", vec![told(b'h'), told(b'i'), token]),
        ("a token is too long", vec![told_as(b'h', TOKEN_BYTES_MAX + 1)]),
    ];
    for (what, lie) in lies {
        let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
        let (user, liar) = (mesh.user(), mesh.add_user());
        let mut incoming = liar.peer.node.incoming_jobs().unwrap();
        offered(&mesh, &liar);
        let (status, answer) = std::thread::scope(|scope| {
            scope.spawn(|| {
                liar.peer.block_on(async {
                    let mut job = incoming.recv().await.unwrap();
                    tells(&mut job, &lie).await;
                    while let Ok(Some(_)) = job.receive.next().await {}
                });
            });
            user.send(PATH, &request(&liar))
        });
        assert_eq!(status, 200, "{what}: {answer}");
        assert!(right(&answer), "{what}: {answer}");
        let info = &answer["x_tirami"];
        assert_eq!(info["provider"], mesh.provider(0).party().to_string(), "{what}: {info}");
        assert_eq!(info["trade_id"], user.trades()[0]["trade_id"], "{what}: {info}");
        assert!(failures(user, liar.party()) > FAILURE_NEUTRAL_PPM, "{what}");
        assert_eq!(user.trades().len(), 1, "{what}");
        until("no hold is left", SOON, || user.open_holds() == 0);
    }
}

#[test]
fn who_told_all_of_a_scored_text_is_paid_once_also_without_its_receipt() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, lost) = (mesh.user(), mesh.add_user());
    let mut incoming = lost.peer.node.incoming_jobs().unwrap();
    offered(&mesh, &lost);
    let (status, answer) = std::thread::scope(|scope| {
        scope.spawn(|| {
            lost.peer.block_on(async {
                let mut job = incoming.recv().await.unwrap();
                is_signed_for(&mut job).await;
            });
        });
        user.send(PATH, &request(&lost))
    });
    assert_eq!(status, 200, "{answer}");
    assert!(right(&answer), "{answer}");
    let cost: tirami_sdk::Amount = answer["x_tirami"]["trm_cost"].to_string().parse().unwrap();
    assert_eq!(cost.trm(), SHAPE.work(0, 3).cost_ceil(Ppm::ONE), "{answer}");
    assert_eq!(user.trades().len(), 1);
    assert!(mesh.provider(0).trades().is_empty(), "nobody reads it again");
    until("no hold is left", SOON, || user.open_holds() == 0);
}

#[test]
fn a_provider_is_paid_for_a_scored_text_by_its_receipt() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let mut bought = Vec::new();
    // On a machine that does other things a receipt may come too late; its voucher pays it then.
    until("it is paid by a receipt", SOON, || {
        let (status, answer) = user.send(PATH, &request(provider));
        assert_eq!(status, 200, "{answer}");
        assert!(right(&answer), "{answer}");
        bought = user.trades();
        !bought[0]["receipt_id"].is_null()
    });
    let sold = provider.trades();
    assert_eq!(bought.len(), sold.len(), "{bought:?} {sold:?}");
    for field in ["trade_id", "trm_amount", "prompt_tokens", "completion_tokens", "receipt_id"] {
        assert_eq!(bought[0][field], sold[0][field], "{field}");
    }
    assert_eq!(
        (&bought[0]["prompt_tokens"], &bought[0]["completion_tokens"]),
        (&json!(3), &json!(0))
    );
    let cost: tirami_sdk::Amount = bought[0]["trm_amount"].to_string().parse().unwrap();
    assert_eq!(cost.trm(), SHAPE.work(0, 3).cost_ceil(Ppm::ONE));
    until("nothing runs", SOON, || user.open_holds() == 0 && provider.served_running() == 0);
}

#[test]
fn a_provider_that_waits_for_its_voucher_says_that_it_lives_and_hears_its_owner() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    mesh.generous();
    let (node, provider) = (mesh.add_user(), mesh.provider(0));
    let body = serde_json::to_vec(&request(provider)).unwrap();
    let consumer = Consumer::new(&node, provider.party(), body);
    // Waits until all is told, and until it said twice after that that it lives.
    let told = |n| {
        let order = consumer.sign(consumer.order(n));
        let (mut stream, first) = consumer.send_to(PATH, order.clone());
        assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
        let (mut told, mut words) = (0, 0);
        while words < 2 {
            match node.peer.block_on(stream.receive.next()).unwrap() {
                Some(ToConsumer::Prompt { tokens, .. }) => told += tokens,
                Some(ToConsumer::Working { .. }) => words += u32::from(told == 3),
                other => panic!("{other:?}"),
            }
        }
        (order, stream)
    };
    let last = |stream: &mut JobStream| {
        node.peer.block_on(async {
            loop {
                match stream.receive.next().await.unwrap() {
                    Some(ToConsumer::Working { .. }) => {}
                    other => break other,
                }
            }
        })
    };
    let (order, mut stream) = told(1);
    let read = SHAPE.work(0, 3).cost_ceil(Ppm::ONE);
    let voucher = consumer.voucher_with(&order, 1, &[], |voucher| voucher.amount = read);
    node.peer.block_on(stream.send.send(&voucher)).unwrap();
    let end = last(&mut stream);
    assert!(matches!(end, Some(ToConsumer::End { .. })), "{end:?}");

    let (_, mut stream) = told(2);
    let policy = provider.peer.read(|kernel| kernel.ledger().book().serving().clone());
    let paused = ServingPolicy { paused: true, paused_by_owner: true, ..policy };
    provider.submit(Actor::Node, Command::SetServing(paused));
    let failed = last(&mut stream);
    assert!(matches!(failed, Some(ToConsumer::Failed { invalid: None, .. })), "{failed:?}");
    drop(stream);
    until("nothing runs", SOON, || provider.served_running() == 0);
    assert_eq!(provider.trades().len(), 1, "what was not signed for is not paid");
}

/// Two texts, of which `provider` alone is asked how likely they are.
fn two(provider: &TestNode) -> Value {
    let mut request = request(provider);
    request["prompt"] = json!([[104, 105, 33], [104, 105, 63]]);
    request["provider"] = json!({"only": [provider.party().to_string()]});
    request
}

/// What one of the two costs.
fn cost() -> Trm {
    SHAPE.work(0, 3).cost_ceil(Ppm::ONE)
}

#[test]
fn of_two_scored_texts_one_that_is_complete_in_time_is_told_and_paid() {
    let mesh = Mesh::of(&[]);
    let (user, provider) = (mesh.user(), mesh.add_user());
    let mut incoming = provider.peer.node.incoming_jobs().unwrap();
    offered(&mesh, &provider);
    let mut request = two(&provider);
    // It would be given up after three seconds.
    request["timeout_ms"] = json!(2_500);
    let (status, answer) = std::thread::scope(|scope| {
        scope.spawn(|| {
            provider.peer.block_on(async {
                let mut first = incoming.recv().await.unwrap();
                tells(&mut first, &b"hi!".map(told)).await;
                let mut second = incoming.recv().await.unwrap();
                tells(&mut second, &[]).await;
                drop(first.receive.next().await);
                drop(first);
                while let Ok(Some(_)) = second.receive.next().await {}
            });
        });
        user.send(PATH, &request)
    });
    assert_eq!(status, 200, "{answer}");
    assert!(right(&answer), "{answer}");
    let info = &answer["x_tirami"];
    assert_eq!(info["ended_by"], "deadline", "{info}");
    let paid: tirami_sdk::Amount = info["trm_cost"].to_string().parse().unwrap();
    assert_eq!((paid.trm(), user.trades().len()), (cost(), 1), "{info}");
    until("no hold is left", SOON, || user.open_holds() == 0);
}

#[test]
fn where_one_of_two_scored_texts_fails_the_error_says_what_the_other_one_cost() {
    let mesh = Mesh::of(&[]);
    let (user, provider) = (mesh.user(), mesh.add_user());
    let mut incoming = provider.peer.node.incoming_jobs().unwrap();
    offered(&mesh, &provider);
    let (status, error) = std::thread::scope(|scope| {
        scope.spawn(|| {
            provider.peer.block_on(async {
                let mut first = incoming.recv().await.unwrap();
                is_signed_for(&mut first).await;
                let mut second = incoming.recv().await.unwrap();
                tells(&mut second, &[]).await;
            });
        });
        user.send(PATH, &two(&provider))
    });
    assert!(status >= 500, "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    let told = format!("in all {} TRM were charged", cost());
    assert!(message.contains(&told), "{told}: {message}");
    assert_eq!(user.trades().len(), 1);
    until("no hold is left", SOON, || user.open_holds() == 0);
}
