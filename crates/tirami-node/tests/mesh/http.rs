//! The mesh as seen over HTTP: two real nodes on loopback with scripted engines.

use std::sync::Arc;
use std::time::Duration;

use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::support::{SOON, joining, on_loopback, until};
use serde_json::{Value, json};
use tirami_infer::fake::FakeEngine;
use tirami_node::mesh::MeshOptions;
use tirami_sdk::Client;
use tirami_sdk::types::*;

fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
}

fn code(error: &tirami_sdk::ClientError) -> (u16, String) {
    (error.status().unwrap_or_default(), error.code().unwrap_or_default().to_owned())
}

macro_rules! refused {
    ($call:expr, $status:literal, $code:literal) => {
        assert_eq!(code(&$call.await.unwrap_err()), ($status, $code.to_owned()))
    };
}

#[test]
fn both_see_each_other_and_who_would_answer() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let (one, other) = (user.party().to_string(), provider.party().to_string());
    let client = user.owner();
    block_on(async {
        let peers = client.peers().await.unwrap();
        let peer = &peers.peers[0];
        assert_eq!((peers.count, &peer.node_id, peer.state.as_str()), (1, &other, "open"));
        assert_eq!(peer.models, ["fake"]);
        assert!(!peer.witness && peer.agent.starts_with("tirami/"));
        assert_eq!((peer.protocol_version, peer.outgoing), (1, false));
        assert!(peer.features.is_empty());
        assert_eq!(peer.price_trm.map(|price| price.to_string()).as_deref(), Some("1"));
        assert!(peer.slots_free.is_some_and(|free| free > 0) && peer.address.is_some());
        assert!(peer.last_seen_ms >= peer.connected_at_ms, "{peer:?}");
        assert!(peer.signal_at_ms.is_some_and(|at| at >= peer.connected_at_ms - 300_000));
        assert!(peer.owes_trm.trm().is_zero() && !peer.trusted && peer.http_endpoint.is_none());
        let providers = client.providers().await.unwrap();
        let found = providers.providers.iter().find(|found| found.node_id == other).unwrap();
        assert!(found.connected && found.serving && !found.is_self);
        assert_eq!(found.price_trm.to_string(), "1");
        assert_eq!(found.models[0].model, "fake");
        assert_eq!((found.jobs_measured, found.failure_ppm), (0, 50_000));
        assert_eq!(found.models[0].measured_first_token_ms, None);
        assert!(found.expires_at_ms > found.issued_at_ms && found.slots >= found.slots_free);
        let topology = client.topology().await.unwrap();
        assert_eq!(topology.nodes[0].node_id, one);
        assert_eq!(topology.nodes[0].roles, ["clerk", "registrar", "self", "witness"]);
        assert!(topology.nodes.iter().any(|node| node.roles == ["provider"]));
        assert_eq!(topology.links.len(), 1);
        let protocol = client.protocol().await.unwrap();
        assert_eq!((protocol.protocol_version, protocol.alpn.as_str()), (1, "tirami/1"));
        assert_eq!(protocol.features, ["keeps_own"]);

        let request =
            |provider| ScheduleRequest { max_tokens: Some(10), provider, ..Default::default() };
        let plan = client.schedule(&request(None)).await.unwrap();
        assert_eq!((plan.kind.as_str(), &plan.provider, plan.asked), ("mesh", &other, 1));
        assert_eq!(plan.candidates[0].score, 1_000_000);
        assert!(!plan.candidates[0].why.is_empty());
        assert_eq!(plan.estimated_trm_cost, plan.candidates[0].estimated_trm_cost);
        let wish = ProviderWish { ignore: vec![other.clone()], ..ProviderWish::default() };
        refused!(client.schedule(&request(Some(wish))), 404, "no_provider");
        let wish = ProviderWish { only: vec!["me".to_owned()], ..ProviderWish::default() };
        refused!(client.schedule(&request(Some(wish))), 400, "invalid_value");
        let route = client.route(Some("fake"), Some(10), Some("price"), None).await.unwrap();
        assert_eq!(route.provider, other);
        assert_eq!(route.estimated_trm, plan.estimated_trm_cost);
        let little = Some("0.000001".parse().unwrap());
        refused!(client.route(Some("fake"), Some(10), None, little), 404, "no_provider");
        refused!(client.route(None, None, Some("best"), None), 400, "invalid_value");
        refused!(client.route(Some("gpt"), None, None, None), 404, "no_provider");
        // Where the model is, it is answered.
        let here = provider.owner().schedule(&request(None)).await.unwrap();
        assert_eq!((here.kind.as_str(), &here.provider), ("local", &other));
    });
    until("both have the same chains", SOON, || {
        let hash = |node: &TestNode| node.get("/v1/tirami/network")["lattice_state_hash"].clone();
        hash(user) == hash(provider) && !hash(user).as_str().unwrap().is_empty()
    });
    let last_seen = || block_on(user.owner().peers()).unwrap().peers[0].last_seen_ms;
    let before = last_seen();
    until("the other one says something", SOON, || last_seen() > before);
    user.post(&ask(3, false));
    let list = block_on(client.providers()).unwrap();
    let found = list.providers.iter().find(|found| found.node_id == other).unwrap();
    assert!(found.jobs_measured == 1 && found.failure_ppm < 50_000, "{found:?}");
    assert!(found.models[0].measured_first_token_ms.is_some(), "{found:?}");
    assert!(found.models[0].measured_tokens_per_second_milli.is_some(), "{found:?}");
    assert!(found.sold_trm.trm().is_zero());
    let network = user.get("/v1/tirami/network");
    assert!(network["charged_trm"].as_f64().unwrap() > 0.0, "{network}");
    assert_eq!((&network["total_trades"], &network["earned_trm"]), (&json!(1), &json!(0)));
    assert_eq!(network["total_nodes"], 2);
    assert_eq!((&network["witnesses"], &network["peers"]), (&json!(1), &json!(1)));
    assert_eq!(network["entries_behind"], 0);
    assert_eq!(network["conserved"], true);
    let metrics = block_on(client.metrics()).unwrap();
    for line in ["tirami_peers 1", "tirami_providers 1", "tirami_entries_behind 0"] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[test]
fn whoever_comes_with_an_invite_that_is_used_up_is_told_why_it_gets_no_line() {
    let owner = TestNode::start(on_loopback(), None);
    let few = InviteRequest { uses: Some(1), expires_in_s: None, renew: false };
    let invite = block_on(owner.owner().mesh_invite(&few)).unwrap();
    assert_eq!(invite.enrolments_left, 1);
    let invite: tirami_proto::Invite = invite.invite.parse().unwrap();
    let first = TestNode::start(joining(invite.clone()), None);
    until("the first one has a line", SOON, || !owner.peer.line_of(first.party()).is_zero());
    let second = TestNode::start(joining(invite), None);
    let charter = || block_on(second.owner().mesh_charter()).unwrap();
    until("the second one is told", SOON, || {
        let told = charter().welcome.and_then(|welcome| welcome.refused);
        told.is_some_and(|told| told.contains("no use left"))
    });
    until("its owner can see it", SOON, || owner.refused(second.party(), "invite_used_up") == 1);
    assert!(owner.peer.line_of(second.party()).is_zero());

    // Nobody would take what it drafts, and it hears so.
    let party = first.party();
    until("it knows the first one", SOON, || {
        second.peer.read(move |kernel| kernel.ledger().lattice().chain(party).is_some())
    });
    let party = party.to_string();
    block_on(async {
        let client = second.owner();
        let refused = client.change_witnesses(WitnessAction::Add, &party).await.unwrap_err();
        assert_eq!(code(&refused), (409, "contradicts".to_owned()));
        let message = refused.to_string();
        let begins = "only members draft changes of the charter";
        assert!(message.starts_with(begins), "{message}");
        assert!(client.mesh_charter().await.unwrap().drafts.is_empty());
    });
}

#[test]
fn invites_lines_and_witnesses_are_the_admins() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let other = provider.party().to_string();
    let (client, member) = (user.owner(), provider.owner());
    let stranger = "07".repeat(32);
    block_on(async {
        let invite = client.mesh_invite(&InviteRequest::default()).await.unwrap();
        assert!(invite.invite.starts_with("tirami-invite-") && invite.secret);
        assert!(invite.invite.parse::<tirami_proto::Invite>().is_ok());
        // What this invite is good for, and what was left of the one before.
        let left = invite.enrolments_left;
        let few = InviteRequest { uses: Some(2), expires_in_s: Some(60), renew: true };
        let renewed = client.mesh_invite(&few).await.unwrap();
        assert_eq!(renewed.enrolments_left, left + 2);
        assert!(renewed.expires_at_ms >= invite.expires_at_ms, "the longer one counts");
        let secret = |word: &str| word.parse::<tirami_proto::Invite>().unwrap().secret;
        assert_ne!(secret(&renewed.invite), secret(&invite.invite));
        let many = InviteRequest { uses: Some(65), ..InviteRequest::default() };
        refused!(client.mesh_invite(&many), 400, "invalid_value");
        // A member that is not the registrar enrols nobody.
        let plain = member.mesh_invite(&InviteRequest::default()).await.unwrap();
        assert_eq!((plain.enrolments_left, plain.expires_at_ms), (0, None));
        client.mesh_join(&invite.invite).await.unwrap();
        refused!(client.mesh_join("tirami-invite-x"), 400, "invalid_value");
        let mut parsed: tirami_proto::Invite = invite.invite.parse().unwrap();
        parsed.mesh = tirami_core::MeshId::from_bytes([7; 32]);
        refused!(client.mesh_join(&parsed.to_string()), 409, "join_needs_start");
        // Without a key nobody invites.
        let keyless = Client::new(&user.url, None).unwrap();
        refused!(keyless.mesh_invite(&InviteRequest::default()), 403, "insufficient_scope");
        refused!(keyless.pause(), 403, "insufficient_scope");

        let line: tirami_sdk::Amount = "12.5".parse().unwrap();
        let enrol =
            EnrolRequest { party: other.clone(), owner: "ada".to_owned(), line_trm: Some(line) };
        let entry = client.enrol(&enrol).await.unwrap();
        assert!(!entry.repeated && entry.entry.len() == 64);
        // Only the registrar enrols.
        assert_eq!(member.enrol(&enrol).await.unwrap_err().status(), Some(400));
        let sponsor = SponsorRequest { party: stranger.clone(), amount_trm: None };
        let sponsored = client.sponsor(&sponsor).await.unwrap();
        assert!(sponsored.is_final && sponsored.entry.len() == 64, "{sponsored:?}");
        // A second lock, or one for a member with a line, would lie there for nothing.
        refused!(client.sponsor(&sponsor), 409, "has_line");
        let enrolled = SponsorRequest { party: other.clone(), amount_trm: None };
        refused!(client.sponsor(&enrolled), 409, "has_line");

        let charter = client.mesh_charter().await.unwrap();
        assert_eq!((charter.version, charter.quorum, charter.drafts.len()), (1, 1, 0));
        let (add, remove) = (WitnessAction::Add, WitnessAction::Remove);
        refused!(client.change_witnesses(add, &stranger), 404, "unknown_party");
        refused!(client.change_witnesses(remove, &other), 404, "unknown_witness");
        let own = user.party().to_string();
        refused!(client.change_witnesses(add, &own), 409, "is_witness");
        refused!(client.change_witnesses(remove, &own), 409, "last_witness");
        refused!(client.approve_charter(&"0".repeat(64)), 404, "unknown_draft");
        // What a member who is no witness drafts waits for the witness.
        let draft = member.change_witnesses(add, &other).await.unwrap();
        assert_eq!((draft.version, draft.approvals, draft.in_force), (2, 0, false));
        assert_eq!((draft.quorum, draft.approvals_needed), (2, 1));
        for _ in 0..200 {
            if !client.mesh_charter().await.unwrap().drafts.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let charter = client.mesh_charter().await.unwrap();
        assert_eq!(charter.drafts[0].draft, draft.draft);
        let approved = client.approve_charter(&draft.draft).await.unwrap();
        assert!(approved.approved_here && approved.in_force, "{approved:?}");
        assert_eq!(client.mesh_charter().await.unwrap().witnesses.len(), 2);
    });
    until("the new charter is everywhere", SOON, || {
        block_on(member.mesh_charter()).unwrap().version == 2
    });
}

#[test]
fn a_transfer_is_made_once_for_each_key() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let client = user.owner();
    let before = provider.peer.worth_of(provider.party());
    let transfer = |amount: &str, key: &str| TransferRequest {
        to: provider.party().to_string(),
        amount_trm: amount.parse().unwrap(),
        idempotency_key: key.to_owned(),
    };
    block_on(async {
        let first = client.transfer(&transfer("1.5", "a")).await.unwrap();
        let again = client.transfer(&transfer("1.5", "a")).await.unwrap();
        assert_eq!((first.repeated, again.repeated), (false, true));
        assert_eq!(first.entry, again.entry);
        refused!(client.transfer(&transfer("2", "a")), 409, "idempotency_key_used");
        refused!(client.transfer(&transfer("2", "a b")), 400, "invalid_value");
        refused!(client.transfer(&transfer("18446744073709", "b")), 402, "entry_refused");
        assert_eq!(client.transfer(&transfer("0", "c")).await.unwrap_err().status(), Some(400));
        let keyless = Client::new(&user.url, None).unwrap();
        refused!(keyless.transfer(&transfer("1", "d")), 403, "insufficient_scope");
    });
    until("it has come", SOON, || provider.peer.worth_of(provider.party()) == before + 1_500_000);
}

#[test]
fn the_owner_pauses_and_the_policy_is_kept() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let client = provider.owner();
    let serving = |node: &TestNode| node.get("/v1/tirami/serving");
    until("it serves", SOON, || serving(provider)["serving"] == true);
    assert_eq!(serving(user)["serving"], false);
    assert_eq!(serving(user)["reasons"][0], "this node has no model");
    let paused = block_on(client.pause()).unwrap();
    assert!(paused.paused_by_owner && !paused.serving, "{paused:?}");
    // The rules' timer does not lift the owner's word.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(serving(provider)["paused_by_owner"], true);
    until("nobody schedules it", SOON, || {
        user.get("/v1/tirami/route")["error"]["code"] == "no_provider"
    });
    assert!(block_on(client.resume()).unwrap().serving);
    let blocked = vec![user.party().to_string()];
    let change = ServingChange {
        jobs_max: Some(7),
        blocked: Some(blocked.clone()),
        ..ServingChange::default()
    };
    let changed = block_on(client.change_serving(&change)).unwrap();
    assert_eq!((changed.jobs_max, &changed.blocked), (7, &blocked));
    until("the blocked peer is gone", SOON, || user.get("/v1/tirami/peers")["count"] == 0);
    let (status, answer) = user.raw(&ask(3, false));
    assert_eq!(status, 503, "{answer}");
    let change = ServingChange { blocked: Some(Vec::new()), ..ServingChange::default() };
    block_on(client.change_serving(&change)).unwrap();
    until("it answers again", SOON, || user.raw(&ask(3, false)).0 == 200);
    let wrong = ServingChange { jobs_max: Some(1_000_000), ..ServingChange::default() };
    assert_eq!(block_on(client.change_serving(&wrong)).unwrap_err().status(), Some(400));
    assert_eq!(block_on(client.serving()).unwrap().jobs_max, 7);
}

#[test]
fn only_trusted_providers_see_what_asks_for_them() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let mut request = ask(3, false);
    request["provider"] = serde_json::json!({"data": "trusted"});
    assert_eq!(user.raw(&request).0, 503);
    let trusted = Some(vec![provider.party().to_string()]);
    let change = ServingChange { trusted, ..ServingChange::default() };
    block_on(user.owner().change_serving(&change)).unwrap();
    assert_eq!(user.raw(&request).0, 200);
    let peer = user.get("/v1/tirami/peers")["peers"][0].clone();
    assert_eq!(peer["trusted"], true);
    let rtt_us = peer["rtt_us"].as_u64().unwrap();
    assert!((1..10_000_000).contains(&rtt_us), "{peer}");
}

#[test]
fn whom_the_settings_name_no_more_is_trusted_no_more() {
    let mesh = Mesh::of(&[script(3, Duration::ZERO)]);
    let provider = mesh.provider(0).party();
    let trusting = mesh.add_user_with(|config| config.trusted_peers = vec![provider]);
    let mut request = ask(3, false);
    request["provider"] = json!({"data": "trusted"});
    trusting.post(&request);
    let invite = mesh.user().peer.node.invite().unwrap();
    let options = MeshOptions { clock: mesh.clock.clock(), ..joining(invite) };
    let node = TestNode::start_in(trusting.killed(), options, None);
    mesh.ready(&node);
    until("the provider answers", SOON, || node.raw(&ask(3, false)).0 == 200);
    let (status, error) = node.raw(&request);
    assert_eq!((status, &error["error"]["code"]), (503, &json!("no_provider")), "{error}");
    assert_eq!(node.get("/v1/tirami/serving")["trusted"], json!([]));
}

#[test]
fn while_it_is_busy_only_contributors_are_served() {
    let mesh = Mesh::of(&[script(200, Duration::from_millis(50))]);
    let (user, provider) = (mesh.user(), mesh.provider(0));
    let engine = FakeEngine::new(script(3, Duration::ZERO));
    let contributor = mesh.add_provider(Arc::new(engine), |_| {});
    let at = |node: &TestNode, tokens| {
        let mut request = ask(tokens, false);
        request["provider"] = json!({"only": [node.party().to_string()]});
        request
    };
    mesh.funded(provider);
    until("the contributor answers", SOON, || provider.raw(&at(&contributor, 3)).0 == 200);
    mesh.funded(&contributor);
    until("it is answered", SOON, || contributor.raw(&at(provider, 1)).0 == 200);
    until("nothing runs", SOON, || provider.served_running() == 0);
    let client = provider.owner();
    let change = ServingChange { contributors_above: Some(1), ..ServingChange::default() };
    block_on(client.change_serving(&change)).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| user.raw(&at(provider, 200)));
        until("the first job runs", SOON, || provider.served_running() == 1);
        // The user never served the provider, so the second place is not for it.
        let (status, answer): (u16, Value) = user.raw(&at(provider, 2));
        assert_ne!(status, 200, "{answer}");
        let (status, answer) = contributor.raw(&at(provider, 2));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["x_tirami"]["provider"], provider.party().to_string(), "{answer}");
        let first = first.join().unwrap();
        assert_eq!(first.0, 200, "{first:?}");
    });
}

#[test]
fn a_node_that_has_just_joined_asks_for_patience_where_it_has_not_heard_everything() {
    let owner = TestNode::start(on_loopback(), None);
    let begun = std::time::Instant::now();
    let newcomer = TestNode::start(joining(owner.peer.node.invite().unwrap()), None);
    let (status, error) = newcomer.raw(&ask(3, false));
    assert_eq!((status, &error["error"]["code"]), (503, &json!("joining")), "{error}");
    let told = error["error"]["message"].as_str().unwrap();
    assert!(told.ends_with("not heard of models yet; nothing was charged; ask again"), "{told}");
    assert!(begun.elapsed() < SOON, "a slow machine proves nothing: {:?}", begun.elapsed());
    // The founder of a mesh has nothing to wait for.
    let (status, error) = owner.raw(&ask(3, false));
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")), "{error}");
}

#[test]
fn a_node_without_its_line_yet_is_not_told_that_it_has_too_little() {
    let engine = Arc::new(FakeEngine::new(script(3, Duration::ZERO)));
    let owner = TestNode::start(on_loopback(), Some(engine));
    let few = InviteRequest { uses: Some(1), expires_in_s: None, renew: false };
    let invite = block_on(owner.owner().mesh_invite(&few)).unwrap();
    let invite: tirami_proto::Invite = invite.invite.parse().unwrap();
    let first = TestNode::start(joining(invite.clone()), None);
    until("the first one has a line", SOON, || !owner.peer.line_of(first.party()).is_zero());
    // The invite is used up, so no line comes.
    let begun = std::time::Instant::now();
    let second = TestNode::start(joining(invite), None);
    until("it knows who serves", SOON, || second.knows(owner.party()));
    let (status, error) = second.raw(&ask(3, false));
    // On a machine so slow that the time for patience is over, it is the plain refusal.
    let in_time = begun.elapsed() < Duration::from_secs(25);
    let expected: &[u16] = if in_time { &[503] } else { &[503, 402] };
    assert!(expected.contains(&status), "{status} {error}");
    let told = error["error"]["message"].as_str().unwrap();
    assert!(!in_time || told.contains("has not heard of its line yet"), "{told}");
}
