//! How likely tokens were, as the engine says it and as nodes tell each other.

use tirami_infer::engine::{Likely, TokenLogprobs};
use tirami_proto::{LIKELIEST_MAX, Likelihood, TOKEN_BYTES_MAX};

/// For another node.
pub(super) fn told(logprobs: &TokenLogprobs) -> Likelihood {
    Likelihood {
        chosen: to_wire(&logprobs.chosen),
        top: logprobs.top.iter().take(LIKELIEST_MAX).map(to_wire).collect(),
    }
}

/// From another node.
pub(super) fn heard(likelihood: Likelihood) -> TokenLogprobs {
    TokenLogprobs {
        chosen: from_wire(likelihood.chosen),
        top: likelihood.top.into_iter().map(from_wire).collect(),
    }
}

fn to_wire(likely: &Likely) -> tirami_proto::Likely {
    let bytes = likely.bytes.iter().copied().take(TOKEN_BYTES_MAX).collect();
    tirami_proto::Likely { bytes, logprob_bits: likely.logprob.to_bits() }
}

/// What is no logarithm of a probability counts as the least there is.
fn from_wire(likely: tirami_proto::Likely) -> Likely {
    let logprob = f32::from_bits(likely.logprob_bits);
    let logprob = if logprob.is_nan() { f32::MIN } else { logprob.clamp(f32::MIN, 0.0) };
    Likely { bytes: likely.bytes, logprob }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_and_nonsense_stays_a_number() {
        let likely = |bytes: &[u8], logprob| Likely { bytes: bytes.to_vec(), logprob };
        let logprobs =
            TokenLogprobs { chosen: likely(b"a", -0.5), top: vec![likely(&[0xf0], -2.0)] };
        assert_eq!(heard(told(&logprobs)), logprobs);
        for (said, is) in [(f32::NAN, f32::MIN), (f32::NEG_INFINITY, f32::MIN), (7.0, 0.0)] {
            let nonsense = TokenLogprobs { chosen: likely(b"", said), top: Vec::new() };
            assert_eq!(heard(told(&nonsense)).chosen.logprob.to_bits(), is.to_bits());
        }
        let long =
            TokenLogprobs { chosen: likely(&[7; 999], -1.0), top: vec![likely(b"", -1.0); 99] };
        let told = told(&long);
        assert_eq!((told.chosen.bytes.len(), told.top.len()), (TOKEN_BYTES_MAX, LIKELIEST_MAX));
    }
}
