//! The owner's rules, as those see them who want to be served.

use std::process::{Child, Command as Process};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use serde_json::{Value, json};
use tirami_core::MINUTE_MS;
use tirami_node::OthersUse;
use tirami_node::config::{Config, Hours};
use tirami_node::mesh::MeshOptions;

use crate::engines::Odd;
use crate::jobs_support::{Mesh, Stream, TestNode, ask, words};
use crate::support::{Ahead, SOON, joining, until};

/// What `user` knows of `provider`.
fn known(user: &TestNode, provider: &TestNode) -> Value {
    let id = json!(provider.party().to_string());
    let list = user.get("/v1/tirami/providers");
    let all = list["providers"].as_array().unwrap();
    all.iter().find(|one| one["node_id"] == id).cloned().unwrap_or_default()
}

fn only(provider: &TestNode, tokens: u32) -> Value {
    let mut request = ask(tokens, false);
    request["provider"] = json!({"only": [provider.party().to_string()]});
    request
}

/// At 100 tokens/s of 2 MFLOP a kilowatt-hour does 7.2*10^11 FLOP, and costs 1 440 TRM.
fn dear_electricity(config: &mut Config) {
    config.electricity_watts = 1_000;
    config.electricity_milli_per_kwh = 1_440;
    config.electricity_trm_per_currency = 1_000;
}

/// What 10^9 FLOP of an answer cost, in TRM.
fn cost(answer: &Value) -> f64 {
    let info = &answer["x_tirami"];
    info["trm_cost"].as_f64().unwrap() * 1e9 / info["flops"].as_f64().unwrap()
}

fn reasons(provider: &TestNode) -> String {
    provider.get("/v1/tirami/serving")["reasons"].to_string()
}

/// The hours of each day that begin and end so many minutes after this one.
fn hours(from: u64, to: u64) -> Hours {
    let minutes = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 60;
    let clock = |ahead: u64| {
        let minute = (minutes + ahead) % 1_440;
        format!("{:02}:{:02}", minute / 60, minute % 60)
    };
    format!("{}-{}", clock(from), clock(to)).parse().unwrap()
}

/// Programs that keep half of the processors busy.
struct Busy(Vec<Child>);

impl Busy {
    fn begin() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = || Process::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..cores.div_ceil(2)).map(|_| spin()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = (child.kill(), child.wait());
        }
    }
}

#[test]
fn hours_places_and_the_electricity_are_kept() {
    let mesh = Mesh::with(Vec::new());
    let user = mesh.user();
    let closed = mesh.add_provider(Odd::new(3, 0), |config| {
        config.serve_hours = Some(hours(120, 180));
    });
    let open = mesh.add_provider(Odd::new(3, 0), |config| {
        config.serve_hours = Some(hours(1_430, 120));
    });
    let one = mesh.add_provider(Odd::new(40, 50), |config| config.serve_jobs_max = 1);
    let dear = mesh.add_provider(Odd::new(300, 10), dear_electricity);
    for provider in [&open, &one, &dear] {
        until("it serves", SOON, || known(user, provider)["serving"] == true);
    }

    assert!(reasons(&closed).contains("serve_hours"), "{}", reasons(&closed));
    until("it is known to rest", SOON, || known(user, &closed)["serving"] == false);
    let (status, error) = user.raw(&only(&closed, 3));
    assert_eq!((status, &error["error"]["code"]), (503, &json!("no_provider")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("takes no jobs"), "{error}");
    user.post(&only(&open, 3));

    std::thread::scope(|scope| {
        let first = scope.spawn(|| user.post(&only(&one, 40)));
        until("the first job runs", SOON, || one.served_running() == 1);
        let (status, error) = user.raw(&only(&one, 3));
        assert_eq!(status, 503, "{error}");
        let message = error["error"]["message"].to_string();
        assert!(message.contains("jobs at once") || message.contains("asked to wait"), "{message}");
        first.join().unwrap();
    });

    let cheap = user.post(&only(&dear, 300));
    assert!((0.9..1.1).contains(&cost(&cheap)), "{cheap}");
    user.post(&only(&dear, 300));
    until("the floor is in its signal", SOON, || {
        known(user, &dear)["price_trm"].as_f64().unwrap() > 1.5
    });
    let floor = dear.get("/v1/tirami/serving")["rules"]["price_floor_trm"].as_f64().unwrap();
    assert!(floor > 1.5, "{floor}");
    let answer = user.post(&only(&dear, 3));
    assert!(cost(&answer) > 1.5, "{floor}: {answer}");
    let mut request = only(&dear, 3);
    request["provider"]["max_price"] = json!(1.2);
    assert_eq!(user.raw(&request).0, 503);
}

#[test]
fn a_price_that_the_electricity_made_stays_until_it_is_measured_again() {
    let mesh = Mesh::with(Vec::new());
    let user = mesh.user();
    let price = |node: &TestNode| known(user, node)["price_trm"].as_f64().unwrap_or_default();
    let first = mesh.add_provider(Odd::new(300, 10), dear_electricity);
    until("it serves", SOON, || known(user, &first)["serving"] == true);
    (0..2).for_each(|_| drop(user.post(&only(&first, 300))));
    until("the floor is in its signal", SOON, || price(&first) > 1.5);

    let dir = first.killed();
    let options = joining(user.peer.node.invite().unwrap());
    let again = TestNode::begun_in(dir, options, Some(Odd::new(3, 0)), |config| {
        dear_electricity(config);
        config.serve_jobs_max = 7;
    });
    // The rules set the places first and then the price.
    let rules = || again.get("/v1/tirami/serving");
    until("the rules are kept", SOON, || rules()["jobs_max"] == 7);
    let mut answer = Value::Null;
    until("it answers again", SOON, || {
        let (status, body) = user.raw(&only(&again, 3));
        answer = body;
        status == 200
    });
    assert!(cost(&answer) > 1.5, "{answer}");
    let rules = rules();
    assert!(rules["rules"]["price_floor_trm"].is_null(), "{rules}");
    assert!(rules["price_trm"].as_f64().unwrap() > 1.5, "{rules}");
    assert!(price(&again) > 1.5);
}

#[test]
fn whom_the_settings_block_is_not_served_and_others_are() {
    let mesh = Mesh::with(Vec::new());
    let (user, blocked) = (mesh.user(), mesh.add_user());
    let party = blocked.party();
    let provider = mesh.add_provider(Odd::new(3, 0), |config| config.blocked_peers = vec![party]);
    for node in [user, &blocked] {
        until("it is known to serve", SOON, || known(node, &provider)["serving"] == true);
    }
    user.post(&only(&provider, 3));
    let (status, error) = blocked.raw(&only(&provider, 3));
    assert_eq!((status, &error["error"]["code"]), (503, &json!("no_provider")), "{error}");
    assert!(!provider.peer.sees(&blocked.peer));
    assert_eq!(provider.trades().len(), 1);
}

#[test]
fn whom_the_settings_trust_sees_what_is_for_trusted_ones_only() {
    let mesh = Mesh::with(vec![Odd::new(3, 0)]);
    let provider = mesh.provider(0).party();
    let trusting = mesh.add_user_with(|config| config.trusted_peers = vec![provider]);
    let other = mesh.add_user();
    let mut request = ask(3, false);
    request["provider"] = json!({"data": "trusted"});
    let answer = trusting.post(&request);
    assert_eq!(answer["x_tirami"]["provider"], provider.to_string(), "{answer}");
    let (status, error) = other.raw(&request);
    assert_eq!((status, &error["error"]["code"]), (503, &json!("no_provider")), "{error}");
    assert_eq!(mesh.provider(0).trades().len(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_machine_that_others_use_serves_nobody() {
    let mesh = Mesh::with(Vec::new());
    let busy = Busy::begin();
    let idle = mesh.add_provider(Odd::new(3, 0), |config| config.serve_idle_percent = 10);
    until("it is known to rest", SOON, || known(mesh.user(), &idle)["serving"] == false);
    until("the reason is known", SOON, || reasons(&idle).contains("other programs use"));
    assert_eq!(mesh.user().raw(&only(&idle, 3)).0, 503);
    drop(busy);
}

#[test]
fn hours_that_end_move_the_running_job_and_keep_new_ones_away() {
    let mesh = Mesh::with(Vec::new());
    let (user, clock) = (mesh.user(), Ahead::default());
    let invite = user.peer.node.invite().unwrap();
    let options = MeshOptions { clock: clock.clock(), ..joining(invite) };
    let first = TestNode::start_with(options, Some(Odd::new(400, 15)), |config| {
        config.serve_hours = Some(hours(1_430, 10));
    });
    let other = mesh.add_provider(Odd::new(400, 15), |_| {});
    for provider in [&first, &other] {
        until("it serves", SOON, || known(user, provider)["serving"] == true);
    }
    let mut request = ask(400, true);
    request["provider"] = json!({"order": [first.party().to_string()]});
    let mut stream = Stream::open(user, &request);
    stream.until_words(10);
    assert_eq!(first.served_running(), 1);

    // Only its own clock says so.
    clock.pass_ms(11 * MINUTE_MS);
    let rests = || first.peer.read(|kernel| kernel.ledger().book().serving().paused);
    until("it rests", SOON, rests);
    let answer = stream.rest();
    assert_eq!(answer.text, words(400));
    let attempts = &answer.info()["route"]["attempts"];
    assert_eq!(attempts[0]["provider"], first.party().to_string());
    assert!(attempts[0]["ended"].as_str().unwrap().contains("paused"), "{attempts}");
    assert_eq!(attempts[1]["provider"], other.party().to_string());
    until("its job has ended", SOON, || first.served_running() == 0 && first.running() == 0);
    assert_ne!(user.raw(&only(&first, 3)).0, 200);
    assert_eq!(first.trades().len(), 1);
}

/// What others use is told here: on a machine that runs tests nobody knows when it rests.
#[test]
fn a_machine_serves_again_when_others_use_it_little() {
    let mesh = Mesh::with(Vec::new());
    let (user, percent) = (mesh.user(), Arc::new(AtomicU32::new(90)));
    let told = Arc::clone(&percent);
    let others_use = OthersUse::new(move || Some(told.load(Ordering::Relaxed)));
    let invite = user.peer.node.invite().unwrap();
    let options = MeshOptions { others_use, ..joining(invite) };
    let idle = TestNode::start_with(options, Some(Odd::new(3, 0)), |config| {
        config.serve_idle_percent = 10;
    });
    let says = |serving: bool| known(user, &idle)["serving"] == serving;
    until("it is known to rest", SOON, || says(false));
    assert_eq!(user.raw(&only(&idle, 3)).0, 503);
    percent.store(9, Ordering::Relaxed);
    until("it is known to serve", SOON, || says(true));
    user.post(&only(&idle, 3));
    percent.store(10, Ordering::Relaxed);
    until("it is known to rest again", SOON, || says(false));
    assert!(reasons(&idle).contains("other programs use 10 %"), "{}", reasons(&idle));
}
