//! What another interface calls the fields of the chat that its request becomes; a refusal says
//! the names that were sent.

use super::error::ApiError;

/// The same refusal, in which fields are called as another interface calls them: each pair is a
/// name of the chat and the one for it. `[]` stands for a place in a list, and what comes behind
/// such a name stays; behind any other it goes, since the chat has other places.
pub(super) fn renamed(error: ApiError, names: &[(&str, &str)]) -> ApiError {
    let detail = &error.body().error;
    let Some(param) = detail.param.as_deref() else { return error };
    let Some(own) = names.iter().find_map(|pair| translated(param, *pair)) else { return error };
    let message = match detail.message.strip_prefix(param) {
        // A word is surely the field's name only where it stands first.
        Some(rest) if !is_unmistakable(param) => format!("{own}{rest}"),
        None if !is_unmistakable(param) => detail.message.clone(),
        _ => detail.message.replace(param, &own),
    };
    error.reworded(message).param(&own)
}

/// Whether no sentence has this name as a word of its own.
fn is_unmistakable(name: &str) -> bool {
    name.contains(['_', '.', '['])
}

/// The field's name by one of the pairs.
fn translated(param: &str, (chat, own): (&str, &str)) -> Option<String> {
    let Some((list, field)) = chat.split_once("[]") else {
        let rest = param.strip_prefix(chat)?;
        return (rest.is_empty() || rest.starts_with(['.', '['])).then(|| own.to_owned());
    };
    let (place, rest) = param.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
    let rest = rest.strip_prefix(field)?;
    Some(format!("{}{rest}", own.replace("[]", &format!("[{place}]"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_calls_fields_as_the_request_does() {
        let names = [
            ("messages", "input"),
            ("response_format", "text.format"),
            ("stop", "stop_sequences"),
            ("tools[].function.parameters", "tools[].input_schema"),
            ("tools[].function", "tools[]"),
        ];
        for (param, message, expected) in [
            ("messages", "messages is empty", ("input", "input is empty")),
            ("messages[3].content", "it is no text", ("input", "it is no text")),
            ("messages", "refuses these messages", ("input", "refuses these messages")),
            ("stop", "a stop text is empty", ("stop_sequences", "a stop text is empty")),
            ("response_format", "it cannot be used", ("text.format", "it cannot be used")),
            (
                "tools[12].function.parameters",
                "tools[12].function.parameters is too large",
                ("tools[12].input_schema", "tools[12].input_schema is too large"),
            ),
            (
                "tools[0].function.name",
                "tools[0].function.name must be short",
                ("tools[0].name", "tools[0].name must be short"),
            ),
            ("stopped", "stopped is unknown", ("stopped", "stopped is unknown")),
            ("tools", "tools must be a list", ("tools", "tools must be a list")),
        ] {
            let error = renamed(ApiError::invalid(param, message), &names);
            let detail = &error.body().error;
            let told = (detail.param.as_deref().unwrap_or_default(), detail.message.as_str());
            assert_eq!(told, expected);
        }
    }
}
