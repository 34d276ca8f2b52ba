//! Answers that are complete as soon as they begin.

use std::sync::Arc;
use std::time::Duration;

use tirami_infer::engine::{
    Conversation, Engine, EngineLoad, Finish, Generation, ModelInfo, Piece, PrepareError, Prompt,
    Sampling, StartError,
};
use tirami_infer::fake::FakeEngine;
use tirami_proto::ToConsumer;
use tokio::sync::mpsc;

use crate::jobs_support::{Mesh, ask, script};
use crate::orders::Consumer;

/// Makes its one token and the end together.
struct AtOnce(FakeEngine);

impl Engine for AtOnce {
    fn model(&self) -> &ModelInfo {
        self.0.model()
    }

    fn prepare(&self, conversation: &Conversation) -> Result<Prompt, PrepareError> {
        self.0.prepare(conversation)
    }

    fn start(&self, _: Prompt, _: Sampling) -> Result<Generation, StartError> {
        let (sender, pieces) = mpsc::channel(2);
        let (tokens, text, logprobs) = (vec![0], "word ".to_owned(), Vec::new());
        sender.try_send(Piece::Delta { tokens, text, logprobs }).unwrap();
        let (text, finish) = (String::new(), Finish::Stop);
        sender.try_send(Piece::End { text, finish }).unwrap();
        Ok(Generation::new(pieces, Arc::default()))
    }

    fn load(&self) -> EngineLoad {
        self.0.load()
    }
}

fn mesh() -> Mesh {
    Mesh::with(vec![Arc::new(AtOnce(FakeEngine::new(script(1, Duration::ZERO))))])
}

#[test]
fn tokens_that_are_all_of_an_answer_come_with_its_receipt() {
    let mesh = mesh();
    let (node, provider) = (mesh.add_user(), mesh.provider(0));
    let consumer = Consumer::chatting(&node, provider.party());
    let (mut stream, first) = consumer.send(consumer.sign(consumer.order(1)));
    assert!(matches!(first, Some(ToConsumer::Accepted { .. })), "{first:?}");
    let mut next = || node.peer.block_on(stream.receive.next()).unwrap();
    let tokens = next();
    assert!(matches!(tokens, Some(ToConsumer::Tokens { .. })), "{tokens:?}");
    let ended = provider.peer.read(|kernel| {
        let served = kernel.ledger().book().served().values();
        served.map(|job| job.end.is_some_and(|end| end.receipt.is_some())).collect::<Vec<_>>()
    });
    assert_eq!(ended, [true], "they waited for it");
    let end = next();
    assert!(matches!(end, Some(ToConsumer::End { .. })), "{end:?}");
}

#[test]
fn an_answer_that_is_complete_at_once_is_paid_by_its_receipt() {
    let mesh = mesh();
    for _ in 0..3 {
        let answer = mesh.user().post(&ask(1, false));
        assert_eq!(answer["choices"][0]["message"]["content"], "word ", "{answer}");
        assert_eq!(answer["x_tirami"]["route"]["attempts"][0]["ended"], "complete", "{answer}");
    }
    let (mine, theirs) = (mesh.user().trades(), mesh.provider(0).trades());
    assert_eq!((mine.len(), theirs.len()), (3, 3));
    assert_eq!(mine[0]["trm_amount"], theirs[0]["trm_amount"]);
    assert_eq!(mesh.user().open_holds(), 0);
}
