//! The day that templates are told is today.

/// What each letter of a date's format stands for: Friday, 26 July 2024, at midnight, always.
///
/// With the real day a prompt would be another one tomorrow: nobody could repeat an order or check
/// an answer, and nothing that was read before would serve again. It is the day that templates of
/// Llama name where they are given none, so theirs are written the same with it.
const TODAY: [(char, &str); 23] = [
    ('A', "Friday"),
    ('B', "July"),
    ('D', "07/26/24"),
    ('F', "2024-07-26"),
    ('H', "00"),
    ('I', "12"),
    ('M', "00"),
    ('S', "00"),
    ('T', "00:00:00"),
    ('Y', "2024"),
    ('Z', "UTC"),
    ('a', "Fri"),
    ('b', "Jul"),
    ('d', "26"),
    ('e', "26"),
    ('j', "208"),
    ('m', "07"),
    ('p', "AM"),
    ('u', "5"),
    ('w', "5"),
    ('y', "24"),
    ('z', "+0000"),
    ('%', "%"),
];

/// What C's `strftime` writes of [`TODAY`]; a letter that is none of it stays as it is.
pub(super) fn strftime_now(format: &str) -> String {
    let (mut text, mut rest) = (String::with_capacity(format.len()), format);
    while let Some((before, after)) = rest.split_once('%') {
        text += before;
        // A dash leaves the zero before a number out.
        let letter = after.strip_prefix('-').unwrap_or(after);
        let known = TODAY.iter().find(|(name, _)| letter.starts_with(*name));
        let Some((name, value)) = known.copied() else {
            text.push('%');
            rest = after;
            continue;
        };
        let is_short = letter.len() < after.len();
        text += value.strip_prefix('0').filter(|_| is_short).unwrap_or(value);
        rest = &letter[name.len_utf8()..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_the_same_in_every_form() {
        for (format, written) in [
            ("%d %b %Y", "26 Jul 2024"),
            ("%Y-%m-%d", "2024-07-26"),
            ("%A, %B %d, %Y %H:%M:%S", "Friday, July 26, 2024 00:00:00"),
            ("%-d.%-m.%y %-H %I %p", "26.7.24 0 12 AM"),
            ("100%% %d%", "100% 26%"),
            ("%é %-Q %", "%é %-Q %"),
            ("", ""),
        ] {
            assert_eq!(strftime_now(format), written, "{format}");
        }
    }
}
