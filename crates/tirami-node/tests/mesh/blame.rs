//! What is held against a provider when a job ends badly, and what is not.

use std::time::Duration;

use serde_json::json;
use tirami_core::{PartyId, Ppm};
use tirami_kernel::scheduler::FAILURE_NEUTRAL_PPM;
use tirami_node::mesh::{IncomingJob, STREAMS_PER_PEER_MAX, StreamError};
use tirami_proto::{ToConsumer, ToProvider};
use tokio::time::{sleep, timeout};

use crate::cheats::{lie, offer};
use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::orders::key_of;
use crate::support::{SOON, until};

/// How often `provider` fails, as `node` counts it.
pub(crate) fn failures(node: &TestNode, provider: PartyId) -> u64 {
    node.peer
        .read(move |kernel| kernel.mesh().opinions().known(provider, kernel.clock()).failure_ppm)
}

/// Has `provider`, which is a test, offer the model, and waits until the user knows.
pub(crate) fn offered(mesh: &Mesh, provider: &TestNode) {
    let party = provider.party();
    offer(provider, Ppm::ONE);
    until("the offer is known", SOON, || {
        mesh.user().peer.read(move |kernel| kernel.mesh().signal(party).is_some())
    });
}

#[test]
fn a_long_request_that_a_provider_begins_to_read_late_is_answered() {
    let mesh = Mesh::of(&[]);
    let slow = mesh.add_user();
    let mut incoming = slow.peer.node.incoming_jobs().unwrap();
    offered(&mesh, &slow);
    let (key, id) = (key_of(&slow), slow.peer.node.handle().mesh());
    let mut request = ask(9, false);
    // Eight times what arrives before anybody reads it.
    request["user"] = json!("x".repeat(1 << 20));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            slow.peer.block_on(async {
                let job = incoming.recv().await.unwrap();
                sleep(Duration::from_secs(3)).await;
                lie(job, key, id, |_| {}).await;
            });
        });
        let answer = mesh.user().post(&request);
        assert_eq!(answer["choices"][0]["message"]["content"], "word word word ", "{answer}");
    });
    let failures = failures(mesh.user(), slow.party());
    assert!(failures <= FAILURE_NEUTRAL_PPM, "{failures}");
}

#[test]
fn that_a_node_has_as_many_streams_as_it_may_is_held_against_no_provider() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, party) = (mesh.user(), mesh.provider(0).party());
    let streams = user.peer.node.job_streams().unwrap();
    let held = user.peer.block_on(async {
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_secs(2), streams.open(party)).await {
            held.push(stream);
            assert!(held.len() <= STREAMS_PER_PEER_MAX as usize);
        }
        held
    });
    // One of them may be the connection's own.
    assert!(held.len() + 1 >= STREAMS_PER_PEER_MAX as usize, "{}", held.len());
    let (status, answer) = user.raw(&ask(3, false));
    assert_eq!(status, 503, "{answer}");
    let told = answer["error"]["message"].as_str().unwrap();
    assert!(told.contains("as many jobs of this node as it takes"), "{told}");
    drop(held);
    let failures = failures(user, party);
    assert!(failures <= FAILURE_NEUTRAL_PPM, "{failures}: {answer}");
}

#[test]
fn a_request_that_is_not_taken_is_taken_back_and_not_cut_short() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let slow = mesh.add_user();
    let mut incoming = slow.peer.node.incoming_jobs().unwrap();
    offered(&mesh, &slow);
    let mut request = ask(3, false);
    request["user"] = json!("x".repeat(1 << 20));
    request["provider"] = json!({"order": [slow.party().to_string()]});
    let (answers, answered) = std::sync::mpsc::channel();
    let (slow, incoming) = (&slow, &mut incoming);
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut job = slow.peer.block_on(incoming.recv()).unwrap();
            answered.recv().unwrap();
            slow.peer.block_on(job.receive.next())
        });
        mesh.user().post(&request);
        answers.send(()).unwrap();
        let read = reading.join().unwrap();
        // An end within the request would count as a request that was withheld.
        let Err(StreamError::Ended(why)) = &read else { panic!("{read:?}") };
        assert!(!why.contains("in the middle"), "{why}");
    });
}

/// Takes one order, and refuses it after so long.
async fn refuses(mut job: IncomingJob, after: Duration) {
    let Some(ToProvider::Request(_)) = job.receive.next().await.unwrap() else { panic!() };
    sleep(after).await;
    let refused = ToConsumer::Refused {
        code: "order_exposure".to_owned(),
        message: "told to".to_owned(),
        retry_after_ms: Some(1_000),
        invalid: None,
        receipt: None,
    };
    // Whoever ordered may have gone elsewhere by now.
    drop(job.send.send(&refused).await);
    while let Ok(Some(_)) = job.receive.next().await {}
}

#[test]
fn a_refusal_that_kept_the_job_from_others_is_a_failure() {
    for (after, is_failure) in [(Duration::ZERO, false), (Duration::from_secs(4), true)] {
        let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
        let (user, unwilling) = (mesh.user(), mesh.add_user());
        let party = unwilling.party();
        let mut incoming = unwilling.peer.node.incoming_jobs().unwrap();
        offered(&mesh, &unwilling);
        let mut request = ask(3, false);
        request["provider"] = json!({"order": [party.to_string()]});
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unwilling.peer.block_on(async {
                    refuses(incoming.recv().await.unwrap(), after).await;
                });
            });
            user.post(&request);
        });
        let failures = failures(user, party);
        assert_eq!(failures > FAILURE_NEUTRAL_PPM, is_failure, "{after:?}: {failures}");
    }
}

/// Takes one job that is to read texts, and gives it up.
async fn gives_up(mut job: IncomingJob) {
    let Some(ToProvider::Request(_)) = job.receive.next().await.unwrap() else { panic!() };
    let accepted = ToConsumer::Accepted { prompt_tokens: 3, completion_max: 0, window_tokens: 32 };
    job.send.send(&accepted).await.unwrap();
    let failed = ToConsumer::Failed { reason: "told to".to_owned(), invalid: None };
    job.send.send(&failed).await.unwrap();
    while let Ok(Some(_)) = job.receive.next().await {}
}

#[test]
fn a_provider_that_gives_texts_up_at_once_has_not_failed() {
    for (others, status) in [(vec![], 503), (vec![script(3, Duration::ZERO)], 200)] {
        let mesh = Mesh::of(&others);
        let (user, unwilling) = (mesh.user(), mesh.add_user());
        let party = unwilling.party();
        let mut incoming = unwilling.peer.node.incoming_jobs().unwrap();
        offered(&mesh, &unwilling);
        let (only, order) = ([party.to_string()], [party.to_string()]);
        let request = json!({"model": "fake", "input": ["abc"], "provider": {"order": order}});
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unwilling.peer.block_on(async { gives_up(incoming.recv().await.unwrap()).await });
            });
            let (told, answer) = user.send("/v1/embeddings", &request);
            assert_eq!(told, status, "{answer}");
        });
        assert_eq!(failures(user, party), FAILURE_NEUTRAL_PPM);
        if status == 503 {
            // It may have been the fault of the texts.
            let plan = json!({"model_id": "fake", "provider": {"only": only}});
            let (_, plan) = user.send("/v1/tirami/schedule", &plan);
            assert_eq!(plan["provider"], party.to_string(), "{plan}");
        }
        until("no hold is left", SOON, || user.open_holds() == 0);
    }
}
