//! A user's texts, read by another node: when one is lost, the next one is asked, and the lost one
//! is paid nothing, because nothing of it was delivered.

use tirami_core::PartyId;
use tokio_util::sync::CancellationToken;

use super::ask::{Journeyed, MeshAsk, RouteError, Served};
use super::failover::{ATTEMPTS_MAX, Journey, none};
use super::remote::{Client, Read, WantedVectors};

/// Vectors that are there and charged.
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) journeyed: Journeyed,
    pub(crate) served: Served,
    pub(crate) provider: PartyId,
    pub(crate) prompt_tokens: u32,
}

/// Has other nodes read texts, until one has delivered all vectors or the client has `left`; then
/// there are none.
///
/// # Errors
///
/// [`RouteError`]; nothing is charged.
pub(crate) async fn embed(
    client: Client,
    ask: MeshAsk,
    wanted: WantedVectors,
    left: CancellationToken,
) -> Result<Option<Embedded>, RouteError> {
    let mut journey = Journey::new(client, ask);
    for _ in 0..ATTEMPTS_MAX {
        let (attempt, offer) = journey.next_attempt().await?;
        let (job, provider) = (attempt.job(), attempt.provider());
        let prompt_tokens = attempt.prompt_tokens;
        let width = wanted.width.unwrap_or(offer.embedding_width);
        match attempt.read((wanted.texts, width), &left).await {
            Read::All(vectors, charge) => {
                let served = Served { name: offer.name, model: offer.model, build: offer.build };
                let trade = charge.trade;
                journey.note(charge, false);
                journey.observe_unproven().await;
                let journeyed = Journeyed { trade, ..journey.summed() };
                return Ok(Some(Embedded { vectors, journeyed, served, provider, prompt_tokens }));
            }
            Read::Lost(charge, outcome) => journey.lost(job, charge, outcome).await,
            Read::GaveUp(charge, kept) => {
                journey.gave_up(provider, kept);
                journey.lost(job, charge, None).await;
            }
            Read::Invalid(charge, invalid) => {
                if journey.finds_invalid(provider, invalid.clone()) {
                    return Err(RouteError::Invalid(invalid));
                }
                journey.lost(job, charge, None).await;
            }
            Read::Left => return Ok(None),
        }
    }
    Err(none(&format!("{ATTEMPTS_MAX} providers were lost; nothing was charged; ask again")))
}
