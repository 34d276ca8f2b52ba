//! Checks a trade on the reader's own machine, from the signed bytes alone.

use core::fmt::Display;
use core::str::FromStr;

use minicbor::{Decode, Encode};
use tirami_core::{
    AgentId, Document, DocumentId, Flop, JobId, MeshId, ModelDigest, PartyId, Ppm, PublicKey,
    Signature, Signed, SignedError, Trm,
};

use crate::types::{SignedDocument, TradeDetail};

/// Why a trade is not what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A field is not in the form it must have.
    #[error("the trade's {field} cannot be read: {reason}")]
    Unreadable {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A signature or a signed body is wrong.
    #[error("the {document} does not verify: {source}")]
    Document {
        /// `order`, `receipt` or `voucher`.
        document: &'static str,
        /// Why.
        #[source]
        source: SignedError,
    },
    /// A figure shown differs from what was signed.
    #[error("the trade's {field} is not what was signed")]
    Differs {
        /// The figure.
        field: &'static str,
    },
    /// Nothing signed supports the charge.
    #[error("neither a receipt nor a voucher supports the charge")]
    NoEvidence,
}

/// What the signed documents of a trade prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TradeProof {
    /// Who signed the order.
    pub consumer: PartyId,
    /// For whom the order is valid; who signed the receipt, when there is one.
    pub provider: PartyId,
    /// What was charged.
    pub amount: Trm,
    /// Whether the provider signed a receipt; otherwise the charge rests on the consumer's
    /// voucher.
    pub receipt: bool,
}

/// Verifies both signatures of a trade and that every figure shown is the one signed: the keys,
/// the order the receipt names, tokens, work, price × work, and that the charge is within the
/// order's maximum.
///
/// # Errors
///
/// The first of [`VerifyError`]'s variants that applies.
pub fn verify_trade(detail: &TradeDetail) -> Result<TradeProof, VerifyError> {
    let trade = &detail.trade;
    let mesh: MeshId = read("mesh_id", &detail.mesh_id)?;
    let consumer_key: PublicKey = read("consumer_key", &detail.consumer_key)?;
    let provider_key: PublicKey = read("provider_key", &detail.provider_key)?;

    let order = document::<Order>(mesh, consumer_key, "order", &detail.order)?;
    let body = order.body();
    let consumer = AgentId::from_bytes(*body.consumer.as_bytes());
    same("consumer", consumer_key.party() == body.consumer && trade.consumer == consumer.did())?;
    same(
        "provider",
        provider_key.party() == body.provider && shows(&trade.provider, body.provider),
    )?;
    same("trade_id", shows(&trade.trade_id, order.id()))?;
    same("job_id", shows(&trade.job_id, body.job))?;
    same("model_id", shows(&trade.model_id, body.model))?;
    let amount = trade.trm_amount.trm();
    same("trm_amount", amount <= body.max_amount)?;

    let proof =
        |receipt| TradeProof { consumer: body.consumer, provider: body.provider, amount, receipt };
    if let Some(receipt) = &detail.receipt {
        let receipt = document::<Receipt>(mesh, provider_key, "receipt", receipt)?;
        let signed = receipt.body();
        same("receipt", signed.order == order.id())?;
        same("receipt_id", trade.receipt_id.as_deref().is_some_and(|id| shows(id, receipt.id())))?;
        same("prompt_tokens", signed.prompt_tokens == trade.prompt_tokens)?;
        same("completion_tokens", signed.completion_tokens == trade.completion_tokens)?;
        same("flops", signed.flop.get() == trade.flops)?;
        same("trm_amount", signed.amount == amount)?;
        // Where cached tokens have a price of their own, it takes the model to check the sum.
        let is_plain = signed.cached_tokens == 0 || body.cached_price == body.price;
        same("price", !is_plain || signed.flop.cost_ceil(body.price) == amount)?;
        return Ok(proof(true));
    }
    if let Some(voucher) = &detail.voucher {
        let voucher = document::<Voucher>(mesh, consumer_key, "voucher", voucher)?;
        let signed = voucher.body();
        same("voucher", signed.order == order.id())?;
        same("completion_tokens", signed.tokens == trade.completion_tokens)?;
        same("trm_amount", signed.amount == amount)?;
        return Ok(proof(false));
    }
    Err(VerifyError::NoEvidence)
}

fn document<T: Document>(
    mesh: MeshId,
    key: PublicKey,
    name: &'static str,
    document: &SignedDocument,
) -> Result<Signed<T>, VerifyError> {
    let signature: Signature = read("signature", &document.signature)?;
    let bytes = bytes_of_hex(&document.body).ok_or_else(|| VerifyError::Unreadable {
        field: name,
        reason: "the body is not hexadecimal".to_owned(),
    })?;
    let signed = Signed::verify(mesh, key, bytes, signature)
        .map_err(|source| VerifyError::Document { document: name, source })?;
    same("document id", shows(&document.id, signed.id()))?;
    Ok(signed)
}

fn read<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, VerifyError> {
    text.parse()
        .map_err(|reason: T::Err| VerifyError::Unreadable { field, reason: reason.to_string() })
}

fn same(field: &'static str, same: bool) -> Result<(), VerifyError> {
    if same { Ok(()) } else { Err(VerifyError::Differs { field }) }
}

fn shows(text: &str, value: impl Display) -> bool {
    text == value.to_string()
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? * 16 + digit(*low)?)).collect()
}

/// The fields of an order a reader checks; the others are signed and ignored.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Order {
    #[n(0)]
    consumer: PartyId,
    #[n(1)]
    provider: PartyId,
    #[n(2)]
    job: JobId,
    #[n(3)]
    model: ModelDigest,
    #[n(6)]
    price: Ppm,
    #[n(7)]
    cached_price: Ppm,
    #[n(9)]
    max_amount: Trm,
}

impl Document for Order {
    const KIND: &'static str = "order";
}

/// The fields of a receipt a reader checks.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Receipt {
    #[n(0)]
    order: DocumentId,
    #[n(1)]
    prompt_tokens: u32,
    #[n(2)]
    cached_tokens: u32,
    #[n(3)]
    completion_tokens: u32,
    #[n(4)]
    flop: Flop,
    #[n(5)]
    amount: Trm,
}

impl Document for Receipt {
    const KIND: &'static str = "receipt";
}

/// The fields of a voucher a reader checks.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Voucher {
    #[n(0)]
    order: DocumentId,
    #[n(2)]
    amount: Trm,
    #[n(3)]
    tokens: u32,
}

impl Document for Voucher {
    const KIND: &'static str = "voucher";
}

#[cfg(test)]
mod tests {
    use tirami_core::SecretKey;

    use super::*;
    use crate::types::Trade;

    const MESH: MeshId = MeshId::from_bytes([3; 32]);

    fn shown<T: Document>(signed: &Signed<T>) -> SignedDocument {
        SignedDocument {
            id: signed.id().to_string(),
            kind: T::KIND.to_owned(),
            body: signed.bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
            signature: signed.signature().to_string(),
        }
    }

    fn trade() -> TradeDetail {
        let (consumer, provider) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
        let order = Order {
            consumer: consumer.public().party(),
            provider: provider.public().party(),
            job: JobId::from_bytes([4; 16]),
            model: ModelDigest::from_bytes([5; 32]),
            price: Ppm::ONE,
            cached_price: Ppm::ONE,
            max_amount: Trm::from_micro(5_000),
        };
        let order = Signed::sign(MESH, &consumer, order).unwrap();
        let receipt = Receipt {
            order: order.id(),
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: 3,
            flop: Flop::new(4_000_001),
            amount: Trm::from_micro(4_001),
        };
        let receipt = Signed::sign(MESH, &provider, receipt).unwrap();
        let voucher = Voucher { order: order.id(), amount: Trm::from_micro(4_001), tokens: 3 };
        let voucher = Signed::sign(MESH, &consumer, voucher).unwrap();
        TradeDetail {
            trade: Trade {
                trade_id: order.id().to_string(),
                job_id: order.body().job.to_string(),
                consumer: consumer.public().agent().did(),
                provider: provider.public().to_string(),
                model_id: order.body().model.to_string(),
                prompt_tokens: 10,
                completion_tokens: 3,
                flops: 4_000_001,
                trm_amount: Trm::from_micro(4_001).into(),
                trm_paid: None,
                finish: "stop".into(),
                receipt_id: Some(receipt.id().to_string()),
                at_ms: 0,
            },
            mesh_id: MESH.to_string(),
            consumer_key: consumer.public().to_string(),
            provider_key: provider.public().to_string(),
            order: shown(&order),
            receipt: Some(shown(&receipt)),
            voucher: Some(shown(&voucher)),
            verified: true,
            problem: None,
        }
    }

    #[test]
    fn a_true_trade_is_proved_by_receipt_or_by_voucher() {
        let mut detail = trade();
        assert_eq!(verify_trade(&detail).map(|proof| proof.receipt), Ok(true));
        detail.receipt = None;
        assert_eq!(verify_trade(&detail).map(|proof| proof.receipt), Ok(false));
        detail.voucher = None;
        assert_eq!(verify_trade(&detail), Err(VerifyError::NoEvidence));
    }

    #[test]
    fn every_lie_is_found() {
        type Lie = fn(&mut TradeDetail);
        let lies: [(&str, Lie); 12] = [
            ("amount", |detail| detail.trade.trm_amount = Trm::from_micro(4_000).into()),
            ("flops", |detail| detail.trade.flops += 1),
            ("tokens", |detail| detail.trade.completion_tokens += 1),
            ("prompt", |detail| detail.trade.prompt_tokens += 1),
            ("model", |detail| detail.trade.model_id = "00".repeat(32)),
            ("consumer", |detail| detail.trade.consumer = "did:tirami:00".into()),
            ("provider", |detail| detail.trade.provider = detail.consumer_key.clone()),
            ("mesh", |detail| detail.mesh_id = "00".repeat(32)),
            ("swapped keys", |detail| {
                core::mem::swap(&mut detail.consumer_key, &mut detail.provider_key);
            }),
            ("id", |detail| detail.trade.trade_id = "00".repeat(32)),
            ("body", |detail| detail.order.body.replace_range(10..11, "f")),
            ("hex", |detail| detail.order.body.push('é')),
        ];
        for (name, lie) in lies {
            let mut detail = trade();
            lie(&mut detail);
            assert!(verify_trade(&detail).is_err(), "{name}");
        }
    }
}
