//! The OpenAPI document, written from the table of routes.

use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, SchemaType, Type as JsonType};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required, ResponseBuilder,
    Schema,
};

use crate::endpoints::{Access, Endpoint, Method, Operation, Payload, Query, Type};
use crate::types::{ErrorBody, MessageError};

/// The scheme under which an API key is given.
const SCHEME: &str = "api_key";

/// The OpenAPI 3.1 document of every route.
///
/// # Examples
///
/// ```
/// let document = tirami_sdk::openapi::document();
/// assert!(document.paths.get_path_item("/v1/chat/completions").is_some());
/// ```
pub fn document() -> OpenApi {
    let mut paths = PathsBuilder::new();
    let mut schemas = Vec::new();
    let error = Type::of::<ErrorBody>();
    error.schemas(&mut schemas);
    Type::of::<MessageError>().schemas(&mut schemas);
    for operation in Operation::ALL {
        let row = operation.endpoint();
        for payload in [row.request, row.response] {
            match payload {
                Payload::Json(kind) => kind.schemas(&mut schemas),
                Payload::JsonOrEvents(json, event) => {
                    json.schemas(&mut schemas);
                    event.schemas(&mut schemas);
                }
                Payload::Empty | Payload::Text(_) => {}
            }
        }
        paths = paths.path(row.path, PathItem::new(method(row.method), describe(&row, &error)));
    }
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API key. On loopback the personal agent needs none."))
        .build();
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Tirami")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("An OpenAI-compatible endpoint with exact accounts."))
                .build(),
        )
        .paths(paths)
        .components(Some(
            ComponentsBuilder::new()
                .schemas_from_iter(schemas)
                .security_scheme(SCHEME, SecurityScheme::Http(key))
                .build(),
        ))
        .build()
}

fn method(method: Method) -> HttpMethod {
    match method {
        Method::Get => HttpMethod::Get,
        Method::Post => HttpMethod::Post,
        Method::Delete => HttpMethod::Delete,
    }
}

fn describe(row: &Endpoint, error: &Type) -> utoipa::openapi::path::Operation {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(row.id))
        .summary(Some(row.summary))
        .tag(tag(row.path))
        .response("200", response("The answer.", row.response));
    for segment in row.path.split('/') {
        if let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            operation = operation.parameter(
                ParameterBuilder::new()
                    .name(name)
                    .parameter_in(ParameterIn::Path)
                    .required(Required::True)
                    .schema(Some(primitive(JsonType::String))),
            );
        }
    }
    for query in row.query {
        operation = operation.parameter(parameter(query));
    }
    if let Payload::Json(kind) = row.request {
        let content = ContentBuilder::new().schema(Some(reference(&kind))).build();
        operation = operation.request_body(Some(
            RequestBodyBuilder::new()
                .content("application/json", content)
                .required(Some(Required::True))
                .build(),
        ));
    }
    if let Access::Scope(scope) = row.access {
        operation = operation
            .description(Some(format!("Needs the scope `{scope}`.")))
            .security(SecurityRequirement::new(SCHEME, Vec::<String>::new()));
    }
    let is_anthropics = row.path.starts_with(Operation::Messages.endpoint().path);
    let envelope = if is_anthropics { Type::of::<MessageError>() } else { *error };
    for (status, meaning) in refusals(row) {
        operation = operation.response(status, response(meaning, Payload::Json(envelope)));
    }
    operation.build()
}

/// The refusals a route can answer with, so that a client may rely on the list.
fn refusals(row: &Endpoint) -> Vec<(&'static str, &'static str)> {
    let mut list = vec![("default", "Any other refusal.")];
    if matches!(row.access, Access::Scope(_)) {
        list.push(("401", "The API key is missing, unknown, expired or revoked."));
        list.push(("403", "The scope, a limit or the kill switch forbids it."));
        list.push(("429", "Too much at once; wait as Retry-After says."));
    }
    if matches!(row.request, Payload::Json(_)) {
        list.push(("400", "The request is not understood; the message says what to change."));
        list.push(("413", "The body is too large."));
        list.push(("415", "The body is not declared as application/json."));
    }
    if row.path.contains('{') {
        list.push(("404", "There is no such thing."));
    }
    if matches!(row.response, Payload::JsonOrEvents(..)) {
        list.push(("402", "The agent has not enough TRM."));
        list.push(("404", "The model is not served here."));
        list.push(("503", "The engine or the store has stopped."));
    }
    list
}

fn response(description: &str, payload: Payload) -> utoipa::openapi::Response {
    let builder = ResponseBuilder::new().description(description);
    let content = |kind: &Type| ContentBuilder::new().schema(Some(reference(kind))).build();
    match payload {
        Payload::Empty => builder,
        Payload::Json(kind) => builder.content("application/json", content(&kind)),
        Payload::JsonOrEvents(json, event) => builder
            .content("application/json", content(&json))
            .content("text/event-stream", content(&event)),
        Payload::Text(media) => builder.content(
            media,
            ContentBuilder::new().schema(Some(primitive(JsonType::String))).build(),
        ),
    }
    .build()
}

fn parameter(query: &Query) -> utoipa::openapi::path::Parameter {
    let kind = if query.number { JsonType::Integer } else { JsonType::String };
    ParameterBuilder::new()
        .name(query.name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(query.description))
        .schema(Some(primitive(kind)))
        .build()
}

fn primitive(kind: JsonType) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::new(kind)).into()
}

fn reference(kind: &Type) -> RefOr<Schema> {
    Ref::from_schema_name(kind.name()).into()
}

fn tag(path: &str) -> &'static str {
    if path.starts_with("/v1/tirami/") {
        "tirami"
    } else if path.starts_with("/v1/") {
        "openai"
    } else {
        "node"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_an_operation_of_the_document() {
        let document = document();
        for operation in Operation::ALL {
            let row = operation.endpoint();
            let found = document.paths.get_path_operation(row.path, method(row.method));
            assert_eq!(found.and_then(|found| found.operation_id.as_deref()), Some(row.id));
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let text = document().to_json().unwrap();
        let components = document().components.unwrap();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(components.schemas.contains_key(name), "{name}");
        }
    }
}
