//! Which schemas are followed, and what is made of their patterns.

use super::*;

fn read(schema: &str) -> Result<Schema, String> {
    Schema::read(schema, "x", &mut { SCHEMA_NODES_MAX })
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
    let types = |depth: usize| {
        let begin = r#"{"type":["string","object"],"allOf":["#.repeat(depth);
        format!("{begin}{{}}{}", "]}".repeat(depth))
    };
    let properties = |count: usize, required: bool| {
        let names = (0..count).map(|i| format!("\"{i}\"")).collect::<Vec<_>>();
        let all = names.iter().map(|name| format!("{name}:{{}}")).collect::<Vec<_>>().join(",");
        let required = if required { names.join(",") } else { "\"0\",\"x\"".to_owned() };
        format!("{{\"properties\":{{{all}}},\"required\":[{required}]}}")
    };
    let bounded = |kind: &str, count: usize| {
        let one = format!(r#"{{"type":"{kind}","minimum":-1000000000,"maximum":1000000000}}"#);
        format!("{{\"anyOf\":[{}]}}", vec![one; count].join(","))
    };
    let paged = |count: usize| {
        let one = r#"{"type":"integer","minimum":1,"maximum":100}"#;
        format!("{{\"anyOf\":[{}]}}", vec![one; count].join(","))
    };
    let named = |word: &str, bytes: usize| format!("{{{word:?}:{{{:?}:{{}}}}}}", "_".repeat(bytes));
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
        (types(3), true),
        (types(20), false),
        (r#"{"type":["string","null"]}"#.to_owned(), true),
        (r#"{"type":["string",["object","object"]]}"#.to_owned(), false),
        (r#"{"type":["integer","integer"]}"#.to_owned(), false),
        // Each type follows all values.
        (format!(r#"{{"type":["integer","null"],"enum":[{}1]}}"#, "1,".repeat(900)), true),
        (format!(r#"{{"type":["integer","null"],"enum":[{}1]}}"#, "1,".repeat(1_100)), false),
        (bounded("integer", 40), true),
        (bounded("integer", 60), false),
        (bounded("number", 300), true),
        (paged(150), true),
        (named("properties", SCHEMA_NAME_BYTES_MAX), true),
        (named("properties", SCHEMA_NAME_BYTES_MAX + 1), false),
        (named("$defs", SCHEMA_NAME_BYTES_MAX + 1), false),
        (named("const", 1_000), true),
        (format!(r##"{{"$ref":"#/const/{0}","const":{{"{0}":{{}}}}}}"##, "_".repeat(600)), false),
        (format!(r#"{{"anyOf":[{}{{}}]}}"#, r#"{"maxLength":1000},"#.repeat(100)), true),
        (format!(r#"{{"anyOf":[{}{{}}]}}"#, r#"{"maxLength":1000},"#.repeat(120)), false),
        (r##"{"items":{"$ref":"#"}}"##.to_owned(), false),
        (r##"{"$ref":"#/$defs/none"}"##.to_owned(), false),
        // Each of the two would go elsewhere.
        (r##"{"$ref":"#/$defs/a~1b","$defs":{"a/b":{},"a~1b":{}}}"##.to_owned(), false),
        (r#"{"$ref":"https://localhost/schema"}"#.to_owned(), false),
        (r#"{"type":"string","maxLength":1000}"#.to_owned(), true),
        (r#"{"type":"string","maxLength":1001}"#.to_owned(), false),
        (r#"{"type":"array","minItems":-1}"#.to_owned(), false),
        (r#"{"type":"array","minItems":1e30}"#.to_owned(), false),
        (r##"{"enum":[{"$ref":"#/none","maxLength":1001}]}"##.to_owned(), true),
        (format!("{{\"enum\":[{}1]}}", "1,".repeat(SCHEMA_NODES_MAX)), false),
        (format!("{{}}{}", " ".repeat(SCHEMA_BYTES_MAX)), false),
        ("{}\0".to_owned(), false),
        ("[]".to_owned(), false),
    ] {
        assert_eq!(read(&schema).is_ok(), usable, "{schema:.200}");
    }
}

#[test]
fn all_schemas_of_an_answer_share_one_bound() {
    let schema = format!("{{\"enum\":[{}1]}}", "1,".repeat(SCHEMA_NODES_MAX / 2));
    let mut left = SCHEMA_NODES_MAX;
    assert!(Schema::read(&schema, "x", &mut left).is_ok());
    assert!(Schema::read(&schema, "y", &mut left).is_err());
}

#[test]
fn a_pattern_is_followed_where_the_native_engine_sees_one_and_is_refused_elsewhere() {
    let of = |more: &str| format!(r#"{{"type":"string","pattern":"^a$"{more}}}"#);
    let defined = |schema: &str| format!(r##"{{"$defs":{{"a":{}}},{schema}}}"##, of(""));
    for (schema, patterns) in [
        (of(""), Some(1)),
        (r#"{"type":"string","\u0070attern":"a"}"#.to_owned(), Some(1)),
        (of(r#","enum":["a"],"minLength":1"#), Some(1)),
        (format!(r#"{{"items":{},"properties":{{"a":{}}}}}"#, of(""), of("")), Some(2)),
        (defined(r##""$ref":"#/$defs/a""##), Some(1)),
        (defined(r##""anyOf":[{"$ref":"#/$defs/a"},{"type":"null"}]"##), Some(1)),
        (format!(r#"{{"allOf":[{{"properties":{{"a":{}}}}}]}}"#, of("")), Some(1)),
        // A name, and values.
        (r#"{"properties":{"pattern":{"type":"string"}}}"#.to_owned(), Some(0)),
        (r#"{"const":{"pattern":"("},"default":{"pattern":"("}}"#.to_owned(), Some(0)),
        (of(r#","maxLength":0"#), None),
        (of(r#","anyOf":[{}]"#), None),
        (of(r#","allOf":[{}]"#), None),
        (format!(r#"{{"allOf":[{}]}}"#, of("")), None),
        (format!(r#"{{"allOf":[{{"anyOf":[{}]}}]}}"#, of("")), None),
        (defined(r##""allOf":[{"$ref":"#/$defs/a"}]"##), None),
        (r#"{"type":"string","pattern":"("}"#.to_owned(), None),
        // A value is no schema, whatever it looks like.
        (format!(r##"{{"$ref":"#/default","default":{}}}"##, of("")), None),
        (format!(r##"{{"$ref":"#/enum/0","enum":[{}]}}"##, of("")), None),
        (
            r##"{"$ref":"#/const","const":{"type":"string","pattern":"^pattern-x-0$"}}"##
                .to_owned(),
            None,
        ),
    ] {
        let read = read(&schema);
        let found = read.as_ref().ok().map(|schema| schema.patterns.all.len());
        assert_eq!(found, patterns, "{schema}: {read:?}");
    }
}

#[test]
fn the_rules_of_a_pattern_stand_in_the_place_of_a_text() {
    let schema = r#"{"type":"object","properties":{
        "pattern-x-0":{"type":"string","pattern":"^a$"},
        "b":{"const":"pattern-x-0"},
        "c":{"type":"array","items":{"type":"string","pattern":"^b?$"},"maxItems":2}
    },"additionalProperties":false}"#;
    let rules = read(schema).unwrap().rules().unwrap();
    for line in [
        r#"x-pattern-x-0 ::= "\"" (pattern-x-0) "\"""#,
        r#"x-c-item ::= "\"" (pattern-x-1) "\"""#,
        r#"x-b ::= "\"pattern-x-0\"""#,
        "pattern-x-0 ::= [\\U00000061] pattern-x-0-1",
        "pattern-x-0-1 ::= \"\"",
        "pattern-x-1 ::= \"\" | [\\U00000062] pattern-x-1-1",
    ] {
        assert_eq!(rules.lines().filter(|one| *one == line).count(), 1, "{line}\n{rules}");
    }
    let names: Vec<&str> =
        rules.lines().filter_map(|line| line.split_once(" ::=")).map(|one| one.0).collect();
    assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "{rules}");
    assert!(names.contains(&"x-root"));
}

#[test]
fn a_pattern_counts_wherever_a_reference_leads_to_it() {
    let schema = |references: usize| {
        let all = vec![r##"{"$ref":"#/$defs/a"}"##; references].join(",");
        let text = r#"{"type":"string","pattern":"^[a-z]{100}$"}"#;
        format!(r#"{{"anyOf":[{all}],"$defs":{{"a":{text}}}}}"#)
    };
    // 100 states with a range each, and the last one.
    for (references, usable) in [(8, true), (10, false)] {
        assert_eq!(read(&schema(references)).is_ok(), usable, "{references}");
    }
}

#[test]
fn no_mutilated_schema_makes_the_reader_fall_over() {
    const WHOLE: &str = r##"{"$defs":{"a":{"type":["string","null"],"enum":["x",1]}},
        "type":"object","properties":{"b":{"$ref":"#/$defs/a"},"c":{"type":"integer","minimum":-5,
        "maximum":1000},"d":{"type":"string","pattern":"^[a-z]{2,9}$","maxLength":5},"e":{"anyOf":[
        {"type":"array","items":{"const":{"pattern":"("}},"minItems":1},{"type":"number"}]}},
        "required":["b"],"additionalProperties":false}"##;
    assert!(read(WHOLE).and_then(|schema| schema.rules()).is_ok());
    let mut state = 1_u64;
    let mut below = |most: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % most
    };
    let mut followed = 0;
    for _ in 0..5_000 {
        let mut bytes = WHOLE.as_bytes().to_vec();
        for _ in 0..=below(3) {
            let (from, to) = (below(bytes.len()), below(bytes.len()));
            let (from, to) = (from.min(to), from.max(to).min(from.min(to) + 12));
            let part = bytes[from..to].to_vec();
            match below(3) {
                0 => drop(bytes.drain(from..to)),
                1 => drop(bytes.splice(to..to, part)),
                _ => bytes[from] = b"{}[],:\"019aA^$-"[below(15)],
            }
        }
        let Ok(text) = String::from_utf8(bytes) else { continue };
        followed += usize::from(read(&text).and_then(|schema| schema.rules()).is_ok());
    }
    assert!(followed > 100, "{followed}");
}
