//! Providers that say that the request itself is at fault: one of them alone is not believed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tirami_kernel::scheduler::FAILURE_NEUTRAL_PPM;
use tirami_node::mesh::IncomingJob;
use tirami_proto::{InvalidRequest, ToConsumer, ToProvider};
use tokio::sync::mpsc;

use crate::blame::{failures, offered};
use crate::engines::Odd;
use crate::jobs_support::{Mesh, TestNode, ask, script, words};
use crate::support::{SOON, until};

/// When a provider says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// In place of taking the order.
    Asked,
    /// The same, and only that its own engine lacks something.
    Lacking,
    /// After it took the order.
    Taken,
    /// After its first token.
    Begun,
}

/// Finds the next job's request invalid.
async fn finds_invalid(incoming: &mut mpsc::Receiver<IncomingJob>, when: When) {
    let mut job = incoming.recv().await.unwrap();
    let Some(ToProvider::Request(request)) = job.receive.next().await.unwrap() else { panic!() };
    let code = if when == When::Lacking { "unsupported" } else { "invalid_value" };
    let (code, message) = (code.to_owned(), "told to".to_owned());
    let invalid = Some(InvalidRequest { param: None });
    let (retry_after_ms, receipt) = (None, None);
    let refused = ToConsumer::Refused {
        code: code.clone(),
        message: message.clone(),
        retry_after_ms,
        invalid,
        receipt,
    };
    let completion_max = if request.path.contains("embeddings") { 0 } else { 9 };
    let accepted = ToConsumer::Accepted { prompt_tokens: 1, completion_max, window_tokens: 32 };
    let (tokens, text, likelihoods) = (vec![0], words(1), Vec::new());
    let token = ToConsumer::Tokens { tokens, text, likelihoods };
    let failed = ToConsumer::Failed { reason: message, invalid: Some(code) };
    let said = match when {
        When::Asked | When::Lacking => vec![refused],
        When::Taken => vec![accepted, failed],
        When::Begun => vec![accepted, token, failed],
    };
    for frame in &said {
        job.send.send(frame).await.unwrap();
    }
    while let Ok(Some(_)) = job.receive.next().await {}
}

/// Providers that are tests, each of which says it once, while `asks` asks.
fn with_liars<T>(liars: &[(&TestNode, When)], asks: impl FnOnce() -> T) -> T {
    let mut incoming: Vec<_> =
        liars.iter().map(|(liar, _)| liar.peer.node.incoming_jobs().unwrap()).collect();
    std::thread::scope(|scope| {
        for ((liar, when), incoming) in liars.iter().zip(&mut incoming) {
            scope.spawn(move || liar.peer.block_on(finds_invalid(incoming, *when)));
        }
        asks()
    })
}

fn order(liars: &[&TestNode]) -> Value {
    json!({"order": liars.iter().map(|liar| liar.party().to_string()).collect::<Vec<_>>()})
}

#[test]
fn a_request_that_one_provider_calls_invalid_is_answered_by_another() {
    for when in [When::Asked, When::Taken, When::Begun] {
        let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
        mesh.generous();
        let (user, liar) = (mesh.user(), mesh.add_user());
        offered(&mesh, &liar);
        let mut request = ask(9, false);
        request["provider"] = order(&[&liar]);
        let answer = with_liars(&[(&liar, when)], || user.post(&request));
        assert_eq!(answer["choices"][0]["message"]["content"], words(3), "{when:?}: {answer}");
        // What it delivered is paid, and nothing else.
        let paid = usize::from(when == When::Begun);
        let of_liar = user.trades().iter().filter(|one| one["completion_tokens"] == 1).count();
        assert_eq!((of_liar, user.trades().len()), (paid, paid + 1), "{when:?}");
        // Who refuses an order at once has kept nobody waiting.
        let failures = failures(user, liar.party());
        assert_eq!(failures > FAILURE_NEUTRAL_PPM, when != When::Asked, "{when:?}: {failures}");
        until("no hold is left", SOON, || user.open_holds() == 0);
    }
}

#[test]
fn a_request_that_two_providers_call_invalid_is_asked_of_no_third() {
    for when in [When::Asked, When::Taken] {
        let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
        let (user, liars) = (mesh.user(), [mesh.add_user(), mesh.add_user()]);
        liars.iter().for_each(|liar| offered(&mesh, liar));
        let mut request = ask(9, false);
        request["provider"] = order(&[&liars[0], &liars[1]]);
        // The other one says so when it is asked.
        let both = [(&liars[0], when), (&liars[1], When::Asked)];
        let (status, error) = with_liars(&both, || user.raw(&request));
        assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid_value")), "{error}");
        for liar in &liars {
            assert!(failures(user, liar.party()) <= FAILURE_NEUTRAL_PPM, "nobody contradicts");
        }
        assert!(mesh.provider(0).trades().is_empty() && user.trades().is_empty());
        until("no hold is left", SOON, || user.open_holds() == 0);
    }
}

#[test]
fn what_two_engines_lack_is_asked_of_a_third() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, liars) = (mesh.user(), [mesh.add_user(), mesh.add_user()]);
    liars.iter().for_each(|liar| offered(&mesh, liar));
    let mut request = ask(9, false);
    request["provider"] = order(&[&liars[0], &liars[1]]);
    let both = [(&liars[0], When::Lacking), (&liars[1], When::Lacking)];
    let answer = with_liars(&both, || user.post(&request));
    assert_eq!(answer["choices"][0]["message"]["content"], words(3), "{answer}");
    assert_eq!(user.trades().len(), 1);
}

#[test]
fn a_caller_that_forbids_others_is_told_what_the_only_provider_says() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, liar) = (mesh.user(), mesh.add_user());
    offered(&mesh, &liar);
    let mut request = ask(9, false);
    request["provider"] = order(&[&liar]);
    request["provider"]["allow_fallbacks"] = json!(false);
    let (status, error) = with_liars(&[(&liar, When::Taken)], || user.raw(&request));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid_value")), "{error}");
    assert!(mesh.provider(0).trades().is_empty());
    until("no hold is left", SOON, || user.open_holds() == 0);
}

#[test]
fn a_word_about_an_answer_that_another_provider_began_is_a_failure_like_any_other() {
    for when in [When::Asked, When::Taken] {
        let fails = Odd::new(5, 0);
        fails.fail_after.store(2, Ordering::Relaxed);
        let mesh = Mesh::with(vec![fails]);
        mesh.generous();
        let (user, liar) = (mesh.user(), mesh.add_user());
        offered(&mesh, &liar);
        let mut request = ask(9, false);
        request["provider"] = order(&[mesh.provider(0), &liar]);
        let (status, error) = with_liars(&[(&liar, when)], || user.raw(&request));
        let lost = (502, &json!("provider_lost"));
        assert_eq!((status, &error["error"]["code"]), lost, "{when:?}: {error}");
        let trades = user.trades();
        assert_eq!((trades.len(), &trades[0]["completion_tokens"]), (1, &json!(2)), "{trades:?}");
        let failures = failures(user, liar.party());
        assert!(when == When::Asked || failures > FAILURE_NEUTRAL_PPM, "{failures}");
        until("no hold is left", SOON, || user.open_holds() == 0);
    }
}

#[test]
fn texts_that_one_provider_calls_invalid_are_read_by_another() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, liar) = (mesh.user(), mesh.add_user());
    offered(&mesh, &liar);
    let request = json!({"model": "fake", "input": ["abc"], "provider": order(&[&liar])});
    let (status, answer) =
        with_liars(&[(&liar, When::Taken)], || user.send("/v1/embeddings", &request));
    assert_eq!(status, 200, "{answer}");
    assert!(failures(user, liar.party()) > FAILURE_NEUTRAL_PPM);
    assert_eq!(user.trades().len(), 1);
    until("no hold is left", SOON, || user.open_holds() == 0);
}
