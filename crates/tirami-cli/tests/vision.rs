//! Pictures in a chat: a real process, the real text model, and a small projector made by the test.
//! And models whose headers name another template, another way to make vectors or tokens for gaps.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../tirami-infer/tests/support/header.rs"]
mod header;
#[path = "../../tirami-infer/tests/support/vision.rs"]
mod support;

use std::time::{Duration, Instant};

use common::Node;
use data_encoding::BASE64;
use serde_json::{Value, json};
use support::{PICTURE_TOKENS, lay_beside, png, projector};
use tempfile::{TempDir, tempdir};

const QUESTION: &str = "What is in this picture?";
const CHATS: &str = "/v1/chat/completions";
/// A template that wants a list of parts, and writes what SmolLM2's own writes of the same chat.
const PARTS: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
                     {% for line in message['content'] %}{% if line['type'] == 'text' %}\
                     {{ line['text'] }}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}\
                     {% endfor %}{{ '<|im_end|>' + '\\n' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const SOON: Duration = Duration::from_secs(30);

/// A JPEG of 8 × 8 grey pixels.
fn jpeg() -> Vec<u8> {
    let table = |class: u8| {
        let head = [0xff, 0xc4, 0, 20, class, 1];
        [&head[..], &[0; 16]].concat()
    };
    [
        &[0xff, 0xd8, 0xff, 0xdb, 0, 67, 0][..],
        &[1; 64],
        &[0xff, 0xc0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0],
        &table(0),
        &table(0x10),
        &[0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0x3f, 0xff, 0xd9],
    ]
    .concat()
}

fn url(file: &[u8]) -> String {
    let kind = if file.starts_with(b"\x89PNG") { "png" } else { "jpeg" };
    format!("data:image/{kind};base64,{}", BASE64.encode(file))
}

/// A chat about pictures, greedy.
fn asking(model: &str, urls: &[String]) -> Value {
    let picture = |url: &String| json!({"type": "image_url", "image_url": {"url": url}});
    let mut parts: Vec<Value> = urls.iter().map(picture).collect();
    parts.push(json!({"type": "text", "text": QUESTION}));
    json!({
        "model": model, "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": parts}],
    })
}

/// Posts JSON as the personal agent; gives status and JSON.
fn post(node: &Node, path: &str, request: &Value) -> (u16, Value) {
    // It sets up the TLS that the other one needs too.
    drop(node.personal());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = http.post(format!("{}{path}", node.api));
    let call = call.header("content-type", "application/json");
    let call = call.body(serde_json::to_vec(request).unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let answer = call.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    })
}

#[track_caller]
fn answered(node: &Node, path: &str, request: &Value) -> Value {
    let (status, answer) = post(node, path, request);
    assert_eq!(status, 200, "{answer}");
    answer
}

fn said(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn micro(amount: &Value) -> f64 {
    amount.as_str().map_or_else(|| amount.as_f64().unwrap(), |text| text.parse().unwrap())
}

/// A node with the plain model and with one called `seeing`.
fn seeing() -> (TempDir, Node) {
    let home = tempdir().unwrap();
    let path = lay_beside(&common::model(), home.path(), "seeing");
    let plain = common::model();
    let args = ["--model", plain.to_str().unwrap(), "--model", path.to_str().unwrap()];
    let node = Node::start_with(home.path(), "data", &args);
    (home, node)
}

fn modalities(node: &Node, model: &str) -> Vec<String> {
    let found = tokio::runtime::Runtime::new().unwrap().block_on(node.personal().model(model));
    found.unwrap().x_tirami.modalities
}

fn trades(node: &Node) -> Value {
    node.run(&["trades", "--json"]).succeeds().json()["count"].clone()
}

fn text_name() -> String {
    common::model().file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn an_answer_depends_on_the_picture_which_is_counted_and_paid_like_a_prompt() {
    let (_home, node) = seeing();
    assert_eq!(modalities(&node, "seeing"), ["text", "image"]);
    assert_eq!(modalities(&node, &text_name()), ["text"]);
    let picture = url(&png(64, 48, 1));
    let without = answered(&node, CHATS, &asking("seeing", &[]));
    let one = answered(&node, CHATS, &asking("seeing", std::slice::from_ref(&picture)));
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&one), tokens(&without) + u64::from(PICTURE_TOKENS));
    let cost = |answer: &Value| micro(&answer["x_tirami"]["trm_cost"]);
    assert!(cost(&one) > cost(&without), "{one}");
    let trade = one["x_tirami"]["trade_id"].as_str().unwrap();
    let shown = node.run(&["trades", "show", trade, "--json"]).succeeds().json();
    assert_eq!(shown["verified_here"], true);
    assert_eq!(shown["trade"]["trade"]["prompt_tokens"], tokens(&one), "{shown}");

    let again = answered(&node, CHATS, &asking("seeing", std::slice::from_ref(&picture)));
    assert_eq!(said(&again), said(&one));
    let other = answered(&node, CHATS, &asking("seeing", &[url(&png(64, 48, 2))]));
    assert_ne!(said(&other), said(&one));
    let grey = answered(&node, CHATS, &asking("seeing", &[url(&jpeg())]));
    assert_ne!(said(&grey), said(&one));
    assert_eq!(tokens(&grey), tokens(&one));
    let two = [picture.clone(), url(&jpeg())];
    let both = answered(&node, CHATS, &asking("seeing", &two));
    assert_eq!(tokens(&both), tokens(&one) + u64::from(PICTURE_TOKENS));

    // Told beforehand.
    let asked = asking("seeing", std::slice::from_ref(&picture));
    let estimate = answered(&node, "/v1/tirami/estimate", &asked);
    assert_eq!(estimate["prompt_tokens"], tokens(&one));
    assert!(micro(&estimate["max_cost_trm"]) >= cost(&one), "{estimate}");
}

#[test]
fn a_template_that_wants_parts_is_given_the_picture_and_the_text() {
    let home = tempdir().unwrap();
    let paths = ["seeing", "parts"].map(|name| lay_beside(&common::model(), home.path(), name));
    let template = |text| [("tokenizer.chat_template", header::text(text))];
    header::copy_with(&paths[0], &paths[1], &template(PARTS));
    let [text, parts] = [&paths[0], &paths[1]].map(|path| path.to_str().unwrap());
    let node = Node::start_with(home.path(), "data", &["--model", text, "--model", parts]);
    let asked = |model: &str, seed| {
        let mut asked = asking(model, &[url(&png(64, 48, seed))]);
        // Where there is none the model's own template adds one.
        let system = json!({"role": "system", "content": "Be brief."});
        asked["messages"].as_array_mut().unwrap().insert(0, system);
        answered(&node, CHATS, &asked)
    };
    let (one, other) = (asked("seeing", 1), asked("parts", 1));
    assert_eq!(said(&other), said(&one));
    assert_eq!(other["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_ne!(said(&asked("parts", 2)), said(&other));
}

#[test]
fn a_template_that_writes_no_chat_leaves_the_model_its_other_uses() {
    let home = tempdir().unwrap();
    let mute = home.path().join("mute.gguf");
    let template = ("tokenizer.chat_template", header::text("{{ messages | length }}"));
    header::copy_with(&common::model(), &mute, &[template]);
    let node = Node::start_with(home.path(), "data", &["--model", mute.to_str().unwrap()]);
    let (status, error) = post(&node, CHATS, &asking("mute", &[]));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("invalid_value")), "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("it leaves out what a user says"), "{error}");
    let text = json!({"model": "mute", "prompt": "The cat sleeps."});
    assert!(answered(&node, "/tokenize", &text)["count"].as_u64().unwrap() > 1);
    let text = json!({"model": "mute", "prompt": "The cat sleeps.", "max_tokens": 2});
    answered(&node, "/v1/completions", &text);
}

#[test]
fn a_model_with_tokens_for_it_fills_a_gap_and_one_without_refuses_to() {
    let home = tempdir().unwrap();
    let path = home.path().join("gaps.gguf");
    // Any three tokens will do; the last one is a line's end, after which a model goes on.
    let keys = [("pre", 7), ("suf", 8), ("mid", 198)].map(|(part, token)| {
        (format!("tokenizer.ggml.fim_{part}_token_id"), header::number(token))
    });
    let keys = keys.each_ref().map(|(key, token)| (key.as_str(), token.clone()));
    header::copy_with(&common::model(), &path, &keys);
    let plain = common::model();
    let args = ["--model", plain.to_str().unwrap(), "--model", path.to_str().unwrap()];
    let node = Node::start_with(home.path(), "data", &args);
    let asked = |model: &str, suffix: Value| {
        json!({
            "model": model, "prompt": "The cat sleeps", "suffix": suffix, "max_tokens": 8,
            "temperature": 0, "logit_bias": {"0": -100, "2": -100},
        })
    };
    let path = "/v1/completions";
    let gap = answered(&node, path, &asked("gaps", json!(" on the sofa.")));
    assert!(!gap["choices"][0]["text"].as_str().unwrap().is_empty(), "{gap}");
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let before = answered(&node, path, &asked("gaps", Value::Null));
    assert!(tokens(&gap) > tokens(&before) + 3, "{gap} {before}");
    let (status, error) = post(&node, path, &asked(&text_name(), json!(" on the sofa.")));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("suffix")), "{error}");
}

#[test]
fn a_model_for_vectors_reads_its_end_token_and_one_that_ranks_makes_none() {
    let home = tempdir().unwrap();
    let made = |name: &str, pooling: u32| {
        let path = home.path().join(format!("{name}.gguf"));
        let pooling = ("llama.pooling_type", header::number(pooling));
        let ended = ("tokenizer.ggml.add_eos_token", header::flag(true));
        header::copy_with(&common::model(), &path, &[pooling, ended]);
        path
    };
    let paths = [common::model(), made("last", 3), made("ranks", 4)];
    let [plain, last, ranks] = [&paths[0], &paths[1], &paths[2]].map(|path| path.to_str().unwrap());
    let args = ["--model", plain, "--model", last, "--model", ranks];
    let node = Node::start_with(home.path(), "data", &args);
    let asked = |model: &str| json!({"model": model, "input": "The cat sleeps on the sofa."});
    let mean = answered(&node, "/v1/embeddings", &asked(&text_name()));
    let last = answered(&node, "/v1/embeddings", &asked("last"));
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&last), tokens(&mean) + 1);
    assert_ne!(last["data"], mean["data"]);
    let (status, error) = post(&node, "/v1/embeddings", &asked("ranks"));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("unsupported_parameter")));
    assert!(error["error"]["message"].as_str().unwrap().contains("makes no embeddings"), "{error}");
}

#[test]
fn every_interface_takes_pictures_in_its_own_way() {
    let (_home, node) = seeing();
    let file = png(64, 48, 1);
    let chat = answered(&node, CHATS, &asking("seeing", &[url(&file)]));
    let source = json!({"type": "base64", "media_type": "image/png", "data": BASE64.encode(&file)});
    let message = |source: &Value| {
        json!({
            "model": "seeing", "max_tokens": 12, "temperature": 0,
            "messages": [{"role": "user", "content": [
                {"type": "image", "source": source}, {"type": "text", "text": QUESTION},
            ]}],
        })
    };
    let anthropic = answered(&node, "/v1/messages", &message(&source));
    assert_eq!(anthropic["content"][0]["text"], said(&chat));
    let read = ["input_tokens", "cache_read_input_tokens"].map(|name| &anthropic["usage"][name]);
    let read: u64 = read.iter().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(chat["usage"]["prompt_tokens"], read);
    let counted = answered(&node, "/v1/messages/count_tokens", &message(&source));
    assert_eq!(counted["input_tokens"], chat["usage"]["prompt_tokens"]);
    let response = |url: &str| {
        json!({
            "model": "seeing", "max_output_tokens": 12, "temperature": 0,
            "input": [{"role": "user", "content": [
                {"type": "input_image", "image_url": url},
                {"type": "input_text", "text": QUESTION},
            ]}],
        })
    };
    let first = answered(&node, "/v1/responses", &response(&url(&file)));
    assert_eq!(first["output"][0]["content"][0]["text"], said(&chat));
    // What goes on from it still has the picture.
    let id = &first["id"];
    let more = json!({
        "model": "seeing", "max_output_tokens": 4, "temperature": 0,
        "input": "And now?", "previous_response_id": id,
    });
    let more = answered(&node, "/v1/responses", &more);
    let (before, after) = (&first["usage"]["input_tokens"], &more["usage"]["input_tokens"]);
    assert!(after.as_u64() > before.as_u64(), "{more}");

    let far = json!({"type": "url", "url": "https://example.com/a.png"});
    for (path, request) in
        [("/v1/messages", message(&far)), ("/v1/responses", response("http://127.0.0.1:1/a.png"))]
    {
        let (status, error) = post(&node, path, &request);
        assert_eq!((status, &error["error"]["code"]), (400, &json!("image_not_fetched")), "{path}");
    }
}

#[test]
fn what_is_no_picture_is_refused_and_changes_nothing() {
    let (_home, node) = seeing();
    let before = node.run(&["status", "--json"]).succeeds().json()["balance"].clone();
    let good = png(8, 8, 1);
    let huge = {
        // Its header says more than anybody has room for.
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 60_000, 60_000);
        encoder.set_color(png::ColorType::Rgb);
        drop(encoder.write_header().unwrap());
        file
    };
    let blank = |width, height| {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Grayscale);
        let pixels = vec![0; (width * height) as usize];
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        file
    };
    let mut cut = png(64, 64, 1);
    cut.truncate(cut.len() / 2);
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = format!("http://{}/a.png", listening.local_addr().unwrap());
    let many = vec![url(&good); 17];
    for (what, urls, code) in [
        ("elsewhere", vec!["https://example.com/a.png".to_owned()], "image_not_fetched"),
        ("nearby", vec![near], "image_not_fetched"),
        ("a file", vec!["file:///etc/hostname".to_owned()], "image_not_fetched"),
        ("no base64", vec!["data:image/png;base64,%%%".to_owned()], "invalid_image"),
        ("no marker", vec!["data:image/png,abc".to_owned()], "invalid_image"),
        ("another format", vec![url(b"GIF89a\x01\0\x01\0")], "invalid_image"),
        ("nothing", vec![url(b"")], "invalid_image"),
        ("half a file", vec![url(&cut)], "invalid_image"),
        ("a damaged header", vec![url(&good[..20])], "invalid_image"),
        ("far too large", vec![url(&huge)], "image_too_large"),
        ("a bomb", vec![url(&blank(4_097, 4_096))], "image_too_large"),
        ("a line", vec![url(&blank(1, 100))], "image_too_large"),
        ("many", many, "too_many_images"),
    ] {
        let (status, error) = post(&node, CHATS, &asking("seeing", &urls));
        assert_eq!((status, &error["error"]["code"]), (400, &json!(code)), "{what}: {error}");
    }
    let mut told = asking("seeing", &[url(&good)]);
    told["messages"][0]["role"] = json!("system");
    let (status, error) = post(&node, CHATS, &told);
    assert_eq!((status, &error["error"]["code"]), (400, &json!("unsupported_parameter")));
    // The plain model has no projector.
    let (status, error) = post(&node, CHATS, &asking(&text_name(), &[url(&good)]));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("unsupported_parameter")));
    assert!(error["error"]["message"].as_str().unwrap().contains("reads no pictures"), "{error}");

    listening.set_nonblocking(true).unwrap();
    assert!(listening.accept().is_err(), "the node fetched something");
    assert_eq!(trades(&node), 0);
    assert_eq!(node.run(&["status", "--json"]).succeeds().json()["balance"], before);
    answered(&node, CHATS, &asking("seeing", &[url(&good)]));
}

#[test]
fn a_node_without_the_model_buys_an_answer_about_a_picture() {
    let asked = asking("seeing", &[url(&png(64, 48, 1))]);
    let (home, alone) = seeing();
    let own = answered(&alone, CHATS, &asked);
    drop(alone);
    let path = home.path().join("seeing.gguf");
    let user = Node::start_with(home.path(), "user", &["--no-model", "--mesh-port", "0"]);
    let invite = user.run(&["mesh", "invite"]).succeeds().stdout.clone();
    let join = ["--mesh-port", "0", "--join", invite.lines().last().unwrap()];
    let plain = common::model();
    let models = ["--model", plain.to_str().unwrap(), "--model", path.to_str().unwrap()];
    let serving = [&models[..], &join].concat();
    let _provider = Node::start_with(home.path(), "provider", &serving);
    let begun = Instant::now();
    let bought = loop {
        let (status, answer) = post(&user, CHATS, &asked);
        if status == 200 {
            break answer;
        }
        assert!(begun.elapsed() < SOON, "{answer}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(bought["x_tirami"]["route"]["kind"], "mesh", "{bought}");
    assert_eq!(said(&bought), said(&own));
    for tokens in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(bought["usage"][tokens], own["usage"][tokens], "{tokens}");
    }
    assert_eq!(modalities(&user, "seeing"), ["text", "image"]);
    let trade = bought["x_tirami"]["trade_id"].as_str().unwrap();
    let shown = user.run(&["trades", "show", trade, "--json"]).succeeds().json();
    assert_eq!(shown["verified_here"], true);
    assert_eq!(shown["trade"]["trade"]["prompt_tokens"], own["usage"]["prompt_tokens"]);
    let other = asking("seeing", &[url(&png(64, 48, 2))]);
    assert_ne!(said(&answered(&user, CHATS, &other)), said(&own));

    // The same node serves the plain model too, which is another one.
    assert_eq!(modalities(&user, &text_name()), ["text"]);
    answered(&user, CHATS, &asking(&text_name(), &[]));
    let count = trades(&user);
    let (status, error) = post(&user, CHATS, &asking(&text_name(), &[url(&png(8, 8, 1))]));
    assert_eq!((status, &error["error"]["code"]), (400, &json!("unsupported_parameter")));
    assert_eq!(trades(&user), count);
}

#[test]
fn a_projector_is_named_left_out_or_refused_by_a_setting() {
    let home = tempdir().unwrap();
    let file = home.path().join("my-projector.gguf");
    std::fs::write(&file, projector(2)).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let node = Node::start_with(home.path(), "data", &["--mmproj", &file]);
    assert_eq!(modalities(&node, &text_name()), ["text", "image"]);
    answered(&node, CHATS, &asking(&text_name(), &[url(&png(8, 8, 1))]));
    drop(node);

    let path = lay_beside(&common::model(), home.path(), "seeing");
    let args = ["--model", path.to_str().unwrap(), "--mmproj", "none"];
    let blind = Node::start_with(home.path(), "blind", &args);
    assert_eq!(modalities(&blind, "seeing"), ["text"]);

    let wrong = common::model();
    let refused = Node::refused(home.path(), "third", &["--mmproj", wrong.to_str().unwrap()]);
    refused.fails(5, "it is no projector for pictures but of the architecture \"llama\"");
    let narrow = home.path().join("narrow.gguf");
    std::fs::write(&narrow, support::projector_of(1, 64)).unwrap();
    let refused = Node::refused(home.path(), "fourth", &["--mmproj", narrow.to_str().unwrap()]);
    refused.fails(5, "mismatch between text model");
}
