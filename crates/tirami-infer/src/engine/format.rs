//! What an answer must be.

/// What an answer must be. A constrained answer ends where it is complete; one that ends earlier,
/// with [`Finish::Length`](super::Finish::Length) or a stop text, is only the beginning of what was
/// asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// One JSON object.
    JsonObject,
    /// One JSON value that satisfies this JSON schema. Check it with
    /// [`Engine::check_format`](super::Engine::check_format) before anything is paid for. A schema
    /// that refers to itself without end is refused, and so is one that comes to too much: what
    /// following it would cost has no bound. The bounds are the constants of `llama` that begin
    /// with `SCHEMA`.
    JsonSchema(JsonSchema),
    /// Calls of tools, written as [`crate::calls`] says.
    Calls(CallFormat),
}

/// A JSON schema, and how much of it has to be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonSchema {
    /// The schema as its text.
    pub text: String,
    /// Whether all of it that binds an answer is followed or the schema is refused; else what the
    /// engine cannot follow is left out.
    pub strict: bool,
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSchema {
    /// Its name, which no other tool of the format has.
    pub name: String,
    /// What the arguments follow, which are an object whatever it says. Its references lead to
    /// what stands in it.
    pub arguments: JsonSchema,
}

/// Which calls an answer may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallFormat {
    /// The tools that may be called. The same bounds hold as for [`Format::JsonSchema`], and for
    /// these schemas and the one of [`CallFormat::text`] together.
    pub tools: Vec<CallSchema>,
    /// What the answer may be besides calls.
    pub text: CallText,
    /// Whether there may be more than one call, up to [`crate::calls::CALLS_MAX`].
    pub several: bool,
}

/// What an answer that may have calls may be besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallText {
    /// Nothing: it is calls only.
    None,
    /// Any text, in place of calls or before them.
    Free,
    /// One JSON object in place of calls.
    JsonObject,
    /// One JSON value in place of calls that satisfies this schema, as [`Format::JsonSchema`].
    JsonSchema(JsonSchema),
}

impl JsonSchema {
    /// A schema with this text.
    pub fn new(text: impl Into<String>, strict: bool) -> Self {
        Self { text: text.into(), strict }
    }
}

impl Format {
    /// What an answer without calls must be; `None` where every answer has calls.
    pub fn without_calls(&self) -> Option<Self> {
        let Self::Calls(calls) = self else { return Some(self.clone()) };
        match &calls.text {
            CallText::None => None,
            CallText::Free => Some(Self::Text),
            CallText::JsonObject => Some(Self::JsonObject),
            CallText::JsonSchema(schema) => Some(Self::JsonSchema(schema.clone())),
        }
    }
}

impl CallFormat {
    /// Whether the answer may be without calls.
    pub fn may_be_text(&self) -> bool {
        self.text != CallText::None
    }
}

impl From<Format> for CallText {
    /// An answer of this format, or calls.
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Free,
            Format::JsonObject => Self::JsonObject,
            Format::JsonSchema(schema) => Self::JsonSchema(schema),
            Format::Calls(calls) => calls.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_calls_is_what_it_would_be_without_tools() {
        let schema = || Format::JsonSchema(JsonSchema::new("{}", true));
        let tools = || {
            let arguments = JsonSchema::new("{}", false);
            vec![CallSchema { name: "f".to_owned(), arguments }]
        };
        for format in [Format::Text, Format::JsonObject, schema()] {
            let text = CallText::from(format.clone());
            let calls = CallFormat { tools: tools(), text, several: true };
            assert!(calls.may_be_text());
            let calls = Format::Calls(calls);
            assert_eq!(calls.without_calls(), Some(format.clone()));
            assert_eq!(CallText::from(calls), CallText::from(format));
        }
        let text = CallText::None;
        let only = CallFormat { tools: tools(), text, several: false };
        assert!(!only.may_be_text());
        assert_eq!(Format::Calls(only).without_calls(), None);
    }
}
