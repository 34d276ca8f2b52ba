//! Texts that other nodes order vectors of.
//!
//! Nothing leaves before every vector is there. Then all are sent, the consumer signs for them, and
//! the receipt follows; a consumer that takes them and does not sign has lost its exposure by the
//! job's maximum.

use core::pin::{Pin, pin};
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use tirami_core::{Digest, JobId, PartyId};
use tirami_infer::engine::{EmbedError, Progress};
use tirami_ledger::command::{AcceptOrder, Actor, Command, FinishJob, Outcome};
use tirami_ledger::documents::FinishReason;
use tirami_proto::{JobRequest, ToConsumer, ToProvider, WireDocument};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::crowd::Place;
use super::running::{broken, gives_up};
use super::{
    BEAT, FLUSH_WITHIN, LAST_VOUCHER_WITHIN, Least, Refusal, Server, Signer, VOUCHER_WITHIN,
    VOUCHERS_REFUSED_MAX, refused, wanted_from,
};
use crate::http::{ToEmbed, bytes_of, vectors_digest};
use crate::mesh::FrameSender;
use crate::models::Lease;

/// The path at which vectors are asked for.
pub(crate) const EMBEDDINGS_PATH: &str = "/v1/embeddings";

type Vectors = Vec<Vec<f32>>;

/// A job whose order is taken.
pub(super) struct Begun {
    job: JobId,
    engine: Lease,
    texts: ToEmbed,
    place: Place,
}

/// Why a job ends without a receipt.
enum Ended {
    /// The consumer is gone, or does not read or sign.
    Gone,
    /// This node cannot go on, and says so.
    Failed(Box<ToConsumer>),
}

impl Server {
    /// Understands the texts and has the ledger take the order.
    pub(super) async fn begin_reading(
        &self,
        request: JobRequest,
    ) -> Result<(Begun, ToConsumer), Refusal> {
        let JobRequest { order: wire, body, .. } = request;
        let least: Least = |shape| (shape.without_attention(), 0);
        let (order, signer) = self.proven(&wire, &body, least).await?;
        let Signer { checked, head_at, contributes, place } = signer;
        let engine = self.engine_of(order.model)?;
        let reading = engine.clone();
        let texts = self.busily(move || ToEmbed::read(&*reading, &body)).await;
        let texts = texts
            .ok_or_else(|| refused("prepare_failed", "the texts could not be read", false))?
            .map_err(|error| super::not_understood(&error))?
            .asked_by(super::scope(order.consumer), contributes);
        let model = engine.model();
        let prompt_tokens = texts.prompt_tokens();
        let accept = AcceptOrder {
            order: wire.bytes,
            signature: wire.signature,
            checked: Some(checked),
            model: model.digest,
            shape: model.shape.without_attention(),
            prompt_tokens,
            completion_max: 0,
            head_at,
        };
        let (job, completion_max, window_tokens) = self.accepted(accept).await?;
        let accepted = ToConsumer::Accepted { prompt_tokens, completion_max, window_tokens };
        Ok((Begun { job, engine, texts, place }, accepted))
    }

    /// Reads the texts and delivers their vectors.
    pub(super) async fn deliver_vectors(
        &self,
        (peer, accepted): (PartyId, &ToConsumer),
        Begun { job, engine, texts, place }: Begun,
        mut send: FrameSender<ToConsumer>,
        mut frames: Pin<&mut impl Stream<Item = ToProvider>>,
    ) {
        // Completion tokens that were sent; what stands for them is the whole result.
        let mut sent = 0;
        let delivered = async {
            self.say(&mut send, accepted).await?;
            let vectors = self.read((engine.clone(), texts), &mut send, frames.as_mut()).await?;
            let output = vectors_digest(&vectors);
            let taking = async {
                for vector in vectors {
                    // What is on its way counts.
                    sent = 1;
                    self.say(&mut send, &ToConsumer::Vector { numbers: bytes_of(&vector) }).await?;
                }
                self.signed_for((peer, job), output, frames.as_mut()).await
            };
            let late_at = Instant::now() + VOUCHER_WITHIN;
            tokio::select! {
                biased;
                taken = taking => taken?,
                () = wanted_from(late_at, || place.is_wanted()) => return Err(Ended::Gone),
            }
            Ok::<Digest, Ended>(output)
        };
        match delivered.await {
            Ok(output) => self.finish_reading((job, &engine), output, &mut send).await,
            Err(ended) => {
                if let Ended::Failed(failed) = ended {
                    // A consumer that is gone hears nothing.
                    let _ = self.say(&mut send, &failed).await;
                }
                self.end(Command::AbandonServed { job, sent }).await;
            }
        }
        send.finish();
        drop(timeout(FLUSH_WITHIN, send.flushed()).await);
    }

    /// The vectors of all texts; says meanwhile how far the engine is. It stops within one pass of
    /// the engine when the consumer is gone.
    async fn read(
        &self,
        (engine, texts): (Lease, ToEmbed),
        send: &mut FrameSender<ToConsumer>,
        mut frames: Pin<&mut impl Stream<Item = ToProvider>>,
    ) -> Result<Vectors, Ended> {
        let progress = Arc::new(Progress::default());
        // It waits for a place among those that read, or for the server that does.
        progress.queued(1);
        let (readers, told) = (Arc::clone(&self.readers), Arc::clone(&progress));
        let reading = async { texts.begin(engine, readers, told).await?.await };
        let (mut reading, mut halt) = (pin!(reading), pin!(self.halt()));
        let mut beat_at = Instant::now() + BEAT;
        loop {
            tokio::select! {
                biased;
                reason = &mut halt => return Err(Ended::Failed(Box::new(gives_up(reason)))),
                frame = frames.next() => match frame {
                    // There is nothing yet to sign for.
                    Some(ToProvider::Voucher(_)) => {}
                    Some(ToProvider::Cancel | ToProvider::Request(_)) | None => {
                        return Err(Ended::Gone);
                    }
                },
                vectors = &mut reading => return vectors.map_err(|failed| {
                    tracing::warn!(%failed, "texts were not read");
                    let failure = match &failed {
                        EmbedError::Server(failure) => Some(failure),
                        _ => None,
                    };
                    Ended::Failed(Box::new(broken(failure)))
                }),
                () = sleep_until(beat_at) => {
                    beat_at = Instant::now() + BEAT;
                    let (read, place_in_queue) = (progress.read_tokens(), progress.place());
                    self.say(send, &ToConsumer::Working { read, place_in_queue }).await?;
                }
            }
        }
    }

    /// Waits until the consumer has signed for all vectors, durably.
    async fn signed_for(
        &self,
        whose: (PartyId, JobId),
        output: Digest,
        mut frames: Pin<&mut impl Stream<Item = ToProvider>>,
    ) -> Result<(), Ended> {
        let signing = async {
            for _ in 0..VOUCHERS_REFUSED_MAX {
                let Some(ToProvider::Voucher(voucher)) = frames.next().await else { break };
                let WireDocument { bytes, signature } = voucher;
                let take = Command::TakeVoucher { bytes, signature, stream: output, sent: 0 };
                match self.handle.insist(Actor::Node, take).await {
                    Ok(_) => return Ok(()),
                    Err(error) => self.voucher_refused(whose, &error).await,
                }
            }
            Err(Ended::Gone)
        };
        let stopped = async {
            self.stop.cancelled().await;
            sleep(LAST_VOUCHER_WITHIN).await;
        };
        tokio::select! {
            signed = timeout(VOUCHER_WITHIN, signing) => signed.unwrap_or(Err(Ended::Gone)),
            () = stopped => Err(Ended::Gone),
        }
    }

    async fn finish_reading(
        &self,
        (job, engine): (JobId, &Lease),
        output: Digest,
        send: &mut FrameSender<ToConsumer>,
    ) {
        let report = FinishJob {
            job,
            cached_tokens: 0,
            completion_tokens: 0,
            output,
            build: engine.model().build.clone(),
            finish: FinishReason::Stop,
        };
        let Some(Outcome::JobServed { receipt: Some(receipt), .. }) =
            self.end(Command::FinishServed(report)).await
        else {
            return;
        };
        let receipt =
            WireDocument { bytes: receipt.bytes().to_vec(), signature: receipt.signature() };
        let finish = FinishReason::Stop as u8;
        let end = ToConsumer::End { text: String::new(), finish, receipt, stop: None };
        // The voucher says the same.
        let _ = self.say(send, &end).await;
    }

    /// Sends a frame; waits while the consumer does not read, but not for ever.
    async fn say(
        &self,
        send: &mut FrameSender<ToConsumer>,
        frame: &ToConsumer,
    ) -> Result<(), Ended> {
        let sent = tokio::select! {
            biased;
            sent = timeout(VOUCHER_WITHIN, send.send(frame)) => sent,
            () = self.stop.cancelled() => return Err(Ended::Gone),
        };
        if matches!(sent, Ok(Ok(()))) { Ok(()) } else { Err(Ended::Gone) }
    }
}
