//! Calls of tools: how a model is told which there are, how it writes a call, and how a call is
//! read back out of its answer.
//!
//! There is one way to write a call, the one most open models were trained on:
//!
//! ```text
//! <tool_call>
//! {"name": "weather", "arguments": {"city": "Paris"}}
//! </tool_call>
//! ```
//!
//! A template that knows it is given the tools; for any other one they stand in the system message.

use std::fmt::Write as _;

use crate::engine::{Conversation, Message};

/// What a call begins with.
pub const CALL_BEGIN: &str = "<tool_call>";
/// What a call ends with.
pub const CALL_END: &str = "</tool_call>";
/// Calls in one answer at most.
pub const CALLS_MAX: usize = 16;
/// Bytes a call may take before its arguments begin; what is longer is text.
const HEAD_BYTES_MAX: usize = 512;

/// What is written after a call's arguments.
pub const REST: &str = "}\n</tool_call>";

/// What is written of a call of `name` before its arguments.
pub fn begun(name: &str) -> String {
    format!("{CALL_BEGIN}\n{{\"name\": \"{name}\", \"arguments\": ")
}

/// The conversation for a template that knows nothing of tools.
pub fn as_text(conversation: &Conversation) -> Conversation {
    let mut messages: Vec<Message> = Vec::with_capacity(conversation.messages.len() + 1);
    let mut tools = preamble(&conversation.tools);
    for message in &conversation.messages {
        let mut content = message.content.clone();
        let mut role = message.role.as_str();
        if role == "system" && !tools.is_empty() {
            content = format!("{content}\n\n{tools}");
            tools.clear();
        }
        for call in &message.calls {
            let separator = if content.is_empty() { "" } else { "\n" };
            let (begin, arguments) = (begun(&call.name), &call.arguments);
            let _ = write!(content, "{separator}{begin}{arguments}{REST}");
        }
        if role == "tool" {
            role = "user";
            content = format!("<tool_response>\n{content}\n</tool_response>");
        }
        match messages.last_mut() {
            // Many templates want the roles to alternate, and several results are one turn.
            Some(last) if message.role == "tool" && last.role == "user" => {
                last.content.push('\n');
                last.content.push_str(&content);
            }
            _ => {
                let name = message.name.clone().filter(|_| message.role != "tool");
                messages.push(Message { name, ..Message::new(role, content) });
            }
        }
    }
    if !tools.is_empty() {
        messages.insert(0, Message::new("system", tools));
    }
    Conversation { messages, tools: Vec::new(), variables: conversation.variables.clone() }
}

fn preamble(tools: &[String]) -> String {
    if tools.is_empty() {
        return String::new();
    }
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are \
         provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n\
         </tools>\n\nFor each function call, return a json object with function name and arguments \
         within {CALL_BEGIN}{CALL_END} XML tags:\n{CALL_BEGIN}\n{{\"name\": <function-name>, \
         \"arguments\": <args-json-object>}}\n{CALL_END}",
        tools.join("\n")
    )
}

/// What was read of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Text that is part of no call.
    Text(String),
    /// A call begins; calls are counted from 0.
    Call {
        /// Its place among the answer's calls.
        index: u32,
        /// The tool.
        name: String,
    },
    /// The arguments of a call go on. All of them together are one JSON object as text, unless the
    /// answer ends before.
    Arguments {
        /// The call.
        index: u32,
        /// The next part of the text.
        text: String,
    },
}

/// Reads an answer that may have calls, piece by piece, wherever the pieces are cut.
#[derive(Debug)]
pub struct CallReader {
    /// The tools that can be called; anything else is text.
    names: Vec<String>,
    /// What is not decided yet.
    held: String,
    state: State,
    calls: u32,
    /// Nothing was said since the last call, and white space there is nothing.
    after_call: bool,
    /// The answer has text.
    has_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// After [`CALL_BEGIN`], before the arguments.
    Head,
    Arguments(Json),
    /// After the arguments, before [`CALL_END`].
    Tail,
}

/// Where in a JSON value the reader is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Json {
    depth: u32,
    in_text: bool,
    escaped: bool,
}

impl CallReader {
    /// A reader of an answer's beginning. `names` are those of the tools.
    pub fn new(names: Vec<String>) -> Self {
        let (held, state) = (String::new(), State::Text);
        Self { names, held, state, calls: 0, after_call: false, has_text: false }
    }

    /// Calls that have begun.
    pub const fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether a call has begun whose arguments are not whole.
    pub const fn is_within_call(&self) -> bool {
        matches!(self.state, State::Head | State::Arguments(_))
    }

    /// Reads on.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// The answer ends here. A call that has not come to its arguments is none.
    pub fn finish(&mut self) -> Vec<Said> {
        let rest = std::mem::take(&mut self.held);
        if self.state != State::Text || rest.is_empty() {
            return Vec::new();
        }
        let word = rest.trim();
        // Where there is no text, this is a call that was cut.
        let is_cut = (self.after_call || !self.has_text) && CALL_BEGIN.starts_with(word);
        if is_cut && (self.after_call || !word.is_empty()) {
            return Vec::new();
        }
        vec![Said::Text(if self.after_call { rest.trim_start().to_owned() } else { rest })]
    }

    /// Whether there is more to read of what is held.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match self.state {
            State::Text => self.text(said),
            State::Head => self.head(said),
            State::Arguments(json) => self.arguments(json, said),
            State::Tail => match self.held.find(CALL_END) {
                Some(at) => {
                    self.held.drain(..at + CALL_END.len());
                    (self.state, self.after_call) = (State::Text, true);
                    true
                }
                None => {
                    // Nothing else is wanted here; an end tag may be beginning.
                    let kept = beginning_of(&self.held, CALL_END);
                    self.held.drain(..self.held.len() - kept);
                    false
                }
            },
        }
    }

    fn text(&mut self, said: &mut Vec<Said>) -> bool {
        let found = self.held.find(CALL_BEGIN);
        // White space before a call is none of the text.
        let until = match found {
            Some(at) => self.held[..at].trim_end().len(),
            None => {
                let kept = beginning_of(&self.held, CALL_BEGIN);
                self.held[..self.held.len() - kept].trim_end().len()
            }
        };
        if until > 0 {
            let text: String = self.held.drain(..until).collect();
            let text = if self.after_call { text.trim_start().to_owned() } else { text };
            (self.after_call, self.has_text) = (false, true);
            said.push(Said::Text(text));
        }
        if found.is_none() {
            return false;
        }
        let at = self.held.find(CALL_BEGIN).unwrap_or_default();
        self.held.drain(..at + CALL_BEGIN.len());
        self.state = State::Head;
        true
    }

    fn head(&mut self, said: &mut Vec<Said>) -> bool {
        let name = match head(&self.held) {
            Head::Whole { name, length } if self.names.contains(&name) => {
                self.held.drain(..length);
                name
            }
            Head::Beginning if self.held.len() <= HEAD_BYTES_MAX => return false,
            _ => {
                // It is no call, so it is text.
                said.push(Said::Text(CALL_BEGIN.to_owned()));
                (self.state, self.after_call) = (State::Text, false);
                return true;
            }
        };
        said.push(Said::Call { index: self.calls, name });
        self.calls += 1;
        self.state = State::Arguments(Json::default());
        true
    }

    fn arguments(&mut self, mut json: Json, said: &mut Vec<Said>) -> bool {
        let end = self.held.char_indices().find(|(_, c)| json.ends_with(*c));
        let length = end.map_or(self.held.len(), |(at, c)| at + c.len_utf8());
        let text: String = self.held.drain(..length).collect();
        if !text.is_empty() {
            said.push(Said::Arguments { index: self.calls.saturating_sub(1), text });
        }
        self.state = if end.is_some() { State::Tail } else { State::Arguments(json) };
        end.is_some()
    }
}

impl Json {
    /// Goes on by a character; whether the value ends with it.
    fn ends_with(&mut self, c: char) -> bool {
        if self.in_text {
            let closes = c == '"' && !self.escaped;
            self.escaped = c == '\\' && !self.escaped;
            self.in_text = !closes;
            return false;
        }
        match c {
            '"' => self.in_text = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// What the text after [`CALL_BEGIN`] is.
enum Head {
    /// All before the arguments, which begin at `length`.
    Whole { name: String, length: usize },
    /// It may become one.
    Beginning,
    /// Something else.
    Other,
}

fn head(text: &str) -> Head {
    let mut rest = text;
    for part in ["{", "\"name\"", ":", "\""] {
        match after(rest, part) {
            Ok(after) => rest = after,
            Err(head) => return head,
        }
    }
    let Some((name, after_name)) = rest.split_once('"') else {
        return if rest.contains('\\') { Head::Other } else { Head::Beginning };
    };
    rest = after_name;
    for part in [",", "\"arguments\"", ":"] {
        match after(rest, part) {
            Ok(after) => rest = after,
            Err(head) => return head,
        }
    }
    rest = rest.trim_start();
    match rest.chars().next() {
        None => Head::Beginning,
        Some('{') => Head::Whole { name: name.to_owned(), length: text.len() - rest.len() },
        Some(_) => Head::Other,
    }
}

/// What comes after `part` and white space before it.
fn after<'t>(text: &'t str, part: &str) -> Result<&'t str, Head> {
    let text = text.trim_start();
    match text.strip_prefix(part) {
        Some(rest) => Ok(rest),
        None if part.starts_with(text) => Err(Head::Beginning),
        None => Err(Head::Other),
    }
}

/// Bytes at the end of `text` that `whole` may begin with.
fn beginning_of(text: &str, whole: &str) -> usize {
    let is_it =
        |length: &usize| text.get(text.len() - length..).is_some_and(|end| whole.starts_with(end));
    (1..whole.len().min(text.len() + 1)).rev().find(is_it).unwrap_or(0)
}

#[cfg(test)]
mod tests;
