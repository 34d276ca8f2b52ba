//! Who waits for a place of a server elsewhere gets it in turn.

use tirami_sdk::Client;
use tirami_sdk::types::{ChatRequest, ChatResponse, Limits, Scope};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{adds, events, give, request, seller_of};
use crate::support::TestNode;

/// A server that answers one request after the other, each when the test says so.
struct OneByOne {
    url: String,
    /// What was asked, in order.
    asked: mpsc::UnboundedReceiver<String>,
    go: mpsc::UnboundedSender<()>,
}

impl OneByOne {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (heard, asked) = mpsc::unbounded_channel();
        let (go, mut may_go) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = request(&mut stream).await;
                let question = request["messages"][0]["content"].as_str().unwrap().to_owned();
                if heard.send(question).is_err() || may_go.recv().await.is_none() {
                    return;
                }
                give(&mut stream, &events(&[&adds("word "), "[DONE]"])).await;
            }
        });
        Self { url, asked, go }
    }

    /// Answers the next request; gives what it asked.
    async fn answer(&mut self) -> String {
        let question = self.asked.recv().await.unwrap();
        self.go.send(()).unwrap();
        question
    }
}

type Asked = JoinHandle<Result<ChatResponse, tirami_sdk::ClientError>>;

/// Asks, and waits until so many requests are at the node.
async fn ask(seller: &TestNode, (client, question): (&Client, &str), all: u32) -> Asked {
    let client = client.clone();
    let asked = ChatRequest { max_tokens: Some(4), ..ChatRequest::new("sold").user(question) };
    let waiting = tokio::spawn(async move { client.chat(&asked).await });
    at_the_node(seller, all).await;
    waiting
}

async fn at_the_node(seller: &TestNode, all: u32) {
    loop {
        let engine = seller.admin.status().await.unwrap().engine;
        if engine.running + engine.queued == all {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn consumer(seller: &TestNode, name: &str) -> Client {
    let agent = seller.agent(name, "100").await;
    let key = seller.key(Scope::Inference, Some(&agent.did), Limits::default()).await;
    seller.with(&key)
}

/// Questions of one client, asked one after the other at a node where nothing waits.
async fn all_of(seller: &TestNode, client: &Client, questions: &[&str]) -> Vec<Asked> {
    let mut asked = Vec::new();
    for (all, question) in (1..).zip(questions) {
        asked.push(ask(seller, (client, question), all).await);
    }
    asked
}

/// All that was asked, which is answered; gives the questions in the order of their answers.
async fn answered(server: &mut OneByOne, asked: Vec<Asked>) -> Vec<String> {
    let mut order = Vec::new();
    for _ in 0..asked.len() {
        order.push(server.answer().await);
    }
    for one in asked {
        assert_eq!(one.await.unwrap().unwrap().text(), "word ");
    }
    order
}

#[tokio::test]
async fn who_asks_once_does_not_wait_for_all_that_another_one_asked_before() {
    let mut server = OneByOne::start().await;
    let seller = seller_of(&server.url, "key", 1).await;
    let (much, once) = (consumer(&seller, "much").await, consumer(&seller, "once").await);
    let mut asked = Vec::new();
    for (client, question) in
        [(&much, "one"), (&much, "two"), (&much, "three"), (&much, "four"), (&once, "other")]
    {
        let all = u32::try_from(asked.len()).unwrap() + 1;
        asked.push(ask(&seller, (client, question), all).await);
    }
    let load = seller.admin.status().await.unwrap().engine;
    assert_eq!((load.running, load.queued), (1, 4));
    // The first had its place already; of those that wait the other consumer's is the second.
    assert_eq!(answered(&mut server, asked).await, ["one", "two", "other", "three", "four"]);
    let load = seller.settled().await.engine;
    assert_eq!((load.running, load.queued), (0, 0));
}

#[tokio::test]
async fn who_has_much_waiting_gives_way_to_who_has_nothing_and_pays_nothing_for_it() {
    let mut server = OneByOne::start().await;
    let seller = seller_of(&server.url, "key", 1).await;
    let (much, other) = (consumer(&seller, "much").await, consumer(&seller, "other").await);
    let mut asked = all_of(&seller, &much, &["one", "two", "three", "four", "five"]).await;
    let last = asked.pop().unwrap();
    asked.push(ask(&seller, (&other, "other"), 5).await);
    let refused = last.await.unwrap().unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(429), Some("engine_busy")));
    assert_eq!(answered(&mut server, asked).await, ["one", "two", "other", "three", "four"]);
    assert_eq!(seller.settled().await.total_trades, 5);
}

#[tokio::test]
async fn who_leaves_the_queue_takes_no_place_and_leaves_room_for_another_one() {
    let mut server = OneByOne::start().await;
    let seller = seller_of(&server.url, "key", 1).await;
    let client = consumer(&seller, "client").await;
    let mut asked = all_of(&seller, &client, &["runs", "leaves", "stays", "waits", "lasts"]).await;
    let one_more = ChatRequest { max_tokens: Some(4), ..ChatRequest::new("sold").user("no") };
    let refused = client.chat(&one_more).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(429), Some("engine_busy")));
    asked.remove(1).abort();
    at_the_node(&seller, 4).await;
    asked.push(ask(&seller, (&client, "comes"), 5).await);
    assert_eq!(answered(&mut server, asked).await, ["runs", "stays", "waits", "lasts", "comes"]);
    assert_eq!(seller.settled().await.total_trades, 5);
    assert!(server.asked.try_recv().is_err(), "nobody asked for who had left");
}
