//! The fast path for plain lines, many times faster than a JSON parser. Most lines are plain.
//!
//! A plain line is an object with only the known fields, strings of printable ASCII without escapes,
//! and an amount without an exponent. The fast path returns `None` for all other lines, including
//! invalid ones, and [`Event::parse_full`] parses them. For a plain line both return the same event; a
//! property test compares them.

use std::borrow::Cow;

use super::{AMOUNT_MICROS_MAX, Event, ID_BYTES_MAX, Kind, LINE_BYTES_MAX, USER_ID_BYTES_MAX};

/// The maximum number of digits before the point; 10^12 has 13, which cannot overflow.
const WHOLE_DIGITS_MAX: usize = 13;
const FRACTION_DIGITS_MAX: usize = 6;
/// Micros of a 1 in the last place, indexed by the number of digits after the point.
const SCALE: [u64; FRACTION_DIGITS_MAX + 1] = [1_000_000, 100_000, 10_000, 1000, 100, 10, 1];

/// A plain event. Its strings are printable ASCII of a valid length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain<'a> {
    pub(crate) user_id: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) amount_micros: u64,
    pub(crate) id: Option<&'a [u8]>,
}

impl<'a> Plain<'a> {
    /// Converts the strings to text.
    #[inline]
    pub(crate) fn event(self) -> Option<Event<'a>> {
        let text = |bytes| std::str::from_utf8(bytes).ok().map(Cow::Borrowed);
        Some(Event {
            user_id: text(self.user_id)?,
            kind: self.kind,
            amount_micros: self.amount_micros,
            id: match self.id {
                None => None,
                Some(id) => Some(text(id)?),
            },
        })
    }
}

/// Parses a plain line; `None` for any other line.
#[inline]
pub(super) fn parse(line: &[u8]) -> Option<Plain<'_>> {
    let (plain, after) = object(line)?;
    after.is_empty().then_some(plain)
}

/// Parses the first of several lines, and returns the text after its `\n`; `None` if it is not plain or has no
/// `\n`. The line end need not be searched for.
#[inline]
pub(super) fn parse_first(lines: &[u8]) -> Option<(Plain<'_>, &[u8])> {
    let (plain, after) = object(lines)?;
    Some((plain, after.strip_prefix(b"\n")?))
}

/// Parses a plain object at the start of a text, and returns the text after it.
#[inline]
fn object(text: &[u8]) -> Option<(Plain<'_>, &[u8])> {
    let (mut user_id, mut kind, mut amount, mut id) = (None, None, None, None);
    let mut rest = space(text.strip_prefix(b"{")?);
    loop {
        // A duplicate field is an error, which the full parser reports.
        if let Some(after) = key(rest, b"\"userId\"") {
            let (text, after) = string(after)?;
            rest = after;
            if user_id.replace(text).is_some() {
                return None;
            }
        } else if let Some(after) = key(rest, b"\"name\"") {
            let (name, after) = self::kind(after)?;
            rest = after;
            if kind.replace(name).is_some() {
                return None;
            }
        } else if let Some(after) = key(rest, b"\"value\"") {
            let (micros, after) = self::amount(after)?;
            rest = after;
            if amount.replace(micros).is_some() {
                return None;
            }
        } else {
            let (text, after) = string(key(rest, b"\"id\"")?)?;
            rest = after;
            if id.replace(text).is_some() {
                return None;
            }
        }
        rest = space(rest);
        match rest.split_first()? {
            (b',', after) => rest = space(after),
            (b'}', after) => {
                rest = after;
                break;
            }
            _ => return None,
        }
    }
    let plain = Plain {
        user_id: short(user_id?, USER_ID_BYTES_MAX)?,
        kind: kind?,
        amount_micros: amount?,
        id: match id {
            None => None,
            Some(id) => Some(short(id, ID_BYTES_MAX)?),
        },
    };
    (text.len() - rest.len() <= LINE_BYTES_MAX).then_some((plain, rest))
}

/// The text after a key, its colon and the surrounding spaces; `None` if another key follows.
#[inline]
fn key<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    Some(space(space(text.strip_prefix(key)?).strip_prefix(b":")?))
}

#[inline]
fn space(mut text: &[u8]) -> &[u8] {
    while let [b' ', after @ ..] = text {
        text = after;
    }
    text
}

#[inline]
fn short(text: &[u8], bytes_max: usize) -> Option<&[u8]> {
    (!text.is_empty() && text.len() <= bytes_max).then_some(text)
}

/// A string of plain characters, and the text after its closing quote.
#[inline]
fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let mut end = 0;
    while let Some(word) = text.get(end..).and_then(<[u8]>::first_chunk) {
        let flags = not_plain(u64::from_le_bytes(*word));
        if flags != 0 {
            end += (flags.trailing_zeros() / 8) as usize;
            return closed(text, end);
        }
        end += 8;
    }
    while text.get(end).is_some_and(|&byte| is_plain(byte)) {
        end += 1;
    }
    closed(text, end)
}

fn closed(text: &[u8], end: usize) -> Option<(&[u8], &[u8])> {
    let (inside, after) = text.split_at_checked(end)?;
    Some((inside, after.strip_prefix(b"\"")?))
}

/// Printable ASCII that needs no escape.
#[inline]
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// Flags the first of eight bytes that is not plain by its high bit. The flags of later bytes are
/// undefined, because a borrow from a flagged byte may reach them.
#[inline]
fn not_plain(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // Each is right for bytes below 0x80; the others are flagged by `word`.
    let is = |byte: u8| (word ^ (ONES * u64::from(byte))).wrapping_sub(ONES);
    let below_space = word.wrapping_sub(ONES * 0x20);
    let above_tilde = word.wrapping_add(ONES);
    (is(b'"') | is(b'\\') | below_space | above_tilde | word) & HIGH
}

#[inline]
fn kind(text: &[u8]) -> Option<(Kind, &[u8])> {
    if let Some(after) = text.strip_prefix(b"\"add_revenue\"") {
        Some((Kind::Add, after))
    } else {
        let after = text.strip_prefix(b"\"subtract_revenue\"")?;
        Some((Kind::Subtract, after))
    }
}

/// The micros of a number without an exponent, and the text after it.
#[inline]
fn amount(text: &[u8]) -> Option<(u64, &[u8])> {
    let (whole, digits) = number(text, WHOLE_DIGITS_MAX);
    let leading_zero = text.first() == Some(&b'0') && digits > 1;
    if digits == 0 || leading_zero {
        return None;
    }
    let mut micros = whole * super::MICROS_PER_UNIT;
    let mut after = &text[digits..];
    if let [b'.', fraction @ ..] = after {
        let (value, digits) = number(fraction, FRACTION_DIGITS_MAX);
        if digits == 0 {
            return None;
        }
        micros += value * SCALE[digits];
        after = &fraction[digits..];
    }
    // Further digits or an exponent fail in the caller, which expects a comma or the end.
    (micros <= AMOUNT_MICROS_MAX).then_some((micros, after))
}

/// Reads up to `digits_max` digits; returns their value and their number.
#[inline]
fn number(text: &[u8], digits_max: usize) -> (u64, usize) {
    let mut value = 0;
    let mut digits = 0;
    for byte in text.iter().take(digits_max) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value * 10 + u64::from(digit);
        digits += 1;
    }
    (value, digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the line is plain. Both parsers must return the same event for a plain line.
    fn agree(line: &[u8]) -> bool {
        first_is_the_line_up_to_the_newline(line);
        match parse(line).map(|plain| plain.event().expect("ASCII")) {
            None => false,
            Some(event) => {
                assert_eq!(
                    Ok(event),
                    Event::parse_full(line),
                    "{}",
                    String::from_utf8_lossy(line)
                );
                true
            }
        }
    }

    /// Of several lines, the first one is parsed as if it stood alone.
    fn first_is_the_line_up_to_the_newline(line: &[u8]) {
        let lines = [line, b"\n{\"next\""].concat();
        let newline = memchr::memchr(b'\n', &lines).expect("there is one");
        let alone = parse(&lines[..newline]).map(|plain| (plain.event(), &lines[newline + 1..]));
        let first = parse_first(&lines).map(|(plain, after)| (plain.event(), after));
        assert_eq!(first, alone, "{}", String::from_utf8_lossy(&lines));
        assert!(parse_first(&lines[..newline]).is_none(), "no line end");
    }

    #[test]
    fn plain_lines_take_the_fast_path() {
        for line in [
            r#"{"userId": "user1", "name": "add_revenue", "value": 100}"#,
            r#"{"userId":"u","name":"subtract_revenue","value":0.5}"#,
            r#"{"value":1000000000000,"id":"run-000001","name":"add_revenue","userId":"a b~ long enough for words"}"#,
            r#"{ "userId" : "u" , "name" : "add_revenue" , "value" : 12.345678 }"#,
            r#"{"userId":"u","name":"add_revenue","value":0}"#,
            r#"{"userId":"u","name":"add_revenue","value":999999999999.999999}"#,
        ] {
            assert!(agree(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn other_lines_are_left_to_the_full_parser() {
        let with = |field: &str| {
            format!("{{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1{field}}}")
        };
        let mut lines: Vec<String> = [
            ",\"x\":1",
            ",\"value\":1",
            ",\"id\":\"\"",
            ",\"id\":7",
            "e3",
            ".",
            ".1234567",
            "-1",
            ",",
            "000000000000000",
        ]
        .into_iter()
        .map(with)
        .collect();
        lines.extend(
            [
                r#"{"userId":"caf\u00e9","name":"add_revenue","value":1}"#,
                r#"{"userId":"café","name":"add_revenue","value":1}"#,
                "{\"userId\":\"a\u{7f}b\",\"name\":\"add_revenue\",\"value\":1}",
                "{\"userId\":\"a\tb\",\"name\":\"add_revenue\",\"value\":1}",
                r#"{"userId":"","name":"add_revenue","value":1}"#,
                r#"{"userId":"u","name":"add_revenue","value":01}"#,
                r#"{"userId":"u","name":"add_revenue","value":1000000000000.000001}"#,
                r#"{"userId":"u","name":"add_revenue","value":1} "#,
                r#"{"userId":"u","name":"add_revenue"}"#,
                r#"{"userId":"u","name":"add_revenue","value":1"#,
                "{}",
                "",
            ]
            .map(str::to_owned),
        );
        lines.push(with("").replace("\"u\"", &format!("\"{}\"", "x".repeat(257))));
        lines.push(with(&format!(",\"id\":\"{}\"", "x".repeat(129))));
        for line in lines {
            assert!(!agree(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn the_first_byte_that_is_not_plain_is_found_at_every_offset() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                for filler in [b'a', b' ', b'~', b'!'] {
                    let mut word = [filler; 8];
                    word[place] = byte;
                    let found = not_plain(u64::from_le_bytes(word)).trailing_zeros() / 8;
                    let expected = if is_plain(byte) { 8 } else { place };
                    assert_eq!(found as usize, expected, "{byte} at {place}");
                }
            }
        }
    }

    fn field() -> impl Strategy<Value = String> {
        let text = "[a-c\"\\\\/ é\u{7f}\u{85}\t~!\\[\\]{}:,0-9]{0,12}";
        let value = prop_oneof![
            "-?[0-9]{0,15}",
            "[0-9]{1,3}\\.[0-9]{0,8}",
            "[0-9]{1,2}[eE][+-]?[0-9]{1,3}",
            Just("1000000000000".to_owned()),
            "\"[0-9]{1,3}\"",
        ];
        let space = || "( |  |\t|)";
        let quoted = prop_oneof![
            4 => "\"[a-z0-9]{1,20}\"",
            2 => Just("\"add_revenue\"".to_owned()),
            1 => Just("\"subtract_revenue\"".to_owned()),
            1 => text.prop_map(|text| format!("\"{text}\"")),
            1 => value,
        ];
        let key = prop_oneof!["userId", "name", "value", "id", "x", "user\\\\u0049d"];
        (space(), key, space(), space(), quoted, space())
            .prop_map(|(a, key, b, c, value, d)| format!("{a}\"{key}\"{b}:{c}{value}{d}"))
    }

    fn good() -> impl Strategy<Value = String> {
        let fields = (
            "[ -~]{1,30}",
            prop_oneof![Just("add_revenue"), Just("subtract_revenue")],
            "[0-9]{1,13}(\\.[0-9]{1,6})?",
            prop::option::of("[ -~]{1,30}"),
        );
        fields.prop_map(|(user, name, value, id)| {
            let id = id.map_or(String::new(), |id| format!(",\"id\":\"{id}\""));
            format!("{{\"userId\":\"{user}\",\"name\":\"{name}\", \"value\": {value}{id}}}")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn both_parsers_agree_on_arbitrary_fields(fields in prop::collection::vec(field(), 0..5)) {
            agree(format!("{{{}}}", fields.join(",")).as_bytes());
        }

        #[test]
        fn both_parsers_agree_on_damaged_lines(
            line in good(),
            at in any::<prop::sample::Index>(),
            byte in prop::option::of(any::<u8>()),
        ) {
            let mut line = line.into_bytes();
            if let Some(byte) = byte {
                let at = at.index(line.len());
                line[at] = byte;
            }
            agree(&line);
        }
    }
}
