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
    /// One JSON value that satisfies this JSON schema, given as its text. Check it with
    /// [`Engine::check_format`](super::Engine::check_format) before anything is paid for. A schema
    /// that refers to itself is refused, and so is one with a `pattern` that has look-around, word
    /// boundaries, back-references or flags, or comes to too much: what following it would cost
    /// has no bound. The bounds are the constants of `llama` that begin with `SCHEMA`.
    JsonSchema(String),
    /// Calls of tools, written as [`crate::calls`] says.
    Calls(CallFormat),
}

/// Which calls an answer may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallFormat {
    /// The JSON schema of one call, as its text: an object of `name` and `arguments`, in this
    /// order. The same bounds hold as for [`Format::JsonSchema`], and for this schema and the one
    /// of [`CallFormat::text`] together.
    pub schema: String,
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
    JsonSchema(String),
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
        let schema = || Format::JsonSchema("{}".to_owned());
        for format in [Format::Text, Format::JsonObject, schema()] {
            let text = CallText::from(format.clone());
            let calls = CallFormat { schema: "{}".to_owned(), text, several: true };
            assert!(calls.may_be_text());
            let calls = Format::Calls(calls);
            assert_eq!(calls.without_calls(), Some(format.clone()));
            assert_eq!(CallText::from(calls), CallText::from(format));
        }
        let text = CallText::None;
        let only = CallFormat { schema: "{}".to_owned(), text, several: false };
        assert!(!only.may_be_text());
        assert_eq!(Format::Calls(only).without_calls(), None);
    }
}
