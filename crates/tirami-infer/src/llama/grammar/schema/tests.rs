//! Which schemas are followed, and what is made of their patterns.

use super::*;

fn read(schema: &str) -> Result<Schema, String> {
    Schema::read(&JsonSchema::new(schema, true), "x", &mut { SCHEMA_NODES_MAX })
}

fn read_loosely(schema: &str) -> Result<Schema, String> {
    Schema::read(&JsonSchema::new(schema, false), "x", &mut { SCHEMA_NODES_MAX })
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
        format!("{{\"properties\":{{{all},\"x\":{{}}}},\"required\":[{required}]}}")
    };
    let bounded = |kind: &str, count: usize| {
        let one = format!(r#"{{"type":"{kind}","minimum":-1000000000,"maximum":1000000000}}"#);
        format!("{{\"anyOf\":[{}]}}", vec![one; count].join(","))
    };
    let paged = |count: usize| {
        let one = r#"{"type":"integer","minimum":1,"maximum":100}"#;
        format!("{{\"anyOf\":[{}]}}", vec![one; count].join(","))
    };
    let ways = |one: &str, count: usize| format!("{{\"anyOf\":[{}]}}", vec![one; count].join(","));
    let referring = |count: usize| {
        let all = |one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(",");
        let items = all(&|n| format!("{{\"$ref\":\"#/$defs/{n}\"}}"));
        let defined = all(&|n| format!("\"{n}\":{{\"const\":{n}}}"));
        format!("{{\"prefixItems\":[{items}],\"$defs\":{{{defined}}}}}")
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
        (r#"{"type":["string","null"]}"#.to_owned(), true),
        (r#"{"type":["string",["object","object"]]}"#.to_owned(), false),
        (r#"{"type":["integer","integer"]}"#.to_owned(), false),
        // Each type follows all values.
        (format!(r#"{{"type":["integer","null"],"enum":[{}1]}}"#, "1,".repeat(900)), true),
        (format!(r#"{{"type":["integer","null"],"enum":[{}1]}}"#, "1,".repeat(1_100)), false),
        (bounded("integer", 30), true),
        (bounded("integer", 40), false),
        (bounded("number", 30), true),
        (bounded("number", 40), false),
        (paged(70), true),
        (paged(90), false),
        // What may begin alike is followed at once, and values are not.
        (ways(r#"{"items":[{},{"const":0}]}"#, 399), false),
        (ways(r#"{"items":{}}"#, 50), true),
        (ways(r#"{"items":{}}"#, 200), false),
        (ways(r#"{"const":"a"}"#, 600), true),
        (ways(r#"{"type":"null"},{"type":"string"},{"type":"number"},{"items":{}}"#, 1), true),
        (named("properties", SCHEMA_NAME_BYTES_MAX), true),
        (named("properties", SCHEMA_NAME_BYTES_MAX + 1), false),
        // Nothing leads there.
        (named("$defs", SCHEMA_NAME_BYTES_MAX + 1), true),
        (named("const", 1_000), true),
        (format!(r##"{{"$ref":"#/const/{0}","const":{{"{0}":{{}}}}}}"##, "_".repeat(600)), false),
        (format!(r#"{{"anyOf":[{}{{}}]}}"#, r#"{"maxLength":1000},"#.repeat(50)), true),
        (format!(r#"{{"anyOf":[{}{{}}]}}"#, r#"{"maxLength":1000},"#.repeat(120)), false),
        (r##"{"items":{"$ref":"#"}}"##.to_owned(), true),
        (referring(SCHEMA_REFS_MAX), true),
        (referring(SCHEMA_REFS_MAX + 1), false),
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
    let schema = JsonSchema::new(schema, true);
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
        (of(r#","enum":["a"]"#), None),
        // Of an object the items say nothing.
        (format!(r#"{{"items":{},"properties":{{"a":{}}}}}"#, of(""), of("")), Some(1)),
        (defined(r##""$ref":"#/$defs/a""##), Some(1)),
        (defined(r##""anyOf":[{"$ref":"#/$defs/a"},{"type":"null"}]"##), Some(1)),
        (format!(r#"{{"allOf":[{{"properties":{{"a":{}}}}}]}}"#, of("")), Some(1)),
        // A name, and values.
        (r#"{"properties":{"pattern":{"type":"string"}}}"#.to_owned(), Some(0)),
        (r#"{"const":{"pattern":"("},"default":{"pattern":"("}}"#.to_owned(), Some(0)),
        (of(r#","maxLength":0"#), None),
        (of(r#","anyOf":[{}]"#), Some(1)),
        (of(r#","anyOf":[{},{"maxLength":1}]"#), Some(2)),
        (of(r#","allOf":[{}]"#), Some(1)),
        (of(r#","allOf":[{"pattern":"b"}]"#), None),
        (format!(r#"{{"allOf":[{}]}}"#, of("")), Some(1)),
        (format!(r#"{{"allOf":[{{"anyOf":[{}]}}]}}"#, of("")), Some(1)),
        (defined(r##""allOf":[{"$ref":"#/$defs/a"}]"##), Some(1)),
        (defined(r##""allOf":[{"$ref":"#/$defs/a"},{"minLength":1}]"##), Some(2)),
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
        let loosely = read_loosely(&schema(references)).unwrap();
        assert_eq!(loosely.patterns.all.is_empty(), !usable, "{references}");
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
        let _ = read(&text);
        followed += usize::from(read_loosely(&text).and_then(|schema| schema.rules()).is_ok());
    }
    assert!(followed > 100, "{followed}");
}

#[test]
fn what_is_not_followed_is_refused_by_its_name_or_left_out() {
    for (schema, word, followed) in [
        (
            r#"{"type":"string","format":"date","maxLength":9}"#,
            "maxLength",
            r#"{"type":"string","format":"date"}"#,
        ),
        (r#"{"type":"string","pattern":"^(?=a)a$"}"#, "look-around", r#"{"type":"string"}"#),
        (
            r#"{"type":"array","items":{},"uniqueItems":true}"#,
            "uniqueItems",
            r#"{"type":"array","items":{}}"#,
        ),
        (
            r#"{"type":"array","prefixItems":[{}],"items":false,"minItems":2,"maxItems":1}"#,
            "minItems",
            r#"{"type":"array","prefixItems":[{}],"maxItems":1}"#,
        ),
        (r#"{"type":"object","minProperties":1}"#, "minProperties", r#"{"type":"object"}"#),
        (r#"{"type":"object","maxProperties":1}"#, "maxProperties", r#"{"type":"object"}"#),
        (
            r#"{"type":"object","patternProperties":{"^a":{}}}"#,
            "patternProperties",
            r#"{"type":"object"}"#,
        ),
        (
            r#"{"properties":{"a":{}},"required":["a","b"]}"#,
            "required",
            r#"{"properties":{"a":{}},"required":["a"]}"#,
        ),
        (r#"{"type":"object","required":["a"]}"#, "required", r#"{"type":"object"}"#),
        (r#"{"type":"null","not":{}}"#, "not", r#"{"type":"null"}"#),
        (
            r#"{"type":"null","if":{},"then":{},"else":{}}"#,
            "if",
            r#"{"type":"null","then":{},"else":{}}"#,
        ),
        (r#"{"type":"integer","const":"a"}"#, "const", r#"{"type":"integer"}"#),
        (
            r#"{"oneOf":[{"type":"number"},{"type":"integer"}]}"#,
            "oneOf",
            r#"{"oneOf":[{"type":"number"},{"type":"integer"}]}"#,
        ),
        (
            r##"{"$defs":{"a":{"type":"null"}},"$ref":"#/$defs/a","type":"null"}"##,
            "type",
            r#"{"$ref":"value-x-0"}"#,
        ),
        (
            r#"{"type":"object","properties":{"a":{}},"anyOf":[{"type":"null"}]}"#,
            "anyOf",
            r#"{"type":"object","properties":{"a":{}}}"#,
        ),
        (
            r#"{"type":"string","allOf":[{"type":"null"},{"minLength":1}]}"#,
            "allOf",
            r#"{"type":"string","minLength":1}"#,
        ),
    ] {
        let refused = read(schema).map(|schema| schema.root.to_string()).unwrap_err();
        assert!(refused.contains(word), "{schema}: {refused}");
        let root = read_loosely(schema).unwrap().root.to_string();
        assert_eq!(root, followed, "{schema}");
    }
}

#[test]
fn a_bound_of_a_number_and_a_format_that_cannot_be_followed_are_named_with_their_place() {
    for (schema, word, followed) in [
        (
            r#"{"type":"number","minimum":0.5,"maximum":1}"#,
            "minimum",
            r#"{"type":"number","maximum":1}"#,
        ),
        (r#"{"type":["number","null"],"maximum":1.5}"#, "maximum", r#"{"type":["number","null"]}"#),
        (r#"{"type":"number","multipleOf":5}"#, "multipleOf", r#"{"type":"number"}"#),
        (
            r#"{"type":"integer","minimum":1,"multipleOf":5}"#,
            "multipleOf",
            r#"{"type":"integer","minimum":1}"#,
        ),
        (
            r#"{"type":"integer","minimum":1,"exclusiveMinimum":true}"#,
            "exclusiveMinimum",
            r#"{"type":"integer","minimum":1}"#,
        ),
        (r#"{"minimum":1}"#, "minimum", "{}"),
        (
            r#"{"type":"string","format":"ipv6","minLength":1}"#,
            "format",
            r#"{"type":"string","minLength":1}"#,
        ),
        (
            r#"{"type":"string","pattern":"a","format":"email"}"#,
            "format",
            r#"{"type":"string","pattern":"^pattern-x-0$"}"#,
        ),
        // With such a length its pattern comes to too much.
        (
            r#"{"type":"string","format":"email","maxLength":1000}"#,
            "format",
            r#"{"type":"string","maxLength":1000}"#,
        ),
    ] {
        let within = format!(r#"{{"type":"object","properties":{{"a":{schema}}}}}"#);
        let refused = read(&within).unwrap_err();
        assert!(refused.starts_with(&format!("{word} ")), "{schema}: {refused}");
        assert!(refused.contains(" #/properties/a;"), "{schema}: {refused}");
        assert_eq!(read_loosely(schema).unwrap().root.to_string(), followed, "{schema}");
    }
}

#[test]
fn some_formats_are_followed_as_patterns() {
    for format in ["duration", "email", "hostname", "ipv4", "uri"] {
        for schema in [
            format!(r#"{{"type":"string","format":"{format}"}}"#),
            format!(r#"{{"type":["string","null"],"format":"{format}"}}"#),
            format!(r#"{{"format":"{format}"}}"#),
        ] {
            let schema = read(&schema).unwrap();
            assert_eq!(schema.root["pattern"], "^pattern-x-0$", "{format}");
            assert!(schema.root.get("format").is_none() && schema.patterns.all.len() == 1);
            assert!(schema.rules().is_ok(), "{format}");
        }
    }
}

#[test]
fn one_of_several_schemas_is_followed_where_no_value_can_be_two_of_them() {
    let kinds = |one: &str, other: &str, required: &str| {
        let of =
            |kind: &str| format!(r#"{{"properties":{{"kind":{kind}}},"required":[{required}]}}"#);
        format!(r#"{{"oneOf":[{},{}]}}"#, of(one), of(other))
    };
    let (cat, dog) = (r#"{"const":"cat"}"#, r#"{"enum":["dog","wolf"]}"#);
    for (schema, usable) in [
        (r#"{"oneOf":[{"type":"string"},{"type":["integer","null"]}]}"#.to_owned(), true),
        (r#"{"oneOf":[{"type":"number"},{"type":["integer","null"]}]}"#.to_owned(), false),
        (r#"{"oneOf":[{"const":"a"},{"enum":["b",null]}]}"#.to_owned(), true),
        (r#"{"oneOf":[{"const":"a"},{"enum":["b","a"]}]}"#.to_owned(), false),
        (r#"{"oneOf":[{"const":1},{"const":1.0}]}"#.to_owned(), false),
        (kinds(cat, dog, "\"kind\""), true),
        (kinds(cat, dog, ""), false),
        (kinds(cat, cat, "\"kind\""), false),
    ] {
        assert_eq!(read(&schema).is_ok(), usable, "{schema}");
        assert!(read_loosely(&schema).is_ok(), "{schema}");
    }
}

#[test]
fn what_is_followed_or_binds_nothing_is_left_as_it_is() {
    for schema in [
        r#"{"type":"object","properties":{"a":{"const":1},"b":{}},"required":["a"]}"#,
        r#"{"type":"object","additionalProperties":{"type":"boolean"}}"#,
        r#"{"type":"integer","exclusiveMinimum":0,"maximum":9}"#,
        r#"{"type":"number","minimum":0,"exclusiveMaximum":1.0}"#,
        r#"{"type":["number","null"],"exclusiveMinimum":-1}"#,
        r#"{"type":"array","items":{"type":"null"},"minItems":1,"maxItems":3,"uniqueItems":false}"#,
        r#"{"type":"array","prefixItems":[{},{"type":"null"}],"minItems":2,"maxItems":2}"#,
        r#"{"type":"string","format":"date-time"}"#,
        r#"{"type":"string","format":"password","title":"T","x-order":1}"#,
        r#"{"type":"number","format":"double","minLength":0}"#,
        r#"{"type":["string","null"],"minLength":1,"maxLength":5}"#,
        r#"{"anyOf":[{"type":"string"},{"type":"null"}],"default":null,"description":"d"}"#,
        r#"{"type":"object","x-shown":{"minimum":1,"type":"text"}}"#,
    ] {
        for read in [read, read_loosely] {
            let root = read(schema).map(|schema| schema.root.to_string());
            // What stands under a word nobody knows says nothing, so it may lose something.
            let shown = schema.contains("x-shown") || root.as_deref() == Ok(schema);
            assert!(shown && root.is_ok(), "{schema}: {root:?}");
        }
    }
}

#[test]
fn schemas_that_hold_together_are_made_one() {
    for (schema, joined) in [
        (
            r#"{"type":"object","properties":{"a":{},"b":{}},"required":["b"],
            "anyOf":[{"required":["a"]},{"required":["b"]}]}"#,
            r#"{"anyOf":[
            {"type":"object","properties":{"a":{},"b":{}},"required":["b","a"]},
            {"type":"object","properties":{"a":{},"b":{}},"required":["b"]}]}"#,
        ),
        (
            r#"{"properties":{"kind":{"type":"string"}},"anyOf":[
            {"properties":{"kind":{"const":"x"},"y":{"type":"null"}}},{}]}"#,
            r#"{"anyOf":[
            {"properties":{"kind":{"type":"string","const":"x"},"y":{"type":"null"}}},
            {"properties":{"kind":{"type":"string"}}}]}"#,
        ),
        (
            r#"{"allOf":[{"type":"object","properties":{"a":{}}},
            {"properties":{"b":{}},"required":["b"]}],"title":"T"}"#,
            r#"{"title":"T","type":"object","properties":{"a":{},"b":{}},"required":["b"]}"#,
        ),
        (
            r##"{"$defs":{"a":{"minLength":1}},"type":"string","allOf":[{"$ref":"#/$defs/a"}]}"##,
            r#"{"type":"string","minLength":1}"#,
        ),
    ] {
        let joined: Value = serde_json::from_str(joined).unwrap();
        for read in [read, read_loosely] {
            assert_eq!(read(schema).unwrap().root, joined, "{schema}");
        }
    }
    // Neither lets in what the other one has.
    let shut = r#"{"properties":{"a":{}},"additionalProperties":false,
        "anyOf":[{"properties":{"b":{}}}]}"#;
    assert!(read(shut).unwrap_err().contains("anyOf"));
    // Each level would double what stands below.
    let deep = r#"{"type":"object","anyOf":[{},{}],"properties":{"a":"#.repeat(20);
    let deep = format!("{deep}{{}}{}", "}}".repeat(20));
    assert!(read(&deep).is_err() && read_loosely(&deep).is_err());
    let itself = r##"{"$ref":"#/$defs/a","$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"}]}}}"##;
    assert!(read(itself).is_err() && read_loosely(itself).is_err());
}

#[test]
fn a_call_has_an_object_of_arguments_whatever_its_schema_says() {
    let of = |arguments: &str, strict: bool| {
        let arguments = JsonSchema::new(arguments, strict);
        let tool = CallSchema { name: "f".to_owned(), arguments };
        let schema = Schema::of_calls(&[tool], "x", &mut { SCHEMA_NODES_MAX });
        schema.map(|schema| schema.root["anyOf"][0]["properties"]["arguments"].clone())
    };
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for (arguments, followed) in [
        ("{}", r#"{"type":"object"}"#),
        (r#"{"type":"array"}"#, r#"{"type":"object"}"#),
        (r#"{"enum":[1,{"a":1}]}"#, r#"{"type":"object","enum":[{"a":1}]}"#),
        (r#"{"const":1}"#, r#"{"type":"object"}"#),
        (r#"{"anyOf":[{"const":1},{}]}"#, r#"{"anyOf":[{"type":"object"},{"type":"object"}]}"#),
        (r#"{"anyOf":[{"type":"null"}]}"#, r#"{"type":"object"}"#),
        (
            r#"{"properties":{"a":{}},"anyOf":[{"required":["a"]}]}"#,
            r#"{"anyOf":[{"properties":{"a":{}},"type":"object","required":["a"]}]}"#,
        ),
    ] {
        assert_eq!(of(arguments, false), Ok(parsed(followed)), "{arguments}");
    }
    let refused = of(r#"{"properties":{"a":{"type":"null","not":{}}}}"#, true).unwrap_err();
    assert!(refused.starts_with("not ") && refused.ends_with("(tool f)"), "{refused}");
}

#[test]
fn patterns_that_come_to_too_much_are_all_left_out_where_they_may_be() {
    let texts = |count: usize, pattern: &str| {
        let one = |n: usize| format!(r#"{{"type":"string","pattern":"{pattern}b{n}"}}"#);
        let all = (0..count).map(one).collect::<Vec<_>>().join(",");
        format!(r#"{{"prefixItems":[{{"type":"string","pattern":"^a$"}},{all}]}}"#)
    };
    // To find out that they cannot be followed takes time, and so does following them.
    for (count, pattern, followed, usable) in [
        (LEFT_OUT_MAX, "(?=a)", 1, false),
        (LEFT_OUT_MAX + 1, "(?=a)", 0, false),
        (3, "^[a-z]{100}", 4, true),
        // Some 400 each.
        (9, "^[a-z]{200}", 5, false),
    ] {
        let schema = texts(count, pattern);
        let loosely = read_loosely(&schema).unwrap();
        assert_eq!(loosely.patterns.all.len(), followed, "{count} {pattern}");
        assert_eq!(read(&schema).is_ok(), usable, "{count} {pattern}");
    }
    let same = r#"{"type":"string","pattern":"(?=a)b"}"#;
    let same = format!(r#"{{"prefixItems":[{}]}}"#, vec![same; 100].join(","));
    assert!(read_loosely(&same).is_ok());
}

#[test]
fn a_schema_that_refers_to_itself_becomes_rules_that_do() {
    let tree = r##"{"type":"object","properties":{"name":{"type":"string"},
        "children":{"type":"array","items":{"$ref":"#"}}},"required":["name","children"]}"##;
    let rules = read(tree).unwrap().rules().unwrap();
    for line in [
        "x-children-item ::= value-x-0-root",
        "value-x-0-children-item ::= value-x-0-root",
        r#"value-x-0-name-kv ::= "\"name\"" value-x-0-space ":" value-x-0-space value-x-0-string"#,
    ] {
        assert_eq!(rules.lines().filter(|one| *one == line).count(), 1, "{line}\n{rules}");
    }
    assert_eq!(rules.lines().filter(|line| line.starts_with("value-x-0-root ::= ")).count(), 1);
    // A name that would be the same as another one's, and a value that looks like a rule's name.
    let alike = r##"{"$defs":{"a b":{"const":1},"a-b":{"const":"value-x-0-root"}},
        "prefixItems":[{"$ref":"#/$defs/a b"},{"$ref":"#/$defs/a-b"}]}"##;
    let rules = read(alike).unwrap().rules().unwrap();
    for line in [
        "x-tuple-0 ::= value-x-0-root",
        "x-tuple-1 ::= value-x-1-root",
        "value-x-0-root ::= \"1\"",
        r#"value-x-1-root ::= "\"value-x-0-root\"""#,
    ] {
        assert_eq!(rules.lines().filter(|one| *one == line).count(), 1, "{line}\n{rules}");
    }
}

#[test]
fn the_rules_of_a_number_with_bounds_stand_in_its_place() {
    let schema = r##"{"$defs":{"share":{"type":"number","minimum":0,"maximum":1}},
        "type":"object","properties":{
        "a":{"type":"number","minimum":0.0,"maximum":1},
        "b":{"anyOf":[{"type":"number","exclusiveMinimum":9},{"type":"null"}]},
        "c":{"type":["number","null"],"maximum":1,"minimum":0},
        "d":{"type":"array","items":{"$ref":"#/$defs/share"}},
        "e":{"const":{"type":"number","minimum":0}},
        "f":{"const":"value-x-number-0"},
        "g":{"type":"number"}}}"##;
    let rules = read(schema).unwrap().rules().unwrap();
    for line in [
        "x-a ::= value-x-number-0",
        "x-b-0 ::= value-x-number-1",
        "x-b ::= x-b-0 | x-null",
        "x-c-0 ::= value-x-number-0",
        "x-d-item ::= value-x-0-root",
        "value-x-0-root ::= value-x-number-0",
        r#"x-f ::= "\"value-x-number-0\"""#,
        r#"value-x-number-0 ::= ([0-0]) ("." [0-9]{1,16})? | "1" ("." [0]{1,16})?"#,
    ] {
        assert_eq!(rules.lines().filter(|one| *one == line).count(), 1, "{line}\n{rules}");
    }
    assert_eq!(rules.lines().filter(|line| line.starts_with("value-x-number-")).count(), 2);
    assert!(rules.contains("\nx-g-kv ::= ") && rules.contains(" x-number\n"), "{rules}");
}

#[test]
fn tools_refer_to_what_is_their_own() {
    let tool = |name: &str, kind: &str| {
        let arguments = format!(
            r##"{{"properties":{{"v":{{"type":"{kind}"}},"next":{{"$ref":"#/$defs/0"}}}},
            "$defs":{{"0":{{"type":["{kind}","array"],"items":{{"$ref":"#/$defs/0"}}}}}}}}"##
        );
        CallSchema { name: name.to_owned(), arguments: JsonSchema::new(arguments, true) }
    };
    let tools = [tool("f", "boolean"), tool("g", "null")];
    let schema = Schema::of_calls(&tools, "x", &mut { SCHEMA_NODES_MAX }).unwrap();
    let rules = schema.rules().unwrap();
    for (n, kind) in [(0, "boolean"), (1, "null")] {
        let next = format!("x-alternative-{n}-arguments-next ::= value-x-{n}-root\n");
        assert!(rules.contains(&next), "{rules}");
        assert!(rules.contains(&format!("value-x-{n}-{kind} ::= ")), "{rules}");
    }
    assert!(!rules.contains("value-x-0-null ::= "), "{rules}");
}

#[test]
fn a_schema_that_refers_to_itself_ends_and_is_told_apart_before_it_does() {
    let node = |more: &str| format!(r##"{{"$ref":"#/$defs/n","$defs":{{"n":{more}}}}}"##);
    let ways = |all: &str| node(&format!(r#"{{"anyOf":[{all}]}}"#));
    let kind = |value: &str, more: &str| {
        format!(
            r##"{{"type":"object","properties":{{"kind":{{"const":"{value}"}}{more}}},
            "required":["kind","of"]}}"##
        )
    };
    let of = r##","of":{"$ref":"#/$defs/n"}"##;
    let again = r##"{"$ref":"#/$defs/n"}"##;
    let list = format!(r#"{{"type":"array","items":{again}}}"#);
    for (schema, problem) in [
        (node(&list), ""),
        (ways(&format!(r#"{list},{{"type":"null"}}"#)), ""),
        (ways(&format!(r#"{},{},{{"type":"number"}}"#, kind("a", of), kind("b", of))), ""),
        (node(&format!(r#"{{"properties":{{"next":{again}}}}}"#)), ""),
        (
            node(&format!(
                r#"{{"properties":{{"next":{{"anyOf":[{again},{{"type":"null"}}]}}}},
                "required":["next"]}}"#
            )),
            "",
        ),
        // What stands alone in `allOf` stays a reference.
        (node(&format!(r#"{{"properties":{{"next":{{"allOf":[{again}],"title":"T"}}}}}}"#)), ""),
        (node(&format!(r#"{{"type":"array","items":{again},"minItems":1}}"#)), "none ends"),
        (node(&format!(r#"{{"prefixItems":[{again}]}}"#)), "none ends"),
        (node(&format!(r#"{{"properties":{{"next":{again}}},"required":["next"]}}"#)), "none ends"),
        (ways(&format!("{},{}", kind("a", of), kind("b", of))), "none ends"),
        (r##"{"$ref":"#"}"##.to_owned(), "nothing in between"),
        (node(again), "nothing in between"),
        (
            r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##
                .to_owned(),
            "nothing in between",
        ),
        (ways(&format!(r#"{again},{{"type":"null"}}"#)), "nothing in between"),
        (ways(&format!("{list},{list}")), "begin alike"),
        (ways(&format!("{list},{{}}")), "begin alike"),
        (ways(&format!(r#"{list},{{"const":[[]]}}"#)), "begin alike"),
        (ways(&format!(r#"{},{},{{"type":"null"}}"#, kind("a", of), kind("a", of))), "begin alike"),
        (format!(r#"{{"anyOf":[{again},{again}],"$defs":{{"n":{list}}}}}"#), "begin alike"),
    ] {
        for read in [read, read_loosely] {
            let read = read(&schema);
            assert_eq!(read.is_ok(), problem.is_empty(), "{schema}: {read:?}");
            match read {
                Ok(schema) => assert!(schema.rules().is_ok()),
                Err(reason) => assert!(reason.contains(problem), "{schema}: {reason}"),
            }
        }
    }
}

#[test]
fn alternatives_with_too_many_values_to_tell_apart_are_refused_with_a_reason_of_their_own() {
    for (values, usable) in [(150, true), (900, false)] {
        let one = |name: &str| {
            let all = (0..values).map(|n| format!("\"{name}{n}\"")).collect::<Vec<_>>().join(",");
            format!(
                r##"{{"type":"object","properties":{{"kind":{{"enum":[{all}]}},
                "of":{{"$ref":"#/$defs/{name}"}}}},"required":["kind"]}}"##
            )
        };
        let (a, b) = (one("a"), one("b"));
        let schema = format!(
            r##"{{"anyOf":[{{"$ref":"#/$defs/a"}},{{"$ref":"#/$defs/b"}}],
            "$defs":{{"a":{a},"b":{b}}}}}"##
        );
        let read = read(&schema).map(drop);
        assert_eq!(read.is_ok(), usable, "{values}: {read:?}");
        assert!(read.err().is_none_or(|reason| reason.contains("steps to tell apart")));
    }
}

#[test]
fn a_schema_is_counted_before_its_alternatives_are_told_apart() {
    let refs = |place: &str| vec![format!(r##"{{"$ref":"#/{place}"}}"##); 30].join(",");
    let (a, b) = (refs("a"), refs("b"));
    let values = vec!["1"; 1_830].join(",");
    let schema = format!(
        r##"{{"a":{{"enum":[{values}]}},"b":{{"anyOf":[{a}]}},"c":{{"anyOf":[{b}]}},
        "d":{{"type":"array","items":{{"$ref":"#/d"}}}},"e":[{{"anyOf":[{{"$ref":"#/c"}}]}}]}}"##
    );
    let reason = read(&schema).unwrap_err();
    assert!(reason.starts_with("the schemas of an answer count"), "{reason}");
}

#[test]
fn a_reference_leads_to_an_object_or_a_boolean() {
    for (target, usable) in
        [("{}", true), ("true", true), ("[[[[]]]]", false), ("[]", false), ("1", false)]
    {
        let schema = format!(r##"{{"items":{{"$ref":"#/x"}},"x":{target}}}"##);
        let read = read_loosely(&schema).map(drop);
        assert_eq!(read.is_ok(), usable, "{target}: {read:?}");
        assert!(read.err().is_none_or(|reason| reason.contains("no schema")), "{target}");
    }
    let places = ["#/x", "#/x/0", "#/x/0/0"].map(|place| format!(r#"{{"$ref":"{place}"}}"#));
    let schema = format!(r#"{{"prefixItems":[{}],"x":[[[[]]]]}}"#, places.join(","));
    assert!(read_loosely(&schema).unwrap_err().contains("no schema"));
}

#[test]
fn what_only_unused_definitions_lead_to_becomes_no_rules() {
    let values = vec!["1"; SCHEMA_NODES_MAX].join(",");
    let text = format!(
        r##"{{"properties":{{"p":{{"$ref":"#/$defs/a"}}}},"$defs":{{
        "a":{{"type":"array","items":{{"$ref":"#/$defs/b"}}}},"b":{{"type":"null"}},
        "unused":{{"$ref":"#/$defs/large"}},"large":{{"enum":[{values}]}}}}}}"##
    );
    let tool = CallSchema { name: "f".to_owned(), arguments: JsonSchema::new(&*text, true) };
    let calls = Schema::of_calls(&[tool], "x", &mut { SCHEMA_NODES_MAX });
    for schema in [read(&text), calls] {
        let schema = schema.unwrap();
        let places: Vec<&String> = schema.targets.iter().map(|(name, _)| name).collect();
        assert_eq!(places, ["value-x-0", "value-x-1"]);
        assert!(schema.rules().is_ok());
    }
}
