//! The numbers of a model that decide how much work a token is.

use minicbor::{Decode, Encode};

use crate::Flop;

/// A model's shape, read from its GGUF metadata and tensors. Work is a pure function of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ModelShape {
    /// Weights that take part in a token's forward pass: every tensor's elements, without an
    /// embedding table that is only looked up, and of a mixture's experts the share that is used.
    #[n(0)]
    pub parameters_active: u64,
    /// Transformer layers.
    #[n(1)]
    pub layers: u32,
    /// Query heads × length of a head: the width over which one layer attends.
    #[n(2)]
    pub attention_width: u32,
    /// The longest context the model was trained for, in tokens.
    #[n(3)]
    pub context_max: u32,
}

impl ModelShape {
    /// Weights that take part in a token's forward pass at most.
    pub const PARAMETERS_MAX: u64 = 1 << 50;
    /// Layers at most.
    pub const LAYERS_MAX: u32 = 1 << 16;
    /// The widest attention.
    pub const ATTENTION_WIDTH_MAX: u32 = 1 << 24;

    /// Whether the numbers are within what any model can have. Shapes come from files and from
    /// other nodes; beyond these bounds the work of a long job would not fit its integer.
    pub const fn is_plausible(&self) -> bool {
        self.parameters_active <= Self::PARAMETERS_MAX
            && self.layers <= Self::LAYERS_MAX
            && self.attention_width <= Self::ATTENTION_WIDTH_MAX
    }

    /// The shape that reading several texts, each by itself, is metered by: `2 × parameters_active`
    /// for each token. How much of a text a token attends to depends on how the tokens are divided
    /// among the texts, and is not counted.
    ///
    /// # Examples
    ///
    /// ```
    /// use tirami_core::ModelShape;
    /// let shape = ModelShape {
    ///     parameters_active: 1_000, layers: 2, attention_width: 10, context_max: 64,
    /// };
    /// assert_eq!(shape.without_attention().work(0, 5).get(), 2 * 1_000 * 5);
    /// ```
    #[must_use]
    pub const fn without_attention(self) -> Self {
        Self { layers: 0, attention_width: 0, ..self }
    }

    /// The work of running `tokens` tokens that follow `context` tokens already in the cache.
    ///
    /// `2 × parameters_active` for each token, and for each layer `4 × attention_width` for each
    /// pair of a token and one it attends to (itself included): a multiply and an add for the
    /// score and for the value.
    ///
    /// # Examples
    ///
    /// ```
    /// use tirami_core::ModelShape;
    /// let shape = ModelShape {
    ///     parameters_active: 1_000, layers: 2, attention_width: 10, context_max: 64,
    /// };
    /// // Two tokens after three: they attend to 4 and to 5 tokens.
    /// assert_eq!(shape.work(3, 2).get(), 2 * 1_000 * 2 + 2 * 4 * 10 * (4 + 5));
    /// ```
    pub fn work(&self, context: u32, tokens: u32) -> Flop {
        let (context, tokens) = (u128::from(context), u128::from(tokens));
        let weights = 2 * u128::from(self.parameters_active) * tokens;
        let pairs = tokens * context + tokens * (tokens + 1) / 2;
        let pair = 4 * u128::from(self.layers) * u128::from(self.attention_width);
        Flop::saturating_from(weights.saturating_add(pair.saturating_mul(pairs)))
    }
}
