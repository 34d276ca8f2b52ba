//! Answers that must be JSON are JSON, whatever the schema is and however the model is tempted.

use tirami_infer::engine::{Engine, Finish, Format, PrepareError, Sampling};

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
