//! The text of an answer: whole characters only, and nothing of a stop text.
//!
//! What is delivered depends on the bytes alone and not on how tokens divide them.

/// Turns a sequence's bytes into text that is certain.
#[derive(Debug)]
pub struct AnswerText {
    stops: Vec<String>,
    /// Bytes of a character that is not complete.
    incomplete: Vec<u8>,
    /// Text that may be the beginning of a stop text.
    withheld: String,
    /// The stop text that was met, by its place.
    met: Option<u32>,
}

/// What one token's bytes made certain.
#[derive(Debug, PartialEq, Eq)]
pub struct Certain {
    /// The text that no stop text can take back.
    pub text: String,
    /// A stop text was met; the answer ends with `text`.
    pub stopped: bool,
}

impl AnswerText {
    /// An answer that ends before the first of `stops`; empty ones end nothing.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.to_vec();
        Self { stops, incomplete: Vec::new(), withheld: String::new(), met: None }
    }

    /// Takes the bytes of one token.
    pub fn push(&mut self, bytes: &[u8]) -> Certain {
        self.incomplete.extend_from_slice(bytes);
        let text = take_characters(&mut self.incomplete);
        self.withheld.push_str(&text);
        if let Some((start, place)) = self.first_stop() {
            self.met = Some(place);
            self.withheld.truncate(start);
            self.incomplete.clear();
            return Certain { text: std::mem::take(&mut self.withheld), stopped: true };
        }
        let kept = self.beginning_of_a_stop();
        let rest = self.withheld.split_off(self.withheld.len() - kept);
        Certain { text: std::mem::replace(&mut self.withheld, rest), stopped: false }
    }

    /// Which stop text was met, by its place among those given.
    pub fn met(&self) -> Option<u32> {
        self.met
    }

    /// The text that was withheld, when no more tokens come.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.withheld);
        if !self.incomplete.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.incomplete.clear();
        }
        text
    }

    /// Where the stop text begins that is complete first, and its place.
    fn first_stop(&self) -> Option<(usize, u32)> {
        let matches = self.stops.iter().zip(0..).filter(|(stop, _)| !stop.is_empty());
        let matches = matches.filter_map(|(stop, place)| {
            self.withheld.find(stop.as_str()).map(|start| (start + stop.len(), start, place))
        });
        matches.min().map(|(_, start, place)| (start, place))
    }

    /// Length of the longest end of the text that begins a stop text.
    fn beginning_of_a_stop(&self) -> usize {
        let longest = |stop: &String| {
            (1..stop.len().min(self.withheld.len() + 1))
                .rev()
                .filter(|length| stop.is_char_boundary(*length))
                .find(|length| self.withheld.ends_with(&stop[..*length]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

/// Takes the complete characters off the front; bytes that are no text become U+FFFD.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let at_end = used + chunk.invalid().len() == bytes.len();
        if chunk.invalid().is_empty() || (at_end && may_continue(chunk.invalid())) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        used += chunk.invalid().len();
    }
    bytes.drain(..used);
    text
}

/// Whether more bytes could make these a character.
fn may_continue(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stop_text_that_was_met_is_known_by_its_place() {
        for (stops, text, met) in [
            (&["", "END", "ND"][..], "xEND", Some(1)),
            (&["x\n", "ND"], "xEND", Some(1)),
            (&["END"], "xEN", None),
        ] {
            let stops = stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>();
            let mut answer = AnswerText::new(&stops);
            answer.push(text.as_bytes());
            assert_eq!(answer.met(), met, "{stops:?}");
        }
    }

    fn run(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool, String) {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>();
        let mut answer = AnswerText::new(&stops);
        let mut texts = Vec::new();
        for token in tokens {
            let certain = answer.push(token);
            texts.push(certain.text);
            if certain.stopped {
                return (texts, true, answer.finish());
            }
        }
        (texts, false, answer.finish())
    }

    #[test]
    fn stop_texts_are_withheld_across_tokens() {
        type Case<'a> = (&'a [&'a str], &'a [&'a [u8]], &'a [&'a str], bool, &'a str);
        let cases: &[Case<'_>] = &[
            (&[], &[b"a", b"b"], &["a", "b"], false, ""),
            (&[""], &[b"a"], &["a"], false, ""),
            (&["END"], &[b"x E", b"N", b"D y"], &["x ", "", ""], true, ""),
            (&["END"], &[b"x E", b"N", b"O"], &["x ", "", "ENO"], false, ""),
            (&["END"], &[b"x EN"], &["x "], false, "EN"),
            (&["END"], &[b"EEN", b"D"], &["E", ""], true, ""),
            (&["\n\n"], &[b"a\n", b"b\n", b"\nc"], &["a", "\nb", ""], true, ""),
            (&["abcd", "bc"], &[b"xabcd"], &["xa"], true, ""),
            (&["abcd", "bc"], &[b"xa", b"b", b"c"], &["x", "", "a"], true, ""),
            (&["aab"], &[b"a", b"a", b"a", b"b"], &["", "", "a", ""], true, ""),
            (&["é!"], &[b"c\xc3", b"\xa9", b"!"], &["c", "", ""], true, ""),
            (&["é!"], &[b"c\xc3", b"\xa9", b"?"], &["c", "", "é?"], false, ""),
        ];
        for (stops, tokens, texts, stopped, rest) in cases {
            let expected = texts.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(
                run(stops, tokens),
                (expected, *stopped, (*rest).to_owned()),
                "{stops:?} {tokens:?}"
            );
        }
    }

    #[test]
    fn characters_are_delivered_whole() {
        let smile = "😀".as_bytes();
        assert_eq!(
            run(&[], &[&smile[..1], &smile[1..3], &smile[3..], b"!"]).0,
            ["", "", "😀", "!"]
        );
        assert_eq!(run(&[], &[b"a\xff", b"b"]).0, ["a\u{fffd}", "b"]);
        assert_eq!(run(&[], &[b"\xf0\x9f", b"b"]).0, ["", "\u{fffd}b"]);
        assert_eq!(run(&[], &[b"\xf0\x9f"]), (vec![String::new()], false, "\u{fffd}".to_owned()));
    }

    #[test]
    fn the_division_into_tokens_changes_nothing() {
        let text = "Grüße, xENxENDy and 日本END".as_bytes();
        let whole = run(&["END", "NxE!"], &[text]);
        for size in 1..text.len() {
            let pieces = text.chunks(size).collect::<Vec<_>>();
            let (texts, stopped, rest) = run(&["END", "NxE!"], &pieces);
            assert_eq!(
                (texts.concat(), stopped, rest),
                (whole.0.concat(), whole.1, whole.2.clone())
            );
        }
        assert_eq!(whole.0.concat(), "Grüße, xENx");
    }
}
