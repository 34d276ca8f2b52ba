//! What a constrained answer may go on with.
//!
//! The native engine translates schemas and follows grammars. It aborts the process when asked
//! about an answer that has left its grammar, so a refused token ends the sequence here. A grammar
//! that it cannot read it prints to the process's stderr itself, past its log; the bounds of
//! [`schema`] keep nearly all of those from it.

mod gbnf;
mod pattern;
mod schema;
mod time;

use std::time::Duration;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

pub use pattern::{SCHEMA_PATTERN_DEPTH_MAX, SCHEMA_PATTERN_SIZE_MAX};
use schema::Schema;
pub use schema::{
    SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_LENGTH_MAX, SCHEMA_NAME_BYTES_MAX, SCHEMA_NODES_MAX,
    SCHEMA_REFS_MAX,
};

use time::Allowance;

use crate::calls::{CALL_BEGIN, CALL_END, CALLS_MAX};
use crate::engine::{CallFormat, CallText, Format, JsonSchema};

const OBJECT: &str = r#"{"type":"object"}"#;
/// Tokens of the vocabulary that are looked at before the time is.
const TOKENS_AT_ONCE: usize = 4_096;
const ROOT: &str = "root";
/// Nearly any text, so that all characters of a token are looked at.
const ONE_WAY: &str = "root ::= [^\"]*\n";
/// What the names of the rules of a call and of an answer without calls begin with.
const CALL: &str = "call";
const TEXT: &str = "text";

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
    time: Allowance,
}

impl Grammar {
    /// The grammar of `format`; none where anything is allowed. That takes some milliseconds, and
    /// many of a large schema. What following it may take goes by what [`scan`] measured.
    pub(super) fn new(
        model: &LlamaModel,
        format: &Format,
        scan: Duration,
    ) -> Result<Option<Self>, String> {
        let Some(rules) = rules(format)? else { return Ok(None) };
        let too_large = |_| "it is too large or repeats too much".to_owned();
        let sampler = LlamaSampler::grammar(model, &rules, ROOT).map_err(too_large)?;
        let is_free = matches!(format, Format::Calls(calls) if calls.text == CallText::Free);
        let free = is_free.then(Free::default);
        Ok(Some(Self { sampler, free, left: false, time: Allowance::new(scan) }))
    }

    /// The same without any time to follow it.
    #[cfg(test)]
    pub(super) fn without_time(self) -> Self {
        Self { time: Allowance::none(), ..self }
    }

    /// What is left of the time to follow it.
    #[cfg(test)]
    pub(super) const fn time_left(&self) -> Duration {
        self.time.left()
    }

    /// Whether following it took more time than it may; then no token is allowed.
    pub(super) const fn is_too_costly(&self) -> bool {
        self.time.is_spent()
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

    /// `logits` with those of forbidden tokens at minus infinity; none where that took too long.
    pub(super) fn only_allowed(&mut self, logits: &[f32], spelling: Spelling<'_>) -> Vec<f32> {
        if let Some(free) = &self.free {
            let kept = logits.iter().enumerate().map(|(index, logit)| {
                if free.allows(&spelling(index)) { *logit } else { f32::NEG_INFINITY }
            });
            return kept.collect();
        }
        let tokens = (0..).zip(logits);
        let data = tokens.map(|(token, logit)| LlamaTokenData::new(LlamaToken(token), *logit, 0.0));
        let data: Vec<LlamaTokenData> = data.collect();
        let mut allowed = Vec::with_capacity(data.len());
        for some in data.chunks(TOKENS_AT_ONCE) {
            let kept = self.keeps(some.to_vec());
            if kept.is_empty() {
                return Vec::new();
            }
            allowed.extend(kept.iter().map(LlamaTokenData::logit));
        }
        allowed
    }

    /// The same tokens, those that are forbidden with a logit of minus infinity; none where no
    /// token may be asked for any more.
    fn keeps(&mut self, data: Vec<LlamaTokenData>) -> Vec<LlamaTokenData> {
        if self.left || self.is_too_costly() {
            return Vec::new();
        }
        let mut data = LlamaTokenDataArray::new(data, false);
        let Self { sampler, time, .. } = self;
        time.spend(|| sampler.apply(&mut data));
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
        if self.left || self.is_too_costly() {
            return false;
        }
        let Self { sampler, time, .. } = self;
        let accepted = time.spend(|| sampler.try_accept(LlamaToken(token.cast_signed())));
        self.left = accepted.is_err();
        self.time.earn();
        !self.left
    }
}

/// How long it takes to look at the whole vocabulary once for a grammar of one way.
pub(super) fn scan(model: &LlamaModel) -> Duration {
    let Ok(mut sampler) = LlamaSampler::grammar(model, ONE_WAY, ROOT) else {
        return Duration::ZERO;
    };
    let tokens = 0..model.vocab().n_tokens();
    let data = tokens.map(|token| LlamaTokenData::new(LlamaToken(token), 0.0, 0.0));
    let mut data = LlamaTokenDataArray::new(data.collect(), false);
    time::taken(|| sampler.apply(&mut data))
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

/// The rules of `format`; none where anything is allowed.
fn rules(format: &Format) -> Result<Option<String>, String> {
    let mut left = SCHEMA_NODES_MAX;
    let object = JsonSchema::new(OBJECT, true);
    let whole = format!("{ROOT} ::= {TEXT}-{ROOT}\n");
    let rules = match format {
        Format::Text => return Ok(None),
        Format::JsonObject => whole + &Schema::read(&object, TEXT, &mut left)?.rules()?,
        Format::JsonSchema(schema) => whole + &Schema::read(schema, TEXT, &mut left)?.rules()?,
        Format::Calls(calls) => {
            let call = Schema::of_calls(&calls.tools, CALL, &mut left)?.rules()?;
            let text = match &calls.text {
                CallText::None | CallText::Free => String::new(),
                CallText::JsonObject => Schema::read(&object, TEXT, &mut left)?.rules()?,
                CallText::JsonSchema(schema) => Schema::read(schema, TEXT, &mut left)?.rules()?,
            };
            of_calls(calls) + &call + &text
        }
    };
    Ok(Some(rules))
}

/// The rules of an answer of calls, but for those of one call and of an answer without. Before the
/// first call of an answer that may be any text, what begins it was said already.
fn of_calls(calls: &CallFormat) -> String {
    let begin = match &calls.text {
        CallText::Free => String::new(),
        CallText::None => format!("\"{CALL_BEGIN}\" "),
        CallText::JsonObject | CallText::JsonSchema(_) => {
            format!("{TEXT}-{ROOT} | \"{CALL_BEGIN}\" ")
        }
    };
    let more = match calls.several {
        true => format!(" calls-next{{0,{}}}", CALLS_MAX - 1),
        false => String::new(),
    };
    format!(
        "{ROOT} ::= {begin}calls-rest{more}\n\
         calls-next ::= \"\\n\"? \"{CALL_BEGIN}\" calls-rest\n\
         calls-rest ::= \"\\n\"? {CALL}-{ROOT} \"{CALL_END}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::CallSchema;

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
    fn an_answer_is_text_or_calls_as_its_format_says() {
        let tools = || {
            let arguments = JsonSchema::new(r#"{"enum":[{}]}"#, true);
            vec![CallSchema { name: "f".to_owned(), arguments }]
        };
        let schema = || CallText::JsonSchema(JsonSchema::new(r#"{"enum":["t"]}"#, true));
        for (text, several, root, has_text) in [
            (CallText::None, false, r#"root ::= "<tool_call>" calls-rest"#, false),
            (CallText::Free, true, "root ::= calls-rest calls-next{0,15}", false),
            (schema(), false, r#"root ::= text-root | "<tool_call>" calls-rest"#, true),
            (
                CallText::JsonObject,
                true,
                r#"root ::= text-root | "<tool_call>" calls-rest calls-next{0,15}"#,
                true,
            ),
        ] {
            let calls = CallFormat { tools: tools(), text, several };
            let rules = rules(&Format::Calls(calls)).unwrap().unwrap();
            let lines: Vec<&str> = rules.lines().collect();
            assert_eq!(lines[0], root);
            assert!(lines.contains(&"call-alternative-0-arguments ::= (\"{}\")"), "{rules}");
            assert_eq!(rules.contains("\ntext-root ::= "), has_text, "{rules}");
        }
        assert_eq!(rules(&Format::Text), Ok(None));
        let object = rules(&Format::JsonObject).unwrap().unwrap();
        assert!(object.starts_with("root ::= text-root\n"), "{object}");
    }

    #[test]
    fn an_answers_schema_and_those_of_its_tools_share_one_bound() {
        let of = |values: usize| format!("{{\"enum\":[{}1]}}", "1,".repeat(values));
        for (call, text, usable) in [(900, 900, true), (900, 1_200, false), (1_200, 900, false)] {
            let text = CallText::JsonSchema(JsonSchema::new(of(text), true));
            let arguments =
                JsonSchema::new(format!("{{\"properties\":{{\"a\":{}}}}}", of(call)), true);
            let tools = vec![CallSchema { name: "f".to_owned(), arguments }];
            let calls = CallFormat { tools, text, several: false };
            assert_eq!(rules(&Format::Calls(calls)).is_ok(), usable, "{call} {usable}");
        }
    }
}
