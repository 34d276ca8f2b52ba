//! A node whose own engine gives a job up before it makes anything of it, because others have its
//! place in the queue, has another node do the job.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tirami_core::Trm;
use tirami_infer::engine::Engine;
use tirami_ledger::book::{ApprovalId, Limits, Target};
use tirami_ledger::command::{Actor, Command};

use crate::engines::{Odd, Trouble, Troubles};
use crate::jobs_support::{Mesh, Stream, TestNode, ask, words};
use crate::support::{SOON, until};

/// The build of the engines that do not give way.
const OTHER: &str = "other";

/// A mesh of which the first provider's engine gives way to others for each of a few prompts, of
/// one to so many tokens, once.
fn giving_way(prompts: usize, others: usize) -> Mesh {
    let troubles = Troubles::new(&vec![Trouble::GivesWay; prompts]);
    let first: Arc<dyn Engine> = Odd::with(5, 0, troubles, |_| {});
    let other = || Odd::with(5, 0, Troubles::new(&[]), |info| info.build = OTHER.to_owned());
    let others = (0..others).map(|_| other() as Arc<dyn Engine>);
    let mesh = Mesh::with(std::iter::once(first).chain(others).collect());
    mesh.generous();
    mesh.funded(mesh.provider(0));
    mesh
}

/// A chat whose prompt has `tokens` tokens.
fn ask_with(tokens: usize, stream: bool) -> Value {
    let mut request = ask(9, stream);
    request["messages"][0]["content"] = json!("long".repeat(tokens));
    request
}

#[test]
fn a_job_that_gives_way_here_is_done_elsewhere_and_the_answer_says_so() {
    let mesh = giving_way(2, 1);
    let (asking, other) = (mesh.provider(0), mesh.provider(1));
    until("it knows the other one", SOON, || asking.knows(other.party()));
    let whole = asking.post(&ask_with(1, false));
    assert_eq!(whole["choices"][0]["message"]["content"], words(5), "{whole}");
    let streamed = Stream::open(asking, &ask_with(2, true)).rest();
    assert_eq!((streamed.text.as_str(), streamed.done), (words(5).as_str(), true), "{streamed:?}");
    let says =
        |chunk: &&Value| !chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").is_empty();
    let said = streamed.chunks.iter().find(says).unwrap();
    for told in [&whole, said] {
        assert_eq!(told["system_fingerprint"], OTHER, "it is the build that made it: {told}");
    }
    for info in [&whole["x_tirami"], streamed.info()] {
        assert_eq!(info["provider"], other.party().to_string(), "{info}");
        let route = &info["route"];
        assert_eq!(route["kind"], "mesh", "{route}");
        assert!(route["reason"].as_str().unwrap().contains("own engine"), "{route}");
        let attempts = route["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 2, "{route}");
        let (gave_up, did) = (&attempts[0], &attempts[1]);
        assert_eq!(gave_up["provider"], asking.party().to_string());
        assert!(gave_up["ended"].as_str().unwrap().contains("full"), "{gave_up}");
        assert_eq!((&gave_up["completion_tokens"], &gave_up["trm_cost"]), (&json!(0), &json!(0)));
        assert_eq!((&did["completion_tokens"], &did["repeated_tokens"]), (&json!(5), &json!(0)));
        assert_eq!(did["trm_cost"], info["trm_cost"], "one of them is paid");
    }
    assert_eq!((asking.trades().len(), asking.open_holds()), (2, 0));
}

#[test]
fn a_job_that_gave_way_here_may_have_as_many_providers_as_any_other() {
    let engine = |n: usize| -> Arc<dyn Engine> {
        let troubles = if n == 0 { vec![Trouble::GivesWay] } else { Vec::new() };
        let engine = Odd::with(7, 0, Troubles::new(&troubles), |_| {});
        // Three of them make two tokens each; the last one has only one left to make.
        engine.fail_after.store(2, Ordering::Relaxed);
        engine
    };
    let mesh = Mesh::with((0..4).map(engine).collect());
    mesh.generous();
    let asking = mesh.provider(0);
    mesh.funded(asking);
    for n in 1..4 {
        until("it knows the others", SOON, || asking.knows(mesh.provider(n).party()));
    }
    let whole = asking.post(&ask_with(1, false));
    assert_eq!(whole["choices"][0]["message"]["content"], words(7), "{whole}");
    let attempts = &whole["x_tirami"]["route"]["attempts"];
    let made: Vec<_> =
        attempts.as_array().unwrap().iter().map(|one| &one["completion_tokens"]).collect();
    // This node's own engine is one of the four.
    assert_eq!(json!(made), json!([0, 2, 2, 2, 1]), "{attempts}");
    until("no hold is left", SOON, || asking.open_holds() == 0);
}

#[test]
fn a_job_that_gives_way_is_told_so_where_nobody_else_can_or_may_do_it() {
    let busy = |node: &TestNode, request: &Value| {
        let (status, error) = node.raw(request);
        assert_eq!((status, &error["error"]["code"]), (429, &json!("engine_busy")), "{error}");
    };
    let mesh = giving_way(2, 1);
    let (asking, other) = (mesh.provider(0), mesh.provider(1));
    until("it knows the other one", SOON, || asking.knows(other.party()));
    let own = [asking.party().to_string()];
    for (n, wish) in [(1, json!({"allow_fallbacks": false})), (2, json!({"only": own}))] {
        let mut request = ask_with(n, false);
        request["provider"] = wish;
        busy(asking, &request);
    }
    assert!(other.trades().is_empty());
    assert_eq!((asking.trades().len(), asking.open_holds()), (0, 0));

    let mesh = giving_way(1, 0);
    busy(mesh.provider(0), &ask_with(1, false));
    assert_eq!(mesh.provider(0).open_holds(), 0);
}

#[test]
fn of_two_answers_one_that_gives_way_is_told_of() {
    let mesh = giving_way(1, 1);
    let (asking, other) = (mesh.provider(0), mesh.provider(1));
    until("it knows the other one", SOON, || asking.knows(other.party()));
    let mut request = ask_with(1, false);
    request["n"] = json!(2);
    let answer = asking.post(&request);
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], words(5), "{answer}");
    }
    let route = &answer["x_tirami"]["route"];
    assert_eq!((&route["kind"], route["attempts"].as_array().unwrap().len()), (&json!("mesh"), 2));
    assert!(route["reason"].as_str().unwrap().contains("own engine"), "{route}");
}

#[test]
fn a_job_that_gives_way_and_waits_for_the_owner_elsewhere_says_so() {
    let mesh = giving_way(1, 1);
    let (asking, other) = (mesh.provider(0), mesh.provider(1));
    until("it knows the other one", SOON, || asking.knows(other.party()));
    let target = Target::Agent(asking.peer.node.personal_agent());
    let limits = Limits { approval_above: Some(Trm::ZERO), ..Limits::default() };
    asking.submit(Actor::Node, Command::SetLimits { target, limits });
    let request = ask_with(1, false);
    let waits = || {
        let (status, error) = asking.raw(&request);
        let code = &error["error"]["code"];
        assert_eq!((status, code), (403, &json!("approval_required")), "{error}");
        error["x_tirami"]["approval_id"].as_u64().unwrap()
    };
    let approve = |id: u64| {
        let approval = ApprovalId::new(id);
        asking.submit(Actor::Node, Command::DecideApproval { approval, approve: true });
    };
    let here = waits();
    approve(here);
    // The word was for the job here, which gave way.
    let there = waits();
    assert_ne!(here, there);
    assert_eq!((asking.open_holds(), asking.trades().len()), (0, 0));
    approve(there);
    assert_eq!(asking.post(&request)["choices"][0]["message"]["content"], words(5));
}
