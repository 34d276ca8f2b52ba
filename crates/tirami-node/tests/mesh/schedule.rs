//! Who gets a job, as the requester asks for it and as providers behave; and that what is asked
//! beforehand is what then happens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tirami_core::Trm;
use tirami_infer::engine::Engine;
use tirami_node::mesh::MeshOptions;

use crate::engines::{Odd, Troubles};
use crate::jobs_support::{Mesh, TestNode, ask, words};
use crate::support::{SOON, joining, on_loopback, until};

const RERANKED: Duration = Duration::from_secs(60);

/// Who would answer, and who then does.
fn chosen(user: &TestNode, wish: &Value) -> (Value, Value) {
    let plan = json!({"model_id": "fake", "max_tokens": 8, "provider": wish});
    let (_, plan) = user.send("/v1/tirami/schedule", &plan);
    let mut request = ask(8, false);
    request["provider"] = wish.clone();
    let (_, answer) = user.raw(&request);
    let of = |value: &Value, path: &str| {
        value.pointer(path).or(value.pointer("/error/code")).cloned().unwrap_or_default()
    };
    (of(&plan, "/provider"), of(&answer, "/x_tirami/provider"))
}

#[test]
fn who_is_asked_for_answers_and_whoever_gets_worse_loses_its_place() {
    let (fast, slow) = (Odd::new(8, 10), Odd::new(8, 30));
    let other = Odd::quantised(8, "Q8_0");
    let engines: Vec<Arc<dyn Engine>> = vec![fast.clone(), slow, other];
    let mesh = Mesh::with_first(engines, |config| config.price_ppm = 1_200_000);
    mesh.generous();
    let (user, party) = (mesh.user(), |n: usize| json!(mesh.provider(n).party().to_string()));
    let priced = |n: usize| {
        let id = party(n);
        let list = user.get("/v1/tirami/providers");
        let all = list["providers"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["node_id"] == id).unwrap()["price_trm"].to_string()
    };
    assert_eq!(priced(0), "1.2");
    // Both are measured.
    for _ in 0..2 {
        for n in [0, 1] {
            assert_eq!(chosen(user, &json!({"only": [party(n)]})), (party(n), party(n)));
        }
    }
    for (wish, n) in [
        (json!({"sort": "price"}), 1),
        (json!({"sort": "throughput"}), 0),
        (json!({"sort": "latency"}), 0),
        (json!({"min_throughput": 60}), 0),
        (json!({"max_price": 1.1}), 1),
        (json!({"quantizations": ["q8_0"]}), 2),
        (json!({"quantizations": ["f32"], "min_throughput": 60}), 0),
        (json!({"order": [party(1)]}), 1),
    ] {
        assert_eq!(chosen(user, &wish), (party(n), party(n)), "{wish}");
        if let Some(sort) = wish["sort"].as_str() {
            let route = user.get(&format!("/v1/tirami/route?model=fake&sort={sort}"));
            assert_eq!(route["provider"], party(n), "{sort}: {route}");
        }
    }
    let nobody = json!("no_provider");
    for wish in [json!({"min_throughput": 1_000}), json!({"max_price": 0.5})] {
        assert_eq!(chosen(user, &wish), (nobody.clone(), nobody.clone()), "{wish}");
    }

    let moves = |what: &str| {
        let wish = json!({"sort": "throughput", "quantizations": ["F32"]});
        let started = Instant::now();
        until(what, RERANKED, || chosen(user, &wish).1 == party(1));
        assert!(started.elapsed() < RERANKED);
    };
    fast.delay_ms.store(150, Ordering::Relaxed);
    moves("the one that became slow loses its place");
    fast.delay_ms.store(1, Ordering::Relaxed);
    for _ in 0..8 {
        chosen(user, &json!({"only": [party(0)]}));
    }
    let wish = json!({"sort": "throughput", "quantizations": ["F32"]});
    assert_eq!(chosen(user, &wish).1, party(0), "it is fast again");
    fast.fail_after.store(3, Ordering::Relaxed);
    let mut request = ask(8, false);
    request["provider"] = wish;
    let answer = user.post(&request);
    assert_eq!(answer["choices"][0]["message"]["content"], words(8));
    assert_eq!(answer["x_tirami"]["route"]["attempts"][0]["provider"], party(0));
    assert_eq!(answer["x_tirami"]["provider"], party(1), "the answer went on");
    let plain = json!({"quantizations": ["F32"]});
    assert_eq!(chosen(user, &plain), (party(1), party(1)), "one failure is enough");
}

#[test]
fn a_low_price_for_more_work_than_others_name_is_a_high_one() {
    // The same model, said to be a thousand times larger, at half the price.
    let larger = Odd::with(8, 1, Troubles::new(&[]), |info| info.shape.parameters_active *= 1_000);
    let engines: Vec<Arc<dyn Engine>> = vec![larger, Odd::new(8, 1)];
    let mesh = Mesh::with_first(engines, |config| config.price_ppm = 500_000);
    let (user, party) = (mesh.user(), |n: usize| json!(mesh.provider(n).party().to_string()));
    let planned = |wish: Value| {
        let plan = json!({"model_id": "fake", "max_tokens": 8, "provider": wish});
        user.send("/v1/tirami/schedule", &plan).1
    };
    let plan = planned(json!({}));
    let cost = |n: usize| {
        let all = plan["candidates"].as_array().unwrap();
        let one = all.iter().find(|one| one["provider"] == party(n)).unwrap();
        one["estimated_trm_cost"].as_f64().unwrap()
    };
    assert!(cost(0) > 100.0 * cost(1), "{plan}");
    let wish = json!({"max_price": 1.1});
    assert_eq!(chosen(user, &wish), (party(1), party(1)));
    let plan = planned(wish);
    assert_eq!(plan["candidates"].as_array().unwrap().len(), 1, "{plan}");
    let dear = json!([{"reason": "price above provider.max_price", "count": 1}]);
    assert_eq!(plan["excluded"], dear);
    let nobody = json!("no_provider");
    assert_eq!(chosen(user, &json!({"max_price": 0.6})), (nobody.clone(), nobody));
}

#[test]
fn both_readers_of_a_wish_refuse_the_same_with_the_same_words() {
    let mesh = Mesh::with(vec![Odd::new(3, 0)]);
    for (wish, param) in [
        (json!(7), "provider"),
        (json!({"zdr": true}), "provider.zdr"),
        (json!({"order": ["openai"]}), "provider.order"),
        (json!({"only": "me"}), "provider.only"),
        (json!({"ignore": [7]}), "provider.ignore"),
        (json!({"allow_fallbacks": "no"}), "provider.allow_fallbacks"),
        (json!({"quantizations": vec!["x"; 257]}), "provider.quantizations"),
        (json!({"max_price": "much"}), "provider.max_price"),
        (json!({"max_price": -1}), "provider.max_price"),
        (json!({"sort": "best"}), "provider.sort"),
        (json!({"min_throughput": -0.5}), "provider.min_throughput"),
        (json!({"data": "deny"}), "provider.data"),
    ] {
        let mut request = ask(3, false);
        request["provider"] = wish.clone();
        let chat = mesh.user().raw(&request);
        let plan = json!({"model_id": "fake", "provider": wish});
        let plan = mesh.user().send("/v1/tirami/schedule", &plan);
        assert_eq!((chat.0, &chat.1["error"]["param"]), (400, &json!(param)), "{chat:?}");
        assert_eq!(chat, plan);
    }
    let party = format!("did:tirami:{}", mesh.provider(0).party());
    for wish in [
        json!(null),
        json!({"only": [party], "min_throughput": 0.5, "max_price": "1", "sort": null}),
    ] {
        let plan = json!({"model_id": "fake", "provider": wish});
        assert_eq!(mesh.user().send("/v1/tirami/schedule", &plan).0, 200);
        let mut request = ask(3, false);
        request["provider"] = wish;
        mesh.user().post(&request);
    }
}

#[test]
fn a_full_node_has_the_job_done_where_it_begins_sooner() {
    let (here, there) = (Odd::new(60, 50), Odd::new(8, 1));
    here.places.store(1, Ordering::Relaxed);
    let mesh = Mesh::with(vec![here.clone(), there]);
    mesh.generous();
    let (node, other) = (mesh.provider(0), mesh.provider(1).party());
    mesh.funded(node);
    until("it knows the other one", SOON, || node.knows(other));
    let (own, other) = (json!(node.party().to_string()), json!(other.to_string()));
    assert_eq!(chosen(node, &json!({})), (own.clone(), own.clone()), "it rests");
    std::thread::scope(|scope| {
        let long = scope.spawn(|| node.post(&ask(60, false)));
        until("it is full", SOON, || here.load().running == 1);
        assert_eq!(chosen(node, &json!({})), (other.clone(), other.clone()), "it is full");
        let route = node.get("/v1/tirami/route?model=fake");
        assert_eq!(route["provider"], other);
        // Whoever wants this node waits for it.
        assert_eq!(chosen(node, &json!({"only": [own]})), (own.clone(), own.clone()));
        assert_eq!(long.join().unwrap()["x_tirami"]["provider"], own);
    });
}

/// Who answered, why it was asked, and of how many it was one.
fn asked(user: &TestNode, messages: &Value, wish: &Value) -> (Value, Vec<Value>, Value) {
    let mut request = ask(1, false);
    request["messages"] = messages.clone();
    request["provider"] = wish.clone();
    let answer = user.post(&request);
    let why = answer["x_tirami"]["route"]["why"].as_array().unwrap().clone();
    let candidates = answer["x_tirami"]["route"]["candidates"].clone();
    (answer["x_tirami"]["provider"].clone(), why, candidates)
}

#[test]
fn a_conversation_goes_on_where_it_began_because_its_beginning_is_cached_there() {
    let mesh = Mesh::with(vec![Odd::new(1, 600), Odd::new(1, 600)]);
    mesh.generous();
    let (user, party) = (mesh.user(), |n: usize| json!(mesh.provider(n).party().to_string()));
    let cached = json!("has the beginning of this prompt cached");
    let mut talks = [0, 1].map(|n| (n, vec![json!({"role": "user", "content": format!("{n}")})]));
    for (n, talk) in &talks {
        assert_eq!(asked(user, &json!(talk), &json!({"only": [party(*n)]})).0, party(*n));
    }
    for turn in 0..3 {
        for (n, talk) in &mut talks {
            talk.push(json!({"role": "assistant", "content": "word "}));
            talk.push(json!({"role": "user", "content": format!("turn {turn}")}));
            let (who, why, _) = asked(user, &json!(talk), &json!({}));
            assert_eq!(who, party(*n), "turn {turn}: {why:?}");
            assert!(why.contains(&cached), "turn {turn}: {why:?}");
        }
    }
    let (_, why, _) = asked(user, &json!([{"role": "user", "content": "new"}]), &json!({}));
    assert!(!why.contains(&cached), "{why:?}");
}

#[test]
fn now_and_then_a_job_goes_to_one_that_was_not_measured_lately_and_says_so() {
    let mesh = Mesh::with(vec![Odd::new(1, 2), Odd::new(1, 300)]);
    mesh.generous();
    let (user, party) = (mesh.user(), |n: usize| json!(mesh.provider(n).party().to_string()));
    let talk = |content: usize| json!([{"role": "user", "content": content.to_string()}]);
    for n in [0, 1] {
        assert_eq!(asked(user, &talk(n), &json!({"only": [party(n)]})).0, party(n));
    }
    let planned = |n: usize| {
        let plan = json!({"model_id": "fake", "provider": {"only": [party(n)]}});
        user.send("/v1/tirami/schedule", &plan).1
    };
    // How an answer went is noted after it was given.
    until("both are measured", SOON, || {
        [0, 1].iter().all(|n| planned(*n).to_string().contains("measured over 1 job"))
    });
    mesh.clock.pass_ms(61_000);
    until("both are heard of again", SOON, || {
        [0, 1].into_iter().all(|n| planned(n)["provider"] == party(n))
    });
    let learns = json!("not measured lately, tried to learn how it does");
    let mut jobs = 0;
    // One in twenty does; that none of 400 does has one chance in 10^9. After the jump of the clock
    // a provider may be away for a while: a job with one candidate has no choice.
    until("a job is used to learn", Duration::from_secs(120), || {
        let (who, why, candidates) = asked(user, &talk(2), &json!({}));
        let is_one = why.contains(&learns);
        assert!(!is_one || who == party(1), "{who}: {why:?}");
        jobs += u32::from(candidates == 2);
        assert!(jobs < 400, "none of {jobs} jobs was: {why:?}");
        is_one
    });
}

/// What `user` lists of `provider`.
fn listed(user: &TestNode, provider: &Value) -> Option<Value> {
    let list = user.get("/v1/tirami/providers");
    let all = list["providers"].as_array().unwrap();
    all.iter().find(|one| one["node_id"] == *provider).cloned()
}

#[test]
fn a_providers_signal_tells_how_fast_it_was_once_it_has_given_a_long_answer() {
    let mesh = Mesh::with(vec![Odd::new(150, 20)]);
    let (user, party) = (mesh.user(), json!(mesh.provider(0).party().to_string()));
    let speed = || {
        let models = listed(user, &party).map(|one| one["models"].clone()).unwrap_or_default();
        models[0]["tokens_per_second_milli"].as_u64()
    };
    assert_eq!(speed(), Some(0), "nothing is measured yet");
    user.post(&ask(150, false));
    until("what was measured is told", SOON, || speed().is_some_and(|speed| speed > 0));
}

#[test]
fn a_provider_that_was_killed_leaves_every_list_and_nobody_tells_of_it_again() {
    let mesh = Mesh::with(Vec::new());
    let third = mesh.add_user();
    let options = MeshOptions {
        clock: mesh.clock.clock(),
        ..joining(mesh.user().peer.node.invite().unwrap())
    };
    let provider = TestNode::start(options, Some(Odd::new(3, 0)));
    let party = json!(provider.party().to_string());
    for node in [mesh.user(), &third] {
        until("it is listed", SOON, || listed(node, &party).is_some());
    }
    provider.kill();
    // Whatever it was doing has ended.
    std::thread::sleep(Duration::from_millis(500));
    mesh.clock.pass_ms(60_000);
    for _ in 0..50 {
        assert_eq!(listed(&third, &party), None);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_node_without_model_and_provider_says_what_to_do() {
    let user = TestNode::start(on_loopback(), None);
    let (status, error) = user.raw(&ask(3, false));
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    let message = error["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("tirami join") && message.contains("nothing was charged"),
        "{message}"
    );
    let (status, error) = user.send("/v1/tirami/schedule", &json!({"model_id": "fake"}));
    assert_eq!((status, &error["error"]["code"]), (404, &json!("no_provider")), "{error}");
}

#[test]
fn what_a_node_measured_is_heard_by_those_it_paid_and_by_nobody_else() {
    // The first one is dear, so that much is paid to it, and has jobs done by others itself.
    let engines: Vec<Arc<dyn Engine>> = vec![Odd::new(200, 0), Odd::new(1, 2), Odd::new(1, 2)];
    let mesh = Mesh::with_first(engines, |config| config.price_ppm = 500_000_000);
    mesh.generous();
    let (user, buyer, seller) = (mesh.user(), mesh.add_user(), mesh.provider(0));
    let party = |n: usize| json!(mesh.provider(n).party().to_string());
    let why = |node: &TestNode, n: usize| {
        let plan = json!({"model_id": "fake", "provider": {"only": [party(n)]}});
        node.send("/v1/tirami/schedule", &plan).1.to_string()
    };
    let heard = "told of by 1 node this one trades with";
    mesh.funded(seller);
    let mut request = ask(200, false);
    request["provider"] = json!({"only": [party(0)]});
    let (enough, id) = (Trm::from_micro(100_000_000), buyer.party());
    until("enough is paid to be told", SOON, || {
        buyer.raw(&request);
        seller.peer.read(move |kernel| {
            kernel.mesh().opinions().known(id, kernel.clock()).traded.1 >= enough
        })
    });
    let mut request = ask(1, false);
    for (node, n) in [(&buyer, 1), (seller, 2)] {
        request["provider"] = json!({"only": [party(n)]});
        assert_eq!(node.post(&request)["x_tirami"]["provider"], party(n));
        until("it is measured", SOON, || why(node, n).contains("measured over 1 job"));
    }
    mesh.clock.pass_ms(61_000);
    until("what was measured is heard", SOON, || why(seller, 1).contains(heard));
    until("the other provider is known", SOON, || why(&buyer, 2).contains("not measured yet"));
    assert!(!why(&buyer, 2).contains(heard), "who was paid has no voice for it");
    assert!(!why(user, 1).contains(heard), "nobody paid it");
}
