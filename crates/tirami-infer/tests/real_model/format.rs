//! Answers that must be JSON are JSON, whatever the schema is and however the model is tempted.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tirami_infer::calls::{CALL_BEGIN, CallReader, Said};
use tirami_infer::engine::{
    CallFormat, CallSchema, CallText, Engine, Failure, Finish, Format, JsonSchema, Piece,
    PrepareError, Prompt, Sampling, StartError,
};

use super::{QUESTIONS, ask, greedy, shared_engine, warm};

const PERSON: &str = r#"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": false
}"#;

/// A format of which all is followed or refused.
fn strict(schema: impl Into<String>) -> Format {
    Format::JsonSchema(JsonSchema::new(schema, true))
}

#[test]
fn an_answer_follows_its_schema() {
    let engine = shared_engine();
    for (question, temperature, seed) in
        [(QUESTIONS[0], 0.0, 1), (QUESTIONS[1], 1.0, 2), ("Tell me of Rex, a dog.", 1.5, 3)]
    {
        let format = strict(PERSON);
        let sampling = Sampling { format, temperature, ..warm(200, seed) };
        let answer = ask(&engine, question, sampling);
        assert_eq!(answer.end, Some(Finish::Stop), "{}", answer.text);
        let text = answer.text.split_whitespace().collect::<String>();
        assert!(text.starts_with(r#"{"name":""#) && text.ends_with("]}"), "{text}");
        assert!(
            text.contains(r#""kind":"cat","tags":["#) || text.contains(r#""kind":"dog","tags":["#),
            "{text}"
        );
        let age = text.split(r#""age":"#).nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        assert!((1..=99).contains(&age.parse::<u32>().unwrap()), "{text}");
    }
}

#[test]
fn a_constrained_answer_does_not_change_its_neighbours() {
    let engine = shared_engine();
    let alone = ask(&engine, QUESTIONS[2], warm(24, 6));
    let object = Sampling { format: Format::JsonObject, ..warm(40, 7) };
    let expected = ask(&engine, QUESTIONS[0], object.clone());
    let prompts = [QUESTIONS[0], QUESTIONS[2]]
        .map(|question| engine.prepare(&super::chat(question)).unwrap());
    let [one, two] = prompts;
    let one = engine.start(one, object).unwrap();
    let two = engine.start(two, warm(24, 6)).unwrap();
    assert_eq!((super::collect(one), super::collect(two)), (expected, alone));
}

#[test]
fn hostile_schemas_get_a_sentence_or_a_grammar_and_never_end_the_process() {
    let engine = shared_engine();
    let deep = |depth: usize| {
        format!(
            r#"{}{{"type":"null"}}{}"#,
            r#"{"type":"array","items":"#.repeat(depth),
            "}".repeat(depth)
        )
    };
    // Each has few values, and comes to many where all its references are followed.
    let many = |one: &str, count: usize| vec![one; count].join(",");
    let referring = {
        let ways = |place: &str| many(&format!(r##"{{"$ref":"#/{place}"}}"##), 30);
        format!(
            r##"{{"a":{{"enum":[{}]}},"v":{{"anyOf":[{}]}},"w":{{"anyOf":[{}]}},
            "r":{{"type":"array","items":{{"$ref":"#/r"}}}},"x":[{}]}}"##,
            many("1", 1_830),
            ways("a"),
            ways("v"),
            many(r##"{"anyOf":[{"$ref":"#/w"}]}"##, 2_250)
        )
    };
    let kinds = {
        let one = |name: &str| {
            let values = (0..900).map(|n| format!("\"{name}{n}\"")).collect::<Vec<_>>().join(",");
            format!(
                r##"{{"type":"object","properties":{{"k":{{"enum":[{values}]}},
                "n":{{"$ref":"#/$defs/{name}"}}}},"required":["k"]}}"##
            )
        };
        let pair = r##"{"anyOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}]}"##;
        let (pairs, a, b) = (many(pair, 800), one("a"), one("b"));
        format!(r#"{{"prefixItems":[{pairs}],"$defs":{{"a":{a},"b":{b}}}}}"#)
    };
    for (schema, usable) in [
        (referring, Some(false)),
        (kinds, Some(false)),
        ("".to_owned(), Some(false)),
        ("{".to_owned(), Some(false)),
        ("7".to_owned(), Some(false)),
        ("[]".to_owned(), Some(false)),
        (r#"{"type":"frog"}"#.to_owned(), Some(false)),
        (r##"{"$ref":"#"}"##.to_owned(), Some(false)),
        (r##"{"$ref":"#/definitions/none"}"##.to_owned(), Some(false)),
        (r#"{"$ref":"https://localhost/schema"}"#.to_owned(), Some(false)),
        (r##"{"anyOf":[{"$ref":"#"},{"type":"null"}]}"##.to_owned(), Some(false)),
        (r##"{"type":"array","items":{"$ref":"#"}}"##.to_owned(), Some(true)),
        (r##"{"type":"array","items":{"$ref":"#"},"minItems":1}"##.to_owned(), Some(false)),
        (r##"{"anyOf":[{"items":{"$ref":"#"}},{"items":{"$ref":"#"}}]}"##.to_owned(), Some(false)),
        (r#"{"type":"string","pattern":"^((a|a)*)*b$"}"#.to_owned(), Some(true)),
        (r#"{"type":"string","pattern":"^(a?){999}$"}"#.to_owned(), Some(false)),
        (r#"{"type":"string","pattern":"^((a?){999}){999}$"}"#.to_owned(), Some(false)),
        (r#"{"type":"string","pattern":"^\\p{L}+$"}"#.to_owned(), Some(true)),
        (r#"{"type":"string","pattern":"^(?=a)a$"}"#.to_owned(), Some(false)),
        (
            r#"{"properties":{"]\\":{"pattern":"^a$"}},"additionalProperties":true}"#.to_owned(),
            None,
        ),
        (r#"{"type":"string","minLength":1000000000}"#.to_owned(), Some(false)),
        (
            r#"{"type":"array","minItems":-5,"maxItems":99999999999999999999}"#.to_owned(),
            Some(false),
        ),
        (r#"{"type":"integer","minimum":-99999999999999999999}"#.to_owned(), None),
        (r#"{"enum":[]}"#.to_owned(), None),
        (deep(30), Some(true)),
        (deep(64), Some(false)),
        (deep(5_000), Some(false)),
    ] {
        let checked = engine.check_format(&strict(schema.clone()));
        if let Some(usable) = usable {
            assert_eq!(checked.is_ok(), usable, "{schema:.200}: {checked:?}");
        }
        match checked {
            Ok(()) => {
                let format = strict(schema);
                let sampling = Sampling { format, ..warm(4, 1) };
                let prompt = engine.prepare(&super::chat("Hi")).unwrap();
                let mut generation = engine.start(prompt, sampling).unwrap();
                while generation.pieces.blocking_recv().is_some() {}
            }
            Err(error) => assert!(matches!(error, PrepareError::Format { .. }), "{error:?}"),
        }
    }
}

/// A name and children that are the same.
const TREE: &str = r##"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}
    },
    "required": ["name", "children"],
    "additionalProperties": false
}"##;

/// Levels of a tree that is one.
fn levels(tree: &serde_json::Value) -> usize {
    let fields = tree.as_object().unwrap();
    assert_eq!(fields.len(), 2, "{tree}");
    assert!(fields["name"].as_str().unwrap().chars().count() <= 4, "{tree}");
    let children = fields["children"].as_array().unwrap();
    assert!(children.len() <= 2, "{tree}");
    1 + children.iter().map(levels).max().unwrap_or(0)
}

#[test]
fn an_answer_follows_a_schema_that_refers_to_itself() {
    let engine = shared_engine();
    engine.check_format(&strict(TREE)).unwrap();
    for seed in 0..3 {
        let sampling = Sampling { format: strict(TREE), ..warm(120, seed) };
        let answer = ask(&engine, QUESTIONS[1], sampling);
        if answer.end == Some(Finish::Stop) {
            levels(&serde_json::from_str(&answer.text).unwrap());
        }
    }
    let begun = |text: &str| {
        let prompt = engine.prepare(&super::chat(QUESTIONS[0])).unwrap();
        Prompt { resumed: engine.tokenize(text).unwrap(), ..prompt }
    };
    // What ends lists and objects is the likeliest, and the answer ends with them.
    let likely = ["]", "}"].map(|text| (*engine.tokenize(text).unwrap().last().unwrap(), 100.0));
    let logit_bias = likely.into_iter().collect();
    let ending = Sampling { format: strict(TREE), logit_bias, ..greedy(60) };
    let node = r#"{"name":"a","children":["#;
    let beginning = node.repeat(5);
    let answer = super::collect(engine.start(begun(&beginning), ending.clone()).unwrap());
    let whole = format!("{beginning}{}", answer.text);
    assert_eq!(answer.end, Some(Finish::Stop), "{whole}");
    assert_eq!(levels(&serde_json::from_str(&whole).unwrap()), 5, "{whole}");
    for wrong in ["7", "[", r#"{"children""#] {
        let started = engine.start(begun(&format!("{beginning}{wrong}")), ending.clone());
        assert!(matches!(started, Err(StartError::Unsupported { .. })), "{wrong}: {started:?}");
    }
}

#[test]
fn a_format_that_cannot_be_followed_starts_nothing() {
    let engine = shared_engine();
    let before = engine.load();
    let prompt = engine.prepare(&super::chat("Hi")).unwrap();
    let format = strict("[]");
    let started = engine.start(prompt, Sampling { format, ..greedy(4) });
    assert!(matches!(started, Err(StartError::Unsupported { .. })), "{started:?}");
    assert_eq!(engine.load(), before);
}

/// A call of `weather` or `age`, whose arguments follow a schema.
fn calls(text: CallText, several: bool) -> Format {
    let call = |name: &str, properties: &str| {
        let arguments = format!(
            r#"{{"properties":{properties},"required":["a","b"],"additionalProperties":false}}"#
        );
        CallSchema { name: name.to_owned(), arguments: JsonSchema::new(arguments, true) }
    };
    let weather = r#"{"a":{"type":"string","maxLength":9},"b":{"enum":["C","F"]}}"#;
    let age = r#"{"a":{"type":"integer","minimum":1,"maximum":9},"b":{"type":"boolean"}}"#;
    let tools = vec![call("weather", weather), call("age", age)];
    Format::Calls(CallFormat { tools, text, several })
}

/// The calls in an answer, of which there is no text.
fn read(answer: &str) -> Vec<(String, String)> {
    let mut reader = CallReader::new(vec!["weather".to_owned(), "age".to_owned()]);
    let mut calls = Vec::<(String, String)>::new();
    for said in reader.push(answer).into_iter().chain(reader.finish()) {
        match said {
            Said::Text(text) => panic!("{text:?} in {answer:?}"),
            Said::Call { name, .. } => calls.push((name, String::new())),
            Said::Arguments { text, .. } => calls.last_mut().unwrap().1.push_str(&text),
        }
    }
    calls
}

fn check_call((name, arguments): &(String, String)) {
    let value: serde_json::Value = serde_json::from_str(arguments).unwrap();
    let (a, b) = (&value["a"], &value["b"]);
    let follows = match name.as_str() {
        "weather" => a.as_str().unwrap().chars().count() <= 9 && (b == "C" || b == "F"),
        _ => (1..=9).contains(&a.as_u64().unwrap()) && b.is_boolean(),
    };
    assert!(follows && value.as_object().unwrap().len() == 2, "{name} {arguments}");
}

#[test]
fn calls_are_written_as_they_are_read_and_follow_their_schemas() {
    let engine = shared_engine();
    for (question, temperature, seed) in
        [(QUESTIONS[0], 0.0, 1), (QUESTIONS[1], 1.0, 2), ("What is the weather?", 1.5, 3)]
    {
        let format = calls(CallText::None, false);
        let sampling = Sampling { temperature, format, ..warm(200, seed) };
        let answer = ask(&engine, question, sampling);
        let read = read(&answer.text);
        assert_eq!((answer.end, read.len()), (Some(Finish::Stop), 1), "{}", answer.text);
        check_call(&read[0]);
    }
    let format = calls(CallText::None, true);
    let several = ask(&engine, QUESTIONS[0], Sampling { format, ..warm(200, 4) });
    let read = read(&several.text);
    let whole = read.len() - usize::from(several.end == Some(Finish::Length));
    read[..whole].iter().for_each(check_call);
}

#[test]
fn an_answer_that_may_have_calls_is_free_until_one_begins() {
    let engine = shared_engine();
    let free = Sampling { format: calls(CallText::Free, true), ..warm(24, 6) };
    assert_eq!(ask(&engine, QUESTIONS[2], free.clone()), ask(&engine, QUESTIONS[2], warm(24, 6)));
    // Another machine wrote the beginning.
    let begun = engine.tokenize(&format!("I see.\n{CALL_BEGIN}")).unwrap();
    let prompt = engine.prepare(&super::chat(QUESTIONS[0])).unwrap();
    let prompt = Prompt { resumed: begun, ..prompt };
    let format = calls(CallText::Free, false);
    let sampling = Sampling { completion_max: 200, format, ..free };
    let answer = super::collect(engine.start(prompt, sampling).unwrap());
    let calls = read(&format!("{CALL_BEGIN}{}", answer.text));
    assert_eq!((answer.end, calls.len()), (Some(Finish::Stop), 1), "{}", answer.text);
    check_call(&calls[0]);
}

#[test]
fn an_answer_that_may_have_calls_keeps_to_its_schema_without() {
    let engine = shared_engine();
    let begun = |text: &str| {
        let prompt = engine.prepare(&super::chat(QUESTIONS[0])).unwrap();
        Prompt { resumed: engine.tokenize(text).unwrap(), ..prompt }
    };
    let person = || CallText::JsonSchema(JsonSchema::new(PERSON, true));
    for (text, beginning) in [(person(), "{"), (CallText::JsonObject, "{"), (person(), CALL_BEGIN)]
    {
        let format = calls(text, false);
        engine.check_format(&format).unwrap();
        // What it begins with decides what it is.
        let sampling = Sampling { format, ..warm(200, 5) };
        let answer = super::collect(engine.start(begun(beginning), sampling).unwrap());
        let whole = format!("{beginning}{}", answer.text);
        if beginning == CALL_BEGIN {
            let calls = read(&whole);
            assert_eq!((answer.end, calls.len()), (Some(Finish::Stop), 1), "{whole}");
            check_call(&calls[0]);
        } else if answer.end == Some(Finish::Stop) {
            let value: serde_json::Value = serde_json::from_str(&whole).unwrap();
            assert!(value.is_object(), "{whole}");
        }
    }
    let format = calls(person(), true);
    let first = ask(&engine, QUESTIONS[1], Sampling { format, ..warm(200, 6) }).text;
    assert!(first.starts_with('{') || first.starts_with(CALL_BEGIN), "{first}");
    for wrong in ["Well", "[", "<tool"] {
        // An answer that goes on otherwise is none; one that may become a call is.
        let sampling = Sampling { format: calls(person(), false), ..greedy(40) };
        let started = engine.start(begun(wrong), sampling);
        let is_refused = matches!(started, Err(StartError::Unsupported { .. }));
        assert_eq!(is_refused, wrong != "<tool", "{wrong}: {started:?}");
    }
}

#[test]
fn a_text_follows_its_pattern_and_the_bounds_of_its_length() {
    let engine = shared_engine();
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let is_date = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.iter().map(|part| part.len()).eq([4, 2, 2]) && parts.iter().all(|part| digits(part))
    };
    let is_word =
        |text: &str| (3..=8).contains(&text.len()) && text.chars().all(|c| c.is_ascii_lowercase());
    let is_path = |text: &str| text.starts_with(r"C:\") && text.len() > 3;
    let has_cat = |text: &str| text.contains("cat") && text.chars().count() <= 12;
    type Check<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(&str, &str, Check<'_>); 4] = [
        (r"^\d{4}-\d{2}-\d{2}$", "", &is_date),
        ("^[a-z]+$", r#","minLength":3,"maxLength":8"#, &is_word),
        (r#"^C:\\[^"]{1,9}$"#, "", &is_path),
        ("cat", r#","maxLength":12"#, &has_cat),
    ];
    for (pattern, more, follows) in cases {
        let pattern = serde_json::Value::from(pattern);
        let text = format!(r#"{{"type":"string","pattern":{pattern}{more}}}"#);
        let schema = format!(
            r#"{{"type":"object","properties":{{"pattern":{text}}},"required":["pattern"],
            "additionalProperties":false}}"#
        );
        for (question, temperature, seed) in [(QUESTIONS[0], 0.0, 1), (QUESTIONS[2], 1.5, 2)] {
            let format = strict(schema.clone());
            engine.check_format(&format).unwrap();
            let sampling = Sampling { format, temperature, ..warm(120, seed) };
            let answer = ask(&engine, question, sampling);
            assert_eq!(answer.end, Some(Finish::Stop), "{}", answer.text);
            let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
            assert!(follows(value["pattern"].as_str().unwrap()), "{pattern}: {}", answer.text);
        }
    }
}

#[test]
fn what_a_schema_says_is_followed_or_refused_by_its_name_and_left_out_where_that_may_be() {
    let engine = shared_engine();
    for (schema, word) in [
        (r#"{"type":"string","pattern":"^(?!a)b$","maxLength":4}"#, "look-around"),
        (
            r#"{"type":"array","items":{"type":"null"},"uniqueItems":true,"maxItems":2}"#,
            "uniqueItems",
        ),
        (r#"{"type":"object","maxProperties":1,"properties":{"a":{}}}"#, "maxProperties"),
        (r#"{"type":"number","exclusiveMaximum":0.5}"#, "exclusiveMaximum"),
        (r#"{"type":"string","format":"ipv6","maxLength":4}"#, "format"),
        (r#"{"type":"boolean","not":{"const":true}}"#, "not"),
        (r#"{"oneOf":[{"type":"null"},{"type":["boolean","null"]}]}"#, "oneOf"),
    ] {
        let refused = engine.check_format(&strict(schema)).unwrap_err().to_string();
        assert!(refused.contains(word), "{schema}: {refused}");
        let loose = Format::JsonSchema(JsonSchema::new(schema, false));
        engine.check_format(&loose).unwrap();
        let answer = ask(&engine, QUESTIONS[0], Sampling { format: loose, ..greedy(40) });
        if answer.end == Some(Finish::Stop) {
            // As it is written: a number may be larger than one of 64 bits.
            let value: &RawValue = serde_json::from_str(&answer.text).unwrap();
            let is_object = value.get().starts_with('{');
            assert!(!is_object || schema.contains("properties"), "{schema}: {value}");
        }
    }
    // Each of the alternatives has what stands beside them.
    let schema = r#"{"type":"object","properties":{"a":{"enum":[1,2]},"b":{"type":"null"}},
        "additionalProperties":false,"anyOf":[{"required":["a"]},{"required":["b"]}]}"#;
    for seed in 0..4 {
        let sampling = Sampling { format: strict(schema), ..warm(60, seed) };
        let answer = ask(&engine, QUESTIONS[1], sampling);
        assert_eq!(answer.end, Some(Finish::Stop), "{}", answer.text);
        let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
        let fields = value.as_object().unwrap();
        assert!((1..=2).contains(&fields.len()), "{value}");
        assert!(fields.keys().all(|name| name == "a" || name == "b"), "{value}");
    }
}

#[test]
fn a_number_keeps_its_bounds() {
    let engine = shared_engine();
    let schema = r#"{"type":"array","items":{"type":"number","minimum":0,"exclusiveMaximum":2},
        "minItems":2,"maxItems":2}"#;
    let sampling = |seed| Sampling { format: strict(schema), ..warm(200, seed) };
    for seed in 0..3 {
        let answer = ask(&engine, QUESTIONS[1], sampling(seed));
        assert_eq!(answer.end, Some(Finish::Stop), "{}", answer.text);
        let numbers: Vec<f64> = serde_json::from_str(&answer.text).unwrap();
        assert_eq!(numbers.len(), 2, "{}", answer.text);
        assert!(numbers.iter().all(|number| (0.0..2.0).contains(number)), "{}", answer.text);
    }
    for (begun, follows) in [("[0.5", true), ("[1.99", true), ("[-", false), ("[2", false)] {
        let prompt = engine.prepare(&super::chat(QUESTIONS[0])).unwrap();
        let prompt = Prompt { resumed: engine.tokenize(begun).unwrap(), ..prompt };
        let started = engine.start(prompt, sampling(1));
        assert_eq!(started.is_ok(), follows, "{begun}: {started:?}");
    }
}

#[test]
fn a_schema_of_many_ways_is_refused_or_keeps_nobody_waiting_for_long() {
    let engine = shared_engine();
    let ways = |count: usize| {
        let one = r#"{"items":[{},{"const":0}]}"#;
        format!(r#"{{"anyOf":[{}]}}"#, vec![one; count].join(","))
    };
    assert!(engine.check_format(&strict(ways(399))).is_err());
    let most = (1..399).rev().find(|count| engine.check_format(&strict(ways(*count))).is_ok());
    let most = most.unwrap();
    // What the grammar forbids is always the likeliest, so the whole vocabulary is looked at; and
    // what goes on in all ways at once comes next.
    let likely = [("the", 100.0), ("[", 60.0), ("1", 50.0), (",", 40.0)];
    let logit_bias = likely.iter().map(|(text, bias)| (engine.tokenize(text).unwrap()[0], *bias));
    let costly =
        Sampling { logit_bias: logit_bias.collect(), format: strict(ways(most)), ..greedy(60) };
    let prompts = [QUESTIONS[0], QUESTIONS[1]]
        .map(|question| engine.prepare(&super::chat(question)).unwrap());
    let [plain, offender] = prompts;
    let mut plain = engine.start(plain, warm(60, 3)).unwrap();
    assert!(plain.pieces.blocking_recv().is_some());
    let mut offender = engine.start(offender, costly).unwrap();
    let (mut before, mut longest) = (Instant::now(), Duration::ZERO);
    while plain.pieces.blocking_recv().is_some() {
        longest = longest.max(before.elapsed());
        before = Instant::now();
    }
    let mut last = None;
    while let Some(piece) = offender.pieces.blocking_recv() {
        last = Some(piece);
    }
    match last {
        Some(Piece::Failed { .. }) => assert_eq!(offender.failure(), Some(&Failure::Costly)),
        last => assert!(matches!(last, Some(Piece::End { .. })), "{last:?}"),
    }
    assert!(longest < Duration::from_secs(10), "{longest:?} with {most} ways");
}
