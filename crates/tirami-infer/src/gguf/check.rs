//! What a header must say before the engine sees the file.
//!
//! The engine ends the whole process on some contradictions of a file instead of returning an
//! error. Each rule here is one of those conditions, found by reading the engine and by loading
//! damaged files; the rest the engine refuses by itself.

use std::collections::HashSet;

use super::header::{Header, NumberArray, Value};
use super::{GgufError, NumberFields, Pooling};

/// Layers a model may have.
pub const LAYERS_MAX: u64 = 512;
/// Experts a mixture may have.
pub const EXPERTS_MAX: u64 = 1_024;
/// Tokens of a vocabulary.
pub const VOCABULARY_MAX: usize = 1 << 20;
/// The longest context a file may claim, in tokens.
pub const CONTEXT_MAX: u64 = 1 << 26;

/// Architectures that generate text from left to right with a plain attention cache, and whether
/// the engine insists on rotating whole heads.
const ARCHITECTURES: &[(&str, bool)] = &[
    ("cohere2", false),
    ("command-r", false),
    ("gemma", false),
    ("gemma2", false),
    ("gemma3", false),
    ("glm4", false),
    ("granite", true),
    ("internlm2", true),
    ("llama", true),
    ("mistral3", true),
    ("olmo2", true),
    ("phi2", false),
    ("phi3", false),
    ("qwen2", true),
    ("qwen2moe", true),
    ("qwen3", true),
    ("qwen3moe", true),
    ("smollm3", true),
    ("stablelm", false),
    ("starcoder2", true),
];

/// The checked numbers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) layers: u32,
    pub(super) attention_width: u32,
    pub(super) context_max: u32,
    pub(super) width: u32,
    pub(super) cached_per_token: u64,
    pub(super) experts: u64,
    pub(super) experts_used: u64,
    pub(super) pooling: Option<Pooling>,
}

/// Checks architecture, sizes, vocabulary and tensor types.
pub(super) fn check(header: &Header, architecture: &str) -> Result<Numbers, GgufError> {
    let whole_heads = ARCHITECTURES
        .iter()
        .find(|(name, _)| *name == architecture)
        .map(|(_, whole_heads)| *whole_heads)
        .ok_or_else(|| GgufError::Architecture { architecture: architecture.to_owned() })?;
    let fields = NumberFields { header, architecture };
    let numbers = check_sizes(&fields, whole_heads)?;
    check_reals(&fields)?;
    check_vocabulary(header)?;
    check_tensors(header)?;
    Ok(numbers)
}

fn check_sizes(fields: &NumberFields<'_>, whole_heads: bool) -> Result<Numbers, GgufError> {
    let layers = fields.between("block_count", 1, LAYERS_MAX)?;
    let context_max = fields.between("context_length", 1, CONTEXT_MAX)?;
    let width = fields.between("embedding_length", 1, 1 << 20)?;
    let heads = fields.per_layer("attention.head_count", layers)?;
    if heads.is_empty() {
        return Err(fields.missing("attention.head_count"));
    }
    let kv_heads = fields.per_layer("attention.head_count_kv", layers)?;
    let heads_max = heads.iter().copied().max().unwrap_or(0);
    let divides = |head: u64, kv: u64| kv >= 1 && kv <= head && head.is_multiple_of(kv);
    let pairs = (0..heads.len().max(kv_heads.len()))
        .map(|i| (pick(&heads, i), pick(&kv_heads, i).or(pick(&heads, i))));
    for (head, kv) in pairs {
        match (head, kv) {
            (Some(head), Some(kv)) if head >= 1 && head <= width && divides(head, kv) => {}
            _ => return Err(fields.bad("attention.head_count_kv", "a divisor of the heads")),
        }
    }
    let default_length = width / heads_max.max(1);
    let key = fields.optional("attention.key_length")?.unwrap_or(default_length);
    let value = fields.optional("attention.value_length")?.unwrap_or(default_length);
    if key == 0 || key > 65_536 || key != value {
        return Err(fields.bad("attention.key_length", "positive and equal to value_length"));
    }
    let rotated = fields.optional("rope.dimension_count")?.unwrap_or(default_length);
    let rotation_fits = if whole_heads { rotated == key } else { rotated <= key };
    if rotated == 0 || !rotated.is_multiple_of(2) || !rotation_fits {
        return Err(fields.bad("rope.dimension_count", "even and not above key_length"));
    }
    if fields.optional("nextn_predict_layers")?.unwrap_or(0) >= layers {
        return Err(fields.bad("nextn_predict_layers", "less than block_count"));
    }
    let (experts, experts_used) = check_experts(fields, layers)?;
    let pooling = check_pooling(fields)?;
    let attention_width = heads_max.saturating_mul(key);
    let kv_of = |i| pick(&kv_heads, i).or(pick(&heads, i)).unwrap_or(heads_max);
    let layers_listed = usize::try_from(layers).unwrap_or(0);
    let cached_heads = (0..layers_listed).map(kv_of).fold(0, u64::saturating_add);
    match (u32::try_from(layers), u32::try_from(attention_width), u32::try_from(context_max)) {
        (Ok(layers), Ok(attention_width), Ok(context_max)) => {
            let cached_per_token = cached_heads.saturating_mul(key).saturating_mul(2);
            Ok(Numbers {
                layers,
                attention_width,
                context_max,
                // At most 2^20.
                width: u32::try_from(width).unwrap_or(u32::MAX),
                cached_per_token,
                experts,
                experts_used,
                pooling,
            })
        }
        _ => Err(fields.bad("attention.head_count", "less than 2^32 in all")),
    }
}

/// The value of layer `i`, where one value may stand for all layers.
fn pick(values: &[u64], i: usize) -> Option<u64> {
    if values.len() == 1 { values.first() } else { values.get(i) }.copied()
}

fn check_experts(fields: &NumberFields<'_>, layers: u64) -> Result<(u64, u64), GgufError> {
    let experts = fields.optional("expert_count")?.unwrap_or(0);
    let used = fields.per_layer("expert_used_count", layers)?.into_iter().max().unwrap_or(0);
    let groups = fields.optional("expert_group_count")?.unwrap_or(0);
    let groups_used = fields.optional("expert_group_used_count")?.unwrap_or(0);
    let consistent = if experts == 0 {
        used == 0 && groups == 0
    } else {
        let grouping = groups <= 1
            || (experts.is_multiple_of(groups) && groups_used >= 1 && groups_used < groups);
        (1..=experts).contains(&used) && groups < experts && grouping
    };
    if experts > EXPERTS_MAX || !consistent {
        return Err(fields.bad("expert_count", "consistent with the experts and groups used"));
    }
    Ok((experts, used))
}

/// None where the model ranks texts. The engine ends the process at a number it does not know.
fn check_pooling(fields: &NumberFields<'_>) -> Result<Option<Pooling>, GgufError> {
    match fields.optional("pooling_type")? {
        None | Some(0 | 1) => Ok(Some(Pooling::Mean)),
        Some(2) => Ok(Some(Pooling::First)),
        Some(3) => Ok(Some(Pooling::Last)),
        Some(4) => Ok(None),
        Some(_) => Err(fields.bad("pooling_type", "0 to 4")),
    }
}

fn check_reals(fields: &NumberFields<'_>) -> Result<(), GgufError> {
    for name in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"] {
        match fields.value(name) {
            None | Some((6, Value::Real(0.0..=1.0))) => {}
            Some(_) => return Err(fields.bad(name, "a number from 0 to 1")),
        }
    }
    match fields.value("rope.scaling.type") {
        None => {}
        Some((_, Value::Text(text)))
            if [&b"none"[..], b"linear", b"yarn", b"longrope"].contains(&text.as_slice()) => {}
        Some(_) => {
            return Err(fields.bad("rope.scaling.type", "none, linear, yarn or longrope"));
        }
    }
    match fields.value("attention.causal") {
        None | Some((_, Value::Bool(true))) => {}
        Some(_) => return Err(fields.bad("attention.causal", "true")),
    }
    match fields.value("attention.sliding_window") {
        Some((_, Value::Unsigned(0))) if fields.architecture != "phi3" => {
            Err(fields.bad("attention.sliding_window", "at least 1"))
        }
        _ => Ok(()),
    }
}

fn check_vocabulary(header: &Header) -> Result<(), GgufError> {
    let bad = |key: &str, expected| GgufError::BadValue { key: key.to_owned(), expected };
    let model = match header.values.get("tokenizer.ggml.model") {
        Some((_, Value::Text(model))) => model.as_slice(),
        _ => {
            return Err(GgufError::Missing { key: "tokenizer.ggml.model".to_owned() });
        }
    };
    if ![&b"llama"[..], b"gpt2"].contains(&model) {
        return Err(bad("tokenizer.ggml.model", "llama or gpt2"));
    }
    let key = "tokenizer.ggml.tokens";
    let Some((_, Value::Texts(tokens))) = header.values.get(key) else {
        return Err(GgufError::Missing { key: key.to_owned() });
    };
    if tokens.is_empty() || tokens.len() > VOCABULARY_MAX {
        return Err(bad(key, "1 to 1048576 tokens"));
    }
    let mut seen = HashSet::with_capacity(tokens.len());
    for token in tokens.iter().filter(|token| !token.is_empty()) {
        if str::from_utf8(token).is_err() || token.contains(&0) || token.starts_with(b"[EMPTY_") {
            return Err(bad(key, "UTF-8 texts without zero bytes"));
        }
        if !seen.insert(token.as_slice()) {
            return Err(bad(key, "different from each other"));
        }
    }
    let bytes_covered = (0..=u8::MAX).all(|byte| {
        seen.contains(format!("<0x{byte:02X}>").as_bytes()) || seen.contains(&[byte][..])
    });
    if model == b"llama" && !bytes_covered {
        return Err(bad(key, "complete: a token for every byte"));
    }
    check_vocabulary_arrays(header, tokens)?;
    match header.values.get("tokenizer.ggml.merges") {
        Some((_, Value::Texts(merges)))
            if merges.iter().all(|merge| str::from_utf8(merge).is_ok()) =>
        {
            Ok(())
        }
        None if model == b"llama" => Ok(()),
        _ => Err(bad("tokenizer.ggml.merges", "a list of UTF-8 texts")),
    }
}

/// The arrays that run beside the tokens: as long as they are, and of the type the engine reads.
fn check_vocabulary_arrays(header: &Header, tokens: &[Vec<u8>]) -> Result<(), GgufError> {
    let bad = |key: &str, expected| GgufError::BadValue { key: key.to_owned(), expected };
    for (key, item_type, needed) in
        [("tokenizer.ggml.scores", 6, false), ("tokenizer.ggml.token_type", 5, true)]
    {
        match header.values.get(key) {
            Some((_, Value::Numbers(NumberArray { item_type: found, items })))
                if *found == item_type && items.len() >= tokens.len() => {}
            None if !needed => {}
            _ => return Err(bad(key, "a list with one entry for each token")),
        }
    }
    // The engine reads the two hexadecimal digits of a byte token without looking.
    let Some((_, Value::Numbers(kinds))) = header.values.get("tokenizer.ggml.token_type") else {
        return Ok(());
    };
    let misnamed = |(token, kind): (&Vec<u8>, &f64)| {
        (*kind - 6.0).abs() < 0.5 && !(token.len() == 6 && token.starts_with(b"<0x"))
    };
    if tokens.iter().zip(&kinds.items).any(misnamed) {
        return Err(bad(
            "tokenizer.ggml.token_type",
            "byte only for tokens named <0x00> to <0xFF>",
        ));
    }
    Ok(())
}

fn check_tensors(header: &Header) -> Result<(), GgufError> {
    for tensor in &header.tensors {
        let is_table = tensor.dimensions.len() >= 2 && tensor.name.ends_with(".weight");
        let suits = if is_table { tensor.kind.weights } else { tensor.kind.name == "F32" };
        if !suits {
            return Err(GgufError::TensorUse { name: tensor.name.clone(), kind: tensor.kind.name });
        }
    }
    Ok(())
}
