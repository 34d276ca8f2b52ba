//! Patterns against texts, and against whoever wants them to be large.

use super::*;

const ANY_LENGTH: Lengths = (0, None);

fn automaton(pattern: &str, lengths: Lengths) -> Automaton {
    Automaton::new(&Nodes::read(pattern).unwrap(), lengths).unwrap()
}

/// Whether the automaton takes the text, which leads one way from each state or none.
fn takes(automaton: &Automaton, text: &str) -> bool {
    let mut at = &automaton.states[0];
    for c in text.chars() {
        let letter = ESCAPED.iter().find(|(escaped, _)| *escaped == c).map(|(_, letter)| letter);
        let leads = |way: &Way| match letter {
            Some(letter) => way.escaped.contains(letter),
            None => way.plain.iter().any(|(from, to)| (*from..=*to).contains(&u32::from(c))),
        };
        let ways: Vec<_> = at.ways.iter().filter(|(way, _)| leads(way)).collect();
        assert!(ways.len() <= 1, "{c:?} leads {} ways", ways.len());
        match ways.first() {
            Some((_, to)) => at = &automaton.states[*to],
            None => return false,
        }
    }
    at.is_end
}

#[test]
fn a_text_is_taken_where_its_pattern_is_met() {
    for (pattern, taken, others) in [
        ("^abc$", &["abc"][..], &["", "ab", "abcd", "xabc"][..]),
        ("abc", &["abc", "xxabcabc", "ababc"], &["", "ab", "abxc"]),
        ("^a", &["a", "ab"], &["", "ba"]),
        ("a$", &["a", "ba", "aa"], &["", "ab"]),
        ("", &["", "a"], &[]),
        ("^$", &[""], &["a"]),
        ("^(red|green|)$", &["red", "green", ""], &["re", "redgreen"]),
        ("^a|b$", &["a", "ax", "xb", "b"], &["xa", "bx", ""]),
        ("^(a|b)*abb$", &["abb", "ababb", "bbabb"], &["ab", "abba"]),
        ("^(a*)*$", &["", "aaaa"], &["b", "aab"]),
        ("^(?:a?b+){2,3}$", &["bb", "abab", "bababb"], &["b", "a", "ababa"]),
        ("^x{3}$", &["xxx"], &["xx", "xxxx"]),
        ("^x{2,}?y??$", &["xx", "xxxy"], &["x", "xxyy"]),
        ("^x{0}y$", &["y"], &["xy"]),
        (r"^\d{2}-\w\S\s$", &["12-_é "], &["١٢-_é ", "12-é_ ", "12-__x"]),
        (r"^[^\W\d]+$", &["a_Z"], &["a1", "é"]),
        ("^.$", &["é", "\t", "\"", "\\", "😀"], &["\n", "\r", "\u{2028}", "ab"]),
        (r#"^[\s\S]["\\\]\-^]$"#, &["\n\"", "x\\", "\r]", "x-", "x^"], &["xx", "x"]),
        (r"^\u0041\x42\/\.$", &["AB/."], &["AB/x"]),
        (r"^\p{Lu}\P{L}$", &["É1"], &["é1", "ÉÉ"]),
        (r"^(?<year>\d{4})$", &["2024"], &["24"]),
        ("^[\u{4e00}-\u{9fff}]+$", &["中文"], &["a"]),
        (
            r"^[\w.+-]+@[\w-]+(\.[\w-]+)+$",
            &["a.b+c@ex-ample.co.uk"],
            &["a@b", "@b.c", "a@.c", "a@b.c."],
        ),
    ] {
        let automaton = automaton(pattern, ANY_LENGTH);
        for (texts, is_taken) in [(taken, true), (others, false)] {
            for text in texts {
                assert_eq!(takes(&automaton, text), is_taken, "{pattern}: {text:?}");
            }
        }
    }
}

#[test]
fn the_bounds_of_a_texts_length_hold_beside_its_pattern() {
    for (pattern, lengths, taken, others) in [
        ("^a*$", (2, Some(3)), &["aa", "aaa"][..], &["a", "aaaa", "ab"][..]),
        ("^a*$", (2, None), &["aa", "aaaaa"], &["", "a"]),
        ("b", (0, Some(2)), &["b", "ab", "ba"], &["aab", "aa"]),
        ("^é{1,9}$", (3, Some(3)), &["ééé"], &["éé", "éééé"]),
    ] {
        let automaton = automaton(pattern, lengths);
        for (texts, is_taken) in [(taken, true), (others, false)] {
            for text in texts {
                assert_eq!(takes(&automaton, text), is_taken, "{pattern} {lengths:?}: {text:?}");
            }
        }
    }
}

#[test]
fn what_has_no_small_automaton_is_refused_with_a_reason() {
    let long = "a".repeat(SCHEMA_PATTERN_SIZE_MAX);
    let deep = format!("{}a{}", "(".repeat(200), ")".repeat(200));
    let doubling = "^(a|b)*a(a|b){12}$";
    for (pattern, lengths, reason) in [
        ("(a|a)*{1000}", ANY_LENGTH, "parts or ranges"),
        ("^((a?){999}){999}$", ANY_LENGTH, "parts or ranges"),
        ("^(a*){999}$", ANY_LENGTH, "parts or ranges"),
        ("(){4000000000}", ANY_LENGTH, "parts or ranges"),
        (&*long, ANY_LENGTH, "parts or ranges"),
        (doubling, ANY_LENGTH, "parts or ranges"),
        (r"^\p{L}{1,9}$", ANY_LENGTH, "parts or ranges"),
        ("^[a-z]*$", (0, Some(SCHEMA_PATTERN_SIZE_MAX)), "parts or ranges"),
        (&*deep, ANY_LENGTH, "nest"),
        ("(", ANY_LENGTH, "unclosed group"),
        ("*", ANY_LENGTH, "repetition operator"),
        ("^a(?=b)$", ANY_LENGTH, "look-around"),
        (r"^(a)\1$", ANY_LENGTH, "backreferences"),
        (r"^a\b$", ANY_LENGTH, "only ^ and $"),
        (r"\Aa\z", ANY_LENGTH, "only ^ and $"),
        ("(?i)a", ANY_LENGTH, "no flags"),
        ("^(?i:a)$", ANY_LENGTH, "no flags"),
        ("[[a]]", ANY_LENGTH, "written \\["),
        ("[[:alpha:]]", ANY_LENGTH, "written \\["),
        ("[]a]", ANY_LENGTH, "written \\]"),
        ("[a-z&&b]", ANY_LENGTH, "backslashes"),
        (r"\a", ANY_LENGTH, "does not know"),
        (r"\p{Nothing}", ANY_LENGTH, "no set of characters"),
        (r"^\u0001$", ANY_LENGTH, "no text meets it"),
        ("a^", ANY_LENGTH, "no text meets it"),
        ("^a{3}$", (0, Some(2)), "no text meets it"),
        ("a", (2, Some(1)), "no text meets it"),
    ] {
        let refused = Pattern::new("p", pattern, lengths).unwrap_err();
        assert!(refused.contains(reason), "{pattern:.100}: {refused}");
        assert!(refused.len() < 500, "{refused}");
    }
}

#[test]
fn a_pattern_that_is_met_early_or_repeated_without_end_stays_small() {
    for (pattern, most) in [
        ("", 10),
        ("(a*)*", 10),
        ("^((a|b)*)*$", 10),
        ("foo", 40),
        (r"^[a-f0-9]{8}-[a-f0-9]{4}$", 40),
        (r"^\p{L}+$", SCHEMA_PATTERN_SIZE_MAX),
    ] {
        let size = automaton(pattern, ANY_LENGTH).size;
        assert!(size <= most, "{pattern}: {size}");
    }
}

#[test]
fn rules_are_written_as_the_native_engine_reads_them() {
    let pattern = Pattern::new("p", r#"^[a-c\n"]+\\$"#, ANY_LENGTH).unwrap();
    let ways = "[\\U00000061-\\U00000063] p-1 | \"\\\\\" [\\U0000006E\\U00000022] p-1";
    let rules = format!(
        "p ::= {ways}\n\
         p-1 ::= \"\\\\\" [\\U0000005C] p-2 | {ways}\n\
         p-2 ::= \"\"\n"
    );
    assert_eq!(pattern.rules, rules);
    // A character that leads nowhere is left out with the state it led to.
    let pattern = Pattern::new("p", "^(a|b\u{1})$", ANY_LENGTH).unwrap();
    assert_eq!(pattern.rules, "p ::= [\\U00000061] p-1\np-1 ::= \"\"\n");
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % count as u64).unwrap()
    }
}

#[test]
fn whatever_a_stranger_sends_is_refused_or_leads_one_way_and_to_an_end() {
    const PARTS: [&str; 32] = [
        "a", "b", "é", "\"", "\\\\", "\\n", "[a-c]", "[^b\\]]", "\\d", "\\W", ".", "\\u0061", "(",
        "(?:", "|", ")", ")", "*", "+", "?", "??", "{2}", "{0,3}", "{2,}", "{99}", "^", "$", "[",
        "]", "\\", "\\p{Lu}", "{",
    ];
    let (mut dice, mut followed) = (Dice(0x5eed), 0);
    for _ in 0..10_000 {
        let text: String = (0..dice.below(10)).map(|_| PARTS[dice.below(PARTS.len())]).collect();
        let max = dice.below(6);
        let lengths = (dice.below(4), (max > 0).then_some(max));
        let Ok(nodes) = Nodes::read(&text) else { continue };
        let Ok(automaton) = Automaton::new(&nodes, lengths) else { continue };
        followed += 1;
        assert!(automaton.size <= SCHEMA_PATTERN_SIZE_MAX, "{text}");
        for (number, state) in automaton.states.iter().enumerate() {
            let mut plain: Vec<_> = state.ways.iter().flat_map(|(way, _)| &way.plain).collect();
            plain.sort_unstable();
            assert!(plain.windows(2).all(|pair| pair[0].1 < pair[1].0), "{text}");
            let escaped: Vec<_> = state.ways.iter().flat_map(|(way, _)| &way.escaped).collect();
            assert_eq!(escaped.len(), escaped.iter().collect::<BTreeSet<_>>().len(), "{text}");
            let goes_on = |to: &usize| {
                let next = &automaton.states[*to];
                next.is_end || !next.ways.is_empty()
            };
            assert!(state.ways.iter().all(|(_, to)| goes_on(to)), "{number} of {text}");
        }
    }
    assert!(followed > 1_000, "only {followed} were followed");
}
