//! The meaning of a text as a vector: what the model's last layer says of its tokens, in the way
//! the model's file names, which is the mean where it names none.

use std::sync::PoisonError;

use llama_cpp_2::context::params::LlamaPoolingType;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use super::LlamaEngine;
use super::backend::{PASS_TOKENS_MAX, Setting};
use crate::engine::EmbedError;
use crate::gguf::Pooling;

impl LlamaEngine {
    /// As [`crate::engine::Engine::embed`]: one text at a time, on a context of its own.
    pub(super) fn embedding_of(
        &self,
        tokens: &[u32],
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>, EmbedError> {
        let pooling = self.pooling.ok_or(EmbedError::Unsupported)?;
        let known = 0..self.model.vocab().n_tokens().cast_unsigned();
        let context_tokens = self.setting.context_tokens;
        if tokens.is_empty()
            || tokens.len() > context_tokens as usize
            || !tokens.iter().all(|token| known.contains(token))
        {
            return Err(EmbedError::Tokens { context_tokens });
        }
        let failed = |reason: String| EmbedError::Failed { reason };
        let _one_at_a_time = self.embedding.lock().unwrap_or_else(PoisonError::into_inner);
        let room = u32::try_from(tokens.len()).unwrap_or(context_tokens);
        let setting = Setting { sequences: 1, context_tokens: room, ..self.setting };
        let mut context = setting
            .context_with(&self.model, |parameters| {
                parameters.with_embeddings(true).with_pooling_type(LlamaPoolingType::None)
            })
            .map_err(failed)?;
        let mut batch = LlamaBatch::new(PASS_TOKENS_MAX, 1);
        let mut sum = vec![0.0_f64; usize::try_from(self.model.n_embd()).unwrap_or(0)];
        let (mut position, mut place) = (0, 0);
        for chunk in tokens.chunks(PASS_TOKENS_MAX) {
            if !is_wanted() {
                return Err(EmbedError::Unwanted);
            }
            batch.clear();
            for token in chunk {
                batch
                    .add(LlamaToken(token.cast_signed()), position, &[0], true)
                    .map_err(|error| failed(error.to_string()))?;
                position += 1;
            }
            context.decode(&mut batch).map_err(|error| failed(error.to_string()))?;
            for row in 0..batch.n_tokens() {
                if pooling.has(place, tokens.len()) {
                    let values =
                        context.embeddings_ith(row).map_err(|error| failed(error.to_string()))?;
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value));
                }
                place += 1;
            }
        }
        unit(&sum).ok_or_else(|| failed("the model computes no numbers".to_owned()))
    }
}

impl Pooling {
    /// Whether the vector of the token at `place`, from 0, of `count` tokens is a part of the
    /// text's own.
    const fn has(self, place: usize, count: usize) -> bool {
        match self {
            Self::Mean => true,
            Self::First => place == 0,
            Self::Last => place + 1 == count,
        }
    }
}

/// The vector of length 1 in this direction.
fn unit(vector: &[f64]) -> Option<Vec<f32>> {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    if !length.is_finite() || length <= 0.0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a direction needs no more digits")]
    Some(vector.iter().map(|value| (value / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_texts_vector_is_made_of_all_its_tokens_or_of_one() {
        for (pooling, taken) in
            [(Pooling::Mean, vec![0, 1, 2]), (Pooling::First, vec![0]), (Pooling::Last, vec![2])]
        {
            let places: Vec<_> = (0..3).filter(|place| pooling.has(*place, 3)).collect();
            assert_eq!(places, taken);
            assert!(pooling.has(0, 1));
        }
    }

    #[test]
    fn a_direction_has_length_one_or_is_none() {
        assert_eq!(unit(&[3.0, 0.0, 4.0]), Some(vec![0.6, 0.0, 0.8]));
        for vector in [&[][..], &[0.0, 0.0], &[f64::NAN], &[f64::INFINITY]] {
            assert_eq!(unit(vector), None);
        }
    }
}
