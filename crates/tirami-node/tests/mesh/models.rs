//! A provider with several models: what it offers, and which of them answers an order.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tirami_core::{ModelDigest, ModelShape};
use tirami_infer::engine::{Engine, ModelInfo};
use tirami_infer::fake::FakeEngine;
use tirami_infer::loader::Loader;
use tirami_node::models::{Bounds, KeepAlive, Models};

use crate::jobs_support::{Mesh, TestNode, ask, script};
use crate::orders::{Consumer, key_of};
use crate::support::{SOON, until};

/// A model that says its own name.
struct Named(ModelInfo);

fn named(name: &str, digest: u8) -> Arc<dyn Loader> {
    let shape = ModelShape {
        parameters_active: 1_000_000,
        layers: 2,
        attention_width: 64,
        context_max: 4_096,
    };
    Arc::new(Named(ModelInfo {
        name: name.to_owned(),
        digest: ModelDigest::from_bytes([digest; 32]),
        shape,
        architecture: "fake".to_owned(),
        quantisation: "F32".to_owned(),
        size_bytes: 4_000_000,
        context_tokens: 4_096,
        embedding_width: 8,
        image_tokens_max: 0,
        build: format!("build of {name}"),
    }))
}

impl Loader for Named {
    fn model(&self) -> &ModelInfo {
        &self.0
    }

    fn memory_bytes(&self) -> u64 {
        1
    }

    fn load(&self) -> Result<Arc<dyn Engine>, String> {
        let engine = FakeEngine::with_model(script(2, Duration::ZERO), self.0.clone());
        Ok(Arc::new(engine.saying(vec![format!("{} ", self.0.name)])))
    }
}

/// The models that `user` knows others to serve.
fn known(user: &TestNode) -> Vec<String> {
    let list = user.get("/v1/models");
    let all = list["data"].as_array().unwrap_or_else(|| panic!("{list}")).clone();
    let name = |model: &Value| model["id"].as_str().unwrap().to_owned();
    let mut names: Vec<String> = all.iter().map(name).collect();
    names.sort();
    names
}

fn asking(model: &str) -> Value {
    let mut request = ask(9, false);
    request["model"] = json!(model);
    request
}

#[test]
fn models_in_memory_are_offered_and_the_one_that_is_ordered_answers() {
    let mesh = Mesh::of(&[]);
    let models = Models::new(Bounds { memory_bytes: None, keep_alive: KeepAlive::FOREVER });
    assert!(models.serve(named("fake", 0xfa)) && models.serve(named("other", 2)));
    assert!(models.know(named("private", 3)));
    let provider = mesh.add_serving(models.clone());
    let user = mesh.add_user();
    let load = |name: &str| {
        let model = models.find(name).unwrap();
        drop(provider.peer.block_on(models.lease(&model, None)).unwrap());
    };
    for (name, offered) in
        [("private", &[][..]), ("fake", &["fake"][..]), ("other", &["fake", "other"][..])]
    {
        load(name);
        until("the offer is known", SOON, || known(&user) == offered);
    }
    for name in ["fake", "other", "fake"] {
        let answer = user.post(&asking(name));
        let text = format!("{name} {name} ");
        assert_eq!(answer["choices"][0]["message"]["content"], text, "{answer}");
        assert_eq!(answer["model"], name);
    }
    let (status, error) = user.raw(&asking("private"));
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));

    // An order loads nothing, whatever the consumer believes.
    let model = models.find("fake").unwrap();
    assert!(provider.peer.block_on(models.unload(&model)));
    let body = serde_json::to_vec(&ask(9, false)).unwrap();
    let key = key_of(&user);
    let consumer = Consumer { node: &user, key, provider: provider.party(), body };
    let ordered = |digest: u8, n: u8| {
        let mut order = consumer.order(n);
        order.model = ModelDigest::from_bytes([digest; 32]);
        consumer.code(consumer.sign(order))
    };
    assert_eq!(ordered(0xfa, 1), "model_not_loaded");
    assert_eq!(ordered(3, 2), "order_model");
    assert!(!model.is_loaded());
    until("it is offered no more", SOON, || known(&user) == ["other"]);
    assert_eq!(user.open_holds(), 0);
}
