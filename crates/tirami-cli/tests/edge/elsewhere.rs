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

#[test]
fn a_server_that_answers_nobody_without_a_key_charges_the_agent_of_the_sellers_key() {
    const VARIABLE: &str = "KEY_OF_THE_SERVER_ELSEWHERE";
    let home = tempdir().unwrap();
    // On all addresses no caller is taken for the personal agent.
    let server = Node::start_with(home.path(), "server", &["--bind", "0.0.0.0"]);
    let ask = ["chat", "--json", "--max-tokens", "9", "--temperature", "0", "Count to three."];
    let own = server.run(&ask).succeeds().json();
    server.run(&["agents", "create", "seller", "--fund", "1000"]).succeeds();
    let key = server.run(&["keys", "create", "elsewhere", "--agent", "seller"]);
    let key = key.succeeds().stdout.trim().to_owned();

    let file = home.path().join("engines.toml");
    let (url, name, gguf) = (format!("{}/v1", server.api), &own["model"], common::model());
    let table = |key: &str| {
        format!(
            "[[engine]]\nkind = \"openai\"\nurl = {url:?}\n{key}\
             models = [{{ name = \"sold\", upstream = {name}, gguf = {gguf:?} }}]\n"
        )
    };
    let args = ["--no-model", "--config", file.to_str().unwrap()];
    let count = || {
        let trades = server.run(&["trades", "list", "--agent", "seller", "--json"]);
        trades.succeeds().json()["count"].clone()
    };
    std::fs::write(&file, table("")).unwrap();
    let keyless = Node::start_with(home.path(), "keyless", &args);
    keyless.run(&ask).fails(7, "owner must act");
    drop(keyless);
    assert_eq!(count(), 0);

    std::fs::write(&file, table(&format!("api_key_env = \"{VARIABLE}\"\n"))).unwrap();
    let variables = [(VARIABLE, key.as_str())];
    let seller = Node::start_under(home.path(), "keyed", &args, &variables);
    let sold = seller.run(&ask).succeeds().json();
    assert_eq!(sold["choices"][0]["message"], own["choices"][0]["message"]);
    assert_eq!(
        (count(), server.run(&["trades", "--json"]).json()["count"].clone()),
        (1.into(), 2.into())
    );
    let agents = server.run(&["agents", "--json"]).succeeds().json();
    let agents = agents["agents"].as_array().unwrap();
    let left = agents.iter().find(|one| one["name"] == "seller").unwrap();
    assert!(left["balance_trm"].as_f64().unwrap() < 1000.0, "{left}");
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
