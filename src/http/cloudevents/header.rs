//! Values of header fields.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::error;
use crate::event::EventError;

/// The media type without parameters in lower case: `Application/JSON; charset=utf-8` becomes
/// `application/json`.
pub(super) fn media_type(content_type: &str) -> String {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().to_ascii_lowercase()
}

/// The value of an attribute in a header: quotes are removed, then it is percent-decoded once. It may also
/// have characters that are not encoded, as UTF-8. The engine replaces other bytes by U+FFFD, so a header
/// with that character is refused: the event could otherwise be counted for another user.
pub(super) fn decoded<'h>(
    header: &'h str,
    pointer: &'static str,
) -> Result<Cow<'h, str>, EventError> {
    if header.contains(char::REPLACEMENT_CHARACTER) {
        let detail = "the header is not UTF-8 (U+FFFD itself must be percent-encoded)";
        return Err(error(pointer, "not_utf8", detail));
    }
    let quoted = header
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let text = match quoted {
        None => percent_decode_str(header).decode_utf8(),
        Some(quoted) => percent_decode_str(&unescaped(quoted))
            .decode_utf8()
            .map(|text| Cow::Owned(text.into_owned())),
    };
    text.map_err(|_| {
        let detail = "the percent-decoded header is not UTF-8";
        error(pointer, "not_utf8", detail)
    })
}

/// Removes the backslashes of a quoted string: each one stands for the character after it.
fn unescaped(quoted: &str) -> String {
    let mut chars = quoted.chars();
    std::iter::from_fn(|| match chars.next() {
        Some('\\') => chars.next(),
        other => other,
    })
    .collect()
}
