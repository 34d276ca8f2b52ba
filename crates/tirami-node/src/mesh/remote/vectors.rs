//! Vectors from another node: they come all or not at all, are signed for when they are all there
//! and as long as they have to be, and are paid by the receipt that follows.

use std::time::Duration;

use futures_util::stream::StreamExt as _;
use tirami_core::Digest;
use tirami_kernel::scheduler::Observed;
use tirami_ledger::command::{Actor, Command, Outcome};
use tirami_proto::{ToConsumer, WireDocument};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Attempt, Charge, Invalid, SILENCE_MAX, observe};
use crate::http::NUMBERS_MAX;

/// A provider that reads on nothing for so long has stalled.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long the receipt may take once the vectors are signed for.
const RECEIPT_WITHIN: Duration = Duration::from_secs(5);
/// How far the length of a vector may be from 1.
const LENGTH_ERROR_MAX: f64 = 1e-2;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedVectors {
    /// How many.
    pub(crate) texts: usize,
    /// Numbers of each; none for as many as the model's have.
    pub(crate) width: Option<u32>,
}

/// How an attempt to get vectors ended.
pub(in crate::mesh) enum Read {
    /// All are there and charged.
    All(Vec<Vec<f32>>, Charge),
    /// Nothing is charged; another provider may be asked. What this one did is known, or it did
    /// nothing wrong.
    Lost(Charge, Option<Observed>),
    /// The same; the provider gave up after so long, which may be the fault of what was asked.
    GaveUp(Charge, Duration),
    /// The same; the provider says that what was asked is at fault, wherever it is asked.
    Invalid(Charge, Invalid),
    /// The client left, or the kernel ordered the end. Nothing is charged.
    Left,
}

/// Vectors as they came.
struct Collected {
    vectors: Vec<Vec<f32>>,
    bytes: Vec<u8>,
}

/// Why they did not come.
enum Lack {
    /// The client left, or the kernel ordered the end.
    Left,
    /// What the provider did is no fault of the texts.
    Lost(String, Observed),
    /// The provider cannot read these texts, or says so.
    GaveUp(String),
    /// The provider says that nobody could.
    Invalid(Invalid),
}

impl Attempt {
    /// Waits for `count` vectors of `width` numbers each, signs for them and pays for them.
    pub(in crate::mesh) async fn read(
        mut self,
        (count, width): (usize, u32),
        left: &CancellationToken,
    ) -> Read {
        match self.collected((count, width), left).await {
            Err(Lack::Left) => {
                self.abandon(0, "the client left".to_owned()).await;
                Read::Left
            }
            Err(Lack::Lost(reason, outcome)) => {
                Read::Lost(self.abandon(0, reason).await, Some(outcome))
            }
            Err(Lack::Invalid(invalid)) => {
                Read::Invalid(self.abandon(0, invalid.message.clone()).await, invalid)
            }
            Err(Lack::GaveUp(reason)) => {
                let kept = self.kept();
                Read::GaveUp(self.abandon(0, reason).await, kept)
            }
            Ok(Collected { vectors, bytes }) => {
                let output = Digest::of(&bytes);
                drop(bytes);
                match self.signed_for(output).await {
                    Ok(charge) => Read::All(vectors, charge),
                    // It is this node that did not sign.
                    Err(charge) => Read::Lost(charge, None),
                }
            }
        }
    }

    /// All vectors.
    async fn collected(
        &mut self,
        (count, width): (usize, u32),
        left: &CancellationToken,
    ) -> Result<Collected, Lack> {
        let mut all = Collected { vectors: Vec::new(), bytes: Vec::new() };
        let failed = |reason: &str| Err(Lack::Lost(reason.to_owned(), Observed::Failed));
        if count.saturating_mul(width as usize) > NUMBERS_MAX as usize {
            return Err(Lack::GaveUp("its vectors are too long for so many texts".to_owned()));
        }
        while all.vectors.len() < count {
            let (_, late) = self.prefill.deadlines(self.prompt_tokens);
            let still = match self.prefill.place_in_queue {
                0 => self.prefill.step_at + STALL_MAX,
                _ => late,
            };
            let deadline = (self.heard_at + SILENCE_MAX).min(still).min(late);
            let frame = tokio::select! {
                biased;
                () = self.token.cancelled() => return Err(Lack::Left),
                () = left.cancelled() => return Err(Lack::Left),
                frame = self.frames.next() => frame,
                () = sleep_until(deadline) => return failed("nothing came from it any more"),
            };
            self.heard_at = Instant::now();
            match frame {
                None => return failed("its connection ended"),
                Some(ToConsumer::Failed { reason, invalid: None }) => {
                    return Err(Lack::GaveUp(reason));
                }
                Some(ToConsumer::Failed { reason: message, invalid: Some(code) }) => {
                    return Err(Lack::Invalid(Invalid { code, message, param: None }));
                }
                Some(ToConsumer::Working { read, place_in_queue }) => {
                    let read = (read, self.prompt_tokens);
                    self.prefill.told(self.heard_at, read, place_in_queue);
                }
                Some(ToConsumer::Vector { numbers }) => {
                    let Some(vector) = vector_of(&numbers, width) else {
                        let reason = format!("it sent no vector of {width} numbers");
                        return Err(Lack::Lost(reason, Observed::Cheated));
                    };
                    self.prefill.step_at = self.heard_at;
                    all.vectors.push(vector);
                    all.bytes.extend_from_slice(&numbers);
                }
                Some(_) => return failed("it answered with something else than vectors"),
            }
        }
        Ok(all)
    }

    /// Signs for the whole result and charges it: by the receipt, or where none comes that is
    /// right, by the voucher.
    async fn signed_for(mut self, output: Digest) -> Result<Charge, Charge> {
        let command = Command::Deliver {
            job: self.job,
            completion_tokens: 0,
            stream: output,
            prompt_tokens: Some(self.prompt_tokens),
        };
        match self.handle.insist(Actor::Node, command).await {
            Ok(Outcome::VoucherSigned { voucher }) => self.post(&voucher),
            other => {
                tracing::warn!(?other, "vectors could not be signed for");
                // Nothing is handed over that nobody pays for.
                return Err(self.abandon(0, "the kernel ended the job".to_owned()).await);
            }
        }
        let receipt = timeout(RECEIPT_WITHIN, async {
            loop {
                match self.frames.next().await {
                    Some(ToConsumer::End { receipt, .. }) => return Some(receipt),
                    Some(ToConsumer::Working { .. }) => {}
                    _ => return None,
                }
            }
        });
        let receipt = receipt.await.ok().flatten();
        let charge = match receipt {
            Some(receipt) => self.paid_by(receipt, output).await,
            None => self.abandon(0, "it was lost before its receipt".to_owned()).await,
        };
        Ok(charge)
    }

    async fn paid_by(self, receipt: WireDocument, output: Digest) -> Charge {
        let command = Command::SettleJob {
            job: self.job,
            receipt: receipt.bytes,
            signature: receipt.signature,
            completion_tokens: 0,
            output,
        };
        match self.handle.insist(Actor::Node, command).await {
            Ok(outcome @ Outcome::JobFinished { .. }) => {
                self.charge(outcome, 0, "complete".to_owned())
            }
            Ok(Outcome::ReceiptRefused { refusal }) => {
                tracing::warn!(provider = %self.provider, %refusal, "a receipt was refused");
                observe(&self.handle, self.provider, Observed::Cheated).await;
                self.abandon(0, refusal.to_string()).await
            }
            other => {
                tracing::warn!(?other, "a job was not settled");
                self.abandon(0, "complete".to_owned()).await
            }
        }
    }
}

/// The numbers of a vector of `width` numbers and length 1; nothing for anything else.
fn vector_of(bytes: &[u8], width: u32) -> Option<Vec<f32>> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || numbers.len() != width as usize {
        return None;
    }
    let vector: Vec<f32> = numbers.iter().map(|four| f32::from_le_bytes(*four)).collect();
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    ((length - 1.0).abs() <= LENGTH_ERROR_MAX).then_some(vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::bytes_of;

    #[test]
    fn only_a_vector_of_the_right_width_and_length_is_one() {
        for (vector, width, is_one) in [
            (vec![0.6, 0.8], 2, true),
            (vec![0.6, 0.8], 3, false),
            (vec![0.6, 0.8], 1, false),
            (vec![0.0, 0.0], 2, false),
            (vec![6.0, 8.0], 2, false),
            (vec![f32::NAN, 1.0], 2, false),
            (vec![f32::INFINITY, 0.0], 2, false),
        ] {
            let bytes = bytes_of(&vector);
            assert_eq!(vector_of(&bytes, width), is_one.then_some(vector.clone()), "{vector:?}");
            assert_eq!(vector_of(&bytes[1..], width), None);
        }
    }
}
