//! A schema with what is followed of it alone.
//!
//! The native engine drops without a word what it does not know, and whatever stands beside
//! `$ref`, `anyOf` and `oneOf`; of `allOf` it understands little. So schemas that hold together are
//! made one here where that is simple. What is left and would not be followed is left out; but in a
//! strict schema it is refused by its name.

use serde_json::{Map, Value};

use super::kind::{Kind, binds, is_of, pattern_of_format};
use super::{Part, Patterns, SCHEMA_DEPTH_MAX, SCHEMA_NODES_MAX, found, no_schema, take};

type Fields = Map<String, Value>;

/// Words that lead to schemas a strict one is made of. What stands under others says nothing.
const LEADING: [&str; 9] = [
    "$defs",
    "additionalProperties",
    "allOf",
    "anyOf",
    "definitions",
    "items",
    "oneOf",
    "prefixItems",
    "properties",
];

/// Reads one schema.
pub(super) struct Reader<'r> {
    /// The schema as it was given.
    whole: &'r Value,
    /// Whether what is not followed is refused.
    strict: bool,
    patterns: &'r mut Patterns,
    /// The names that lead to where it reads.
    at: Vec<String>,
    /// Values that may still be written again where schemas are made one.
    left: usize,
}

impl<'r> Reader<'r> {
    pub(super) fn new(whole: &'r Value, strict: bool, patterns: &'r mut Patterns) -> Self {
        Self { whole, strict, patterns, at: Vec::new(), left: SCHEMA_NODES_MAX }
    }

    /// Leaves in `root` what is followed, with the names of rules for patterns.
    ///
    /// # Errors
    ///
    /// One sentence that names what cannot be followed.
    pub(super) fn read(mut self, root: &mut Fields) -> Result<(), String> {
        self.schema(root, SCHEMA_DEPTH_MAX)
    }

    fn part(&mut self, node: &mut Value, part: Part, depth: usize) -> Result<(), String> {
        let depth = depth.checked_sub(1).ok_or_else(super::too_deep)?;
        match node {
            Value::Array(items) if part != Part::Data => {
                let mut items = items.iter_mut().enumerate();
                items.try_for_each(|(n, item)| self.named_part(&n.to_string(), item, part, depth))
            }
            Value::Object(fields) if part == Part::Schema => self.schema(fields, depth),
            Value::Object(fields) if part == Part::Named => {
                let mut schemas = fields.iter_mut();
                schemas.try_for_each(|(name, schema)| {
                    self.named_part(name, schema, Part::Schema, depth)
                })
            }
            _ => Ok(()),
        }
    }

    fn named_part(
        &mut self,
        name: &str,
        node: &mut Value,
        part: Part,
        depth: usize,
    ) -> Result<(), String> {
        self.at.push(name.to_owned());
        self.part(node, part, depth)?;
        self.at.pop();
        Ok(())
    }

    fn schema(&mut self, fields: &mut Fields, depth: usize) -> Result<(), String> {
        self.join_all(fields)?;
        self.join_ways(fields)?;
        self.fit(fields)?;
        self.keep_followed(fields)?;
        let kinds = Kind::of(fields);
        if kinds.contains(&Kind::Ref) {
            self.check_ref(fields)?;
        }
        if kinds.contains(&Kind::Text) {
            let of_format = pattern_of_format(fields).filter(|_| !fields.contains_key("pattern"));
            if let Some(pattern) = of_format {
                fields.shift_remove("format");
                fields.insert("pattern".to_owned(), pattern.into());
            }
            self.patterns.put_in(fields, !self.strict || of_format.is_some())?;
            if of_format.is_some() && !fields.contains_key("pattern") {
                self.lose("format")?;
            }
        }
        for (word, value) in fields.iter_mut() {
            let strict = self.strict;
            self.strict = strict && LEADING.contains(&word.as_str());
            self.named_part(word, value, Part::Schema.under(word), depth)?;
            self.strict = strict;
        }
        Ok(())
    }

    /// Leaves out what cannot be followed, or refuses it.
    fn lose(&self, word: &str) -> Result<(), String> {
        if !self.strict {
            return Ok(());
        }
        let place: String = self.at.iter().flat_map(|name| ["/", name.as_str()]).collect();
        Err(format!(
            "{word} cannot be followed where it stands in the schema, at #{place:.200}; leave it \
             out, or set strict to false, and it is not followed"
        ))
    }

    /// Makes one schema of those that have to hold together.
    fn join_all(&mut self, fields: &mut Fields) -> Result<(), String> {
        while let Some(Value::Array(parts)) = fields.get("allOf") {
            let parts = parts.clone();
            fields.shift_remove("allOf");
            let is_alone = !fields.iter().any(|(name, value)| binds(name, value));
            if let [Value::Object(part)] = &*parts
                && is_alone
                && is_only_ref(part)
            {
                // It stays one, because what it leads to may lead back.
                fields.extend(part.clone());
                continue;
            }
            for part in &parts {
                match self.at(part)?.and_then(|part| joined(fields, &part)) {
                    Some(all) => *fields = all,
                    None => self.lose("allOf")?,
                }
            }
        }
        Ok(())
    }

    /// Puts what stands beside alternatives into each of them.
    fn join_ways(&mut self, fields: &mut Fields) -> Result<(), String> {
        let Some(word) = ["oneOf", "anyOf"].into_iter().find(|word| fields.contains_key(*word))
        else {
            return Ok(());
        };
        if word == "oneOf" && self.strict && !self.are_apart(fields.get(word))? {
            // Nothing keeps an answer from being two of them.
            self.lose(word)?;
        }
        let is_beside = |name: &String, value: &Value| name != word && binds(name, value);
        let beside = fields.iter().filter(|(name, value)| is_beside(name, value));
        let beside: Fields = beside.map(|(name, value)| (name.clone(), value.clone())).collect();
        let Some(Value::Array(ways)) = fields.get(word) else { return Ok(()) };
        if beside.is_empty() || beside.contains_key("$ref") {
            return Ok(());
        }
        take(&mut self.left, size(&beside).saturating_mul(ways.len()))?;
        let mut all = Vec::with_capacity(ways.len());
        for way in ways {
            all.push(self.at(way)?.and_then(|way| joined(&beside, &way)).map(Value::Object));
        }
        match all.into_iter().collect::<Option<Vec<_>>>() {
            Some(all) => {
                fields.retain(|name, value| !is_beside(name, value));
                fields.insert(word.to_owned(), all.into());
            }
            None => {
                self.lose(word)?;
                fields.shift_remove(word);
            }
        }
        Ok(())
    }

    /// Whether no value can be two of these schemas, as far as that is plain to see.
    fn are_apart(&mut self, ways: Option<&Value>) -> Result<bool, String> {
        let mut known = Vec::new();
        for way in ways.and_then(Value::as_array).into_iter().flatten() {
            take(&mut self.left, known.len())?;
            let Some(way) = self.at(way)? else { return Ok(false) };
            if !known.iter().all(|other| are_apart(&way, other)) {
                return Ok(false);
            }
            known.push(way);
        }
        Ok(true)
    }

    /// A schema, or what it refers to; none where that is no object.
    fn at(&mut self, node: &Value) -> Result<Option<Fields>, String> {
        let mut node = node;
        while let Some(place) = node.get("$ref").and_then(Value::as_str) {
            take(&mut self.left, 1)?;
            let Some(target) = found(self.whole, place) else { return Ok(None) };
            if !is_schema(place) {
                return Err(no_schema());
            }
            node = target;
        }
        take(&mut self.left, values_of(node))?;
        Ok(node.as_object().cloned())
    }

    /// Takes out of lists what means nothing beside the rest.
    fn fit(&self, fields: &mut Fields) -> Result<(), String> {
        let names = match fields.get("properties") {
            Some(Value::Object(properties)) => Some(properties.keys().cloned().collect::<Vec<_>>()),
            _ => None,
        };
        if let Some((names, Value::Array(required))) = names.zip(fields.get_mut("required")) {
            let before = required.len();
            required.retain(|name| names.iter().any(|known| name == known));
            if required.len() < before {
                self.lose("required")?;
            }
        }
        // Items that are each said for themselves are all there are.
        if fields.get("prefixItems").is_some_and(Value::is_array) {
            let others = ["items", "additionalItems", "unevaluatedItems"];
            fields.retain(|word, _| !others.contains(&word.as_str()));
        } else if fields.get("items").is_some_and(Value::is_array) {
            fields.retain(|word, _| word != "additionalItems");
        }
        self.fit_values(fields)
    }

    /// Leaves of the values of a schema those that are of its type.
    fn fit_values(&self, fields: &mut Fields) -> Result<(), String> {
        let types: Vec<String> = match fields.get("type") {
            Some(Value::String(kind)) => vec![kind.clone()],
            Some(Value::Array(kinds)) => {
                kinds.iter().filter_map(|kind| Some(kind.as_str()?.to_owned())).collect()
            }
            _ => return Ok(()),
        };
        let is_one = |value: &Value| types.iter().any(|kind| is_of(kind, value));
        if fields.get("const").is_some_and(|value| !is_one(value)) {
            self.lose("const")?;
            fields.shift_remove("const");
        }
        if let Some(Value::Array(values)) = fields.get_mut("enum") {
            values.retain(is_one);
            if values.is_empty() {
                self.lose("enum")?;
                fields.shift_remove("enum");
            }
        }
        Ok(())
    }

    /// Keeps of the words that bind those that are followed.
    fn keep_followed(&self, fields: &mut Fields) -> Result<(), String> {
        let kinds = Kind::of(fields);
        let is_kept = |word: &str| {
            let mut bound = kinds.iter().filter(|kind| kind.is_bound_by(word)).peekable();
            let is_bound = bound.peek().is_some();
            (is_bound, bound.all(|kind| kind.follows(word, fields)))
        };
        let mut gone = Vec::new();
        for (word, _) in fields.iter().filter(|(word, value)| binds(word, value)) {
            match is_kept(word) {
                (true, true) => continue,
                (true, false) => self.lose(word)?,
                // It says something of other values alone.
                (false, _) => {}
            }
            gone.push(word.clone());
        }
        fields.retain(|word, _| !gone.contains(word));
        Ok(())
    }

    /// Refuses a reference to what was not read as a part of the schema.
    fn check_ref(&self, fields: &Fields) -> Result<(), String> {
        let Some(place) = fields.get("$ref").and_then(Value::as_str) else { return Ok(()) };
        if !is_schema(place) || self.strict && !is_led_to(place) {
            return Err(no_schema());
        }
        Ok(())
    }
}

/// Both schemas as one, where that is simple.
fn joined(one: &Fields, other: &Fields) -> Option<Fields> {
    // Each lets no properties in but its own.
    let shuts_out = |one: &Fields, other: &Fields| {
        let own = |name: &String| one.get("properties").is_some_and(|all| all.get(name).is_some());
        let more = one.get("additionalProperties");
        let is_shut = more.is_some_and(|more| binds("additionalProperties", more));
        let names = other.get("properties").and_then(Value::as_object);
        is_shut && names.is_some_and(|names| !names.keys().all(own))
    };
    if shuts_out(one, other) || shuts_out(other, one) {
        return None;
    }
    let leads_away = |fields: &Fields| fields.contains_key("$ref");
    if leads_away(one) || leads_away(other) {
        return None;
    }
    let mut all = one.clone();
    for (word, value) in other {
        let Some(known) = all.get_mut(word) else {
            all.insert(word.clone(), value.clone());
            continue;
        };
        if *known == *value || !binds(word, value) {
            continue;
        }
        if !binds(word, known) {
            *known = value.clone();
            continue;
        }
        match (word.as_str(), known, value) {
            ("required" | "allOf", Value::Array(known), Value::Array(more)) => {
                known.extend(more.iter().cloned());
            }
            ("properties", Value::Object(known), Value::Object(more)) => {
                for (name, schema) in more {
                    let both = match known.get(name) {
                        None => schema.clone(),
                        Some(known) => joined(known.as_object()?, schema.as_object()?)?.into(),
                    };
                    known.insert(name.clone(), both);
                }
            }
            _ => return None,
        }
    }
    Some(all)
}

/// Whether it is plain to see that no value can be both: their types or values differ, or those of
/// a property that both require.
fn are_apart(one: &Fields, other: &Fields) -> bool {
    if differ(types(one), types(other)) || differ(values(one), values(other)) {
        return true;
    }
    if Kind::of(one) != [Kind::Object] || Kind::of(other) != [Kind::Object] {
        return false;
    }
    let required = |fields: &Fields, name: &str| {
        let names = fields.get("required").and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|one| one == name))
    };
    let properties = one.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().any(|(name, property)| {
        let others = other.get("properties").and_then(|all| all.get(name)?.as_object());
        let both = property.as_object().zip(others);
        both.is_some_and(|(one, other)| differ(values(one), values(other)))
            && required(one, name)
            && required(other, name)
    })
}

/// Whether both are known and have nothing in common.
fn differ<T: PartialEq>(one: Option<Vec<T>>, other: Option<Vec<T>>) -> bool {
    let both = one.zip(other);
    both.is_some_and(|(one, other)| !one.iter().any(|value| other.contains(value)))
}

/// The types a schema names. A whole number is a number too.
fn types(fields: &Fields) -> Option<Vec<&str>> {
    let types = match fields.get("type")? {
        Value::Array(types) => types.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?,
        kind => vec![kind.as_str()?],
    };
    Some(types.into_iter().map(|kind| if kind == "integer" { "number" } else { kind }).collect())
}

/// The values a schema names, where to compare them is simple.
pub(super) fn values(fields: &Fields) -> Option<Vec<&Value>> {
    let values = match (fields.get("const"), fields.get("enum")) {
        (Some(value), _) => vec![value],
        (None, Some(Value::Array(values))) => values.iter().collect(),
        _ => return None,
    };
    let is_simple = |value: &&Value| value.is_string() || value.is_boolean() || value.is_null();
    values.iter().all(is_simple).then_some(values)
}

/// Whether nothing but a reference binds in a schema.
fn is_only_ref(fields: &Fields) -> bool {
    let binds = |(name, value): (&String, &Value)| name != "$ref" && binds(name, value);
    fields.contains_key("$ref") && !fields.iter().any(binds)
}

/// Whether a schema stands in this place.
pub(super) fn is_schema(place: &str) -> bool {
    let words = place.split('/').skip(1);
    words.fold(Part::Schema, Part::under) == Part::Schema
}

/// Whether words that lead to parts of a strict schema lead to this place.
fn is_led_to(place: &str) -> bool {
    let mut part = Part::Schema;
    place.split('/').skip(1).all(|word| {
        let is_item = word.bytes().all(|byte| byte.is_ascii_digit());
        let leads = part != Part::Schema || is_item || LEADING.contains(&word);
        part = part.under(word);
        leads
    })
}

/// Values in a schema, not more than may be written again.
fn size(fields: &Fields) -> usize {
    let values = fields.values().map(values_of);
    values.fold(1, usize::saturating_add)
}

pub(super) fn values_of(node: &Value) -> usize {
    match node {
        Value::Array(items) => items.iter().map(values_of).fold(1, usize::saturating_add),
        Value::Object(fields) => size(fields),
        _ => 1,
    }
}
