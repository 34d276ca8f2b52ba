//! The kinds of values that the native engine tells apart in a schema, and the words of JSON
//! schema that it follows for each.

use serde_json::{Map, Value};

use super::{BOUNDS, bounds};

/// The types of JSON schema.
pub(super) const TYPES: [&str; 7] =
    ["array", "boolean", "integer", "null", "number", "object", "string"];

/// Words that bind values of all types.
const OF_ALL: [&str; 11] = [
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "if",
    "not",
    "oneOf",
    "type",
];
/// Words that bind objects alone, and so on.
const OF_OBJECTS: [&str; 11] = [
    "additionalProperties",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "maxProperties",
    "minProperties",
    "patternProperties",
    "properties",
    "propertyNames",
    "required",
    "unevaluatedProperties",
];
const OF_LISTS: [&str; 10] = [
    "additionalItems",
    "contains",
    "items",
    "maxContains",
    "maxItems",
    "minContains",
    "minItems",
    "prefixItems",
    "unevaluatedItems",
    "uniqueItems",
];
const OF_TEXTS: [&str; 4] = ["format", "maxLength", "minLength", "pattern"];
const OF_NUMBERS: [&str; 5] =
    ["exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"];

/// Formats of texts that bind and that the native engine does not know. What is in neither list
/// binds nothing.
const FORMATS: [&str; 15] = [
    "duration",
    "email",
    "hostname",
    "idn-email",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "iri",
    "iri-reference",
    "json-pointer",
    "regex",
    "relative-json-pointer",
    "uri",
    "uri-reference",
    "uri-template",
];
const FORMATS_FOLLOWED: [&str; 9] =
    ["date", "date-time", "time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"];

/// Weeks, or a date's and a time's parts, each from the largest on without gaps.
const DURATION: &str = concat!(
    r"^P(\d+W|(\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D)",
    r"(T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S))?",
    r"|T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S))$",
);
/// A URI of a host, without user and with a port of four digits at most.
const URI: &str = concat!(
    r"^[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9]+([.-][A-Za-z0-9]+)*(:\d{1,4})?",
    r"(/([\w.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?",
    r"(\?([\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?",
    r"(#([\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?$",
);
/// Formats that are followed as patterns: what is commonly meant by them, written plainly.
const PATTERNS: [(&str, &str); 5] = [
    ("duration", DURATION),
    ("email", r"^[\w+-]+(\.[\w+-]+)*@([A-Za-z0-9]+(-+[A-Za-z0-9]+)*\.)+[A-Za-z]{2,}$"),
    ("hostname", r"^[A-Za-z0-9]+(-+[A-Za-z0-9]+)*(\.[A-Za-z0-9]+(-+[A-Za-z0-9]+)*)*$"),
    ("ipv4", r"^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$"),
    ("uri", URI),
];

/// What the native engine takes a schema for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What stands elsewhere.
    Ref,
    /// One of several schemas.
    Ways,
    /// One of some values.
    Values,
    Object,
    /// An array.
    List,
    /// A string.
    Text,
    /// An integer.
    Whole,
    Number,
    /// `true` and `false`, or `null`.
    Plain,
    /// Any value.
    Any,
}

impl Kind {
    /// The kinds of the schema of these fields: more than one where it has several types.
    pub(super) fn of(fields: &Map<String, Value>) -> Vec<Self> {
        let has = |word: &str| fields.contains_key(word);
        if has("$ref") {
            return vec![Self::Ref];
        }
        if has("anyOf") || has("oneOf") {
            return vec![Self::Ways];
        }
        if has("const") || has("enum") {
            return vec![Self::Values];
        }
        match fields.get("type") {
            None => vec![Self::by_shape(fields)],
            Some(Value::Array(types)) => types.iter().map(Self::of_type).collect(),
            Some(kind) => vec![Self::of_type(kind)],
        }
    }

    fn of_type(kind: &Value) -> Self {
        match kind.as_str() {
            Some("object") => Self::Object,
            Some("array") => Self::List,
            Some("string") => Self::Text,
            Some("integer") => Self::Whole,
            Some("number") => Self::Number,
            Some("boolean" | "null") => Self::Plain,
            _ => Self::Any,
        }
    }

    /// Without a type the words say what is meant.
    fn by_shape(fields: &Map<String, Value>) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| fields.contains_key(*word));
        let more = fields.get("additionalProperties");
        if has(&["properties"]) || more.is_some_and(|more| *more != Value::Bool(true)) {
            Self::Object
        } else if has(&["items", "prefixItems"]) {
            Self::List
        } else if has(&["pattern", "minLength", "maxLength"])
            || has_format(fields)
            || pattern_of_format(fields).is_some()
        {
            Self::Text
        } else {
            Self::Any
        }
    }

    /// Whether the word says something of such a value.
    pub(super) fn is_bound_by(self, word: &str) -> bool {
        OF_ALL.contains(&word)
            || match self {
                Self::Ref | Self::Ways | Self::Values | Self::Any => true,
                Self::Object => OF_OBJECTS.contains(&word),
                Self::List => OF_LISTS.contains(&word),
                Self::Text => OF_TEXTS.contains(&word),
                Self::Whole | Self::Number => OF_NUMBERS.contains(&word),
                Self::Plain => false,
            }
    }

    /// Whether what the word says, which is one of `fields`, is done by the native engine or by
    /// rules of this node's own.
    pub(super) fn follows(self, word: &str, fields: &Map<String, Value>) -> bool {
        let has = |word: &str| fields.contains_key(word);
        match (self, word) {
            (Self::Ref, "$ref")
            | (Self::Ways, "anyOf" | "oneOf")
            | (Self::Values, "const" | "type")
            | (Self::Object, "additionalProperties" | "properties" | "type")
            | (Self::List, "items" | "prefixItems" | "type")
            | (Self::Text, "pattern" | "type")
            | (Self::Whole | Self::Number | Self::Plain | Self::Any, "type") => true,
            (Self::Values, "enum") => !has("const"),
            // Which of the names are no properties is another matter.
            (Self::Object, "required") => has("properties"),
            (Self::List, "minItems" | "maxItems") => match (tuple(fields), length(word, fields)) {
                (None, _) => true,
                (Some(own), Some(bound)) if word == "minItems" => bound <= own,
                (Some(own), Some(bound)) => bound >= own,
                (Some(_), None) => false,
            },
            (Self::Text, "format") => {
                !has("pattern") && (has_format(fields) || pattern_of_format(fields).is_some())
            }
            (Self::Text, "minLength" | "maxLength") => has("pattern") || !has_format(fields),
            (Self::Whole | Self::Number, word) if BOUNDS.contains(&word) => {
                bounds::follows(word, fields, self)
            }
            _ => false,
        }
    }
}

/// Whether the word binds an answer at all with such a value.
pub(super) fn binds(word: &str, value: &Value) -> bool {
    let lists: [&[&str]; 5] = [&OF_ALL, &OF_OBJECTS, &OF_LISTS, &OF_TEXTS, &OF_NUMBERS];
    if !lists.iter().any(|words| words.contains(&word)) {
        return false;
    }
    match (word, value) {
        ("format", Value::String(format)) => {
            FORMATS.contains(&format.as_str()) || FORMATS_FOLLOWED.contains(&format.as_str())
        }
        // The exclusive ones were switches once.
        ("uniqueItems" | "exclusiveMaximum" | "exclusiveMinimum", Value::Bool(is_on)) => *is_on,
        (
            "additionalItems"
            | "additionalProperties"
            | "propertyNames"
            | "unevaluatedItems"
            | "unevaluatedProperties",
            Value::Bool(may_be_all),
        ) => !may_be_all,
        ("minItems" | "minLength" | "minProperties", Value::Number(least)) => {
            least.as_u64() != Some(0)
        }
        ("required", Value::Array(names)) => !names.is_empty(),
        (
            "dependencies" | "dependentRequired" | "dependentSchemas" | "patternProperties"
            | "propertyNames",
            Value::Object(all),
        ) => !all.is_empty(),
        _ => true,
    }
}

/// Whether a value is of a type.
pub(super) fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => {
            let is_whole = |number: f64| number.fract().abs() < f64::EPSILON;
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(is_whole)
        }
        "null" => value.is_null(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        _ => false,
    }
}

/// How many items an array has whose items are each said for themselves.
pub(super) fn tuple(fields: &Map<String, Value>) -> Option<usize> {
    fields.get("items").or_else(|| fields.get("prefixItems"))?.as_array().map(Vec::len)
}

fn length(word: &str, fields: &Map<String, Value>) -> Option<usize> {
    usize::try_from(fields.get(word)?.as_u64()?).ok()
}

/// The pattern a text's format stands for, if it is one of [`PATTERNS`].
pub(super) fn pattern_of_format(fields: &Map<String, Value>) -> Option<&'static str> {
    let format = fields.get("format").and_then(Value::as_str)?;
    PATTERNS.iter().find(|(name, _)| *name == format).map(|(_, pattern)| *pattern)
}

/// Whether a text has a format that the native engine follows.
fn has_format(fields: &Map<String, Value>) -> bool {
    let format = fields.get("format").and_then(Value::as_str);
    format.is_some_and(|format| FORMATS_FOLLOWED.contains(&format))
}
