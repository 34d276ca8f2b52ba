//! A consumer that is a test: it signs the orders and vouchers that it wants.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

use std::time::{SystemTime, UNIX_EPOCH};

use tirami_core::{
    Digest, Document, JobId, ModelDigest, ModelShape, PartyId, Ppm, SecretKey, Signed, Timestamp,
};
use tirami_ledger::documents::{Order, Voucher};
use tirami_node::keys::KeyDir;
use tirami_node::mesh::JobStream;
use tirami_proto::{JobRequest, ToConsumer, ToProvider, WireDocument};

use crate::jobs_support::{TestNode, ask};
use crate::support::{SOON, until};

/// The scripted engine's model.
pub const MODEL: ModelDigest = ModelDigest::from_bytes([0xfa; 32]);
pub const SHAPE: ModelShape =
    ModelShape { parameters_active: 1_000_000, layers: 2, attention_width: 64, context_max: 4_096 };
/// Where a chat is asked for.
pub const CHAT: &str = "/v1/chat/completions";

pub fn key_of(node: &TestNode) -> SecretKey {
    KeyDir::open(node.dir.as_ref().unwrap().path()).unwrap().node_key().unwrap()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap())
}

pub fn wire<T: Document>(document: &Signed<T>) -> WireDocument {
    WireDocument { bytes: document.bytes().to_vec(), signature: document.signature() }
}

pub fn output(tokens: &[u32]) -> Digest {
    Digest::of(&tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>())
}

/// A consumer that is a test: it signs what it wants.
pub struct Consumer<'a> {
    pub node: &'a TestNode,
    pub key: SecretKey,
    pub provider: PartyId,
    pub body: Vec<u8>,
}

impl<'a> Consumer<'a> {
    /// `node`, which sends such requests to `provider`.
    pub fn new(node: &'a TestNode, provider: PartyId, body: Vec<u8>) -> Self {
        Self { node, key: key_of(node), provider, body }
    }

    /// `node`, which asks `provider` for a long answer.
    pub fn chatting(node: &'a TestNode, provider: PartyId) -> Self {
        Self::new(node, provider, serde_json::to_vec(&ask(3_000, false)).unwrap())
    }

    pub fn order(&self, n: u8) -> Order {
        Order {
            consumer: self.node.party(),
            provider: self.provider,
            job: JobId::from_bytes([n; 16]),
            model: MODEL,
            request: Digest::of(&self.body),
            seed: 7,
            price: Ppm::ONE,
            cached_price: Ppm::ONE,
            prompt_max: 300,
            max_amount: SHAPE.work(0, 4_000).cost_ceil(Ppm::ONE),
            start_by: now().plus_ms(60_000),
            claim_by: now().plus_ms(3_600_000),
        }
    }

    pub fn sign(&self, order: Order) -> WireDocument {
        wire(&Signed::sign(self.node.peer.node.handle().mesh(), &self.key, order).unwrap())
    }

    /// The first frame of a job's stream.
    pub fn request(&self, path: &str, order: WireDocument) -> ToProvider {
        ToProvider::Request(JobRequest {
            order,
            body: self.body.clone(),
            path: path.to_owned(),
            resumed: Vec::new(),
        })
    }

    /// Sends a request and gives the stream with its first answer.
    pub fn send(&self, order: WireDocument) -> (JobStream, Option<ToConsumer>) {
        self.send_to(CHAT, order)
    }

    pub fn send_to(&self, path: &str, order: WireDocument) -> (JobStream, Option<ToConsumer>) {
        let request = self.request(path, order);
        let streams = self.node.peer.node.job_streams().unwrap();
        let mut sent = None;
        // On a machine that does other things a connection may be lost, and comes again.
        until("the provider answers", SOON, || {
            sent = self.node.peer.block_on(async {
                let mut stream = streams.open(self.provider).await.ok()?;
                stream.send.send(&request).await.ok()?;
                let first = stream.receive.next().await.ok()?;
                Some((stream, first))
            });
            sent.is_some()
        });
        sent.unwrap()
    }

    /// A voucher for `tokens` of an order.
    pub fn voucher(&self, order: &WireDocument, n: u32, tokens: &[u32]) -> ToProvider {
        self.voucher_with(order, n, tokens, |_| {})
    }

    /// The same, changed before it is signed.
    pub fn voucher_with(
        &self,
        order: &WireDocument,
        n: u32,
        tokens: &[u32],
        change: impl FnOnce(&mut Voucher),
    ) -> ToProvider {
        let mesh = self.node.peer.node.handle().mesh();
        let (bytes, signature) = (order.bytes.clone(), order.signature);
        let id = Signed::<Order>::verify(mesh, self.node.party().into(), bytes, signature);
        let count = u32::try_from(tokens.len()).unwrap();
        let mut voucher = Voucher {
            order: id.unwrap().id(),
            n,
            amount: SHAPE.work(0, 1 + count).cost_ceil(Ppm::ONE),
            tokens: count,
            stream: output(tokens),
        };
        change(&mut voucher);
        ToProvider::Voucher(wire(&Signed::sign(mesh, &self.key, voucher).unwrap()))
    }

    pub fn code(&self, order: WireDocument) -> String {
        match self.send(order).1 {
            Some(ToConsumer::Refused { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }
}
