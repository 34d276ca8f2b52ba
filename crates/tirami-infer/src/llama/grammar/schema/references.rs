//! What the references of a schema lead to: each becomes rules of its own, so that a schema may
//! refer to itself.
//!
//! The native engine follows all ways through a grammar at once. Where a schema refers to itself
//! their number would grow with each level of an answer, so its alternatives have to be told apart
//! before anything that leads back begins.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::followed::{is_schema, values, values_of};
use super::kind::{Kind, tuple};
use super::{
    DEFINING, Part, REF_BYTES_MAX, SCHEMA_NODES_MAX, SCHEMA_REFS_MAX, found, no_schema, take,
};

/// Steps of telling apart the alternatives of schemas that refer to themselves: values that are
/// gone through, pairs of alternatives, and pairs of values that are compared. A small schema may
/// lead to the same large ones from many places.
pub(super) const APART_STEPS_MAX: usize = 100_000;
/// What the name of a rule ends with that a reference leads to.
const ROOT: &str = "-root";

type Fields = Map<String, Value>;
type Names = BTreeMap<String, String>;

/// What references lead to, by the names that stand in a schema in place of where that was.
#[derive(Debug, Default)]
pub(super) struct Targets {
    all: BTreeMap<String, Target>,
}

/// A schema that a reference leads to.
#[derive(Debug)]
pub(super) struct Target {
    /// Where it stood.
    place: String,
    pub(super) schema: Value,
    /// Whether it leads to itself.
    pub(super) is_recursive: bool,
}

impl Targets {
    /// Takes in what the references in `root` lead to, and puts the names of that, which begin
    /// with `begin`, in their places. What stands in `root` for them alone is taken out of it.
    ///
    /// # Errors
    ///
    /// One sentence that says which reference leads to nothing that can be followed.
    pub(super) fn put_in(&mut self, root: &mut Fields, begin: &str) -> Result<(), String> {
        let whole = Value::Object(root.clone());
        root.retain(|word, _| !DEFINING.contains(&word.as_str()));
        let own = Value::Object(root.clone());
        let known = self.all.len();
        let reached = reached(&whole, &own, SCHEMA_REFS_MAX.saturating_sub(known))?;
        let name = |(n, place): (usize, &String)| (place.clone(), format!("{begin}{}", known + n));
        let names: Names = reached.keys().enumerate().map(name).collect();
        for (place, schema) in reached {
            let Some(name) = names.get(&place) else { continue };
            let schema = named(&schema, Part::Schema, &names);
            self.all.insert(name.clone(), Target { place, schema, is_recursive: false });
        }
        // No schema leads to what stands in another one.
        for name in names.values() {
            let is_recursive = self.led_to(name).contains(name);
            if let Some(target) = self.all.get_mut(name) {
                target.is_recursive = is_recursive;
            }
        }
        if let Value::Object(fields) = named(&own, Part::Schema, &names) {
            *root = fields;
        }
        Ok(())
    }

    /// What stands in this place.
    pub(super) fn get(&self, name: &str) -> Option<&Target> {
        self.all.get(name)
    }

    /// Those that lead to themselves.
    pub(super) fn recursive(&self) -> impl Iterator<Item = &Target> {
        self.all.values().filter(|target| target.is_recursive)
    }

    /// The names and the schemas.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.all.iter().map(|(name, target)| (name, &target.schema))
    }

    /// Whether it is the name of the rule that a reference leads to.
    pub(super) fn is_rule(&self, rule: &str) -> bool {
        rule.strip_suffix(ROOT).is_some_and(|name| self.all.contains_key(name))
    }

    /// `node` with texts in place of references, of which the native engine makes literals of the
    /// rules' names.
    pub(super) fn marked(&self, node: &Value, part: Part) -> Value {
        match node {
            Value::Object(fields) => {
                let place = fields.get("$ref").and_then(Value::as_str);
                let place = place.filter(|place| part == Part::Schema && self.get(place).is_some());
                if let Some(name) = place {
                    let pattern = super::marked(&format!("{name}{ROOT}"));
                    return json!({"type": "string", "pattern": pattern});
                }
                let marked = |(name, value): (&String, &Value)| {
                    (name.clone(), self.marked(value, part.under(name)))
                };
                fields.iter().map(marked).collect::<Fields>().into()
            }
            Value::Array(items) => items.iter().map(|item| self.marked(item, part)).collect(),
            plain => plain.clone(),
        }
    }

    /// The names of all that the one of this name leads to.
    fn led_to(&self, name: &str) -> BTreeSet<String> {
        self.get(name).map(|target| self.led_to_by(&target.schema)).unwrap_or_default()
    }

    /// The names of all that a schema leads to.
    fn led_to_by(&self, schema: &Value) -> BTreeSet<String> {
        let (mut all, mut left) = (BTreeSet::new(), vec![schema]);
        while let Some(schema) = left.pop() {
            references(schema, Part::Schema, &mut |name| {
                if let Some(target) = self.get(name)
                    && all.insert(name.to_owned())
                {
                    left.push(&target.schema);
                }
            });
        }
        all
    }

    /// Takes the steps it takes off what is `left` of [`APART_STEPS_MAX`]. What `root` leads to
    /// has to be counted before, which bounds the rest.
    ///
    /// # Errors
    ///
    /// One sentence where `root` leads to what refers to itself without an end, or in several ways
    /// at once.
    pub(super) fn check(&self, root: &Value, left: &mut usize) -> Result<(), String> {
        let names = self.led_to_by(root);
        let led: Vec<(&str, &Target)> =
            names.iter().filter_map(|name| Some((name.as_str(), self.get(name)?))).collect();
        if !led.iter().any(|(_, target)| target.is_recursive) {
            return Ok(());
        }
        for (name, target) in led.iter().filter(|(_, target)| target.is_recursive) {
            self.ways(&target.schema, &mut vec![*name], left, &mut Vec::new())?;
        }
        let mut ending = BTreeSet::new();
        let mut before = None;
        while before != Some(ending.len()) {
            before = Some(ending.len());
            for (name, target) in &led {
                if ends(&target.schema, &ending) {
                    ending.insert(*name);
                }
            }
        }
        if let Some((_, target)) = led.iter().find(|(name, _)| !ending.contains(name)) {
            return Err(format!(
                "what {:.100} leads to has itself in each of its values, so that none ends; let \
                 it be null, a list that may be empty, or left out",
                target.place
            ));
        }
        let is_recursive = |name: &String| self.get(name).is_some_and(|target| target.is_recursive);
        let leading = led.iter().filter(|(name, _)| self.led_to(name).iter().any(is_recursive));
        let leading: BTreeSet<&str> = leading.map(|(name, _)| *name).collect();
        self.check_ways(root, Part::Schema, &leading, left)?;
        led.iter().try_for_each(|(_, target)| {
            self.check_ways(&target.schema, Part::Schema, &leading, left)
        })
    }

    /// Refuses alternatives that are not told apart before one leads to what refers to itself.
    fn check_ways(
        &self,
        node: &Value,
        part: Part,
        leading: &BTreeSet<&str>,
        left: &mut usize,
    ) -> Result<(), String> {
        match node {
            Value::Array(items) => {
                let mut items = items.iter();
                items.try_for_each(|item| self.check_ways(item, part, leading, left))
            }
            Value::Object(fields) => {
                if part == Part::Schema && Kind::of(fields) == [Kind::Ways] {
                    self.check_apart(node, leading, left)?;
                }
                let mut fields = fields.iter();
                fields.try_for_each(|(name, value)| {
                    self.check_ways(value, part.under(name), leading, left)
                })
            }
            _ => Ok(()),
        }
    }

    fn check_apart(
        &self,
        node: &Value,
        leading: &BTreeSet<&str>,
        left: &mut usize,
    ) -> Result<(), String> {
        let mut nodes = Vec::new();
        self.ways(node, &mut Vec::new(), left, &mut nodes)?;
        let mut ways = Vec::with_capacity(nodes.len());
        for node in nodes {
            ways.push(self.way(node, leading, left)?);
        }
        for (at, way) in ways.iter().enumerate().filter(|(_, way)| way.leads) {
            let others = ways.iter().enumerate().filter(|(other, _)| *other != at);
            for (_, other) in others {
                if !way.is_apart(other, left)? {
                    return Err(
                        "a schema that refers to itself has alternatives that may begin alike; \
                         let their types differ, or the values of the property that all of them \
                         require first"
                            .to_owned(),
                    );
                }
            }
        }
        Ok(())
    }

    fn way<'s>(
        &'s self,
        node: &'s Value,
        leading: &BTreeSet<&str>,
        left: &mut usize,
    ) -> Result<Way<'s>, String> {
        step(left, values_of(node))?;
        let mut leads = false;
        references(node, Part::Schema, &mut |name| leads |= leading.contains(name));
        let (may_be_list, may_be_object) = within(node);
        let first = first(node).map(|(name, property)| (name.as_str(), self.values(property)));
        if let Some((_, Some(values))) = &first {
            // They may stand elsewhere.
            step(left, values.len())?;
        }
        Ok(Way { leads, may_be_list, may_be_object, first })
    }

    /// The alternatives a schema comes to, through references.
    fn ways<'s>(
        &'s self,
        node: &'s Value,
        within: &mut Vec<&'s str>,
        left: &mut usize,
        all: &mut Vec<&'s Value>,
    ) -> Result<(), String> {
        step(left, 1)?;
        if let Some(name) = node.get("$ref").and_then(Value::as_str) {
            let Some(target) = self.get(name) else { return Err(no_schema()) };
            if within.contains(&name) {
                return Err(format!(
                    "{:.100} refers to itself with nothing in between; let the reference stand \
                     in a property or a list",
                    target.place
                ));
            }
            within.push(name);
            self.ways(&target.schema, within, left, all)?;
            within.pop();
            return Ok(());
        }
        let ways = ["oneOf", "anyOf"].iter().find_map(|word| node.get(*word)?.as_array());
        match ways {
            Some(ways) => ways.iter().try_for_each(|way| self.ways(way, within, left, all)),
            None => {
                all.push(node);
                Ok(())
            }
        }
    }

    /// The values a property may have, if they are few and simple.
    fn values<'s>(&'s self, property: &'s Value) -> Option<Vec<&'s Value>> {
        let place = property.get("$ref").and_then(Value::as_str);
        let target = place.and_then(|place| self.get(place));
        values(target.map_or(property, |target| &target.schema).as_object()?)
    }
}

/// An alternative, as far as it is told apart from others.
struct Way<'s> {
    /// Whether it leads to what refers to itself.
    leads: bool,
    may_be_list: bool,
    may_be_object: bool,
    /// The property each object of it begins with, and its values if they are simple.
    first: Option<(&'s str, Option<Vec<&'s Value>>)>,
}

impl Way<'_> {
    /// Whether it is seen which of the two a value is before something stands in it that has lists
    /// or objects.
    fn is_apart(&self, other: &Self, left: &mut usize) -> Result<bool, String> {
        step(left, 1)?;
        if self.may_be_list && other.may_be_list {
            return Ok(false);
        }
        if !(self.may_be_object && other.may_be_object) {
            return Ok(true);
        }
        let (Some((name, values)), Some((other_name, others))) = (&self.first, &other.first) else {
            return Ok(false);
        };
        if name != other_name {
            return Ok(true);
        }
        let (Some(values), Some(others)) = (values, others) else { return Ok(false) };
        step(left, values.len().saturating_mul(others.len()))?;
        Ok(!values.iter().any(|value| others.contains(value)))
    }
}

fn step(left: &mut usize, count: usize) -> Result<(), String> {
    *left = left.checked_sub(count).ok_or_else(|| {
        format!(
            "it takes more than {APART_STEPS_MAX} steps to tell apart the alternatives of schemas \
             that refer to themselves; let them have fewer, or fewer values of the property that \
             all of them require first"
        )
    })?;
    Ok(())
}

/// What the references in `own` lead to, and what that leads to, by the places where it stands in
/// `whole`: at most `room` of them.
fn reached(whole: &Value, own: &Value, room: usize) -> Result<BTreeMap<String, Value>, String> {
    let (mut all, mut left) = (BTreeMap::<String, Value>::new(), SCHEMA_NODES_MAX);
    let mut open = BTreeSet::new();
    references(own, Part::Schema, &mut |place| {
        open.insert(place.to_owned());
    });
    while let Some(place) = open.pop_first() {
        if all.len() >= room {
            let most = SCHEMA_REFS_MAX;
            return Err(format!("the schemas of an answer have at most {most} places for $refs"));
        }
        let schema = target(whole, &place, &mut left)?;
        references(&schema, Part::Schema, &mut |next| {
            if next != place && !all.contains_key(next) {
                open.insert(next.to_owned());
            }
        });
        all.insert(place, schema);
    }
    Ok(all)
}

/// What a reference leads to, without what stands in it for others to refer to.
fn target(whole: &Value, place: &str, left: &mut usize) -> Result<Value, String> {
    if place.len() > REF_BYTES_MAX {
        return Err(format!("a $ref in a schema has at most {REF_BYTES_MAX} bytes"));
    }
    let Some(target) = found(whole, place) else {
        return Err(format!("the schema has no {place:.100}"));
    };
    match target {
        Value::Object(fields) if is_schema(place) => {
            let kept = fields.iter().filter(|(name, _)| !DEFINING.contains(&name.as_str()));
            let kept: Vec<(&String, &Value)> = kept.collect();
            let values = kept.iter().map(|(_, value)| values_of(value));
            take(left, values.fold(1, usize::saturating_add))?;
            let own = |(name, value): (&String, &Value)| (name.clone(), value.clone());
            Ok(kept.into_iter().map(own).collect::<Fields>().into())
        }
        Value::Bool(_) if is_schema(place) => {
            take(left, 1)?;
            Ok(target.clone())
        }
        _ => Err(no_schema()),
    }
}

/// Tells of each reference in a schema.
fn references(node: &Value, part: Part, tell: &mut dyn FnMut(&str)) {
    match node {
        Value::Array(items) => items.iter().for_each(|item| references(item, part, tell)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(place) if part == Part::Schema && name == "$ref" => tell(place),
                    value => references(value, part.under(name), tell),
                }
            }
        }
        _ => {}
    }
}

/// `node` with names in place of references.
fn named(node: &Value, part: Part, names: &Names) -> Value {
    match node {
        Value::Array(items) => items.iter().map(|item| named(item, part, names)).collect(),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                let place = value.as_str().filter(|_| part == Part::Schema && name == "$ref");
                let value = match place.and_then(|place| names.get(place)) {
                    Some(known) => Value::from(known.as_str()),
                    None => named(value, part.under(name), names),
                };
                (name.clone(), value)
            };
            fields.iter().map(field).collect::<Fields>().into()
        }
        plain => plain.clone(),
    }
}

/// Whether a schema has a value that ends, with the names of those that are known to have one.
fn ends(node: &Value, known: &BTreeSet<&str>) -> bool {
    let Some(fields) = node.as_object() else { return true };
    if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
        return known.contains(name);
    }
    let ways = ["oneOf", "anyOf"].iter().find_map(|word| fields.get(*word)?.as_array());
    if let Some(ways) = ways {
        return ways.iter().any(|way| ends(way, known));
    }
    let all_end = |kind: &Kind| match kind {
        Kind::Object => required(fields).all(|(_, property)| ends(property, known)),
        Kind::List if tuple(fields).is_some() => {
            let words = ["prefixItems", "items"].iter();
            let items = words.filter_map(|word| fields.get(*word)?.as_array());
            items.flatten().all(|item| ends(item, known))
        }
        Kind::List => {
            let least = fields.get("minItems").and_then(Value::as_u64).unwrap_or(0);
            least == 0 || fields.get("items").is_none_or(|item| ends(item, known))
        }
        _ => true,
    };
    Kind::of(fields).iter().any(all_end)
}

/// The properties that each object has, in the order in which they are written.
fn required(fields: &Fields) -> impl Iterator<Item = (&String, &Value)> {
    let required = fields.get("required").and_then(Value::as_array);
    let required: BTreeSet<&str> =
        required.into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = fields.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().filter(move |(name, _)| required.contains(name.as_str()))
}

/// What each object of a schema begins with.
fn first(node: &Value) -> Option<(&String, &Value)> {
    let fields = node.as_object().filter(|fields| Kind::of(fields).contains(&Kind::Object))?;
    required(fields).next()
}

/// Whether a value of a schema may be a list, and whether it may be an object.
fn within(node: &Value) -> (bool, bool) {
    let Some(fields) = node.as_object() else { return (true, true) };
    let kinds = Kind::of(fields);
    let may_be = |kind: Kind, is_one: fn(&Value) -> bool| {
        let constant = fields.get("const").into_iter();
        let values = fields.get("enum").and_then(Value::as_array).into_iter().flatten();
        kinds.iter().any(|own| *own == kind || *own == Kind::Any)
            || kinds.contains(&Kind::Values) && constant.chain(values).any(is_one)
    };
    (may_be(Kind::List, Value::is_array), may_be(Kind::Object, Value::is_object))
}
