//! Answers that must be JSON are JSON, whatever the schema is and however the model is tempted.

use tirami_infer::calls::{CALL_BEGIN, CallReader, Said};
use tirami_infer::engine::{CallFormat, Engine, Finish, Format, PrepareError, Prompt, Sampling};

use super::{QUESTIONS, ask, shared_engine, warm};

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

#[test]
fn an_answer_follows_its_schema() {
    let engine = shared_engine();
    for (question, temperature, seed) in
        [(QUESTIONS[0], 0.0, 1), (QUESTIONS[1], 1.0, 2), ("Tell me of Rex, a dog.", 1.5, 3)]
    {
        let format = Format::JsonSchema(PERSON.to_owned());
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
    for (schema, usable) in [
        ("".to_owned(), Some(false)),
        ("{".to_owned(), Some(false)),
        ("7".to_owned(), Some(false)),
        ("[]".to_owned(), Some(false)),
        (r#"{"type":"frog"}"#.to_owned(), Some(false)),
        (r##"{"$ref":"#"}"##.to_owned(), Some(false)),
        (r##"{"$ref":"#/definitions/none"}"##.to_owned(), Some(false)),
        (r#"{"$ref":"https://localhost/schema"}"#.to_owned(), Some(false)),
        (r##"{"anyOf":[{"$ref":"#"},{"type":"null"}]}"##.to_owned(), Some(false)),
        (r#"{"type":"string","pattern":"^(a|b)*$"}"#.to_owned(), Some(false)),
        (r#"{"type":"string","pattern":"^((a?){999}){999}$"}"#.to_owned(), Some(false)),
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
        let checked = engine.check_format(&Format::JsonSchema(schema.clone()));
        if let Some(usable) = usable {
            assert_eq!(checked.is_ok(), usable, "{schema:.200}: {checked:?}");
        }
        match checked {
            Ok(()) => {
                let format = Format::JsonSchema(schema);
                let sampling = Sampling { format, ..warm(4, 1) };
                let prompt = engine.prepare(&super::chat("Hi")).unwrap();
                let mut generation = engine.start(prompt, sampling).unwrap();
                while generation.pieces.blocking_recv().is_some() {}
            }
            Err(error) => assert!(matches!(error, PrepareError::Format { .. }), "{error:?}"),
        }
    }
}

/// A call of `weather` or `age`, whose arguments follow a schema.
fn calls(may_be_text: bool, several: bool) -> Format {
    let call = |name: &str, arguments: &str| {
        format!(
            r#"{{"type":"object","properties":{{"name":{{"const":"{name}"}},
            "arguments":{{"type":"object","properties":{arguments},"required":["a","b"],
            "additionalProperties":false}}}},"required":["name","arguments"],
            "additionalProperties":false}}"#
        )
    };
    let weather = r#"{"a":{"type":"string","maxLength":9},"b":{"enum":["C","F"]}}"#;
    let age = r#"{"a":{"type":"integer","minimum":1,"maximum":9},"b":{"type":"boolean"}}"#;
    let schema = format!(r#"{{"anyOf":[{},{}]}}"#, call("weather", weather), call("age", age));
    Format::Calls(CallFormat { schema, may_be_text, several })
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
        let sampling = Sampling { temperature, format: calls(false, false), ..warm(200, seed) };
        let answer = ask(&engine, question, sampling);
        let read = read(&answer.text);
        assert_eq!((answer.end, read.len()), (Some(Finish::Stop), 1), "{}", answer.text);
        check_call(&read[0]);
    }
    let several =
        ask(&engine, QUESTIONS[0], Sampling { format: calls(false, true), ..warm(200, 4) });
    let read = read(&several.text);
    let whole = read.len() - usize::from(several.end == Some(Finish::Length));
    read[..whole].iter().for_each(check_call);
}

#[test]
fn an_answer_that_may_have_calls_is_free_until_one_begins() {
    let engine = shared_engine();
    let free = Sampling { format: calls(true, true), ..warm(24, 6) };
    assert_eq!(ask(&engine, QUESTIONS[2], free.clone()), ask(&engine, QUESTIONS[2], warm(24, 6)));
    // Another machine wrote the beginning.
    let begun = engine.tokenize(&format!("I see.\n{CALL_BEGIN}")).unwrap();
    let prompt = engine.prepare(&super::chat(QUESTIONS[0])).unwrap();
    let prompt = Prompt { resumed: begun, ..prompt };
    let sampling = Sampling { completion_max: 200, format: calls(true, false), ..free };
    let answer = super::collect(engine.start(prompt, sampling).unwrap());
    let calls = read(&format!("{CALL_BEGIN}{}", answer.text));
    assert_eq!((answer.end, calls.len()), (Some(Finish::Stop), 1), "{}", answer.text);
    check_call(&calls[0]);
}
