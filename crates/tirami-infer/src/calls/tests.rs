//! Ten thousand answers, cut anywhere, come out as they went in.

use serde_json::{Value, json};

use super::*;
use crate::engine::Call;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % count as u64).unwrap()
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    fn text(&mut self) -> String {
        let parts = [
            "Hello",
            " ",
            "\n",
            "<",
            "<tool",
            "</tool_call>",
            "{\"name\": \"f\"}",
            "é",
            "😀",
            "\"",
            "\\",
            "}",
            "]",
            "<tool_cal ",
            "word ",
        ];
        (0..self.below(6)).map(|_| self.of(&parts)).collect()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 4 } else { 6 }) {
            0 => Value::from(self.text()),
            1 => Value::from(self.below(1_000)),
            2 => Value::Bool(self.below(2) == 0),
            3 => Value::Null,
            4 => (0..self.below(3)).map(|_| self.value(depth - 1)).collect(),
            _ => self.object(depth - 1),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        (0..self.below(4)).map(|i| (format!("{i}{}", self.text()), self.value(depth))).collect()
    }
}

const NAMES: [&str; 3] = ["weather", "get-time", "f"];

/// What a client makes of the pieces: the text, and each call's name and arguments. Panics at a
/// piece that is malformed.
fn put_together(said: &[Said]) -> (String, Vec<(String, String)>) {
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for one in said {
        match one {
            Said::Text(more) => {
                assert!(!more.is_empty());
                text.push_str(more);
            }
            Said::Call { index, name } => {
                assert_eq!(*index as usize, calls.len(), "calls are counted from 0");
                calls.push((name.clone(), String::new()));
            }
            Said::Arguments { index, text } => {
                assert!(!text.is_empty());
                assert_eq!(*index as usize + 1, calls.len(), "arguments follow their call");
                calls.last_mut().unwrap().1.push_str(text);
            }
        }
    }
    (text, calls)
}

fn read(answer: &str, dice: &mut Dice) -> (Vec<Said>, Vec<Said>) {
    let names = || NAMES.map(str::to_owned).to_vec();
    let (mut whole, mut cut) = (CallReader::new(names()), CallReader::new(names()));
    let mut at_once = whole.push(answer);
    at_once.extend(whole.finish());
    let (mut in_pieces, mut rest) = (Vec::new(), answer);
    while !rest.is_empty() {
        let mut end = (1 + dice.below(7)).min(rest.len());
        while !rest.is_char_boundary(end) {
            end += 1;
        }
        in_pieces.extend(cut.push(&rest[..end]));
        rest = &rest[end..];
    }
    in_pieces.extend(cut.finish());
    assert_eq!(whole.calls(), cut.calls());
    (at_once, in_pieces)
}

#[test]
fn ten_thousand_answers_give_no_malformed_piece() {
    let mut dice = Dice(0x5eed);
    for round in 0..10_000 {
        let (mut answer, mut calls) = (dice.text(), Vec::new());
        let before = answer.clone();
        let space = |dice: &mut Dice| dice.of(&["", " ", "\n", "\n  "]).to_owned();
        for _ in 0..dice.below(4) {
            let (name, arguments) = (dice.of(&NAMES), dice.object(3));
            let arguments = match dice.below(2) {
                0 => arguments.to_string(),
                _ => serde_json::to_string_pretty(&arguments).unwrap(),
            };
            let spaces: Vec<String> = (0..6).map(|_| space(&mut dice)).collect();
            let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|i: usize| &spaces[i]);
            answer += &format!(
                "{a}{CALL_BEGIN}{b}{{{c}\"name\":{d}\"{name}\",{e}\"arguments\":{f}{arguments}{a}}}\
                 {b}{CALL_END}"
            );
            calls.push((name.to_owned(), arguments));
        }
        let (at_once, in_pieces) = read(&answer, &mut dice);
        let word = before.trim_start();
        let is_cut = !word.is_empty() && CALL_BEGIN.starts_with(word);
        let expected = match (calls.is_empty(), is_cut) {
            (true, true) => String::new(),
            (true, false) => before,
            (false, _) => before.trim_end().to_owned(),
        };
        for said in [&at_once, &in_pieces] {
            let (text, read) = put_together(said);
            assert_eq!((&text, &read), (&expected, &calls), "{round}: {answer:?}");
            for (_, arguments) in read {
                assert!(serde_json::from_str::<Value>(&arguments).unwrap().is_object());
            }
        }
        // Cut off anywhere, what was read is a beginning of it.
        let mut end = dice.below(answer.len() + 1);
        while !answer.is_char_boundary(end) {
            end -= 1;
        }
        for said in <[_; 2]>::from(read(&answer[..end], &mut dice)) {
            let (_, read) = put_together(&said);
            for ((name, arguments), (whole_name, whole)) in read.iter().zip(&calls) {
                assert!(name == whole_name && whole.starts_with(arguments.as_str()), "{round}");
            }
            assert!(read.len() <= calls.len());
        }
    }
}

#[test]
fn what_is_no_call_is_text() {
    for answer in [
        "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": 7}</tool_call>",
        "a < b <tool",
    ] {
        let (at_once, in_pieces) = read(answer, &mut Dice(7));
        for said in [at_once, in_pieces] {
            let (text, calls) = put_together(&said);
            assert_eq!((text.as_str(), calls.len()), (answer, 0));
        }
    }
    let long = format!("{CALL_BEGIN}{{\"name\": \"{}", "x".repeat(HEAD_BYTES_MAX));
    let (text, calls) = put_together(&read(&long, &mut Dice(7)).1);
    assert_eq!((text, calls.len()), (long, 0));
}

#[test]
fn a_call_that_was_cut_before_its_arguments_is_nothing() {
    let one = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    for (answer, said) in [
        ("<tool_ca".to_owned(), 0),
        ("<tool_call>\n{\"name\": \"f\",".to_owned(), 0),
        (format!("{one}\n<tool_call"), 1),
        (format!("{one}\n"), 1),
    ] {
        let (text, calls) = put_together(&read(&answer, &mut Dice(7)).1);
        assert_eq!((text.as_str(), calls.len()), ("", said), "{answer}");
    }
}

#[test]
fn a_template_without_tools_gets_them_in_the_system_message() {
    let arguments = json!({"a": 1}).to_string();
    let call = Call { id: "1".to_owned(), name: "f".to_owned(), arguments };
    let asked = Message { calls: vec![call], ..Message::new("assistant", "") };
    let messages = vec![
        Message::new("user", "Hi"),
        asked,
        Message::new("tool", "42"),
        Message::new("tool", "43"),
    ];
    let tools = vec!["{\"x\": 1}".to_owned()];
    let conversation = Conversation { messages, tools, ..Conversation::default() };
    let text = as_text(&conversation);
    let roles: Vec<_> = text.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert!(text.messages[0].content.contains("<tools>\n{\"x\": 1}\n</tools>"));
    let called = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>";
    assert_eq!(text.messages[2].content, called);
    let results = "<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>";
    assert_eq!(text.messages[3].content, results);
    let system = Message::new("system", "Be brief.");
    let messages = [vec![system], conversation.messages].concat();
    let text = as_text(&Conversation { messages, ..conversation });
    assert!(text.messages[0].content.starts_with("Be brief.\n\n# Tools"));
    assert_eq!(text.messages.len(), 4);
}
