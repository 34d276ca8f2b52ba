//! What a user sees when a provider stands still, when this node's own engine goes on, and what
//! such an answer may cost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tirami_core::Trm;
use tirami_infer::engine::Engine;
use tirami_ledger::book::{Limits, Target};
use tirami_ledger::command::{Actor, Command};

use crate::engines::{Odd, Trouble, Troubles};
use crate::jobs_support::{Answer, Mesh, Stream, ask, micro, script, words};
use crate::support::{SOON, until};

fn attempts(answer: &Answer) -> &[Value] {
    answer.info()["route"]["attempts"].as_array().unwrap()
}

/// A chat whose prompt has `tokens` tokens.
fn ask_with(tokens: usize, most: u32) -> Value {
    let mut request = ask(most, true);
    request["messages"][0]["content"] = json!("long".repeat(tokens));
    request
}

#[test]
fn a_provider_that_stands_still_is_left_within_five_seconds_and_a_slow_one_is_not() {
    let all = [
        Trouble::Prefill,
        Trouble::Queue,
        Trouble::Tokens(1),
        Trouble::Tokens(10),
        Trouble::Tokens(100),
        Trouble::End,
        Trouble::SlowThenStill,
        Trouble::SlowReader,
        Trouble::SlowWriter,
    ];
    let troubles = Troubles::new(&all);
    let engine = || -> Arc<dyn Engine> { Odd::with(130, 5, troubles.clone(), |_| {}) };
    let mesh = Mesh::with(vec![engine(), engine(), engine()]);
    mesh.generous();
    let run = |n: usize| Stream::open(mesh.user(), &ask_with(n, 200)).rest();
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (1..=all.len()).map(|n| scope.spawn(move || run(n))).collect();
        jobs.into_iter().map(|job| job.join().unwrap()).collect()
    });
    for (trouble, answer) in all.iter().zip(answers) {
        assert_eq!(answer.text, words(130), "{trouble:?}");
        let parts = attempts(&answer);
        let made = |n: usize| parts[n]["completion_tokens"].as_u64().unwrap();
        if matches!(trouble, Trouble::SlowReader | Trouble::SlowWriter) {
            assert_eq!(parts.len(), 1, "{parts:?}");
            continue;
        }
        assert!(answer.longest_pause < Duration::from_secs(5), "{trouble:?}: {answer:?}");
        assert_eq!(parts.len(), 2, "{trouble:?}: {parts:?}");
        assert_ne!(parts[0]["provider"], parts[1]["provider"], "{trouble:?}");
        let (first, ended) = match trouble {
            Trouble::Prefill => (0, "stood still after reading 1 tokens"),
            Trouble::Queue => (0, "waiting at place 2 of its queue"),
            Trouble::Tokens(count) => (*count as u64, "no token came"),
            Trouble::SlowThenStill => (3, "no token came"),
            _ => (130, "no token came"),
        };
        assert_eq!(made(0), first, "{trouble:?}: {parts:?}");
        assert!(parts[0]["ended"].as_str().unwrap().contains(ended), "{parts:?}");
        assert_eq!(made(0) + made(1), 130, "{trouble:?}");
        // Nobody is paid for standing still, and what is read twice is shown.
        assert_eq!(micro(&parts[0]["trm_cost"]) > 0, first > 0, "{trouble:?}");
        let again = if made(1) > 0 { parts[1]["prompt_tokens"].clone() } else { json!(0) };
        assert_eq!(parts[1]["repeated_tokens"], again, "{trouble:?}");
        assert_eq!(parts[0]["repeated_tokens"], 0);
        let sum: u64 = parts.iter().map(|part| micro(&part["trm_cost"])).sum();
        assert_eq!(micro(&answer.info()["trm_cost"]), sum, "{trouble:?}");
    }
    until("no hold is left", SOON, || mesh.user().open_holds() == 0);
}

#[test]
fn a_slow_provider_is_waited_for_where_nobody_else_can_answer() {
    let engine = Odd::with(5, 0, Troubles::new(&[Trouble::Queue]), |_| {});
    let mesh = Mesh::with(vec![engine]);
    let started = Instant::now();
    let stream = Stream::open(mesh.user(), &ask_with(1, 9));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(mesh.provider(0).served_running(), 1, "after {:?}", started.elapsed());
    drop(stream);
    until("the job has ended", SOON, || mesh.user().open_holds() == 0);
}

#[test]
fn a_node_that_has_the_model_goes_on_itself() {
    let mut mesh =
        Mesh::of(&[script(130, Duration::from_millis(15)), script(130, Duration::from_millis(15))]);
    let (here, there) = (mesh.provider(0).party(), mesh.provider(1).party());
    mesh.funded(mesh.provider(0));
    until("it knows the other one", SOON, || mesh.provider(0).knows(there));
    let mut request = ask(200, true);
    request["provider"] = json!({"order": [there.to_string()]});
    let mut stream = Stream::open(mesh.provider(0), &request);
    stream.until_words(10);
    assert_eq!(mesh.kill_running(), there);
    let answer = stream.rest();
    assert_eq!(answer.text, words(130));
    assert!(answer.longest_pause < Duration::from_secs(5), "{:?}", answer.longest_pause);
    let parts = attempts(&answer);
    assert_eq!(parts.len(), 2, "{parts:?}");
    assert_eq!(parts[0]["provider"], there.to_string());
    assert_eq!(parts[1]["provider"], here.to_string());
    let made = |n: usize| parts[n]["completion_tokens"].as_u64().unwrap();
    assert!(made(0) >= 10 && made(0) + made(1) == 130, "{parts:?}");
    let sum: u64 = parts.iter().map(|part| micro(&part["trm_cost"])).sum();
    assert_eq!(micro(&answer.info()["trm_cost"]), sum);
    let trades = mesh.provider(0).trades();
    let paid: u64 = trades.iter().map(|trade| micro(&trade["trm_amount"])).sum();
    assert_eq!((trades.len(), paid), (2, sum), "{trades:?}");
    assert_eq!(mesh.provider(0).open_holds(), 0);

    // The one that was asked for is gone, and others may answer: the next best is this node.
    request["stream"] = json!(false);
    let answer = mesh.provider(0).post(&request);
    assert_eq!(answer["choices"][0]["message"]["content"], words(130));
    assert_eq!(answer["x_tirami"]["route"]["kind"], "local", "{answer}");
    request["provider"]["allow_fallbacks"] = json!(false);
    assert_eq!(mesh.provider(0).raw(&request).0, 503);
}

#[test]
fn another_provider_goes_on_where_this_nodes_own_engine_fails_too() {
    let engine = |n| -> Arc<dyn Engine> {
        let engine = Odd::new(130, 15);
        // Only the asking node's engine has trouble, after what the first provider made.
        engine.fail_after.store(if n == 0 { 40 } else { 0 }, Ordering::Relaxed);
        engine
    };
    let mut mesh = Mesh::with(vec![engine(0), engine(1), engine(2)]);
    let asking = mesh.provider(0);
    mesh.funded(asking);
    let others = [mesh.provider(1).party(), mesh.provider(2).party()];
    until("it knows both others", SOON, || {
        asking.peer.read(move |kernel| {
            let known = kernel.mesh().providers(kernel.clock());
            let serving = known.filter(|one| one.connected && one.signal.serving);
            serving.filter(|one| others.contains(&one.signal.provider)).count() == 2
        })
    });
    let mut request = ask(200, true);
    request["provider"] = json!({"order": others.map(|party| party.to_string())});
    let mut stream = Stream::open(mesh.provider(0), &request);
    stream.until_words(10);
    let killed = mesh.kill_running();
    assert!(others.contains(&killed));
    let answer = stream.rest();
    assert_eq!(answer.text, words(130), "{answer:?}");
    assert!(answer.longest_pause < Duration::from_secs(5), "{:?}", answer.longest_pause);
    let parts = attempts(&answer);
    let by = |n: usize| parts[n]["provider"].as_str().unwrap().to_owned();
    assert_eq!(parts.len(), 3, "{parts:?}");
    assert_eq!((by(0), by(1)), (killed.to_string(), mesh.provider(0).party().to_string()));
    assert!(others.iter().any(|party| *party != killed && by(2) == party.to_string()));
    let made = |n: usize| parts[n]["completion_tokens"].as_u64().unwrap();
    assert!(made(1) > 0 && made(0) + made(1) + made(2) == 130, "{parts:?}");
    let sum: u64 = parts.iter().map(|part| micro(&part["trm_cost"])).sum();
    assert_eq!(micro(&answer.info()["trm_cost"]), sum);
    assert_eq!(mesh.provider(0).open_holds(), 0);
}

/// Four red pixels.
const PICTURE: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4\
                       nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg==";

#[test]
fn an_answer_about_a_picture_goes_on_at_another_provider_which_reads_the_picture_too() {
    let engine = || -> Arc<dyn Engine> {
        Odd::with(60, 20, Troubles::new(&[]), |info| info.image_tokens_max = 8)
    };
    let mut mesh = Mesh::with(vec![engine(), engine()]);
    mesh.generous();
    let mut request = ask(100, true);
    request["messages"][0]["content"] = json!([
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": PICTURE}},
    ]);
    let mut stream = Stream::open(mesh.user(), &request);
    stream.until_words(10);
    mesh.kill_running();
    let answer = stream.rest();
    assert_eq!(answer.text, words(60), "{answer:?}");
    assert!(answer.longest_pause < Duration::from_secs(5), "{:?}", answer.longest_pause);
    let parts = attempts(&answer);
    assert_eq!(parts.len(), 2, "{parts:?}");
    let made = |n: usize| parts[n]["completion_tokens"].as_u64().unwrap();
    assert!(made(0) >= 10 && made(0) + made(1) == 60, "{parts:?}");
    // The text's token and the picture's eight.
    let usage = answer.chunks.iter().rfind(|chunk| chunk["usage"].is_object());
    assert!(usage.is_none_or(|chunk| chunk["usage"]["prompt_tokens"] == 9), "{usage:?}");
    assert!(mesh.user().trades().iter().any(|trade| trade["prompt_tokens"] == 9));
    assert_eq!(mesh.user().open_holds(), 0);
}

#[test]
fn an_answer_of_two_providers_costs_no_more_than_one_request_may() {
    let mut mesh =
        Mesh::of(&[script(700, Duration::from_millis(8)), script(700, Duration::from_millis(8))]);
    mesh.generous();
    // A token costs 2 000 µTRM and its attention, and a node without the model orders up to 326
    // of this prompt: the request as a whole just fits.
    let max = Trm::from_micro(2_080_000);
    let agent = Target::Agent(mesh.user().peer.node.personal_agent());
    let limits = Limits { request_max: Some(max), ..Limits::default() };
    mesh.user().submit(Actor::Node, Command::SetLimits { target: agent, limits });
    let mut stream = Stream::open(mesh.user(), &ask(600, true));
    stream.until_words(60);
    mesh.kill_running();
    let answer = stream.rest();
    let parts = attempts(&answer);
    assert_eq!(parts.len(), 2, "{parts:?}");
    assert!(micro(&answer.info()["trm_cost"]) <= max.micro(), "{parts:?}");
    let made: u64 = parts.iter().map(|part| part["completion_tokens"].as_u64().unwrap()).sum();
    assert_eq!(answer.text, words(usize::try_from(made).unwrap()));
    // The second part was shortened to what was left, and the answer says so.
    assert!((61..600).contains(&made), "{parts:?}");
    let last = answer.chunks.iter().rfind(|chunk| chunk["choices"][0].is_object()).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_client_that_does_not_read_holds_the_provider_up() {
    let engine = Odd::new(4_000, 0);
    // 16 kB for a token: 64 MB in all, which no buffer on the way takes.
    engine.fat.store(3_277, Ordering::Relaxed);
    let mesh = Mesh::with(vec![engine.clone()]);
    mesh.generous();
    let stream = Stream::open(mesh.user(), &ask(4_000, true));
    let made = || engine.load().completion_tokens_total;
    let mut before = 0;
    until("the provider waits", SOON, || {
        std::thread::sleep(Duration::from_millis(500));
        let now = made();
        core::mem::replace(&mut before, now) == now && now > 0
    });
    assert!(before < 2_000, "{before} tokens were made for nobody");
    let running = mesh.provider(0).peer.read(|kernel| {
        let served = kernel.ledger().book().served();
        served.values().next().map(|job| (job.end.is_none(), job.vouched()))
    });
    assert!(running.is_some_and(|(runs, _)| runs));
    drop(stream);
    until("the job has ended", SOON, || mesh.user().open_holds() == 0);
    until("the provider knows", SOON, || mesh.provider(0).served_running() == 0);
}

#[test]
fn who_gives_up_before_the_first_token_is_left_alone_only_where_somebody_else_answers() {
    let gives_up =
        || -> Arc<dyn Engine> { Odd::with(3, 0, Troubles::new(&[Trouble::GivesUp; 64]), |_| {}) };
    for (other, status, left_alone) in [(gives_up(), 502, false), (Odd::new(3, 0), 200, true)] {
        let mesh = Mesh::with(vec![gives_up(), other]);
        mesh.generous();
        let user = mesh.user();
        let party = |n: usize| json!(mesh.provider(n).party().to_string());
        let mut request = ask(3, false);
        request["provider"] = json!({"order": [party(0), party(1)]});
        let (told, answer) = user.raw(&request);
        assert_eq!(told, status, "{answer}");
        let plan = json!({"model_id": "fake", "provider": {"only": [party(0)]}});
        let (_, plan) = user.send("/v1/tirami/schedule", &plan);
        assert_eq!(plan["provider"] != party(0), left_alone, "{plan}");
    }
}
