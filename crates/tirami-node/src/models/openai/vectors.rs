//! Vectors of a server elsewhere: asked for in parts, and looked at before anybody pays for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tirami_infer::engine::{EmbedError, Failure, Progress, Prompt, Source, Vectors};
use tirami_sdk::upstream::{UpstreamEmbeddings, UpstreamEndpoint, UpstreamVector};
use tokio::time::Instant;

use super::broken::{Broken, patiently};
use super::{Counters, OpenAiEngine, Server};

/// Texts that a server is asked to read at a time: what it answers is held whole, and some servers
/// take no more.
const BATCH_TEXTS: usize = 32;
/// Bytes of an answer that one number takes at most, with what stands around it.
const NUMBER_BYTES: usize = 40;
/// Bytes of an answer beside its numbers, for each vector and for the whole.
const VECTOR_BYTES: usize = 1 << 10;
const ANSWER_BYTES: usize = 64 << 10;

impl OpenAiEngine {
    /// The vectors of `texts`, once the server's places and the server itself allow.
    pub(super) fn vectors(&self, texts: &Arc<[Prompt]>, progress: &Arc<Progress>) -> Vectors {
        let asking = Asking {
            server: self.server.clone(),
            name: self.name.clone(),
            width: self.info.embedding_width as usize,
            counters: Arc::clone(&self.counters),
            progress: Arc::clone(progress),
        };
        let texts = Arc::clone(texts);
        Box::pin(async move { asking.all_of(&texts).await })
    }
}

/// What a server is asked for vectors with.
struct Asking {
    server: Server,
    /// The server's own name of the model.
    name: String,
    /// Numbers that a vector has.
    width: usize,
    counters: Arc<Counters>,
    progress: Arc<Progress>,
}

impl Asking {
    async fn all_of(&self, texts: &[Prompt]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if self.width == 0 {
            return Err(EmbedError::Unsupported);
        }
        let Some(first) = texts.first() else { return Ok(Vec::new()) };
        let full = || EmbedError::Server(Failure::Full);
        let turn = self.server.places.enter(first, &self.progress, &self.counters.standing);
        let _place = turn.map_err(|_| full())?.comes().await.ok_or_else(full)?;
        let (mut all, mut read) = (Vec::with_capacity(texts.len()), 0_u32);
        for batch in texts.chunks(BATCH_TEXTS) {
            let vectors = self.batch(batch).await.map_err(|Broken { failure, reason }| {
                let Some(failure) = failure else { return EmbedError::Failed { reason } };
                tracing::warn!(reason, "the server made no vectors");
                EmbedError::Server(failure)
            })?;
            all.extend(vectors);
            let tokens = batch.iter().map(|text| text.tokens.len()).sum::<usize>();
            read = read.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
            self.progress.read(read);
            self.counters.prompt_tokens_total.fetch_add(tokens as u64, Ordering::Relaxed);
        }
        Ok(all)
    }

    /// The vectors of some texts, in their order.
    async fn batch(&self, texts: &[Prompt]) -> Result<Vec<Vec<f32>>, Broken> {
        let (count, width) = (texts.len(), self.width);
        let text = |prompt: &Prompt| match &prompt.source {
            Some(Source::Text(text)) => Ok(text.to_string()),
            _ => Err("a text to embed has no text".to_owned()),
        };
        let input = texts.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let asked = UpstreamEmbeddings { model: self.name.clone(), input };
        let bytes_max = width.saturating_mul(NUMBER_BYTES).saturating_add(VECTOR_BYTES);
        let bytes_max = bytes_max.saturating_mul(count).saturating_add(ANSWER_BYTES);
        let upstream = &self.server.upstream;
        let latest = Instant::now() + self.server.first_within;
        let what = (UpstreamEndpoint::Embeddings, self.name.as_str());
        let answer =
            patiently(latest, what, &self.counters.stands, || upstream.embed(&asked, bytes_max))
                .await?;
        // It keeps a core busy for a while; no other request may wait for it.
        let reading = tokio::task::spawn_blocking(move || -> Result<_, Broken> {
            Ok(ordered(answer.read()?, (count, width))?)
        });
        reading.await.map_err(|error| Broken::from(error.to_string()))?
    }
}

/// The vectors in the order of their texts, each of `width` numbers and of length 1.
///
/// # Errors
///
/// A sentence for the node's owner when they are not those of `count` texts.
fn ordered(
    vectors: Vec<UpstreamVector>,
    (count, width): (usize, usize),
) -> Result<Vec<Vec<f32>>, String> {
    let given = vectors.len();
    if given != count {
        return Err(format!("the server gave {given} vectors for {count} texts"));
    }
    let mut all: Vec<Option<Vec<f32>>> = vec![None; count];
    for (place, UpstreamVector { index, embedding }) in vectors.into_iter().enumerate() {
        let place = index.map_or(place, |index| index as usize);
        let free = all.get_mut(place).filter(|free| free.is_none());
        let free = free.ok_or("the server's vectors are not numbered as the texts are")?;
        *free = Some(of_length_1(embedding, width)?);
    }
    Ok(all.into_iter().flatten().collect())
}

fn of_length_1(mut vector: Vec<f32>, width: usize) -> Result<Vec<f32>, String> {
    let numbers = vector.len();
    if numbers != width {
        return Err(format!("a vector of the server has {numbers} numbers and not {width}"));
    }
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length <= 0.0 {
        return Err("a vector of the server has no direction".to_owned());
    }
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(index: Option<u32>, embedding: &[f32]) -> UpstreamVector {
        UpstreamVector { index, embedding: embedding.to_vec() }
    }

    #[test]
    fn vectors_come_in_the_order_of_their_texts_and_have_length_1() {
        let (one, other) = ([3.0, 4.0], [0.0, 0.5]);
        for given in [
            vec![vector(Some(1), &other), vector(Some(0), &one)],
            vec![vector(None, &one), vector(None, &other)],
        ] {
            let all = ordered(given, (2, 2)).unwrap();
            let wanted = [[0.6, 0.8], [0.0, 1.0]];
            let near = |(is, wanted): (&f32, &f32)| (is - wanted).abs() < 1e-6;
            let mut pairs = all.iter().flatten().zip(wanted.as_flattened());
            assert!(all.len() == 2 && pairs.all(near), "{all:?}");
        }
    }

    #[test]
    fn what_are_no_vectors_of_the_texts_is_refused() {
        let fine = || vector(Some(0), &[1.0, 0.0]);
        for (given, reason) in [
            (vec![fine()], "1 vectors for 2 texts"),
            (vec![fine(), fine(), fine()], "3 vectors for 2 texts"),
            (vec![fine(), fine()], "not numbered"),
            (vec![fine(), vector(Some(2), &[1.0, 0.0])], "not numbered"),
            (vec![fine(), vector(Some(1), &[1.0])], "1 numbers and not 2"),
            (vec![fine(), vector(Some(1), &[0.0, 0.0])], "no direction"),
            (vec![fine(), vector(Some(1), &[f32::INFINITY, 0.0])], "no direction"),
        ] {
            let told = ordered(given, (2, 2)).unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
    }
}
