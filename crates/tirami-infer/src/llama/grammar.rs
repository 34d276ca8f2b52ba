//! What a constrained answer may go on with.
//!
//! The native engine translates schemas and follows grammars. It aborts the process when asked
//! about an answer that has left its grammar, so a refused token ends the sequence here.

use std::collections::BTreeSet;

use llama_cpp_2::json_schema_to_grammar;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use serde_json::Value;

use crate::calls::{CALL_BEGIN, CALL_END, CALLS_MAX};
use crate::engine::{CallFormat, Format};

/// Bytes of a JSON schema.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Values in a schema, counted again wherever a `$ref` leads to them. The native engine follows
/// all ways through a schema at once, so this bounds what a step costs those who run beside it.
pub const SCHEMA_NODES_MAX: usize = 2_000;
/// The properties of one object that may be left out count, beside their values, as the square of
/// their number by this: a grammar has a way from each of them to every later one.
const OPTIONAL_SQUARED_BY: usize = 32;
/// What a schema may say of the length of a text or a list.
pub const SCHEMA_LENGTH_MAX: u64 = 1_000;
/// Depth of a schema, its references followed.
pub const SCHEMA_DEPTH_MAX: usize = 64;

/// What a schema says of lengths.
const LENGTHS: [&str; 4] = ["minLength", "maxLength", "minItems", "maxItems"];
const OBJECT: &str = r#"{"type":"object"}"#;
const ROOT: &str = "root";

/// The bytes of a token in an answer.
pub(super) type Spelling<'a> = &'a dyn Fn(usize) -> Vec<u8>;

/// An answer's grammar and how far the answer has come in it.
#[derive(Debug)]
pub(super) struct Grammar {
    sampler: LlamaSampler,
    /// Until the first call begins, an answer that may be text is free.
    free: Option<Free>,
    /// A token was refused; the native state must not be used any more.
    left: bool,
}

impl Grammar {
    /// The grammar of `format`; none where anything is allowed.
    pub(super) fn new(model: &LlamaModel, format: &Format) -> Result<Option<Self>, String> {
        let schema = match format {
            Format::Text => return Ok(None),
            Format::JsonObject => OBJECT,
            Format::JsonSchema(schema) => schema,
            Format::Calls(calls) => &calls.schema,
        };
        check(schema)?;
        let refused = |_| "it uses something of JSON schema that cannot be followed".to_owned();
        let mut grammar = json_schema_to_grammar(schema).map_err(refused)?;
        let mut free = None;
        if let Format::Calls(calls) = format {
            grammar = of_calls(&grammar, calls);
            free = calls.may_be_text.then(Free::default);
        }
        let too_large = |_| "it is too large or repeats too much".to_owned();
        let sampler = LlamaSampler::grammar(model, &grammar, ROOT).map_err(too_large)?;
        Ok(Some(Self { sampler, free, left: false }))
    }

    /// Whether the answer may go on with the token of this index.
    pub(super) fn allows(&mut self, index: usize, spelling: Spelling<'_>) -> bool {
        if let Some(free) = &self.free {
            return free.allows(&spelling(index));
        }
        let Ok(token) = i32::try_from(index) else { return false };
        self.keeps(vec![LlamaTokenData::new(LlamaToken(token), 0.0, 0.0)])
            .first()
            .is_some_and(|token| token.logit() > f32::NEG_INFINITY)
    }

    /// `logits` with those of forbidden tokens at minus infinity.
    pub(super) fn only_allowed(&mut self, logits: &[f32], spelling: Spelling<'_>) -> Vec<f32> {
        if let Some(free) = &self.free {
            let kept = logits.iter().enumerate().map(|(index, logit)| {
                if free.allows(&spelling(index)) { *logit } else { f32::NEG_INFINITY }
            });
            return kept.collect();
        }
        let tokens = (0..).zip(logits);
        let data = tokens.map(|(token, logit)| LlamaTokenData::new(LlamaToken(token), *logit, 0.0));
        let kept = self.keeps(data.collect());
        kept.iter().map(LlamaTokenData::logit).collect()
    }

    fn keeps(&mut self, data: Vec<LlamaTokenData>) -> Vec<LlamaTokenData> {
        if self.left {
            return Vec::new();
        }
        let mut data = LlamaTokenDataArray::new(data, false);
        self.sampler.apply(&mut data);
        data.data
    }

    /// Goes on with a token that does not end answers. False if it is not allowed.
    pub(super) fn accept(&mut self, token: u32, spelling: Spelling<'_>) -> bool {
        if let Some(free) = &mut self.free {
            if free.begins(&spelling(token as usize)) {
                self.free = None;
            }
            return true;
        }
        self.left = self.left || self.sampler.try_accept(LlamaToken(token.cast_signed())).is_err();
        !self.left
    }
}

/// The free text before the first call. The token that completes the beginning of a call ends
/// with it, so that all of the call itself is in the grammar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Free {
    /// The end of the text, shorter than what a call begins with.
    end: Vec<u8>,
}

impl Free {
    fn allows(&self, bytes: &[u8]) -> bool {
        let (text, begin) = ([self.end.as_slice(), bytes].concat(), CALL_BEGIN.as_bytes());
        let found = text.windows(begin.len()).position(|window| window == begin);
        found.is_none_or(|at| at + begin.len() == text.len())
    }

    /// Goes on; whether a call begins now.
    fn begins(&mut self, bytes: &[u8]) -> bool {
        self.end.extend_from_slice(bytes);
        let begins = self.end.ends_with(CALL_BEGIN.as_bytes());
        self.end.drain(..self.end.len().saturating_sub(CALL_BEGIN.len() - 1));
        begins
    }
}

/// The grammar of calls, from that of one call. The names of its rules begin with what no rule of
/// a schema begins with.
fn of_calls(one: &str, calls: &CallFormat) -> String {
    let rules = one.lines().map(|line| match line.strip_prefix("root ::=") {
        Some(rule) => format!("calls-one ::={rule}\n"),
        None => format!("{line}\n"),
    });
    let begin = if calls.may_be_text { String::new() } else { format!("\"{CALL_BEGIN}\" ") };
    let more = match calls.several {
        true => format!(" calls-next{{0,{}}}", CALLS_MAX - 1),
        false => String::new(),
    };
    let rules: String = rules.collect();
    format!(
        "{ROOT} ::= {begin}calls-rest{more}\n\
         calls-next ::= \"\\n\"? \"{CALL_BEGIN}\" calls-rest\n\
         calls-rest ::= \"\\n\"? calls-one \"{CALL_END}\"\n{rules}"
    )
}

/// Refuses what could keep the native engine busy without end or cost it its stack.
fn check(schema: &str) -> Result<(), String> {
    if schema.len() > SCHEMA_BYTES_MAX {
        return Err(format!("a schema has at most {SCHEMA_BYTES_MAX} bytes"));
    }
    let root = serde_json::from_str::<Value>(schema);
    let root = root.map_err(|error| format!("the schema is no JSON: {error}"))?;
    if !root.is_object() {
        return Err("a schema is a JSON object".to_owned());
    }
    let mut left = SCHEMA_NODES_MAX;
    count(&root, &root, SCHEMA_DEPTH_MAX, &mut left)
}

/// Takes the values of `node` off those that are `left`, its references followed.
fn count(node: &Value, root: &Value, depth: usize, left: &mut usize) -> Result<(), String> {
    let ways = optional(node).pow(2) / OPTIONAL_SQUARED_BY;
    *left = left.checked_sub(1 + ways).ok_or_else(|| {
        format!(
            "a schema has at most {SCHEMA_NODES_MAX} values, few properties that may be left out, \
             and does not refer to itself"
        )
    })?;
    let deep = || format!("a schema is at most {SCHEMA_DEPTH_MAX} levels deep");
    let depth = depth.checked_sub(1).ok_or_else(deep)?;
    match node {
        Value::Array(items) => items.iter().try_for_each(|item| count(item, root, depth, left)),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| match value {
            // A pattern has more ways through it than can be counted here.
            Value::String(_) if name == "pattern" => {
                Err("a schema's texts cannot have a pattern".to_owned())
            }
            Value::String(place) if name == "$ref" => {
                let target = place.strip_prefix('#').and_then(|place| root.pointer(place));
                let target = target.ok_or_else(|| format!("the schema has no {place:.100}"))?;
                count(target, root, depth, left)
            }
            Value::Number(length)
                if LENGTHS.contains(&name.as_str())
                    && length.as_u64().is_none_or(|length| length > SCHEMA_LENGTH_MAX) =>
            {
                Err(format!("{name} in a schema is a whole number up to {SCHEMA_LENGTH_MAX}"))
            }
            value => count(value, root, depth, left),
        }),
        _ => Ok(()),
    }
}

/// Properties of an object that may be left out.
fn optional(node: &Value) -> usize {
    let Some(properties) = node.get("properties").and_then(Value::as_object) else { return 0 };
    let required = node.get("required").and_then(Value::as_array).into_iter().flatten();
    let required: BTreeSet<&str> = required.filter_map(Value::as_str).collect();
    properties.keys().filter(|name| !required.contains(name.as_str())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_free_until_a_call_begins() {
        let mut free = Free::default();
        for (bytes, allowed, begins) in [
            ("Let me see <tool_", true, false),
            ("call>\n", false, false),
            ("call> <tool_call>", false, false),
            ("calls <", true, false),
            ("tool_call", true, false),
            (">{", false, false),
            (">", true, true),
        ] {
            assert_eq!(free.allows(bytes.as_bytes()), allowed, "{bytes}");
            if allowed {
                assert_eq!(free.begins(bytes.as_bytes()), begins, "{bytes}");
            }
        }
        assert!(free.end.len() < CALL_BEGIN.len());
    }

    #[test]
    fn a_schema_is_counted_with_its_references() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let doubling = |count: usize| {
            let one = |i: usize| {
                let next = format!("{{\"$ref\":\"#/$defs/{}\"}}", i + 1);
                format!("\"{i}\":{{\"anyOf\":[{next},{next}]}}")
            };
            let all = (0..count).map(one).collect::<Vec<_>>().join(",");
            format!("{{\"$ref\":\"#/$defs/0\",\"$defs\":{{{all},\"{count}\":{{}}}}}}")
        };
        let properties = |count: usize, required: bool| {
            let names = (0..count).map(|i| format!("\"{i}\"")).collect::<Vec<_>>();
            let all = names.iter().map(|name| format!("{name}:{{}}")).collect::<Vec<_>>().join(",");
            let required = if required { names.join(",") } else { "\"0\",\"x\"".to_owned() };
            format!("{{\"properties\":{{{all}}},\"required\":[{required}]}}")
        };
        for (schema, usable) in [
            ("{}".to_owned(), true),
            (properties(900, true), true),
            (properties(200, false), true),
            (properties(300, false), false),
            (nested(SCHEMA_DEPTH_MAX - 1), true),
            (nested(SCHEMA_DEPTH_MAX), false),
            (nested(20_000), false),
            (doubling(3), true),
            (doubling(30), false),
            (r##"{"items":{"$ref":"#"}}"##.to_owned(), false),
            (r##"{"$ref":"#/$defs/none"}"##.to_owned(), false),
            (r#"{"$ref":"https://localhost/schema"}"#.to_owned(), false),
            (r#"{"type":"string","pattern":"a"}"#.to_owned(), false),
            (r#"{"type":"string","\u0070attern":"a"}"#.to_owned(), false),
            (r#"{"type":"string","maxLength":1000}"#.to_owned(), true),
            (r#"{"type":"string","maxLength":1001}"#.to_owned(), false),
            (r#"{"type":"array","minItems":-1}"#.to_owned(), false),
            (r#"{"type":"array","minItems":1e30}"#.to_owned(), false),
            (r#"{"properties":{"pattern":{"type":"string"}}}"#.to_owned(), true),
            (format!("{{\"enum\":[{}1]}}", "1,".repeat(SCHEMA_NODES_MAX)), false),
            (format!("{{}}{}", " ".repeat(SCHEMA_BYTES_MAX)), false),
            ("{}\0".to_owned(), false),
            ("[]".to_owned(), false),
        ] {
            assert_eq!(check(&schema).is_ok(), usable, "{schema:.200}");
        }
    }
}
