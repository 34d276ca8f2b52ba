//! Jobs between nodes, as their users see them: real nodes on loopback, real HTTP, a scripted
//! engine.

use std::time::Duration;

use crate::cheats::vouched;
use crate::jobs_support::{Mesh, Stream, ask, micro, script, words};
use crate::support::{SOON, until};
use serde_json::json;
use tirami_core::MINUTE_MS;
use tirami_infer::engine::PIECES_AHEAD_MAX;
use tirami_infer::fake::FakeScript;
use tirami_node::mesh::WINDOW_TOKENS_MAX;

const FAST: Duration = Duration::ZERO;

#[test]
fn a_node_without_a_model_answers_through_a_peer_and_both_list_the_same_trade() {
    let mesh = Mesh::of(&[script(5, FAST)]);
    let answer = mesh.user().post(&ask(9, false));
    assert_eq!(answer["choices"][0]["message"]["content"], words(5), "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    let (info, provider) = (&answer["x_tirami"], mesh.provider(0));
    let route = &info["route"];
    assert_eq!(route["kind"], "mesh");
    assert_eq!(route["provider"], provider.party().to_string());
    assert_eq!(route["candidates"], 1);
    assert!(!route["why"].as_array().unwrap().is_empty(), "{route}");
    assert_eq!(route["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(route["attempts"][0]["ended"], "complete");

    let (mine, theirs) = (mesh.user().trades(), provider.trades());
    assert_eq!((mine.len(), theirs.len()), (1, 1), "{mine:?} {theirs:?}");
    assert_eq!(mine[0]["trade_id"], info["trade_id"]);
    for field in ["trade_id", "job_id", "trm_amount", "flops", "completion_tokens", "receipt_id"] {
        assert_eq!(mine[0][field], theirs[0][field], "{field}");
    }

    // Payments are signed ten seconds after the first debt.
    let (user, party) = (mesh.user(), provider.party());
    let paid = provider.peer.read(|kernel| kernel.ledger().book().earned_total());
    assert!(paid.is_zero());
    let due: u64 = micro(&mine[0]["trm_amount"]);
    for node in [user, provider] {
        until("the payment is final", SOON, || node.peer.worth_of(party) == i128::from(due));
    }
    let served = provider.peer.read(|kernel| kernel.ledger().book().earned_total());
    assert_eq!(served.micro(), due);
    let own = user.party();
    for node in [user, provider] {
        assert_eq!(node.peer.worth_of(own) + node.peer.worth_of(party), 0, "balances sum to zero");
    }
    assert_eq!(user.open_holds(), 0);
}

#[test]
fn a_stream_through_a_peer_is_the_stream_of_the_peer() {
    let mesh = Mesh::of(&[script(40, FAST)]);
    let shape = |mut chunks: Vec<serde_json::Value>| {
        for chunk in &mut chunks {
            let chunk = chunk.as_object_mut().unwrap();
            for name in ["id", "created", "x_tirami"] {
                chunk.remove(name);
            }
        }
        chunks
    };
    let mut request = ask(50, true);
    request["stream_options"] = json!({"include_usage": true});
    (request["logprobs"], request["top_logprobs"]) = (json!(true), json!(2));
    let through = Stream::open(mesh.user(), &request).rest();
    let direct = Stream::open(mesh.provider(0), &request).rest();
    assert_eq!(through.text, direct.text);
    assert_eq!(through.chunks[1]["choices"][0]["logprobs"]["content"][0]["token"], "word ");
    assert_eq!(shape(through.chunks), shape(direct.chunks));
    assert!(through.done && direct.done);
    let mut request = ask(50, false);
    (request["n"], request["logprobs"]) = (json!(3), json!(true));
    let (through, direct) = (mesh.user().post(&request), mesh.provider(0).post(&request));
    for field in ["choices", "usage"] {
        assert_eq!(through[field], direct[field], "{field}");
    }
    let info = &through["x_tirami"];
    let attempts = info["route"]["attempts"].as_array().unwrap();
    let sum: u64 = attempts.iter().map(|one| micro(&one["trm_cost"])).sum();
    assert_eq!((attempts.len(), micro(&info["trm_cost"])), (3, sum));
    assert_eq!(info["trade_ids"].as_array().unwrap().len(), 3);
    // The last one only the provider knows to be wrong: its context is shorter.
    for wrong in [
        json!({"model": "other"}),
        json!({"messages": []}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 5_000}),
    ] {
        let mut request = ask(5, true);
        request.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let (here, there) = (mesh.user().raw(&request), mesh.provider(0).raw(&request));
        assert_eq!(here.0, there.0, "{request}");
        for field in ["code", "param", "type"] {
            assert_eq!(here.1["error"][field], there.1["error"][field], "{request}");
        }
        // One caller's mistake keeps no other from the only provider.
        assert_eq!(mesh.user().raw(&ask(5, false)).0, 200, "after {request}");
        assert_eq!(mesh.user().open_holds(), 0);
    }
}

#[test]
fn an_answer_without_a_word_through_a_peer_is_one_and_costs_nothing() {
    let mesh = Mesh::of(&[script(0, FAST)]);
    let answer = mesh.user().post(&ask(9, false));
    assert_eq!(answer["choices"][0]["message"]["content"], "", "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(micro(&answer["x_tirami"]["trm_cost"]), 0);
    assert_eq!((mesh.user().trades().len(), mesh.user().open_holds()), (0, 0));
}

#[test]
fn a_call_through_a_peer_is_the_call_of_the_peer() {
    let words =
        ["Hm. <tool", "_call>{\"name\": \"f\", \"argu", "ments\": {\"a\"", ": 1}}</tool_call>"];
    let mesh = Mesh::saying(words.map(str::to_owned).to_vec());
    let mut request = ask(50, false);
    request["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    let (through, direct) = (mesh.user().post(&request), mesh.provider(0).post(&request));
    for answer in [through, direct] {
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &json!("Hm."))
        );
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(*function, json!({"name": "f", "arguments": "{\"a\": 1}"}));
        assert_eq!(answer["x_tirami"]["trade_id"].as_str().unwrap().len(), 64);
    }
    assert_eq!(mesh.user().trades().len(), 1);
}

#[test]
fn a_killed_provider_is_replaced_within_five_seconds_and_the_user_pays_once() {
    for at in [1, 10, 100] {
        let mut mesh = Mesh::of(&two(script(400, Duration::from_millis(15))));
        let mut stream = Stream::open(mesh.user(), &ask(500, true));
        stream.until_words(at);
        let killed = mesh.kill_running();
        let answer = stream.rest();
        assert_eq!(answer.text, words(400), "killed at {at}");
        assert!(answer.longest_pause < Duration::from_secs(5), "{:?}", answer.longest_pause);
        let info = answer.info();
        let attempts = info["route"]["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 2, "{info}");
        assert_eq!(attempts[0]["provider"], killed.to_string());
        let tokens = |n: usize| attempts[n]["completion_tokens"].as_u64().unwrap();
        assert_eq!(tokens(0) + tokens(1), 400, "{info}");
        // The second one reads what the first one made, and that is shown.
        let prompt = |n: usize| attempts[n]["prompt_tokens"].as_u64().unwrap();
        assert_eq!(prompt(1), prompt(0) + tokens(0));
        let sum: u64 = attempts.iter().map(|one| micro(&one["trm_cost"])).sum();
        assert_eq!(micro(&info["trm_cost"]), sum);
        assert_eq!(mesh.user().trades().len(), 2);
        assert_eq!(mesh.user().open_holds(), 0);
    }
}

#[test]
fn a_provider_lost_in_its_prefill_or_before_its_receipt_is_replaced_within_five_seconds() {
    let within = Duration::from_secs(5);
    // The slow one is asked first, and only its loss takes time.
    let mut mesh = Mesh::of(&[script(3, Duration::from_millis(1_500)), script(3, FAST)]);
    let slow = mesh.provider(0).party();
    let mut request = ask(9, true);
    request["provider"] = json!({"order": [slow.to_string()]});
    let stream = Stream::open(mesh.user(), &request);
    assert_eq!(mesh.kill_running(), slow);
    let answer = stream.rest();
    assert_eq!(answer.text, words(3));
    assert!(answer.longest_pause < within, "{:?}", answer.longest_pause);
    assert_eq!(answer.info()["route"]["attempts"][0]["completion_tokens"], 0);
    assert_eq!(mesh.user().open_holds(), 0);

    let mut mesh = Mesh::holding_their_ends(&two(script(20, FAST)));
    let mut stream = Stream::open(mesh.user(), &ask(40, true));
    stream.until_words(20);
    mesh.kill_running();
    let answer = stream.rest();
    assert_eq!(answer.text, words(20));
    assert!(answer.longest_pause < within, "{:?}", answer.longest_pause);
    let attempts = &answer.info()["route"]["attempts"];
    assert_eq!(attempts[0]["completion_tokens"], 20);
    assert_eq!(attempts[1]["completion_tokens"], 0);
    assert_eq!(micro(&attempts[1]["trm_cost"]), 0);
}

#[test]
fn without_another_provider_the_error_is_typed_and_the_prefix_is_paid() {
    let mut mesh = Mesh::of(&[script(500, Duration::from_millis(10))]);
    let mut stream = Stream::open(mesh.user(), &ask(500, true));
    stream.until_words(10);
    mesh.kill_running();
    let answer = stream.rest();
    assert!(!answer.done);
    let error = &answer.chunks.last().unwrap()["error"];
    assert_eq!(error["code"], "provider_lost", "{error}");
    let trades = mesh.user().trades();
    assert_eq!(trades.len(), 1);
    let delivered = answer.text.matches("word").count() as u64;
    assert_eq!(trades[0]["completion_tokens"], delivered);
    assert_eq!(mesh.user().open_holds(), 0);

    let (status, error) = mesh.user().raw(&ask(5, false));
    assert_eq!(status, 503, "{error}");
    assert_eq!(error["error"]["code"], "no_provider");
    assert_eq!(mesh.user().trades().len(), 1);
}

#[test]
fn a_busy_node_has_another_one_answer_unless_the_request_forbids_it() {
    let mesh = Mesh::with_a_full_one(&script(5, FAST));
    let (busy, other) = (mesh.provider(0), mesh.provider(1));
    mesh.funded(busy);
    let party = other.party();
    until("it knows the other one", SOON, || busy.knows(party));
    let answer = busy.post(&ask(9, false));
    assert_eq!(answer["choices"][0]["message"]["content"], words(5));
    assert_eq!(answer["x_tirami"]["provider"], other.party().to_string());
    let mut request = ask(9, false);
    request["provider"] = json!({"allow_fallbacks": false});
    let (status, error) = busy.raw(&request);
    assert_eq!((status, &error["error"]["code"]), (429, &json!("engine_busy")), "{error}");
    assert_eq!(busy.open_holds(), 0);
    assert_eq!(busy.trades().len(), 1);
}

#[test]
fn without_fallbacks_a_lost_provider_has_no_successor() {
    let mut mesh = Mesh::of(&two(script(130, Duration::from_millis(15))));
    let mut request = ask(200, true);
    request["provider"] = json!({"allow_fallbacks": false});
    let mut stream = Stream::open(mesh.user(), &request);
    stream.until_words(10);
    mesh.kill_running();
    let answer = stream.rest();
    let error = &answer.chunks.last().unwrap()["error"];
    assert_eq!(error["code"], "provider_lost", "{error}");
    assert_eq!(mesh.user().trades().len(), 1);
}

#[test]
fn when_the_consumer_vanishes_the_provider_stops_and_claims_its_highest_voucher() {
    // Until its end is noticed it could make several times what it may be ahead.
    let mesh = Mesh::of(&[script(4_000, Duration::from_millis(2))]);
    // The consumer is a node that the mesh does not depend on.
    let user = mesh.add_user();
    let party = user.party();
    let mut stream = Stream::open(&user, &ask(4_000, true));
    stream.until_words(50);
    user.kill();
    drop(stream);
    let provider = mesh.provider(0);
    until("the engine rests", Duration::from_secs(8), || provider.running() == 0);
    until("the job has ended", SOON, || provider.served_running() == 0);
    let (due, signed) = provider.peer.read(|kernel| {
        let job = kernel.ledger().book().served().values().next().cloned().unwrap();
        (job.end.unwrap().due, job.vouched())
    });
    assert_eq!(due, signed);
    assert!(!due.is_zero());
    let made = provider.engine.as_ref().unwrap().load().completion_tokens_total;
    // One more is in the engine's hand.
    let ahead = u64::from(WINDOW_TOKENS_MAX) + PIECES_AHEAD_MAX as u64 + 1;
    let most = u64::from(vouched(provider).unwrap()) + ahead;
    assert!(made <= most, "{made} tokens of at most {most}");

    // The consumer stays away, and its provider shows the voucher to the witness.
    mesh.clock.pass_ms(11 * MINUTE_MS);
    let claimed = || {
        mesh.user().peer.read(move |kernel| {
            let claims = kernel.ledger().book().claims_against(party, kernel.clock());
            claims.map(|(_, left)| left).collect::<Vec<_>>()
        })
    };
    until("the witness knows the claim", SOON, || !claimed().is_empty());
    assert_eq!(claimed(), [due]);
}

#[test]
fn a_client_that_leaves_pays_what_it_took_and_frees_the_provider() {
    let mesh = Mesh::of(&[script(4_000, Duration::from_millis(10))]);
    let mut stream = Stream::open(mesh.user(), &ask(4_000, true));
    stream.until_words(20);
    drop(stream);
    let provider = mesh.provider(0);
    until("the engine rests", Duration::from_secs(3), || provider.running() == 0);
    until("the job has ended", SOON, || mesh.user().open_holds() == 0);
    until("the provider knows", SOON, || provider.served_running() == 0);
    let (mine, theirs) = (mesh.user().trades(), provider.trades());
    assert_eq!(mine[0]["completion_tokens"], theirs[0]["completion_tokens"]);
    assert_eq!(mine[0]["trm_amount"], theirs[0]["trm_amount"]);
}

#[test]
fn a_pause_moves_the_running_job_within_five_seconds() {
    let mesh = Mesh::of(&two(script(400, Duration::from_millis(10))));
    let mut stream = Stream::open(mesh.user(), &ask(400, true));
    stream.until_words(10);
    let running = mesh.running();
    let owner = running.owner();
    let serving = running.peer.block_on(async { owner.pause().await.unwrap() });
    assert!(serving.paused_by_owner && !serving.serving, "{serving:?}");
    until("it stopped", Duration::from_secs(5), || running.running() == 0);
    let answer = stream.rest();
    assert_eq!(answer.text, words(400));
    assert!(answer.longest_pause < Duration::from_secs(5), "{:?}", answer.longest_pause);
    let attempts = &answer.info()["route"]["attempts"];
    assert_eq!(attempts[0]["provider"], running.party().to_string());
    assert_ne!(attempts[1]["provider"], running.party().to_string());
    // It was signed for everything it sent.
    until("the job has ended", SOON, || running.served_running() == 0);
    let signed = &running.trades()[0]["completion_tokens"];
    assert_eq!(*signed, attempts[0]["completion_tokens"], "{attempts}");
}

#[test]
fn the_requester_chooses_among_providers() {
    let mesh = Mesh::of(&two(script(2, FAST)));
    let party = |n: usize| mesh.provider(n).party().to_string();
    let chosen = |wish: serde_json::Value| {
        let mut request = ask(5, false);
        request["provider"] = wish;
        let (status, answer) = mesh.user().raw(&request);
        if status == 200 {
            answer["x_tirami"]["provider"].as_str().unwrap().to_owned()
        } else {
            answer["error"]["code"].as_str().unwrap().to_owned()
        }
    };
    for n in [0, 1] {
        assert_eq!(chosen(json!({"only": [party(n)]})), party(n));
        assert_eq!(chosen(json!({"ignore": [party(n)]})), party(1 - n));
        assert_eq!(chosen(json!({"order": [party(n)]})), party(n));
    }
    assert_eq!(chosen(json!({"max_price": "0.000001"})), "no_provider");
    assert_eq!(chosen(json!({"quantizations": ["Q9"]})), "model_not_found");
    assert_eq!(chosen(json!({"data": "trusted"})), "no_provider");
    assert_eq!(chosen(json!({"order": ["openai"]})), "invalid_value");
    // Who has the model goes elsewhere when asked to.
    let mut request = ask(5, false);
    request["provider"] = json!({"only": [party(1)]});
    let answer = mesh.provider(0).post(&request);
    assert_eq!(answer["x_tirami"]["provider"], party(1));
    let answer = mesh.provider(0).post(&ask(5, false));
    assert_eq!(answer["x_tirami"]["route"]["kind"], "local");

    let models = mesh.user().get("/v1/models");
    let model = &models["data"][0];
    assert_eq!(model["id"], "fake", "{models}");
    assert_eq!(model["x_tirami"]["providers"], 2);
}

fn two(script: FakeScript) -> [FakeScript; 2] {
    [script.clone(), script]
}
