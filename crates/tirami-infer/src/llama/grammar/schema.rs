//! A JSON schema before the native engine makes a grammar of it: it is bounded, and the patterns
//! of its texts are made rules here.

use std::collections::{BTreeMap, BTreeSet};

use llama_cpp_2::json_schema_to_grammar;
use serde_json::{Map, Value};

use super::gbnf::renamed;
use super::pattern::Pattern;

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
/// Depth of a schema, its references followed.
pub const SCHEMA_DEPTH_MAX: usize = 64;

/// Types there are.
const TYPES_MAX: usize = 7;
/// Bytes of a name in a schema: the native engine recurses once for each.
pub const SCHEMA_NAME_BYTES_MAX: usize = 128;
/// Bytes of a `$ref`.
const REF_BYTES_MAX: usize = 4 * SCHEMA_NAME_BYTES_MAX;
/// What a length counts by, beside its value: a grammar has a rule for each.
const LENGTH_BY: usize = 64;

/// What a schema says of a number's bounds. The native engine follows those of whole numbers.
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
/// What a schema says of lengths.
const LENGTHS: [&str; 4] = ["minLength", "maxLength", "minItems", "maxItems"];
/// What leads away from a schema, so that the native engine does not see a pattern beside it.
const LEADS_AWAY: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];

/// A schema that may be followed.
#[derive(Debug)]
pub(super) struct Schema {
    /// With the names of rules for patterns.
    root: Value,
    patterns: Patterns,
}

impl Schema {
    /// Reads a schema, whose rules' names will begin with `name` and a dash, and takes what it
    /// counts off what is `left` of [`SCHEMA_NODES_MAX`].
    ///
    /// # Errors
    ///
    /// One sentence where following it could keep the native engine busy without end, cost it its
    /// stack, or follow something else.
    pub(super) fn read(text: &str, name: &'static str, left: &mut usize) -> Result<Self, String> {
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(format!("a schema has at most {SCHEMA_BYTES_MAX} bytes"));
        }
        let root = serde_json::from_str::<Value>(text);
        let mut root = root.map_err(|error| format!("the schema is no JSON: {error}"))?;
        if !root.is_object() {
            return Err("a schema is a JSON object".to_owned());
        }
        let mut patterns = Patterns { name, all: BTreeMap::new(), left: SCHEMA_NODES_MAX };
        patterns.put_in(&mut root, Part::Schema)?;
        let schema = Self { root, patterns };
        schema.count((&schema.root, Part::Schema), SCHEMA_DEPTH_MAX, left)?;
        Ok(schema)
    }

    /// The rules of a JSON value that follows the schema, of which the first one's name ends with
    /// `root`.
    ///
    /// # Errors
    ///
    /// One sentence when the native engine makes none of it.
    pub(super) fn rules(&self) -> Result<String, String> {
        let refused = |_| "it uses something of JSON schema that cannot be followed".to_owned();
        let rules = json_schema_to_grammar(&self.root.to_string()).map_err(refused)?;
        let Patterns { name, all, .. } = &self.patterns;
        // No name that somebody gave can be the name of another rule then.
        let mut rules = renamed(&rules, &format!("{name}-"), |name| all.contains_key(name));
        rules.extend(all.values().map(|pattern| pattern.rules.as_str()));
        Ok(rules)
    }

    /// Takes the values of `node` off those that are `left`, its references followed.
    fn count(
        &self,
        (node, part): (&Value, Part),
        depth: usize,
        left: &mut usize,
    ) -> Result<(), String> {
        take(left, 1 + optional(node).pow(2) / OPTIONAL_SQUARED_BY)?;
        let deep = || format!("a schema is at most {SCHEMA_DEPTH_MAX} levels deep");
        let depth = depth.checked_sub(1).ok_or_else(deep)?;
        if part != Part::Data && has_long_name(node) {
            return Err(format!("a name in a schema has at most {SCHEMA_NAME_BYTES_MAX} bytes"));
        }
        match node {
            Value::Array(items) => {
                items.iter().try_for_each(|item| self.count((item, part), depth, left))
            }
            Value::Object(fields) if part.is_schema() => {
                let times = times(fields)?;
                take(left, digits(fields))?;
                if has_pattern(fields) {
                    take(left, times * self.pattern(fields, part)?.size)?;
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
            Value::String(place) if name == "$ref" && place.len() > REF_BYTES_MAX => {
                Err(format!("a $ref in a schema has at most {REF_BYTES_MAX} bytes"))
            }
            Value::String(place) if name == "$ref" => {
                // The native engine knows no escapes in a reference, and would go elsewhere.
                let path = place.strip_prefix('#').filter(|path| !path.contains('~'));
                let target = path.and_then(|path| self.root.pointer(path));
                let target = target.ok_or_else(|| format!("the schema has no {place:.100}"))?;
                self.count((target, part), depth, left)
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
    fn pattern(&self, fields: &Map<String, Value>, part: Part) -> Result<&Pattern, String> {
        let leads_away = LEADS_AWAY.iter().any(|word| fields.contains_key(*word));
        if leads_away || part == Part::Joined {
            let message = "a pattern in a schema stands beside the type of its text, not within \
                           allOf nor beside allOf, anyOf, oneOf or $ref";
            return Err(message.to_owned());
        }
        let name = fields.get("pattern").and_then(Value::as_str).and_then(named);
        let pattern = name.and_then(|name| self.patterns.all.get(name));
        // Where a pattern stands in a value, it is none.
        pattern.ok_or_else(|| "a $ref in the schema leads to what is no schema".to_owned())
    }
}

/// The patterns of a schema, by the names of their rules.
#[derive(Debug)]
struct Patterns {
    /// Of the schema.
    name: &'static str,
    all: BTreeMap<String, Pattern>,
    /// What they may still count.
    left: usize,
}

impl Patterns {
    /// Makes rules of all patterns within `node` and puts the rules' names in their places.
    fn put_in(&mut self, node: &mut Value, part: Part) -> Result<(), String> {
        match node {
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.put_in(item, part)),
            Value::Object(fields) => {
                if part.is_schema() && has_pattern(fields) {
                    self.put_in_text(fields)?;
                }
                let mut fields = fields.iter_mut();
                fields.try_for_each(|(name, value)| self.put_in(value, part.under(name)))
            }
            _ => Ok(()),
        }
    }

    fn put_in_text(&mut self, fields: &mut Map<String, Value>) -> Result<(), String> {
        let length = |name: &str| usize::try_from(fields.get(name)?.as_u64()?).ok();
        let lengths = (length("minLength").unwrap_or(0), length("maxLength"));
        let pattern = fields.get("pattern").and_then(Value::as_str).unwrap_or_default();
        let name = format!("pattern-{}-{}", self.name, self.all.len());
        let pattern = Pattern::new(&name, pattern, lengths)?;
        take(&mut self.left, pattern.size)?;
        fields.insert("pattern".to_owned(), marked(&name).into());
        self.all.insert(name, pattern);
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
    /// A schema that has to hold together with others. Of a text the native engine sees nothing
    /// there.
    Joined,
    /// Schemas by names that somebody gave.
    Named,
    /// Values.
    Data,
}

impl Part {
    const fn is_schema(self) -> bool {
        matches!(self, Self::Schema | Self::Joined)
    }

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
            (_, "allOf") | (Self::Joined, "anyOf" | "oneOf") => Self::Joined,
            _ => Self::Schema,
        }
    }
}

fn take(left: &mut usize, count: usize) -> Result<(), String> {
    *left = left.checked_sub(count).ok_or_else(|| {
        format!(
            "the schemas of an answer count {SCHEMA_NODES_MAX} at most: values, once for each of \
             their types, parts of patterns, digits of bounds, large lengths, and the square of \
             the properties that may be left out; and they do not refer to themselves"
        )
    })?;
    Ok(())
}

/// How often the native engine follows what stands in a schema: once for each of its types that
/// has something in it.
fn times(fields: &Map<String, Value>) -> Result<usize, String> {
    let Some(Value::Array(types)) = fields.get("type") else { return Ok(1) };
    let names: BTreeSet<&str> = types.iter().filter_map(Value::as_str).collect();
    if names.len() != types.len() || types.len() > TYPES_MAX {
        return Err("the types in a schema are names, each of them once".to_owned());
    }
    // Each type has the values to itself, whatever type they have.
    if fields.contains_key("enum") {
        return Ok(types.len().max(1));
    }
    let has_more = |name: &&str| ["array", "object", "string"].contains(name);
    Ok(types.iter().filter_map(Value::as_str).filter(has_more).count().max(1))
}

/// Digits of the bounds of a whole number: a grammar follows each of them in several ways at once.
fn digits(fields: &Map<String, Value>) -> usize {
    let is_whole = |kind: &Value| kind.as_str() == Some("integer");
    let kind = fields.get("type");
    let is_list = || kind.and_then(Value::as_array).is_some_and(|all| all.iter().any(is_whole));
    if !kind.is_some_and(is_whole) && !is_list() {
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
