//! How a template wants a conversation, found out by having it write small ones.
//!
//! Templates differ in what they refuse and, worse, in what they leave out without a word. What is
//! said in these small conversations are marks, and what counts is whether they are written.

use std::borrow::Cow;

use super::ChatTemplate;
use super::variables::{Asked, Given};
use crate::engine::{Call, Message, PrepareError};

/// What is said: private characters, which no template writes of itself.
const MARKS: [&str; 4] = ["\u{f0000}", "\u{f0001}", "\u{f0002}", "\u{f0003}"];

/// How a template wants a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ways {
    /// A message's content is a list of parts and not a text.
    pub(super) in_parts: bool,
    /// It writes what the system says.
    system: bool,
    /// It writes turns of one speaker that follow each other.
    repeats: bool,
    /// It writes tools, their calls and their results, and calls in the way that is read here.
    pub(super) calls: bool,
}

impl Ways {
    /// Those of `template`, which `may_call` if it has what a call is written with; or why it can
    /// write no conversation. The names that it asks for are noted.
    pub(super) fn of(
        template: &ChatTemplate,
        may_call: bool,
        asked: &Asked,
    ) -> Result<Self, String> {
        let [one, two, three, four] = MARKS;
        let question = [Message::new("user", two)];
        let system = [Message::new("system", one), Message::new("user", two)];
        let written = |messages: &[Message], tools: &[String], in_parts: bool, marks: &[&str]| {
            let text = template.write(messages, tools, in_parts, Given::noting(asked));
            text.is_ok_and(|text| marks.iter().all(|mark| text.contains(*mark)))
        };
        // Some write no user's question without a system before it.
        let forms = [
            (&question[..], false),
            (&question[..], true),
            (&system[..], false),
            (&system[..], true),
        ];
        let mut forms = forms.into_iter();
        let fitting = forms.find(|(messages, in_parts)| written(messages, &[], *in_parts, &[two]));
        let Some((_, in_parts)) = fitting else {
            return Err(match template.write(&question, &[], false, Given::default()) {
                Err(PrepareError::Template { reason }) => {
                    format!("it refuses a user's question: {reason}")
                }
                _ => "it leaves out what a user says".to_owned(),
            });
        };
        let writes = |messages: &[Message], tools: &[String], marks: &[&str]| {
            written(messages, tools, in_parts, marks)
        };
        let repeats = [Message::new("user", one), Message::new("user", two)];
        let arguments = format!(r#"{{"value": "{two}"}}"#);
        let call = Call { id: String::new(), name: "call".to_owned(), arguments };
        let called = Message { calls: vec![call], ..Message::new("assistant", "") };
        let called = [Message::new("user", one), called, Message::new("tool", three)];
        let parameters = r#"{"type": "object", "properties": {}}"#;
        let function =
            format!(r#"{{"name": "{four}", "description": "", "parameters": {parameters}}}"#);
        let tool = format!(r#"{{"type": "function", "function": {function}}}"#);
        Ok(Self {
            in_parts,
            system: writes(&system, &[], &[one, two]),
            repeats: writes(&repeats, &[], &[one, two]),
            calls: may_call && writes(&called, &[tool], &MARKS),
        })
    }

    /// The messages as the template takes them: where it writes no system's words, they are the
    /// user's; where it wants the roles to alternate, what one says in a row is one turn.
    pub(super) fn turns(self, messages: &[Message]) -> Cow<'_, [Message]> {
        if self.system && self.repeats {
            return Cow::Borrowed(messages);
        }
        let mut turns: Vec<Message> = Vec::with_capacity(messages.len());
        let mut after_system = false;
        for message in messages {
            let is_system = !self.system && message.role == "system";
            let role = if is_system { "user" } else { message.role.as_str() };
            let joins = (after_system || !self.repeats) && ["user", "assistant"].contains(&role);
            match turns.last_mut() {
                Some(last) if joins && last.role == role => join(last, message),
                _ => turns.push(Message { role: role.to_owned(), ..message.clone() }),
            }
            after_system = is_system;
        }
        Cow::Owned(turns)
    }
}

/// Adds to a turn. Pictures have a place in the text by now.
fn join(turn: &mut Message, more: &Message) {
    if !turn.content.is_empty() && !more.content.is_empty() {
        turn.content.push_str("\n\n");
    }
    turn.content.push_str(&more.content);
    turn.calls.extend(more.calls.iter().cloned());
}
