//! Embeddings through the mesh: paid once when all vectors are there, and not at all when not.

use std::time::Duration;

use crate::jobs_support::{Mesh, micro, script};
use crate::support::{SOON, until};
use serde_json::{Value, json};
use tirami_core::{Flop, ModelDigest, ModelShape, Ppm};
use tirami_kernel::mesh::{MeshInput, OwnOffer};
use tirami_node::mesh::IncomingJob;
use tirami_proto::{Offer, ToConsumer, ToProvider};

const PATH: &str = "/v1/embeddings";

fn ask(texts: &[&str]) -> Value {
    json!({"model": "fake", "input": texts})
}

/// µTRM for so many tokens read.
fn cost(tokens: u64) -> u64 {
    Flop::new(2 * 1_000_000 * tokens).cost_ceil(Ppm::ONE).micro()
}

#[test]
fn vectors_of_a_peer_are_those_of_the_peer_and_both_list_the_same_trade() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let mut request = ask(&["abc", "defgh"]);
    for fields in [json!({}), json!({"dimensions": 3}), json!({"encoding_format": "base64"})] {
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (here, there) = (user.send(PATH, &request), provider.send(PATH, &request));
        assert_eq!((here.0, there.0), (200, 200), "{here:?} {there:?}");
        for field in ["object", "data", "model", "usage"] {
            assert_eq!(here.1[field], there.1[field], "{field}");
        }
        let info = &here.1["x_tirami"];
        assert_eq!(info["route"]["kind"], "mesh");
        assert_eq!(info["route"]["attempts"][0]["ended"], "complete", "{info}");
        assert_eq!(micro(&info["trm_cost"]), cost(8));
    }
    let bought = user.trades();
    let sold = provider.trades();
    assert_eq!(bought.len(), 3, "{bought:?}");
    for trade in &bought {
        let same = sold.iter().find(|sold| sold["trade_id"] == trade["trade_id"]).unwrap();
        for field in ["job_id", "trm_amount", "flops", "prompt_tokens", "receipt_id"] {
            assert_eq!(trade[field], same[field], "{field}");
        }
        assert_eq!((&trade["prompt_tokens"], &trade["completion_tokens"]), (&json!(8), &json!(0)));
    }
    let party = provider.party();
    for node in [user, provider] {
        let due = i128::from(3 * cost(8));
        until("the payment is final", SOON, || node.peer.worth_of(party) == due);
    }
    assert_eq!((user.open_holds(), provider.served_running()), (0, 0));
    let models = user.get("/v1/models");
    let detail = &models["data"][0]["x_tirami"];
    assert_eq!(
        (&detail["embedding_width"], &detail["served_by"][0]),
        (&json!(8), &json!(provider.party().to_string()))
    );

    // What a peer cannot read is said, and nothing is paid.
    let wide = json!({"model": "fake", "input": "a", "dimensions": 9});
    let (status, refusal) = user.send(PATH, &wide);
    assert_eq!((status, &refusal["error"]["param"]), (400, &json!("dimensions")));
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(message.contains("dimensions must be at most 8"), "{message}");
    assert_eq!((user.trades().len(), user.open_holds()), (3, 0));
}

#[test]
fn a_provider_lost_in_the_middle_is_paid_nothing_and_another_one_reads() {
    let slow = script(3, Duration::from_millis(1_500));
    let mut mesh = Mesh::of(&[slow.clone(), slow]);
    let request = ask(&["abc"]);
    let (lost, (status, answer)) = std::thread::scope(|scope| {
        let (url, request) = (mesh.user().url.clone(), &request);
        let call = scope.spawn(move || post(&url, request));
        let lost = mesh.kill_running();
        (lost, call.join().unwrap())
    });
    assert_eq!(status, 200, "{answer}");
    let attempts = answer["x_tirami"]["route"]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(attempts[0]["provider"], lost.to_string());
    assert_eq!((micro(&attempts[0]["trm_cost"]), micro(&attempts[1]["trm_cost"])), (0, cost(3)));
    let trades = mesh.user().trades();
    assert_eq!((trades.len(), micro(&trades[0]["trm_amount"])), (1, cost(3)), "{trades:?}");
    assert_eq!(answer["x_tirami"]["trade_id"], trades[0]["trade_id"]);
    assert_eq!(mesh.user().open_holds(), 0);
}

fn post(url: &str, request: &Value) -> (u16, Value) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let call = http
            .post(format!("{url}{PATH}"))
            .header("content-type", "application/json")
            .body(request.to_string());
        let answer = call.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    })
}

#[test]
fn vectors_that_are_not_there_in_time_stop_the_provider_and_cost_nothing() {
    let mesh = Mesh::of(&[script(3, Duration::from_secs(3_600))]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let mut late = ask(&["abc"]);
    late["timeout_ms"] = json!(500);
    let (status, refused) = user.send(PATH, &late);
    assert_eq!((status, &refused["error"]["code"]), (504, &json!("deadline_exceeded")));
    until("the job has ended on both sides", SOON, || {
        user.open_holds() == 0 && provider.served_running() == 0 && provider.running() == 0
    });
    assert_eq!((user.trades().len(), provider.trades().len()), (0, 0));
}

#[test]
fn a_client_that_leaves_stops_the_provider_and_owes_nothing() {
    let mesh = Mesh::of(&[script(3, Duration::from_secs(3_600))]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let call = runtime.spawn({
        let url = user.url.clone();
        async move {
            let client = tirami_sdk::Client::new(&url, None).unwrap();
            let request = serde_json::from_value(ask(&["abc"])).unwrap();
            client.embeddings(&request).await
        }
    });
    until("the provider reads", SOON, || provider.running() > 0);
    assert_eq!((user.open_holds(), provider.served_running()), (1, 1));
    call.abort();
    until("all has ended", SOON, || {
        provider.running() == 0 && provider.served_running() == 0 && user.open_holds() == 0
    });
    assert!(user.trades().is_empty() && provider.trades().is_empty());
}

/// Takes one job and sends vectors of `numbers` numbers.
async fn lie(mut job: IncomingJob, numbers: usize) {
    let Some(ToProvider::Request(_)) = job.receive.next().await.unwrap() else { panic!() };
    let accepted = ToConsumer::Accepted { prompt_tokens: 3, completion_max: 0, window_tokens: 32 };
    job.send.send(&accepted).await.unwrap();
    let mut bytes = vec![0; 4 * numbers];
    bytes[..4].copy_from_slice(&1.0_f32.to_le_bytes());
    job.send.send(&ToConsumer::Vector { numbers: bytes }).await.unwrap();
    while let Ok(Some(frame)) = job.receive.next().await {
        assert!(!matches!(frame, ToProvider::Voucher(_)), "it was signed for");
    }
}

#[test]
fn a_vector_of_the_wrong_size_is_not_paid() {
    let mesh = Mesh::of(&[]);
    let liar = mesh.add_user();
    let party = liar.party();
    let mut incoming = liar.peer.node.incoming_jobs().unwrap();
    let offered = Offer {
        model: ModelDigest::from_bytes([0xfa; 32]),
        name: "fake".to_owned(),
        quantisation: "F32".to_owned(),
        context_tokens: 4_096,
        shape: ModelShape {
            parameters_active: 1_000_000,
            layers: 2,
            attention_width: 64,
            context_max: 4_096,
        },
        tokens_per_second_milli: 1_000_000,
        embedding_width: 8,
        image_tokens_max: 0,
        build: "lies".to_owned(),
    };
    let offer = OwnOffer {
        price: Ppm::ONE,
        cached_price: Ppm::ONE,
        slots_free: 4,
        slots: 4,
        queue: 0,
        models: vec![offered],
        region: String::new(),
        http_endpoint: None,
        serving: true,
    };
    let handle = liar.peer.node.handle();
    liar.peer.block_on(handle.mesh_input(MeshInput::Offer(Some(offer)))).unwrap();
    until("the offer is known", SOON, || {
        mesh.user().peer.read(move |kernel| kernel.mesh().signal(party).is_some())
    });
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            liar.peer.block_on(async { lie(incoming.recv().await.unwrap(), 7).await });
        });
        let (status, refusal) = mesh.user().send(PATH, &ask(&["abc"]));
        assert_eq!((status, &refusal["error"]["code"]), (503, &json!("no_provider")), "{refusal}");
        let message = refusal["error"]["message"].as_str().unwrap();
        assert!(message.contains("no vector of 8 numbers"), "{message}");
        assert!(message.contains("nothing was charged"), "{message}");
        serving.join().unwrap();
    });
    assert!(mesh.user().trades().is_empty());
    assert_eq!(mesh.user().open_holds(), 0);
}
