//! Texts that are continued as they stand: OpenAI's older completions at the edge.

use std::time::Duration;

use crate::support::{TestNode, saying, script};
use serde_json::{Value, json};
use tirami_sdk::types::{CompletionRequest, Limits, Scope};

const PATH: &str = "/v1/completions";

fn request(more: Value) -> String {
    let mut request = json!({"model": "fake", "prompt": "12345678", "max_tokens": 2, "seed": 7});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request.to_string()
}

fn chunks(text: &str) -> Vec<Value> {
    let events: Vec<_> = text.split("\n\n").filter_map(|one| one.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{text}");
    events[..events.len() - 1].iter().map(|one| serde_json::from_str(one).unwrap()).collect()
}

#[tokio::test]
async fn a_text_is_continued_metered_and_paid_like_a_chat() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let answer = node.post(PATH, None, request(json!({}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"), "{answer}");
    assert_eq!(answer["object"], "text_completion");
    let choice = json!({"index": 0, "text": "word word ", "logprobs": null,
                        "finish_reason": "length"});
    assert_eq!(answer["choices"], json!([choice]));
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4,
                       "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(answer["usage"], usage);
    let trades = node.admin.trades(None, None, None).await.unwrap().trades;
    assert_eq!(answer["x_tirami"]["trade_id"], trades[0].trade_id);
    assert_eq!((trades[0].prompt_tokens, trades[0].completion_tokens), (2, 2));

    let stream = request(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let streamed = chunks(&node.post(PATH, None, stream).await.text);
    let texts: Vec<_> = streamed.iter().map(|one| one["choices"][0]["text"].clone()).collect();
    assert_eq!(texts, [json!("word "), json!("word "), json!(""), Value::Null]);
    assert_eq!(streamed[2]["choices"][0]["finish_reason"], "length");
    assert!(streamed[1]["choices"][0]["finish_reason"].is_null());
    let last = streamed.last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&usage, &json!([])));
    let costs = [last, &answer].map(|one| one["x_tirami"]["trm_cost"].to_string());
    assert_eq!(costs[0], costs[1]);

    // The typed client, and the default length of OpenAI.
    let plain = CompletionRequest::new("fake", "hi");
    let plain = node.personal().complete(&plain).await.unwrap();
    assert_eq!(plain.choices[0].finish_reason.as_deref(), Some("stop"));
    assert_eq!(node.settled().await.total_trades, 3);
}

#[tokio::test]
async fn several_texts_are_several_jobs_in_order() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    for (prompt, prompt_tokens) in
        [(json!(["1234", "12345678"]), 3), (json!([[5, 6, 7], [8]]), 4), (json!([5, 6, 7]), 3)]
    {
        let subjects = if prompt[0].is_u64() { 1 } else { 2 };
        let answer = node.post(PATH, None, request(json!({"prompt": prompt, "n": 2}))).await;
        let answer = answer.json();
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), subjects * 2, "{answer}");
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!("word word ")));
        }
        assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens, "{answer}");
        let trades = answer["x_tirami"]["trade_ids"].as_array().unwrap();
        assert_eq!(trades.len(), subjects * 2);
    }
    let stream = request(json!({"prompt": ["a", "b"], "stream": true, "echo": true}));
    let mut texts = [String::new(), String::new()];
    for chunk in chunks(&node.post(PATH, None, stream).await.text) {
        let choice = &chunk["choices"][0];
        texts[usize::try_from(choice["index"].as_u64().unwrap()).unwrap()] +=
            choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ["aword word ", "bword word "]);
    assert_eq!(node.settled().await.total_trades, 12);
}

#[tokio::test]
async fn likelihoods_have_the_older_shape_whole_and_streamed() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let asked = json!({"logprobs": 2, "max_tokens": 3});
    let answer = node.post(PATH, None, request(asked.clone())).await.json();
    let top = json!({"word ": -0.5});
    let whole = json!({
        "tokens": ["word ", "word ", "word "], "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [top, top, top], "text_offset": [0, 5, 10],
    });
    assert_eq!(answer["choices"][0]["logprobs"], whole, "{answer}");
    let mut stream = asked;
    stream["stream"] = true.into();
    let mut offsets = Vec::new();
    for chunk in chunks(&node.post(PATH, None, request(stream)).await.text) {
        let told = chunk["choices"][0]["logprobs"]["text_offset"].as_array().cloned();
        offsets.extend(told.unwrap_or_default());
    }
    assert_eq!(Value::from(offsets), whole["text_offset"]);
}

#[tokio::test]
async fn a_stop_text_ends_it_and_a_gap_is_filled_where_the_model_can() {
    let node = TestNode::within(saying("one two three"), |_| ()).await;
    let stopped = request(json!({"stop": ["tw"], "max_tokens": 100}));
    let answer = node.post(PATH, None, stopped).await.json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("one "), &json!("stop")));
    // No tools are none.
    let plain = node.post(PATH, None, request(json!({"tools": []}))).await;
    assert_eq!(plain.status, 200, "{plain:?}");
    let gap = request(json!({"suffix": "tail"}));
    assert_eq!(node.post(PATH, None, gap).await.json()["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_costs_nothing() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    for (more, status, code, param) in [
        (json!({"prompt": null}), 400, "invalid_value", "prompt"),
        (json!({"prompt": [70_000]}), 400, "invalid_value", "prompt"),
        (json!({"prompt": "x".repeat(20_000)}), 400, "context_length_exceeded", "prompt"),
        (json!({"best_of": 4}), 400, "unsupported_parameter", "best_of"),
        (json!({"tools": [{"type": "function"}]}), 400, "unsupported_parameter", "tools"),
        (
            json!({"echo": true, "logprobs": 0, "stream": true}),
            400,
            "unsupported_parameter",
            "stream",
        ),
        (json!({"model": "gpt"}), 404, "model_not_found", "model"),
        (json!({"max_tokens": 0}), 400, "invalid_value", "max_tokens"),
    ] {
        let raw = node.post(PATH, None, request(more.clone())).await;
        assert_eq!((raw.status, raw.code().as_str()), (status, code), "{more} {raw:?}");
        assert_eq!(raw.json()["error"]["param"], param, "{more}");
    }
    let agent = node.agent("poor", "0.000001").await;
    let key = node.key(Scope::Inference, Some(&agent.did), Limits::default()).await.key;
    let raw = node.post(PATH, Some(&key), request(json!({"prompt": ["a", "b"]}))).await;
    assert_eq!((raw.status, raw.code().as_str()), (402, "insufficient_balance"));
    assert_eq!(node.settled().await.total_trades, 0);
}

#[tokio::test]
async fn a_text_is_scored_for_what_reading_it_costs_and_continued_where_that_is_wanted() {
    let node = TestNode::start(script(3, Duration::ZERO)).await;
    let wanted = |max_tokens: u32| {
        request(json!({"prompt": [104, 105, 33], "echo": true, "logprobs": 0,
                       "max_tokens": max_tokens}))
    };
    let answer = node.post(PATH, None, wanted(0)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let none = json!({"index": 0, "text": "hi!", "finish_reason": "length", "logprobs": {
        "tokens": ["h", "i", "!"], "token_logprobs": [null, -0.5, -0.5],
        "top_logprobs": [null, {"i": -0.5}, {"!": -0.5}], "text_offset": [0, 1, 2],
    }});
    assert_eq!(answer["choices"], json!([none]));
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3,
                       "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(answer["usage"], usage);
    let trade = node.admin.trades(None, None, None).await.unwrap().trades.remove(0);
    assert_eq!((trade.prompt_tokens, trade.completion_tokens), (3, 0));
    assert!(trade.trm_amount.trm().micro() > 0 && trade.flops > 0, "{trade:?}");
    assert!(node.admin.trade(&trade.trade_id).await.unwrap().verified);

    let one = node.post(PATH, None, wanted(1)).await.json();
    let choice = &one["choices"][0];
    assert_eq!(choice["text"], "hi!word ");
    assert_eq!(choice["logprobs"]["tokens"], json!(["h", "i", "!", "word "]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5, -0.5]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2, 3]));
    let more = node.admin.trades(None, None, None).await.unwrap().trades.remove(0);
    assert!(more.trm_amount.trm() > trade.trm_amount.trm(), "{more:?}");
    assert_eq!(node.settled().await.total_trades, 2);
}
