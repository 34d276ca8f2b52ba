//! What a server tells of its answer, as the text of the model's own answer would be: calls of
//! tools become text again, each one when it is whole.
//!
//! A call is handed over only when its tool is one that was offered and its arguments are a JSON
//! object, so that nobody pays for one that cannot be made.

use serde_json::{Map, Value, json};
use tirami_infer::calls::{self, CALLS_MAX, CallReader, Said};
use tirami_infer::engine::{CallFormat, Format};
use tirami_sdk::upstream::{UpstreamCallPart, UpstreamPiece};

/// Bytes the arguments of one call may have.
const ARGUMENTS_BYTES_MAX: usize = 64 * 1_024;
/// Bytes of text that may come while nothing of it is certain: white space, or what may become a
/// call.
const UNCERTAIN_BYTES_MAX: usize = 4_096;

/// An answer that comes piece by piece.
#[derive(Debug)]
pub(super) struct Wording {
    /// Which calls there may be; none where the answer is text only.
    allowed: Option<Allowed>,
    /// The call that is not whole yet.
    open: Option<Open>,
    /// Calls that are whole.
    calls: usize,
    has_text: bool,
    /// Bytes of text since something of it was certain.
    uncertain: usize,
}

#[derive(Debug)]
struct Allowed {
    names: Vec<String>,
    may_be_text: bool,
    calls_max: usize,
    /// Some servers leave the calls in the text.
    reader: CallReader,
}

/// A call that is not whole yet.
#[derive(Debug)]
struct Open {
    /// As the server numbers and names it; none for one that stands in the text.
    of_server: Option<(u32, String)>,
    name: String,
    arguments: String,
}

impl Wording {
    pub(super) fn new(format: &Format) -> Self {
        let allowed = match format {
            Format::Calls(calls) => {
                let names = names(calls);
                Some(Allowed {
                    reader: CallReader::new(names.clone()),
                    names,
                    may_be_text: calls.may_be_text(),
                    calls_max: if calls.several { CALLS_MAX } else { 1 },
                })
            }
            _ => None,
        };
        Self { allowed, open: None, calls: 0, has_text: false, uncertain: 0 }
    }

    /// The text that this piece makes certain.
    ///
    /// # Errors
    ///
    /// A sentence for the node's owner when it is not what was asked for.
    pub(super) fn push(&mut self, piece: UpstreamPiece) -> Result<String, String> {
        let Some(allowed) = &mut self.allowed else {
            return match piece.calls.is_empty() {
                true => Ok(piece.text),
                false => Err("the server called a tool, and none was offered".to_owned()),
            };
        };
        let mut said = String::new();
        let read = allowed.reader.push(&piece.text);
        self.uncertain = if read.is_empty() { self.uncertain + piece.text.len() } else { 0 };
        if self.uncertain > UNCERTAIN_BYTES_MAX {
            return Err("the server sends white space and no text".to_owned());
        }
        for one in read {
            self.read(one, &mut said)?;
        }
        for part in piece.calls {
            if self.is_all() {
                break;
            }
            self.part(part, &mut said)?;
        }
        Ok(said)
    }

    /// The text that the answer's end makes certain; one that `is_cut` may end within a call.
    ///
    /// # Errors
    ///
    /// A sentence for the node's owner when it is not what was asked for.
    pub(super) fn end(&mut self, is_cut: bool) -> Result<String, String> {
        let Some(allowed) = &mut self.allowed else { return Ok(String::new()) };
        let is_owed = !allowed.may_be_text;
        let mut said = String::new();
        for one in allowed.reader.finish() {
            self.read(one, &mut said)?;
        }
        let half = |open: &mut Open| is_cut && begins_an_object(&open.arguments);
        if let Some(open) = self.open.take_if(half) {
            said += &(self.begun(&open.name) + &open.arguments);
            return Ok(said);
        }
        self.close(&mut said)?;
        if is_owed && self.calls == 0 && !is_cut {
            return Err("the server called no tool, though one had to be called".to_owned());
        }
        Ok(said)
    }

    /// Bytes of the call that is not whole yet: it is handed over later, and makes tokens too.
    pub(super) fn open_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.arguments.len())
    }

    /// Whether all calls that there may be are there.
    pub(super) fn is_all(&self) -> bool {
        self.allowed.as_ref().is_some_and(|allowed| self.calls >= allowed.calls_max)
    }

    /// Takes what stands in the server's text.
    fn read(&mut self, one: Said, said: &mut String) -> Result<(), String> {
        match one {
            _ if self.is_all() => Ok(()),
            Said::Text(text) => self.text(&text, said),
            Said::Call { name, .. } => {
                self.close(said)?;
                self.open = Some(Open { of_server: None, name, arguments: String::new() });
                Ok(())
            }
            Said::Arguments { text, .. } => self.goes_on(&text),
        }
    }

    fn text(&mut self, text: &str, said: &mut String) -> Result<(), String> {
        let may_be_text = self.allowed.as_ref().is_none_or(|allowed| allowed.may_be_text);
        // Some servers send line breaks around calls.
        if text.trim().is_empty() && (!may_be_text || self.open.is_some()) {
            return Ok(());
        }
        if !may_be_text {
            return Err("the server wrote text where only calls were asked for".to_owned());
        }
        self.close(said)?;
        self.has_text = true;
        said.push_str(text);
        Ok(())
    }

    fn part(&mut self, part: UpstreamCallPart, said: &mut String) -> Result<(), String> {
        if self.open.as_ref().is_none_or(|open| open.is_before(&part)) {
            if part.name.is_empty() {
                return Err("the server went on with a call that is over".to_owned());
            }
            let names = self.allowed.as_ref().map(|allowed| &allowed.names);
            if names.is_none_or(|names| !names.contains(&part.name)) {
                return Err("the server called a tool that may not be called".to_owned());
            }
            self.close(said)?;
            if self.is_all() {
                return Ok(());
            }
            let of_server = Some((part.index, part.id));
            self.open = Some(Open { of_server, name: part.name, arguments: String::new() });
        }
        self.goes_on(&part.arguments)
    }

    fn goes_on(&mut self, arguments: &str) -> Result<(), String> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.arguments.push_str(arguments);
        match open.arguments.len() > ARGUMENTS_BYTES_MAX {
            true => Err(format!(
                "the arguments of the server's call have more than {ARGUMENTS_BYTES_MAX} bytes"
            )),
            false => Ok(()),
        }
    }

    /// Writes the open call, if there is one: another one begins, or text, or the answer is over.
    fn close(&mut self, said: &mut String) -> Result<(), String> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let arguments = match open.arguments.trim() {
            "" => "{}",
            arguments => arguments,
        };
        if !is_object(arguments) {
            return Err("the arguments of the server's call are no JSON object".to_owned());
        }
        said.push_str(&self.begun(&open.name));
        said.push_str(arguments);
        said.push_str(calls::REST);
        self.calls += 1;
        Ok(())
    }

    fn begun(&self, name: &str) -> String {
        let separator = if self.has_text || self.calls > 0 { "\n" } else { "" };
        separator.to_owned() + &calls::begun(name)
    }
}

impl Open {
    /// Whether `part` belongs to a call after this one. Some servers number no calls, some name
    /// none, and some repeat the tool's name with every part.
    fn is_before(&self, part: &UpstreamCallPart) -> bool {
        let Some((index, id)) = &self.of_server else { return true };
        if part.name.is_empty() {
            return *index != part.index;
        }
        let is_other_id = !id.is_empty() && !part.id.is_empty() && *id != part.id;
        let is_again = is_object(&self.arguments) && !part.arguments.trim().is_empty();
        *index != part.index || is_other_id || self.name != part.name || is_again
    }
}

fn is_object(text: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(text).is_ok()
}

/// Whether `text` is the beginning of a JSON object and not the whole of one.
fn begins_an_object(text: &str) -> bool {
    let is_cut = |error: serde_json::Error| error.is_eof();
    text.trim_start().starts_with('{')
        && serde_json::from_str::<Map<String, Value>>(text).is_err_and(is_cut)
}

/// The tools that a call may name.
fn names(calls: &CallFormat) -> Vec<String> {
    calls.tools.iter().map(|tool| tool.name.clone()).collect()
}

/// Which of the `offered` tools have to be called, as OpenAI has it.
pub(super) fn choice(calls: &CallFormat, offered: usize) -> Value {
    if calls.may_be_text() {
        return json!("auto");
    }
    match names(calls).as_slice() {
        [name] if offered > 1 => json!({"type": "function", "function": {"name": name}}),
        _ => json!("required"),
    }
}

#[cfg(test)]
mod tests {
    use tirami_infer::engine::{CallSchema, CallText, JsonSchema};

    use super::*;

    fn format(names: &[&str], may_be_text: bool, several: bool) -> CallFormat {
        let one = |name: &&str| CallSchema {
            name: (*name).to_owned(),
            arguments: JsonSchema::new("{}", false),
        };
        let text = if may_be_text { CallText::Free } else { CallText::None };
        CallFormat { tools: names.iter().map(one).collect(), text, several }
    }

    fn part(index: u32, name: &str, arguments: &str) -> UpstreamPiece {
        let (name, arguments) = (name.to_owned(), arguments.to_owned());
        let calls = vec![UpstreamCallPart { index, name, arguments, ..Default::default() }];
        UpstreamPiece { calls, ..UpstreamPiece::default() }
    }

    fn named(id: &str, arguments: &str) -> UpstreamPiece {
        let (id, arguments) = (id.to_owned(), arguments.to_owned());
        let calls = vec![UpstreamCallPart { index: 0, id, name: "f".to_owned(), arguments }];
        UpstreamPiece { calls, ..UpstreamPiece::default() }
    }

    fn text(text: &str) -> UpstreamPiece {
        UpstreamPiece { text: text.to_owned(), ..UpstreamPiece::default() }
    }

    fn all(format: CallFormat, pieces: Vec<UpstreamPiece>, is_cut: bool) -> Result<String, String> {
        let mut told = Wording::new(&Format::Calls(format));
        let mut said = String::new();
        for piece in pieces {
            said += &told.push(piece)?;
        }
        Ok(said + &told.end(is_cut)?)
    }

    #[test]
    fn calls_of_different_servers_become_the_text_of_the_model() {
        let call = |name: &str, arguments: &str| {
            format!(
                "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>"
            )
        };
        let auto = || format(&["f", "g"], true, true);
        for (pieces, expected) in [
            (vec![text("Well.")], "Well.".to_owned()),
            (
                vec![part(0, "f", ""), part(0, "", "{\"a\""), part(0, "", ": 1}")],
                call("f", "{\"a\": 1}"),
            ),
            (
                vec![text("Well."), part(0, "f", "{}"), part(1, "g", ""), text("\n")],
                format!("Well.\n{}\n{}", call("f", "{}"), call("g", "{}")),
            ),
            // Another call, by its id or by its tool; and no other one.
            (
                vec![named("a", "{}"), named("b", "{}")],
                [call("f", "{}"), call("f", "{}")].join("\n"),
            ),
            (
                vec![part(0, "f", ""), part(0, "g", "{}")],
                [call("f", "{}"), call("g", "{}")].join("\n"),
            ),
            (vec![named("a", "{}"), named("a", "")], call("f", "{}")),
            (vec![part(0, "f", "{}"), part(0, "f", "\n")], call("f", "{}")),
            // Calls that the server left in its text.
            (
                vec![
                    text("Well. <tool_"),
                    text("call>{\"name\":\"f\",\"arguments\":{\"a\":"),
                    text("1}}</tool_call>"),
                    part(0, "g", "{}"),
                ],
                format!("Well.\n{}\n{}", call("f", "{\"a\":1}"), call("g", "{}")),
            ),
            // No index, and all at once; the name again with every part.
            (
                vec![part(0, "f", "{}"), part(0, "f", "{}")],
                [call("f", "{}"), call("f", "{}")].join("\n"),
            ),
            (vec![part(0, "f", "{"), part(0, "f", "}")], call("f", "{}")),
        ] {
            assert_eq!(all(auto(), pieces, false), Ok(expected));
        }
        let one =
            all(format(&["f"], false, false), vec![part(0, "f", "{}"), part(1, "f", "{")], false);
        assert_eq!(one, Ok(call("f", "{}")));
        assert_eq!(all(auto(), vec![part(0, "f", "{}")], true), Ok(call("f", "{}")));
        let after = all(auto(), vec![text("Well.\n\n"), part(0, "f", "{\"a\"")], true).unwrap();
        assert_eq!(after, "Well.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"");
        let cut = all(auto(), vec![part(0, "f", "{\"a\": [1")], true);
        let begun = call("f", "{\"a\": [1");
        assert_eq!(cut.as_ref(), Ok(&begun.strip_suffix("}\n</tool_call>").unwrap().to_owned()));
    }

    #[test]
    fn what_is_no_call_that_can_be_made_is_refused() {
        let must = || format(&["f"], false, true);
        let long = "x".repeat(ARGUMENTS_BYTES_MAX);
        for (pieces, reason) in [
            (vec![], "called no tool"),
            (vec![text(" \n")], "called no tool"),
            (vec![text("Well.")], "text where only calls"),
            (vec![part(0, "g", "{}")], "may not be called"),
            (vec![part(0, "", "{}")], "a call that is over"),
            (vec![part(0, "f", "{}"), part(1, "f", "{}"), part(0, "", " ")], "a call that is over"),
            (vec![part(0, "f", "[1]")], "no JSON object"),
            (
                vec![text("<tool_call>{\"name\":\"f\",\"arguments\":{bad}}</tool_call>")],
                "no JSON object",
            ),
            (vec![part(0, "f", "{\"a\": ")], "no JSON object"),
            (vec![part(0, "f", "\""), part(0, "", &long)], "more than"),
        ] {
            let told = all(must(), pieces, false).unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
        for cut in ["{bad}", "[1", "1"] {
            let told = all(must(), vec![part(0, "f", cut)], true).unwrap_err();
            assert!(told.contains("no JSON object"), "{cut}: {told}");
        }
        let blank = text(&"\n".repeat(1_000));
        let told = all(format(&["f"], true, true), vec![blank; 5], false).unwrap_err();
        assert!(told.contains("white space"), "{told}");
        let mut plain = Wording::new(&Format::Text);
        assert!(plain.push(part(0, "f", "{}")).unwrap_err().contains("none was offered"));
    }

    #[test]
    fn which_tools_have_to_be_called_is_passed_on() {
        assert_eq!(choice(&format(&["f", "g"], true, true), 2), json!("auto"));
        assert_eq!(choice(&format(&["f", "g"], false, true), 2), json!("required"));
        assert_eq!(choice(&format(&["f"], false, true), 1), json!("required"));
        let named = json!({"type": "function", "function": {"name": "f"}});
        assert_eq!(choice(&format(&["f"], false, true), 2), named);
    }
}
