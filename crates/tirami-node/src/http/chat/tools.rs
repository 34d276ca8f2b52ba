//! Reads which tools a request offers and which of them have to be called.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tirami_infer::engine::{Call, CallFormat, CallSchema, CallText, JsonSchema, Message};

use super::request::{flag, present};
use crate::http::error::ApiError;

/// Tools of one request at most.
const TOOLS_MAX: usize = 128;
/// Bytes of a tool's name at most.
const NAME_BYTES_MAX: usize = 64;
/// Depth of a tool's schema at most, its references followed.
const DEPTH_MAX: usize = 48;
/// Values in the schemas of all tools of a request at most, their references followed, as many as
/// the engine makes a grammar of; [`NOTES`] are not counted.
const VALUES_MAX: usize = 2_000;
/// Values around the tools in what the engine is given, and around each of them.
const ALL_TOOLS_VALUES: usize = 2;
const TOOL_VALUES: usize = 9;
/// Bytes of text in these schemas at most, notes included.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// What of a schema tells the model something and binds no answer, or was followed already.
const NOTES: [&str; 14] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "example",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// The tools of a request.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// What the model is told of each.
    pub(super) offered: Vec<String>,
    /// Their names; empty when none may be called.
    pub(super) names: Vec<String>,
    /// Which calls the answer may have; where it may be text, that is free. None when no tool may
    /// be called.
    pub(super) format: Option<CallFormat>,
}

/// A tool as it was sent.
struct Tool<'a> {
    name: &'a str,
    description: Option<&'a str>,
    /// A schema without references but those that lead back to where they stand.
    parameters: Value,
    /// The same without notes: what a call follows.
    followed: Value,
    /// Whether all of it is followed or the tool is refused.
    strict: bool,
}

/// Which tools may be called.
#[derive(Default)]
struct Choice<'a> {
    /// Only these; none where all may be.
    among: Option<Vec<&'a str>>,
    /// Whether the answer is calls and no text.
    is_owed: bool,
    /// Whether there is one call.
    once: bool,
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn read(fields: &Map<String, Value>) -> Result<Tools, ApiError> {
    let tools = tools(fields)?;
    let choice = choice(fields)?;
    let several = flag(fields, "parallel_tool_calls")?.unwrap_or(true);
    let Some(choice) = choice else { return Ok(Tools::default()) };
    let is_offered = |name: &&str| tools.iter().any(|tool| tool.name == *name);
    let are_there = match &choice.among {
        Some(names) => names.iter().all(is_offered),
        None => !tools.is_empty() || !choice.is_owed,
    };
    if !are_there {
        let message = "tool_choice asks for a tool that is not in tools; name one that is";
        return Err(ApiError::invalid("tool_choice", message));
    }
    if tools.is_empty() {
        return Ok(Tools::default());
    }
    let callable: Vec<&Tool<'_>> = tools.iter().filter(|tool| choice.lets(tool.name)).collect();
    let format = CallFormat {
        tools: callable.iter().map(|tool| tool.call_schema()).collect(),
        text: if choice.is_owed { CallText::None } else { CallText::Free },
        several: several && !choice.once,
    };
    Ok(Tools {
        offered: tools.iter().map(Tool::shown).collect(),
        names: callable.iter().map(|tool| tool.name.to_owned()).collect(),
        format: Some(format),
    })
}

impl Choice<'_> {
    fn lets(&self, name: &str) -> bool {
        self.among.as_ref().is_none_or(|names| names.contains(&name))
    }
}

impl Tool<'_> {
    fn call_schema(&self) -> CallSchema {
        let arguments = JsonSchema::new(self.followed.to_string(), self.strict);
        CallSchema { name: self.name.to_owned(), arguments }
    }

    fn shown(&self) -> String {
        let description = self.description.map(|text| format!("\"description\": {}, ", json(text)));
        format!(
            "{{\"type\": \"function\", \"function\": {{\"name\": \"{}\", {}\"parameters\": {}}}}}",
            self.name,
            description.unwrap_or_default(),
            self.parameters
        )
    }
}

fn json(text: &str) -> Value {
    Value::from(text)
}

fn tools(fields: &Map<String, Value>) -> Result<Vec<Tool<'_>>, ApiError> {
    let list = match present(fields, "tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= TOOLS_MAX => list,
        Some(_) => {
            let message = format!("tools must be a list of at most {TOOLS_MAX} functions");
            return Err(ApiError::invalid("tools", message));
        }
    };
    let mut names = BTreeSet::new();
    let values = VALUES_MAX - ALL_TOOLS_VALUES;
    let mut left = Left { values, text_bytes: TEXT_BYTES_MAX };
    let mut tools = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let at = format!("tools[{index}]");
        let tool = tool(&at, value, &mut left)?;
        if !names.insert(tool.name) {
            let message = format!("{at}.function.name is the name of another tool too");
            return Err(ApiError::invalid(&format!("{at}.function.name"), message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn tool<'a>(at: &str, value: &'a Value, left: &mut Left) -> Result<Tool<'a>, ApiError> {
    let wrong = |field: &str, what: &str| {
        let param = format!("{at}{field}");
        let message = format!("{param} {what}");
        ApiError::invalid(&param, message)
    };
    match value.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(_) => {
            let param = format!("{at}.type");
            let message = format!("{param} must be function; no other tools are known here");
            return Err(ApiError::unsupported(&param, message));
        }
        None => return Err(wrong("", "must be {\"type\": \"function\", \"function\": …}")),
    }
    let Some(Value::Object(function)) = value.get("function") else {
        return Err(wrong(".function", "must be an object {name, description, parameters}"));
    };
    let is_name = |name: &&str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits)
    };
    let name = function.get("name").and_then(Value::as_str).filter(is_name);
    let name = name.ok_or_else(|| {
        wrong(".function.name", "must be 1 to 64 letters, digits, underscores and dashes")
    })?;
    let description = match present(function, "description") {
        None => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err(wrong(".function.description", "must be text")),
    };
    let of_object = "must be a JSON schema of an object";
    let mut schema = match present(function, "parameters") {
        None => Map::new(),
        Some(Value::Object(schema)) => schema.clone(),
        Some(_) => return Err(wrong(".function.parameters", of_object)),
    };
    let strict = match present(function, "strict") {
        None => false,
        Some(Value::Bool(strict)) => *strict,
        Some(_) => return Err(wrong(".function.strict", "must be true or false")),
    };
    if schema.get("type").is_some_and(|kind| kind != "object") {
        return Err(wrong(".function.parameters", of_object));
    }
    schema.insert("type".to_owned(), "object".into());
    let root = Value::Object(schema.clone());
    schema.retain(|name, _| !matches!(name.as_str(), "$defs" | "definitions" | "$schema"));
    left.values = left.values.saturating_sub(TOOL_VALUES);
    let schema = Value::Object(schema);
    let (within, again) = (vec!["#"], Vec::new());
    let mut inlining = Inlining { root: &root, strict, within, again, left };
    let of_parameters = |what: String| wrong(".function.parameters", &what);
    let parameters = inlining.inlined(&schema, Part::Schema, DEPTH_MAX);
    let mut parameters = parameters.map_err(of_parameters)?;
    let defined = Value::Object(inlining.defined().map_err(of_parameters)?);
    let mut followed = without_notes(&parameters, Part::Schema);
    if defined.as_object().is_some_and(|defined| !defined.is_empty()) {
        let bound = without_notes(&defined, Part::Named);
        for (schema, defined) in [(&mut parameters, defined), (&mut followed, bound)] {
            if let Value::Object(schema) = schema {
                schema.insert("$defs".to_owned(), defined);
            }
        }
    }
    Ok(Tool { name, description, parameters, followed, strict })
}

/// What the schemas of a request's tools may still have.
struct Left {
    values: usize,
    text_bytes: usize,
}

impl Left {
    /// Takes a value off; false where there is no room for it.
    fn takes(&mut self, value: &Value, part: Part) -> bool {
        let text_bytes = match value {
            Value::String(text) => text.len(),
            Value::Object(fields) => fields.keys().map(String::len).sum(),
            _ => 0,
        };
        let values = self.values.checked_sub(usize::from(part != Part::Note));
        let text_bytes = self.text_bytes.checked_sub(text_bytes);
        let Some((values, text_bytes)) = values.zip(text_bytes) else { return false };
        *self = Self { values, text_bytes };
        true
    }
}

/// What a part of a schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A schema, or a list of them.
    Schema,
    /// Schemas under names that are not of JSON schema.
    Named,
    /// Plain data, such as the values of an `enum`.
    Data,
    /// What binds no answer.
    Note,
}

impl Part {
    /// What stands under `name` in it.
    fn under(self, name: &str) -> Self {
        match (self, name) {
            (Self::Schema, name) if NOTES.contains(&name) => Self::Note,
            (Self::Schema, "properties" | "patternProperties" | "dependentSchemas") => Self::Named,
            (Self::Schema, "const" | "dependentRequired" | "enum" | "required") => Self::Data,
            (Self::Schema | Self::Named, _) => Self::Schema,
            (Self::Data | Self::Note, _) => self,
        }
    }
}

/// Puts what the references of a schema lead to in their places: it becomes a part of another one,
/// in which they would lead elsewhere.
struct Inlining<'a> {
    root: &'a Value,
    /// Whether what is not followed is refused.
    strict: bool,
    /// The references that lead to where it is.
    within: Vec<&'a str>,
    /// Those that lead back to where they stand, and what they lead to.
    again: Vec<(&'a str, &'a Value)>,
    left: &'a mut Left,
}

impl<'a> Inlining<'a> {
    fn inlined(&mut self, node: &'a Value, part: Part, depth: usize) -> Result<Value, String> {
        let Some(depth) = depth.checked_sub(1).filter(|_| self.left.takes(node, part)) else {
            return Err(format!(
                "is too large or too deep: all tools together have at most {VALUES_MAX} values, \
                 {TOOL_VALUES} for each tool included and descriptions and the like not counted, \
                 and {TEXT_BYTES_MAX} bytes of text; make it simpler"
            ));
        };
        match node {
            Value::Array(items) => {
                items.iter().map(|item| self.inlined(item, part, depth)).collect()
            }
            Value::Object(fields) => {
                if let (Part::Schema, Some(Value::String(place))) = (part, fields.get("$ref")) {
                    return self.followed(place, fields, depth);
                }
                let inline = |(name, value): (&'a String, &'a Value)| {
                    Ok((name.clone(), self.inlined(value, part.under(name), depth)?))
                };
                fields.iter().map(inline).collect::<Result<Map<_, _>, _>>().map(Value::Object)
            }
            plain => Ok(plain.clone()),
        }
    }

    /// What stands where `place` leads back: any value, or in a strict schema a reference.
    fn kept(&mut self, place: &'a str, target: &'a Value) -> Value {
        if !self.strict {
            return Value::Object(Map::new());
        }
        if place == "#" {
            return serde_json::json!({"$ref": "#"});
        }
        let known = self.again.iter().position(|(known, _)| *known == place);
        let at = known.unwrap_or(self.again.len());
        if known.is_none() {
            self.again.push((place, target));
        }
        serde_json::json!({"$ref": format!("#/$defs/{at}")})
    }

    /// What the references lead to that were kept.
    fn defined(&mut self) -> Result<Map<String, Value>, String> {
        let mut defined = Map::new();
        while let Some((place, target)) = self.again.get(defined.len()).copied() {
            self.within = vec!["#", place];
            let inlined = self.inlined(target, Part::Schema, DEPTH_MAX)?;
            defined.insert(defined.len().to_string(), inlined);
        }
        Ok(defined)
    }

    /// What `place` leads to, which is one of `fields`. What stands beside it holds together with
    /// it, which the engine sees to.
    fn followed(
        &mut self,
        place: &'a str,
        fields: &'a Map<String, Value>,
        depth: usize,
    ) -> Result<Value, String> {
        let root = self.root;
        let target = place.strip_prefix('#').and_then(|place| root.pointer(place));
        let target = target.ok_or("has a $ref that leads to nothing in it")?;
        let is_again = self.again.iter().any(|(known, _)| *known == place);
        let target = if is_again || self.within.contains(&place) {
            self.kept(place, target)
        } else {
            self.within.push(place);
            let followed = self.inlined(target, Part::Schema, depth);
            self.within.pop();
            followed?
        };
        let mut all = Map::new();
        for (name, value) in fields {
            let is_more = name != "$ref" && !NOTES.contains(&name.as_str());
            if is_more && target.get(name) != Some(value) {
                all.insert(name.clone(), self.inlined(value, Part::Schema.under(name), depth)?);
            }
        }
        if all.is_empty() {
            return Ok(target);
        }
        let mut parts = vec![target];
        if let Some(Value::Array(more)) = all.shift_remove("allOf") {
            parts.extend(more);
        }
        all.insert("allOf".to_owned(), parts.into());
        Ok(Value::Object(all))
    }
}

/// The part of a schema that an answer follows.
fn without_notes(node: &Value, part: Part) -> Value {
    match node {
        Value::Array(items) => items.iter().map(|item| without_notes(item, part)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name, value, part.under(name)));
            let bound = fields.filter(|(_, _, part)| *part != Part::Note);
            bound.map(|(name, value, part)| (name.clone(), without_notes(value, part))).collect()
        }
        plain => plain.clone(),
    }
}

/// None where no tool may be called.
fn choice(fields: &Map<String, Value>) -> Result<Option<Choice<'_>>, ApiError> {
    let wrong = |message: &str| ApiError::invalid("tool_choice", message);
    let Some(value) = present(fields, "tool_choice") else {
        return Ok(Some(Choice::default()));
    };
    if value.get("type").is_some_and(|kind| kind == "allowed_tools") {
        return allowed(value).map(Some).ok_or_else(|| {
            wrong(&format!(
                "tool_choice of the type allowed_tools must have a mode, auto or required, and a \
                 list of 1 to {TOOLS_MAX} functions by their names"
            ))
        });
    }
    if value == "none" {
        return Ok(None);
    }
    if let Some(is_owed) = mode(value) {
        return Ok(Some(Choice { is_owed, ..Choice::default() }));
    }
    // What is named is called once.
    let named = |name| Some(Choice { among: Some(vec![name]), is_owed: true, once: true });
    function_name(value).map(named).ok_or_else(|| {
        wrong(
            "tool_choice must be auto, none, required, {\"type\": \"function\", \"function\": \
             {\"name\": …}}, or of the type allowed_tools",
        )
    })
}

/// Some of the tools, and whether one of them has to be called.
fn allowed(value: &Value) -> Option<Choice<'_>> {
    let is_owed = mode(value.pointer("/allowed_tools/mode")?)?;
    let names = value.pointer("/allowed_tools/tools")?.as_array()?;
    if !(1..=TOOLS_MAX).contains(&names.len()) {
        return None;
    }
    let among = Some(names.iter().map(function_name).collect::<Option<Vec<_>>>()?);
    Some(Choice { among, is_owed, once: false })
}

/// Whether a tool has to be called.
fn mode(value: &Value) -> Option<bool> {
    match value.as_str()? {
        "auto" => Some(false),
        "required" => Some(true),
        _ => None,
    }
}

fn function_name(value: &Value) -> Option<&str> {
    let is_function = value.get("type")? == "function";
    value.pointer("/function/name")?.as_str().filter(|_| is_function)
}

/// Puts results in the order of the calls they answer: a model sees no ids. What names no call of
/// the turn before stays behind those that do.
pub(super) fn in_order(messages: &mut [Message]) {
    let mut asked = BTreeMap::new();
    let mut at = 0;
    while let Some(message) = messages.get(at) {
        if message.role != "tool" {
            let ids = message.calls.iter().map(|call| call.id.clone());
            // Of two calls of one name the first is meant.
            asked = ids.enumerate().map(|(place, id)| (id, place)).rev().collect();
            at += 1;
            continue;
        }
        let end = messages.iter().skip(at).position(|message| message.role != "tool");
        let end = end.map_or(messages.len(), |length| at + length);
        let place = |message: &Message| {
            let id = message.call_id.as_ref();
            id.and_then(|id| asked.get(id)).copied().unwrap_or(usize::MAX)
        };
        messages[at..end].sort_by_cached_key(place);
        at = end;
    }
}

/// The tools a message says were called, and whether it may say so.
pub(super) fn calls(
    role: &str,
    at: &str,
    fields: &Map<String, Value>,
) -> Result<Vec<Call>, ApiError> {
    if role == "tool" && present(fields, "tool_call_id").is_none_or(|id| !id.is_string()) {
        let param = format!("{at}.tool_call_id");
        let message = format!("{param} is missing; name the call whose result this is");
        return Err(ApiError::invalid(&param, message));
    }
    let param = format!("{at}.tool_calls");
    let list = match present(fields, "tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.is_empty() => return Ok(Vec::new()),
        Some(Value::Array(list)) if role == "assistant" && list.len() <= TOOLS_MAX => list,
        Some(_) => {
            let message = format!("{param} must be a list of calls in a message of assistant");
            return Err(ApiError::invalid(&param, message));
        }
    };
    let call = |value: &Value| {
        let name = value.pointer("/function/name")?.as_str()?;
        let arguments = value.pointer("/function/arguments")?.as_str()?;
        let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
        // Written anew, so that no escape hides what the template must not see. What is no JSON,
        // as the arguments of an answer that was cut, is a text whose escapes nobody reads.
        let written = serde_json::from_str::<Value>(arguments).map(|value| value.to_string());
        let arguments = written.unwrap_or_else(|_| arguments.to_owned());
        let id = value.get("id").and_then(Value::as_str).unwrap_or_default();
        Some(Call { id: id.to_owned(), name: name.to_owned(), arguments })
    };
    list.iter().map(call).collect::<Option<_>>().ok_or_else(|| {
        let message = format!(
            "{param} must be a list of {{\"id\": …, \"type\": \"function\", \"function\": {{\"name\": \
             …, \"arguments\": JSON as text}}}}"
        );
        ApiError::invalid(&param, message)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(request: Value) -> Result<Tools, String> {
        let read = super::read(request.as_object().unwrap());
        read.map_err(|error| error.body().error.param.clone().unwrap_or_default())
    }

    /// What the arguments of the first tool follow.
    fn arguments_of(tools: Tools) -> String {
        tools.format.unwrap().tools.swap_remove(0).arguments.text
    }

    fn strict(name: &str, parameters: Value) -> Value {
        json!({"type": "function",
               "function": {"name": name, "parameters": parameters, "strict": true}})
    }

    fn named(name: &str, parameters: Value) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    }

    #[test]
    fn which_tools_are_called_is_understood() {
        let both = json!([named("a", Value::Null), named("b", json!({"properties": {}}))]);
        let named_b = json!({"type": "function", "function": {"name": "b"}});
        let only_b = |mode: &str| {
            let allowed = json!({"mode": mode, "tools": [named_b]});
            json!({"type": "allowed_tools", "allowed_tools": allowed})
        };
        for (choice, offered, names, text) in [
            (Value::Null, 2, vec!["a", "b"], Some(CallText::Free)),
            (json!("auto"), 2, vec!["a", "b"], Some(CallText::Free)),
            (json!("required"), 2, vec!["a", "b"], Some(CallText::None)),
            (named_b.clone(), 2, vec!["b"], Some(CallText::None)),
            (only_b("auto"), 2, vec!["b"], Some(CallText::Free)),
            (only_b("required"), 2, vec!["b"], Some(CallText::None)),
            (json!("none"), 0, vec![], None),
        ] {
            // Whoever names a tool wants one call of it.
            let is_named = choice == named_b;
            let several = read(json!({"tools": both, "tool_choice": choice})).unwrap().format;
            assert!(several.is_none_or(|format| format.several != is_named), "{choice}");
            let request = json!({"tools": both, "tool_choice": choice,
                                 "parallel_tool_calls": false});
            let tools = read(request).unwrap();
            assert_eq!(
                (tools.offered.len(), &tools.names),
                (offered, &names.into_iter().map(str::to_owned).collect())
            );
            assert_eq!(tools.format.as_ref().map(|format| format.text.clone()), text);
            let followed = tools.format.iter().flat_map(|format| &format.tools);
            assert!(followed.map(|tool| &tool.name).eq(&tools.names), "{choice}");
            assert!(tools.format.is_none_or(|format| !format.several));
        }
        let none = read(json!({"tools": []})).unwrap();
        assert!(none.offered.is_empty() && none.format.is_none());
        let one = read(json!({"tools": [named("a", Value::Null)]})).unwrap();
        let arguments = JsonSchema::new("{\"type\":\"object\"}", false);
        let tool = CallSchema { name: "a".to_owned(), arguments };
        assert_eq!(one.format.unwrap().tools, [tool]);
    }

    #[test]
    fn references_are_followed_where_they_lead() {
        let schema = json!({
            "$defs": {"Size": {"enum": ["s", "l"]}},
            "properties": {"size": {"$ref": "#/$defs/Size"}},
        });
        let tools = read(json!({"tools": [named("a", schema)]})).unwrap();
        let schema = arguments_of(tools);
        assert!(schema.contains("\"size\":{\"enum\":[\"s\",\"l\"]}"), "{schema}");
        assert!(!schema.contains('$'), "{schema}");
    }

    #[test]
    fn a_schema_that_refers_to_itself_is_followed_as_far_as_it_does_not() {
        let node = json!({"type": "object", "properties": {
            "name": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}, "all": {"$ref": "#"},
        }});
        let schema = json!({
            "$defs": {"Node": node},
            "properties": {"first": {"$ref": "#/$defs/Node"}, "second": {"$ref": "#/$defs/Node"}},
        });
        let node = json!({"type": "object", "properties": {
            "name": {"type": "string"}, "next": {}, "all": {},
        }});
        let expected = json!({"properties": {"first": node, "second": node}, "type": "object"});
        let tools = read(json!({"tools": [named("a", schema.clone())]})).unwrap();
        assert!(!tools.format.as_ref().unwrap().tools[0].arguments.strict);
        assert_eq!(arguments_of(tools), expected.to_string());
        // All of a strict one is followed.
        let tools = read(json!({"tools": [strict("a", schema)]})).unwrap();
        let again = json!({"$ref": "#/$defs/0"});
        let node = json!({"type": "object", "properties": {
            "name": {"type": "string"}, "next": again, "all": {"$ref": "#"},
        }});
        let expected = json!({
            "properties": {"first": node, "second": again}, "type": "object", "$defs": {"0": node},
        });
        assert_eq!(arguments_of(tools), expected.to_string());
        let noted = json!({"properties": {"a": {"$ref": "#/$defs/A", "description": "d"}},
                           "$defs": {"A": {"type": "string"}}});
        let tools = read(json!({"tools": [strict("a", noted)]})).unwrap();
        assert!(tools.format.unwrap().tools[0].arguments.strict);
    }

    #[test]
    fn what_stands_beside_a_reference_holds_together_with_what_it_leads_to() {
        let text = json!({"type": "string"});
        let object = json!({"type": "object", "properties": {"a": text}});
        for (schema, followed) in [
            // The type of the arguments was not sent.
            (json!({"$ref": "#/$defs/A", "$defs": {"A": object}}), object.clone()),
            (
                json!({"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": text}}}}),
                json!({"type": "object", "allOf": [{"properties": {"a": text}}]}),
            ),
            (
                json!({"type": "object", "properties": {"b": {
                    "$ref": "#/$defs/B", "description": "d", "type": "string", "minLength": 1,
                }}, "$defs": {"B": text}}),
                json!({"type": "object", "properties": {"b": {
                    "minLength": 1, "allOf": [text],
                }}}),
            ),
        ] {
            for tool in [named("a", schema.clone()), strict("a", schema.clone())] {
                let tools = read(json!({"tools": [tool]})).unwrap();
                assert_eq!(arguments_of(tools), followed.to_string(), "{schema}");
            }
        }
    }

    #[test]
    fn what_binds_no_answer_is_told_to_the_model_and_is_not_followed() {
        let property = json!({"type": "string", "title": "T", "description": "D", "default": "x"});
        let schema = json!({
            "title": "Args", "type": "object", "$comment": "c",
            // Names that somebody gave are no words of JSON schema.
            "properties": {"title": property, "default": {"enum": [{"title": 1}]},
                           "list": {"type": "array", "items": property}},
            "required": ["title"], "examples": [{"title": "x"}],
        });
        let tools = read(json!({"tools": [named("a", schema.clone())]})).unwrap();
        assert!(tools.offered[0].contains(&schema.to_string()), "{}", tools.offered[0]);
        let followed = json!({
            "type": "object",
            "properties": {"title": {"type": "string"}, "default": {"enum": [{"title": 1}]},
                           "list": {"type": "array", "items": {"type": "string"}}},
            "required": ["title"],
        });
        assert_eq!(arguments_of(tools), followed.to_string());
    }

    #[test]
    fn the_tools_of_a_request_share_one_bound_that_notes_do_not_count_for() {
        let properties = |count: usize, text: &str| {
            let property = json!({"type": "string", "description": text, "title": text});
            let all = (0..count).map(|n| (format!("p{n}"), property.clone()));
            json!({"properties": all.collect::<Map<_, _>>()})
        };
        // Three more for the schema, its type and its properties.
        let fits = ((VALUES_MAX - ALL_TOOLS_VALUES) / 2 - TOOL_VALUES - 3) / 2;
        for (of_one, of_other, text, fit) in [
            (fits, fits, "d", true),
            (fits, fits + 2, "d", false),
            (1, 1, &*"d".repeat(TEXT_BYTES_MAX / 4 - 100), true),
            (1, 1, &*"d".repeat(TEXT_BYTES_MAX / 4), false),
        ] {
            let tools =
                [named("a", properties(of_one, text)), named("b", properties(of_other, text))];
            let read = read(json!({"tools": tools})).map(drop);
            let refused = Err("tools[1].function.parameters".to_owned());
            assert_eq!(read, if fit { Ok(()) } else { refused }, "{of_one} {of_other}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = named("a", Value::Null);
        let odd = json!({"type": "function", "function": {"name": "a", "strict": "yes"}});
        let function = |name: &str| json!({"type": "function", "function": {"name": name}});
        let allowed = |mode: &str, tools: Value| {
            let choice = json!({"type": "allowed_tools",
                                "allowed_tools": {"mode": mode, "tools": tools}});
            json!({"tools": [one], "tool_choice": choice})
        };
        for (request, param) in [
            (allowed("auto", json!([])), "tool_choice"),
            (allowed("auto", json!(["a"])), "tool_choice"),
            (allowed("auto", json!([function("a"), function("b")])), "tool_choice"),
            (allowed("auto", json!(vec![function("a"); TOOLS_MAX + 1])), "tool_choice"),
            (allowed("none", json!([function("a")])), "tool_choice"),
            (json!({"tools": [one], "tool_choice": {"type": "allowed_tools"}}), "tool_choice"),
            (json!({"tools": {}}), "tools"),
            (json!({"tools": ["a"]}), "tools[0]"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [named("a b", Value::Null)]}), "tools[0].function.name"),
            (json!({"tools": [one, one]}), "tools[1].function.name"),
            (
                json!({"tools": [named("a", json!({"type": "array"}))]}),
                "tools[0].function.parameters",
            ),
            (json!({"tools": [odd]}), "tools[0].function.strict"),
            (json!({"tools": [one], "tool_choice": "some"}), "tool_choice"),
            (
                json!({"tools": [one], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "tool_choice",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": [one], "parallel_tool_calls": 1}), "parallel_tool_calls"),
        ] {
            assert_eq!(read(request.clone()).unwrap_err(), param, "{request}");
        }
    }

    #[test]
    fn results_stand_in_the_order_of_their_calls() {
        let call = |id: &str| Call { id: id.to_owned(), name: "f".into(), arguments: "{}".into() };
        let asks = |ids: &[&str]| Message {
            calls: ids.iter().map(|id| call(id)).collect(),
            ..Message::new("assistant", "")
        };
        let result =
            |id: &str| Message { call_id: Some(id.to_owned()), ..Message::new("tool", id) };
        let mut messages = vec![
            asks(&["1", "2", "3"]),
            result("x"),
            result("3"),
            result("1"),
            Message::new("user", "go on"),
            asks(&["1", "2"]),
            result("2"),
            result("1"),
        ];
        in_order(&mut messages);
        let order: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        assert_eq!(order, ["", "1", "3", "x", "go on", "", "1", "2"]);
    }

    #[test]
    fn calls_and_results_are_read_from_messages() {
        let read = |role: &str, message: Value| {
            calls(role, "messages[0]", message.as_object().unwrap())
                .map_err(|error| error.body().error.param.clone().unwrap_or_default())
        };
        let call = |arguments: &str| {
            json!({"tool_calls": [{"id": "1", "type": "function",
                                   "function": {"name": "f", "arguments": arguments}}]})
        };
        let hidden = read("assistant", call("{\"a\": \"\\u003c|im_end|>\"}")).unwrap();
        assert_eq!(hidden[0].arguments, "{\"a\":\"<|im_end|>\"}");
        assert_eq!(read("assistant", call("")).unwrap()[0].arguments, "{}");
        let ordered = read("assistant", call("{\"zebra\": 1, \"apple\": 2}")).unwrap();
        assert_eq!(ordered[0].arguments, "{\"zebra\":1,\"apple\":2}");
        let cut = read("assistant", call("{\"a\": \"\\u003c")).unwrap();
        assert_eq!(cut[0].arguments, "{\"a\": \"\\u003c");
        assert!(read("tool", json!({"tool_call_id": "1"})).unwrap().is_empty());
        for (role, message) in
            [("user", call("{}")), ("assistant", json!({"tool_calls": [{"id": "1"}]}))]
        {
            assert_eq!(read(role, message).unwrap_err(), "messages[0].tool_calls");
        }
        assert_eq!(read("tool", json!({})).unwrap_err(), "messages[0].tool_call_id");
    }
}
