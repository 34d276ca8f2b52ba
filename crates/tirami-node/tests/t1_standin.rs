//! Temporary.
#![allow(clippy::unwrap_used, missing_docs)]
use std::sync::Arc;
use tirami_infer::fake::{FakeEngine, FakeScript};
use tirami_node::config::Config;
use tirami_node::mesh::MeshOptions;
use tirami_node::node::{Node, NodeOptions};
#[test]
fn standin() {
    let Ok(dir) = std::env::var("T1_DATA") else { return };
    let dir = std::path::PathBuf::from(dir);
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async {
        let mut config = Config::defaults(&dir);
        config.drain_ms = 100;
        let engine = FakeEngine::new(FakeScript { tokens_per_answer: 40, delay: std::time::Duration::from_millis(5), fail_after: None });
        let engine: Option<Arc<dyn tirami_infer::engine::Engine>> = (std::env::var("T1_MODEL").unwrap() == "1").then(|| Arc::new(engine) as _);
        let port: u16 = std::env::var("T1_PORT").unwrap().parse().unwrap();
        let join = std::env::var("T1_JOIN").ok().filter(|t| !t.is_empty()).map(|t| t.parse().unwrap());
        let mesh = MeshOptions { bind: Some(([0, 0, 0, 0], port).into()), join, ..MeshOptions::default() };
        let node = Node::start(NodeOptions { data_dir: dir.clone(), bind: ([127, 0, 0, 1], 0).into(), engine, config, mesh }).await.unwrap();
        std::fs::write(dir.join("t1invite"), node.invite().unwrap().to_string()).unwrap();
        println!("\nAPI: http://{}", node.api);
        println!("ready");
        let mut s = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
        s.recv().await;
        node.shutdown().await.unwrap();
    });
    std::process::exit(0);
}
