//! A node whose engine is another node, by a table of its config file.

use std::time::Duration;

use tempfile::tempdir;
use tirami_sdk::types::{
    CompletionRequest, CompletionResponse, EmbeddingInput, EmbeddingVector, EmbeddingsRequest,
    TextPrompt, TokenizeRequest,
};

use crate::common::{self, Node};

#[test]
fn a_node_sells_the_answers_of_a_server_that_its_config_file_names() {
    let home = tempdir().unwrap();
    let server = Node::start(home.path());
    let ask = ["chat", "--json", "--max-tokens", "9", "--temperature", "0", "Count to three."];
    let own = server.run(&ask).succeeds().json();

    let file = home.path().join("engines.toml");
    let (url, name, gguf) = (format!("{}/v1", server.api), &own["model"], common::model());
    let table = format!(
        "[[engine]]\nkind = \"openai\"\nurl = {url:?}\n\
         models = [{{ name = \"sold\", upstream = {name}, gguf = {gguf:?}, \
         serves = [\"chat\", \"completions\", \"embeddings\"] }}]\n"
    );
    std::fs::write(&file, &table).unwrap();
    let args = ["--no-model", "--config", file.to_str().unwrap()];
    let seller = Node::start_with(home.path(), "seller", &args);
    let sold = seller.run(&ask).succeeds().json();
    assert_eq!(sold["model"], "sold");
    assert_eq!(sold["choices"][0]["message"], own["choices"][0]["message"]);
    assert_eq!(sold["usage"]["completion_tokens"], own["usage"]["completion_tokens"]);
    assert_eq!(sold["usage"]["prompt_tokens"], own["usage"]["prompt_tokens"]);
    for (node, trades) in [(&server, 2), (&seller, 1)] {
        assert_eq!(node.run(&["trades", "--json"]).succeeds().json()["count"], trades);
    }
    let trade = sold["x_tirami"]["trade_id"].as_str().unwrap();
    let shown = seller.run(&["trades", "show", trade, "--json"]).succeeds().json();
    assert_eq!(
        (&shown["verified_here"], &sold["system_fingerprint"]),
        (&true.into(), &"openai".into())
    );

    // Tools go there and their calls come back.
    let city = serde_json::json!({
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"], "additionalProperties": false,
    });
    let tool = |name: &str| {
        let function = serde_json::json!({"name": name, "parameters": city});
        serde_json::json!({"type": "function", "function": function})
    };
    let tools = serde_json::json!({
        "model": "sold", "temperature": 0, "max_completion_tokens": 120,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [tool("weather"), tool("clock")], "parallel_tool_calls": false,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    });
    let request = serde_json::from_value(tools).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer = runtime.block_on(seller.personal().chat(&request)).unwrap();
    assert_eq!(answer.choices[0].finish_reason, "tool_calls", "{answer:?}");
    let call = &answer.choices[0].message.tool_calls[0].function;
    let arguments: serde_json::Value = serde_json::from_str(&call.arguments).unwrap();
    assert_eq!(call.name, "weather");
    assert!(arguments["city"].is_string(), "{arguments}");
    runtime.block_on(texts_go_there_too(&server, name.as_str().unwrap(), &seller));

    drop(server);
    seller.run(&ask).fails(7, "the server that computes the model cannot be reached");
    assert_eq!(seller.run(&["trades", "--json"]).succeeds().json()["count"], 5);
    drop(seller);

    // A server that says nothing has failed as soon as the table says.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = format!("http://{}/v1", silent.local_addr().unwrap());
    let hasty = table.replace(&url, &there).replace("models =", "first_text_seconds = 1\nmodels =");
    std::fs::write(&file, hasty).unwrap();
    let impatient = Node::start_with(home.path(), "impatient", &args);
    let asked = std::time::Instant::now();
    impatient.run(&ask).fails(7, "gave no text for too long");
    assert!(asked.elapsed() < Duration::from_secs(60), "the usual five minutes were waited");
    drop((impatient, silent));

    let keyed = table.replace("models =", "api_key_env = \"NOBODY_HAS_THIS_KEY\"\nmodels =");
    std::fs::write(&file, keyed).unwrap();
    let refused = Node::refused(home.path(), "third", &args);
    refused.fails(3, "the variable NOBODY_HAS_THIS_KEY, which api_key_env of an engine names");
}

/// A text is gone on with, and so are its tokens, and texts become vectors, as at the server.
async fn texts_go_there_too(server: &Node, name: &str, seller: &Node) {
    const TEXT: &str = "The capital of France is";
    let (server, seller) = (server.personal(), seller.personal());
    let text = |model: &str| CompletionRequest {
        max_tokens: Some(6),
        temperature: Some(0.0),
        ..CompletionRequest::new(model, TEXT)
    };
    let own = server.complete(&text(name)).await.unwrap();
    let counts = |answer: &CompletionResponse| {
        answer.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens))
    };
    let cut = TokenizeRequest { prompt: Some(TEXT.to_owned()), ..TokenizeRequest::default() };
    let tokens = seller.tokenize(&cut).await.unwrap().tokens;
    for prompt in [TextPrompt::Text(TEXT.to_owned()), TextPrompt::Tokens(tokens)] {
        let asked = CompletionRequest { prompt, ..text("sold") };
        let sold = seller.complete(&asked).await.unwrap();
        assert_eq!((&sold.choices[0].text, counts(&sold)), (&own.choices[0].text, counts(&own)));
    }
    let texts = |model: &str| EmbeddingsRequest {
        model: model.to_owned(),
        input: EmbeddingInput::Texts(vec![TEXT.to_owned(), "Rain".to_owned()]),
        ..EmbeddingsRequest::default()
    };
    let own = server.embeddings(&texts(name)).await.unwrap();
    let sold = seller.embeddings(&texts("sold")).await.unwrap();
    assert_eq!(sold.usage, own.usage);
    for (sold, own) in sold.data.iter().zip(&own.data) {
        let [EmbeddingVector::Numbers(sold), EmbeddingVector::Numbers(own)] =
            [&sold.embedding, &own.embedding]
        else {
            panic!("numbers were asked for");
        };
        assert!(sold.len() == own.len() && !own.is_empty());
        assert!(sold.iter().zip(own).all(|(sold, own)| (sold - own).abs() < 1e-5));
    }
}
