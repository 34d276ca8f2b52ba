//! The page of the HTTP interface, written from the OpenAPI document.

use std::fmt::Write as _;

use crate::json::Json;
use crate::{Failure, Outcome};

const HEAD: &str = "# HTTP

Written from the OpenAPI document, which every node serves at `/openapi.json` and shows at `/docs`.

An API key goes into `Authorization: Bearer …` or `x-api-key`. On loopback a request without one
acts as the personal agent with the scopes read and inference. Scopes include each other: read <
inference < economy < admin. Every answer carries `x-request-id`. Money is an exact decimal number
of TRM; times end in `_at_ms` and count milliseconds since the Unix epoch.

| method | path | who | what |
|---|---|---|---|
";

/// Writes the page from the document's text.
pub(super) fn page(openapi: &str) -> Outcome<String> {
    let document = Json::parse(openapi)?;
    let mut table = String::from(HEAD);
    let mut details = String::new();
    for (path, methods) in fields(document.at("paths")) {
        for (method, operation) in fields(Some(methods)) {
            if !matches!(method.as_str(), "get" | "post" | "delete") {
                continue;
            }
            let method = method.to_uppercase();
            let summary = text(operation, "summary");
            let who = who(operation);
            let _ = writeln!(table, "| {method} | `{path}` | {who} | {summary} |");
            describe(&mut details, &format!("{method} {path}"), operation);
        }
    }
    if details.is_empty() {
        return Err(Failure::new("the OpenAPI document has no routes"));
    }
    let mut page = format!("{table}{details}\n## Types\n");
    let schemas = document.at("components").and_then(|components| components.at("schemas"));
    for (name, schema) in fields(schemas) {
        describe_type(&mut page, name, schema);
    }
    Ok(page)
}

fn who(operation: &Json) -> String {
    // `Needs the scope `read`.`
    match text(operation, "description").split('`').nth(1) {
        Some(scope) => scope.to_owned(),
        None => "anybody".to_owned(),
    }
}

fn describe(page: &mut String, title: &str, operation: &Json) {
    let _ = writeln!(page, "\n## {title}\n\n{}\n", text(operation, "summary"));
    let _ = writeln!(page, "- who: {}", who(operation));
    for parameter in items(operation.at("parameters")) {
        let (name, place) = (text(parameter, "name"), text(parameter, "in"));
        let meaning = text(parameter, "description");
        let colon = if meaning.is_empty() { "" } else { ": " };
        let _ = writeln!(page, "- `{name}` in the {place}{colon}{meaning}");
    }
    let request = content(operation.at("requestBody"));
    if !request.is_empty() {
        let _ = writeln!(page, "- request: {request}");
    }
    let responses = fields(operation.at("responses"));
    for (status, response) in responses.filter(|(status, _)| *status != "default") {
        let carries = content(Some(response));
        let meaning = text(response, "description");
        let carries = if carries.is_empty() { meaning } else { format!("{carries}. {meaning}") };
        let _ = writeln!(page, "- {status}: {carries}");
    }
}

/// The media types of a request or an answer with their types.
fn content(body: Option<&Json>) -> String {
    let media = body.and_then(|body| body.at("content"));
    let all: Vec<String> = fields(media)
        .map(|(media, content)| match content.at("schema").map(kind) {
            Some(kind) if kind.starts_with('[') => format!("{kind} as `{media}`"),
            _ => format!("`{media}`"),
        })
        .collect();
    all.join(", or ")
}

fn describe_type(page: &mut String, name: &str, schema: &Json) {
    let _ = writeln!(page, "\n### {name}\n\n{}", text(schema, "description"));
    let values: Vec<String> = items(schema.at("enum"))
        .filter_map(|value| match value {
            Json::Text(text) => Some(format!("`{text}`")),
            _ => None,
        })
        .collect();
    if !values.is_empty() {
        let _ = writeln!(page, "\nOne of {}.", values.join(", "));
    }
    let mut rows = fields(schema.at("properties")).peekable();
    if rows.peek().is_none() {
        return;
    }
    let required: Vec<&Json> = items(schema.at("required")).collect();
    page.push_str("\n| field | type | meaning |\n|---|---|---|\n");
    for (field, property) in rows {
        let needed = required.iter().any(|name| **name == Json::Text(field.clone()));
        let optional = if needed { "" } else { ", optional" };
        let meaning = meaning(property).replace('\n', " ");
        let _ = writeln!(page, "| `{field}` | {}{optional} | {meaning} |", kind(property));
    }
}

/// A field's description; that of an optional type stands with the type.
fn meaning(property: &Json) -> String {
    let own = text(property, "description");
    if !own.is_empty() {
        return own;
    }
    items(property.at("oneOf"))
        .map(|choice| text(choice, "description"))
        .find(|description| !description.is_empty())
        .unwrap_or_default()
}

/// A schema in a few words; types of the document are links.
fn kind(schema: &Json) -> String {
    if let Some(Json::Text(reference)) = schema.at("$ref") {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return format!("[{name}](#{})", name.to_lowercase());
    }
    for choice in ["oneOf", "anyOf", "allOf"] {
        let kinds: Vec<String> = items(schema.at(choice)).map(kind).collect();
        if !kinds.is_empty() {
            return kinds.join(" or ");
        }
    }
    let name = match schema.at("type") {
        Some(Json::Text(name)) => name.clone(),
        Some(Json::List(names)) => {
            let names: Vec<&str> = names
                .iter()
                .filter_map(|name| match name {
                    Json::Text(name) => Some(name.as_str()),
                    _ => None,
                })
                .collect();
            names.join(" or ")
        }
        _ => "any".to_owned(),
    };
    match schema.at("items") {
        Some(item) => format!("{name} of {}", kind(item)),
        None => name,
    }
}

fn fields(value: Option<&Json>) -> impl Iterator<Item = (&String, &Json)> {
    let fields = match value {
        Some(Json::Object(fields)) => fields.as_slice(),
        _ => &[],
    };
    fields.iter().map(|(name, value)| (name, value))
}

fn items(value: Option<&Json>) -> impl Iterator<Item = &Json> {
    let items = match value {
        Some(Json::List(items)) => items.as_slice(),
        _ => &[],
    };
    items.iter()
}

fn text(value: &Json, field: &str) -> String {
    value.text(field).unwrap_or_default().trim().replace("\n\n", " ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r##"{"paths": {"/v1/x": {"post": {
        "summary": "Does x.", "description": "Needs the scope `read`.",
        "parameters": [{"name": "id", "in": "query", "description": "Which."}],
        "requestBody": {"content": {"application/json":
            {"schema": {"$ref": "#/components/schemas/Ask"}}}},
        "responses": {"200": {"description": "The answer."}, "default": {"description": "No."}}}}},
      "components": {"schemas": {"Ask": {"type": "object", "description": "A question.",
        "required": ["what"], "properties": {
          "what": {"type": "string", "description": "The text."},
          "tags": {"type": ["array", "null"], "items": {"type": "string"}}}}}}}"##;

    #[test]
    fn routes_and_types_are_written_from_the_document() -> Outcome<()> {
        let page = page(DOCUMENT)?;
        for line in [
            "| POST | `/v1/x` | read | Does x. |",
            "- `id` in the query: Which.",
            "- request: [Ask](#ask) as `application/json`",
            "- 200: The answer.",
            "| `what` | string | The text. |",
            "| `tags` | array or null of string, optional |  |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        assert!(!page.contains("No."));
        Ok(())
    }
}
