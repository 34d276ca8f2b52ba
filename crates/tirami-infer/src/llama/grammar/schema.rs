//! A JSON schema before the native engine makes a grammar of it: it is bounded, has only what is
//! followed, and the patterns of its texts and the bounds of its numbers are made rules here.

mod bounds;
mod followed;
mod kind;
mod references;

use std::collections::{BTreeMap, BTreeSet};

use bounds::Numbers;
use followed::Reader;
use kind::{Kind, TYPES};
use llama_cpp_2::json_schema_to_grammar;
use references::{APART_STEPS_MAX, Targets};
use serde_json::{Map, Value, json};

use super::gbnf::{renamed, unquoted};
use super::pattern::{Lengths, Pattern};
use crate::engine::{CallSchema, JsonSchema};

/// Bytes of a JSON schema.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Values in a schema, counted again wherever a `$ref` leads to them, and in all schemas of an
/// answer together. The native engine follows all ways through a schema at once, so this bounds
/// what a step costs those who run beside it.
pub const SCHEMA_NODES_MAX: usize = 2_000;
/// The properties of one object that may be left out count, beside their values, as the square of
/// their number by this: a grammar has a way from each of them to every later one.
const OPTIONAL_SQUARED_BY: usize = 32;
/// What a schema may say of the length of a text or a list.
pub const SCHEMA_LENGTH_MAX: u64 = 1_000;
/// Depth of a schema, its references followed but those that lead to where they stand.
pub const SCHEMA_DEPTH_MAX: usize = 64;
/// Places that the references in the schemas of an answer lead to: the native engine makes rules
/// of each anew.
pub const SCHEMA_REFS_MAX: usize = 200;

/// What an alternative counts beside its values where another one may begin alike: the native
/// engine follows both at once, each in some ten ways behind a number.
const OVERLAP_BY: usize = 16;

/// Patterns that are left out one by one because they cannot be followed; where there are more,
/// all that may go are. To find that out may take as long as to follow one.
const LEFT_OUT_MAX: usize = 32;
/// Bytes of a name in a schema: the native engine recurses once for each.
pub const SCHEMA_NAME_BYTES_MAX: usize = 128;
/// Bytes of a `$ref`.
const REF_BYTES_MAX: usize = 4 * SCHEMA_NAME_BYTES_MAX;
/// What a length counts by, beside its value: a grammar has a rule for each.
const LENGTH_BY: usize = 64;

/// What a schema says of a number's bounds. The native engine follows those of whole numbers alone.
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
/// Where a schema has what its references lead to.
const DEFINING: [&str; 2] = ["$defs", "definitions"];
/// What a schema says of lengths.
const LENGTHS: [&str; 4] = ["minLength", "maxLength", "minItems", "maxItems"];

/// A schema that may be followed.
#[derive(Debug)]
pub(super) struct Schema {
    /// With the names of rules for patterns and references.
    root: Value,
    patterns: Patterns,
    targets: Targets,
}

impl Schema {
    /// Reads a schema, whose rules' names will begin with `name` and a dash, and takes what it
    /// counts off what is `left` of [`SCHEMA_NODES_MAX`].
    ///
    /// # Errors
    ///
    /// One sentence where following it could keep the native engine busy without end, cost it its
    /// stack, or follow less than a strict schema says.
    pub(super) fn read(
        schema: &JsonSchema,
        name: &'static str,
        left: &mut usize,
    ) -> Result<Self, String> {
        let given = parsed(&schema.text)?;
        let whole = Value::Object(given.clone());
        fitting(name, left, |mut patterns, left| {
            let mut root = given.clone();
            Reader::new(&whole, schema.strict, &mut patterns).read(&mut root)?;
            let mut targets = Targets::default();
            targets.put_in(&mut root, &of_targets(name))?;
            let schema = Self { root: root.into(), patterns, targets };
            schema.count((&schema.root, Part::Schema), SCHEMA_DEPTH_MAX, left)?;
            schema.count_recursive(left)?;
            schema.targets.check(&schema.root, &mut { APART_STEPS_MAX })?;
            Ok(schema)
        })
    }

    /// Reads the schemas of the tools of which one is called: an object of `name` and `arguments`,
    /// in this order, so that the arguments, which are an object, are written for the tool.
    ///
    /// # Errors
    ///
    /// As [`Schema::read`], with the name of the tool.
    pub(super) fn of_calls(
        tools: &[CallSchema],
        name: &'static str,
        left: &mut usize,
    ) -> Result<Self, String> {
        fitting(name, left, |patterns, left| Self::of_all_calls(tools, patterns, left))
    }

    fn of_all_calls(
        tools: &[CallSchema],
        mut patterns: Patterns,
        left: &mut usize,
    ) -> Result<Self, String> {
        let mut calls = Vec::with_capacity(tools.len());
        let (mut bytes, mut targets) = (SCHEMA_BYTES_MAX, Targets::default());
        for CallSchema { name, arguments } in tools {
            let of_tool = |reason: String| of_tool(name, &reason);
            let mut of_arguments = parsed(&arguments.text).map_err(of_tool)?;
            bytes = bytes.checked_sub(arguments.text.len()).ok_or_else(too_long)?;
            of_arguments.insert("type".to_owned(), "object".into());
            let whole = Value::Object(of_arguments.clone());
            let reader = Reader::new(&whole, arguments.strict, &mut patterns);
            reader.read(&mut of_arguments).map_err(of_tool)?;
            let begin = of_targets(patterns.name);
            targets.put_in(&mut of_arguments, &begin).map_err(of_tool)?;
            calls.push(json!({
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": of_arguments},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            }));
        }
        let schema = Self { root: json!({"anyOf": calls}), patterns, targets };
        take(left, 1)?;
        // No two of them go on alike, because their names come first.
        let calls = &schema.root["anyOf"];
        schema.count((calls, Part::Schema), SCHEMA_DEPTH_MAX - 1, left)?;
        schema.count_recursive(left)?;
        let mut steps = APART_STEPS_MAX;
        for (tool, call) in tools.iter().zip(calls.as_array().into_iter().flatten()) {
            let checked = schema.targets.check(call, &mut steps);
            checked.map_err(|reason| of_tool(&tool.name, &reason))?;
        }
        Ok(schema)
    }

    /// The rules of a JSON value that follows the schema, of which the first one's name ends with
    /// `root`.
    ///
    /// # Errors
    ///
    /// One sentence when the native engine makes none of it.
    pub(super) fn rules(&self) -> Result<String, String> {
        let mut numbers = Numbers::new(&of_targets(self.patterns.name));
        let mut rules = self.rules_of(&self.root, self.patterns.name, &mut numbers)?;
        for (name, target) in self.targets.iter() {
            rules.push_str(&self.rules_of(target, name, &mut numbers)?);
        }
        rules.extend(self.patterns.all.values().map(|pattern| pattern.rules.as_str()));
        rules.push_str(&numbers.rules());
        Ok(rules)
    }

    /// The rules of one schema, whose names begin with `name` and a dash.
    fn rules_of(
        &self,
        schema: &Value,
        name: &str,
        numbers: &mut Numbers,
    ) -> Result<String, String> {
        let refused = |_| "it uses something of JSON schema that cannot be followed".to_owned();
        let mut marked = self.targets.marked(schema, Part::Schema);
        numbers.mark(&mut marked, Part::Schema);
        let rules = json_schema_to_grammar(&marked.to_string()).map_err(refused)?;
        let rules = unquoted(&rules, &of_targets(self.patterns.name));
        let is_rule = |name: &str| {
            self.patterns.all.contains_key(name)
                || self.targets.is_rule(name)
                || numbers.is_rule(name)
        };
        // No name that somebody gave can be the name of another rule then.
        Ok(renamed(&rules, &format!("{name}-"), is_rule))
    }

    /// Takes what leads to itself off those that are `left`, each once.
    fn count_recursive(&self, left: &mut usize) -> Result<(), String> {
        let mut targets = self.targets.recursive();
        targets.try_for_each(|target| {
            self.count((&target.schema, Part::Schema), SCHEMA_DEPTH_MAX, left)
        })
    }

    /// Takes the values of `node` off those that are `left`, its references followed.
    fn count(
        &self,
        (node, part): (&Value, Part),
        depth: usize,
        left: &mut usize,
    ) -> Result<(), String> {
        take(left, 1 + optional(node).pow(2) / OPTIONAL_SQUARED_BY)?;
        let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
        if part != Part::Data && has_long_name(node) {
            return Err(format!("a name in a schema has at most {SCHEMA_NAME_BYTES_MAX} bytes"));
        }
        match node {
            Value::Array(items) => {
                items.iter().try_for_each(|item| self.count((item, part), depth, left))
            }
            Value::Object(fields) if part == Part::Schema => {
                let times = times(fields)?;
                take(left, digits(fields))?;
                take(left, self.overlaps(fields) * OVERLAP_BY)?;
                if has_pattern(fields) {
                    take(left, times * self.pattern(fields)?.size)?;
                }
                for _ in 0..times {
                    let mut fields = fields.iter();
                    fields.try_for_each(|field| self.count_field(field, part, depth, left))?;
                }
                Ok(())
            }
            Value::Object(fields) => {
                let mut fields = fields.iter().map(|(name, value)| (value, part.under(name)));
                fields.try_for_each(|field| self.count(field, depth, left))
            }
            _ => Ok(()),
        }
    }

    fn count_field(
        &self,
        (name, value): (&String, &Value),
        part: Part,
        depth: usize,
        left: &mut usize,
    ) -> Result<(), String> {
        match value {
            Value::String(target) if part == Part::Schema && name == "$ref" => {
                let target = self.targets.get(target).ok_or_else(no_schema)?;
                match target.is_recursive {
                    true => take(left, 1),
                    false => self.count((&target.schema, part), depth, left),
                }
            }
            Value::Number(length) if LENGTHS.contains(&name.as_str()) => {
                let length = length.as_u64().filter(|length| *length <= SCHEMA_LENGTH_MAX);
                let length = length.and_then(|length| usize::try_from(length).ok());
                let length = length.ok_or_else(|| {
                    format!("{name} in a schema is a whole number up to {SCHEMA_LENGTH_MAX}")
                })?;
                take(left, 1 + length / LENGTH_BY)
            }
            value => self.count((value, part.under(name)), depth, left),
        }
    }

    /// The pattern of a text's schema.
    fn pattern(&self, fields: &Map<String, Value>) -> Result<&Pattern, String> {
        let name = fields.get("pattern").and_then(Value::as_str).and_then(named);
        let pattern = name.and_then(|name| self.patterns.all.get(name));
        pattern.ok_or_else(no_schema)
    }

    /// Alternatives of a schema of which another one may begin alike. Values are told apart as
    /// soon as they differ.
    fn overlaps(&self, fields: &Map<String, Value>) -> usize {
        let ways = ["anyOf", "oneOf"].iter().filter_map(|word| fields.get(*word)?.as_array());
        let kinds: Vec<Vec<&'static str>> =
            ways.flatten().map(|way| self.types(way)).filter(|types| !types.is_empty()).collect();
        let mut often = BTreeMap::<&'static str, usize>::new();
        for kind in kinds.iter().flatten() {
            *often.entry(*kind).or_default() += 1;
        }
        kinds.iter().filter(|types| types.iter().any(|kind| often[kind] > 1)).count()
    }

    /// What an alternative may be, at least; nothing where it is one of some values. A whole number
    /// is a number too.
    fn types(&self, way: &Value) -> Vec<&'static str> {
        let place = way.get("$ref").and_then(Value::as_str);
        let target = place.and_then(|place| self.targets.get(place));
        let way = target.map_or(way, |target| &target.schema);
        let Some(fields) = way.as_object() else { return Vec::new() };
        let mut types = BTreeSet::new();
        for kind in Kind::of(fields) {
            match kind {
                Kind::Values => return Vec::new(),
                Kind::Plain => {}
                Kind::Ref | Kind::Ways | Kind::Any => types.extend(TYPES),
                Kind::Object => {
                    types.insert("object");
                }
                Kind::List => {
                    types.insert("array");
                }
                Kind::Text => {
                    types.insert("string");
                }
                Kind::Whole | Kind::Number => {
                    types.insert("number");
                }
            }
        }
        types.into_iter().collect()
    }
}

/// Reads with all patterns; where that comes to too much, without those that may go.
fn fitting(
    name: &'static str,
    left: &mut usize,
    mut read: impl FnMut(Patterns, &mut usize) -> Result<Schema, String>,
) -> Result<Schema, String> {
    let before = *left;
    read(Patterns::new(name), left).or_else(|_| {
        *left = before;
        read(Patterns { has_room: false, ..Patterns::new(name) }, left)
    })
}

/// The object that is the schema of this text.
fn parsed(text: &str) -> Result<Map<String, Value>, String> {
    if text.len() > SCHEMA_BYTES_MAX {
        return Err(too_long());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("a schema is a JSON object".to_owned()),
        Err(error) => Err(format!("the schema is no JSON: {error}")),
    }
}

/// A reason with the name of the tool.
fn of_tool(name: &str, reason: &str) -> String {
    format!("{reason} (tool {name:.100})")
}

fn too_long() -> String {
    format!("a schema has at most {SCHEMA_BYTES_MAX} bytes")
}

fn too_deep() -> String {
    format!("a schema is at most {SCHEMA_DEPTH_MAX} levels deep")
}

fn no_schema() -> String {
    "a $ref in the schema leads to what is no schema".to_owned()
}

/// What the names begin with of what the references of a schema of this name lead to, and of its
/// numbers that have bounds.
fn of_targets(name: &str) -> String {
    format!("value-{name}-")
}

/// Where a `$ref` leads. Escapes in it are not read.
fn found<'a>(root: &'a Value, place: &str) -> Option<&'a Value> {
    root.pointer(place.strip_prefix('#').filter(|path| !path.contains('~'))?)
}

/// The patterns of a schema, by the names of their rules.
#[derive(Debug)]
struct Patterns {
    /// Of the schema.
    name: &'static str,
    all: BTreeMap<String, Pattern>,
    /// Those that were left out, at most [`LEFT_OUT_MAX`].
    left_out: BTreeSet<(String, Lengths)>,
    /// What they may still count.
    left: usize,
    /// Whether there is room for those that may go.
    has_room: bool,
}

impl Patterns {
    fn new(name: &'static str) -> Self {
        let (all, left_out) = (BTreeMap::new(), BTreeSet::new());
        Self { name, all, left_out, left: SCHEMA_NODES_MAX, has_room: true }
    }

    /// Makes rules of the pattern of a text's schema, if it has one, and puts the rules' name in
    /// its place. What cannot be followed is left out where it `may_go`.
    fn put_in(&mut self, fields: &mut Map<String, Value>, may_go: bool) -> Result<(), String> {
        let length = |name: &str| usize::try_from(fields.get(name)?.as_u64()?).ok();
        let lengths = (length("minLength").unwrap_or(0), length("maxLength"));
        let Some(pattern) = fields.get("pattern").and_then(Value::as_str) else { return Ok(()) };
        let known = (pattern.to_owned(), lengths);
        if may_go && (!self.has_room || self.left_out.contains(&known)) {
            fields.shift_remove("pattern");
            return Ok(());
        }
        let name = format!("pattern-{}-{}", self.name, self.all.len());
        let pattern = Pattern::new(&name, pattern, lengths);
        match pattern.and_then(|pattern| take(&mut self.left, pattern.size).map(|()| pattern)) {
            Ok(pattern) => {
                fields.insert("pattern".to_owned(), marked(&name).into());
                self.all.insert(name, pattern);
            }
            Err(_) if may_go && self.left_out.len() < LEFT_OUT_MAX => {
                fields.shift_remove("pattern");
                self.left_out.insert(known);
            }
            Err(reason) => return Err(reason),
        }
        Ok(())
    }
}

/// A pattern of which the native engine makes a literal of the rule's name.
fn marked(name: &str) -> String {
    format!("^{name}$")
}

fn named(marked: &str) -> Option<&str> {
    marked.strip_prefix('^')?.strip_suffix('$')
}

fn has_pattern(fields: &Map<String, Value>) -> bool {
    fields.get("pattern").is_some_and(Value::is_string)
}

/// What a part of a schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A schema, or what words of JSON schema lead to.
    Schema,
    /// Schemas by names that somebody gave.
    Named,
    /// Values.
    Data,
}

impl Part {
    /// What stands under `name`.
    fn under(self, name: &str) -> Self {
        match (self, name) {
            (Self::Data, _) => Self::Data,
            (Self::Named, _) => Self::Schema,
            (
                _,
                "$defs" | "definitions" | "dependentSchemas" | "patternProperties" | "properties",
            ) => Self::Named,
            (_, "const" | "default" | "enum" | "example" | "examples") => Self::Data,
            _ => Self::Schema,
        }
    }
}

fn take(left: &mut usize, count: usize) -> Result<(), String> {
    *left = left.checked_sub(count).ok_or_else(|| {
        format!(
            "the schemas of an answer count {SCHEMA_NODES_MAX} at most: values, once for each of \
             their types, parts of patterns, digits of bounds, large lengths, alternatives that \
             may begin alike, and the square of the properties that may be left out; and those \
             that are made one do not refer to themselves"
        )
    })?;
    Ok(())
}

/// How often the native engine follows what stands in a schema: once for each of its types that
/// has something in it.
fn times(fields: &Map<String, Value>) -> Result<usize, String> {
    let Some(Value::Array(types)) = fields.get("type") else { return Ok(1) };
    let names: BTreeSet<&str> = types.iter().filter_map(Value::as_str).collect();
    if names.len() != types.len() || types.len() > TYPES.len() {
        return Err("the types in a schema are names, each of them once".to_owned());
    }
    // Each type has the values to itself, whatever type they have.
    if fields.contains_key("enum") {
        return Ok(types.len().max(1));
    }
    let has_more = |name: &&str| ["array", "object", "string"].contains(name);
    Ok(types.iter().filter_map(Value::as_str).filter(has_more).count().max(1))
}

/// Digits of the bounds of a number: a grammar follows each of them in several ways at once.
fn digits(fields: &Map<String, Value>) -> usize {
    let is_number = |kind: &Value| matches!(kind.as_str(), Some("integer" | "number"));
    let kind = fields.get("type");
    let is_list = || kind.and_then(Value::as_array).is_some_and(|all| all.iter().any(is_number));
    if !kind.is_some_and(is_number) && !is_list() {
        return 0;
    }
    let bounds = BOUNDS.iter().filter_map(|word| fields.get(*word));
    bounds.map(|bound| 2 * bound.to_string().len()).sum()
}

fn has_long_name(node: &Value) -> bool {
    let names = node.as_object().into_iter().flat_map(Map::keys);
    names.into_iter().any(|name| name.len() > SCHEMA_NAME_BYTES_MAX)
}

/// Properties of an object that may be left out.
fn optional(node: &Value) -> usize {
    let Some(properties) = node.get("properties").and_then(Value::as_object) else { return 0 };
    let required = node.get("required").and_then(Value::as_array).into_iter().flatten();
    let required: BTreeSet<&str> = required.filter_map(Value::as_str).collect();
    properties.keys().filter(|name| !required.contains(name.as_str())).count()
}

#[cfg(test)]
mod tests;
