//! A second reader of HTTP/1.1 (RFC 9112), as plain as can be: it has all bytes at once, and reads
//! them by recursive descent. It shares no code with the engine, and agrees with it or one is wrong.

/// The limits of the engine that it is compared with.
pub(crate) const HEAD_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 128;
pub(crate) const BODY_BYTES_MAX: usize = 1000;
const SIZE_LINE_BYTES_MAX: usize = 1024;
const DISCARDED_BYTES_MAX: usize = 16 << 10;

/// What a stretch of the stream is read as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// A request: method, target, the values of `Host` and `X`, body.
    Request(String, String, [Option<String>; 2], Vec<u8>),
    /// An answer of this status. Nothing after it is read, but where the connection goes on.
    Refused(u16),
    /// The same, and the connection may go on or end: that depends on when the body comes.
    RefusedPerhapsLast(u16),
}

use Reading::{Refused, RefusedPerhapsLast, Request};

/// Reads a stream that ends after `input`.
pub(crate) fn read(input: &[u8]) -> Vec<Reading> {
    match input {
        [] => Vec::new(),
        [b'\r', b'\n', rest @ ..] => read(rest),
        _ => match message(input) {
            Err(status) => vec![Refused(status)],
            Ok((reading, None)) => vec![reading],
            Ok((reading, Some(rest))) => {
                let mut readings = vec![reading];
                readings.extend(read(rest));
                readings
            }
        },
    }
}

/// Whether the engine's readings are what the model expects.
pub(crate) fn agree(expected: &[Reading], got: &[Reading]) -> bool {
    match (expected, got) {
        ([RefusedPerhapsLast(status), _more @ ..], [Refused(got)]) if status == got => true,
        // Part of a body came before it was known that nobody asks for it.
        ([RefusedPerhapsLast(_)], [Refused(400)]) | ([], []) => true,
        ([RefusedPerhapsLast(status), expected @ ..], [Refused(got), more @ ..]) => {
            status == got && agree(expected, more)
        }
        ([first, expected @ ..], [got, more @ ..]) => first == got && agree(expected, more),
        _ => false,
    }
}

/// A request and what follows it, if the connection goes on.
fn message(input: &[u8]) -> Result<(Reading, Option<&[u8]>), u16> {
    let (line, fields, rest) = head(input)?;
    let [method, target, version] = &line.split(|b| *b == b' ').collect::<Vec<_>>()[..] else {
        return Err(400);
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(400);
    }
    if target.is_empty() {
        return Err(400);
    }
    let new = *version == b"HTTP/1.1";
    let mut named = Vec::new();
    for (count, field) in fields.iter().enumerate() {
        if count == FIELDS_MAX {
            return Err(431);
        }
        let colon = field.iter().position(|b| *b == b':').ok_or(400_u16)?;
        let (name, value) = (&field[..colon], trim(&field[colon + 1..]));
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err(400);
        }
        named.push((name.to_ascii_lowercase(), value));
    }
    if !target.iter().all(u8::is_ascii_graphic) {
        return Err(400);
    }
    let all = |name: &str| {
        let of_name = named.iter().filter(|(given, _)| given == name.as_bytes());
        of_name.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    // The first field that cannot be accepted decides.
    let (mut lengths, mut codings) = (0, 0);
    for (name, value) in &named {
        match &name[..] {
            b"content-length" => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                lengths += 1;
                if !digits || lengths > 1 {
                    return Err(400);
                }
            }
            b"transfer-encoding" => {
                codings += 1;
                if codings > 1 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(400);
                }
            }
            b"expect" if new && !value.eq_ignore_ascii_case(b"100-continue") => return Err(417),
            _ => {}
        }
    }
    let hosts = all("host").len();
    if hosts > 1 || (hosts == 0 && new) || (codings > 0 && (lengths > 0 || !new)) {
        return Err(400);
    }
    let options = all("connection").join(&b","[..]).to_ascii_lowercase();
    let has = |option: &[u8]| {
        options
            .split(|b| *b == b',')
            .any(|given| trim(given) == option)
    };
    let goes_on = !has(b"close") && (new || has(b"keep-alive"));

    let limit = BODY_BYTES_MAX as u128;
    let (body, rest) = if codings > 0 {
        chunks(rest, Vec::new(), 0)?
    } else {
        let digits = all("content-length").first().map(|digits| number(digits));
        let length = digits.unwrap_or(0);
        if length > 4 * limit {
            return Err(413);
        }
        let expects = new && !all("expect").is_empty();
        let length = length as usize;
        if length > BODY_BYTES_MAX && expects {
            let rest = rest.get(length..).filter(|_| goes_on);
            return Ok((RefusedPerhapsLast(413), rest));
        }
        if rest.len() < length {
            return Err(400);
        }
        (rest[..length].to_vec(), &rest[length..])
    };
    let rest = goes_on.then_some(rest);
    if body.len() > BODY_BYTES_MAX {
        return Ok((Refused(413), rest));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let first = |name: &str| all(name).first().map(|value| text(value));
    let method = match *method {
        known @ (b"GET" | b"HEAD" | b"POST" | b"OPTIONS") => text(known),
        _ => "OTHER".to_owned(),
    };
    let headers = [first("host"), first("x")];
    Ok((Request(method, text(target), headers, body), rest))
}

type Lines<'a> = (&'a [u8], Vec<&'a [u8]>, &'a [u8]);

/// The request line, the field lines, and what follows the empty line.
fn head(input: &[u8]) -> Result<Lines<'_>, u16> {
    let window = &input[..input.len().min(HEAD_BYTES_MAX)];
    let unfinished = if input.len() > HEAD_BYTES_MAX {
        431
    } else {
        400
    };
    let (line, mut rest) = line(window, false, unfinished)?;
    request_line(line)?;
    let mut fields = Vec::new();
    loop {
        let (field, after) = self::line(rest, true, unfinished)?;
        rest = after;
        if field.is_empty() {
            let length = window.len() - rest.len();
            return Ok((line, fields, &input[length..]));
        }
        fields.push(field);
    }
}

/// A line without its CRLF, and what follows.
fn line(input: &[u8], is_field: bool, unfinished: u16) -> Result<(&[u8], &[u8]), u16> {
    let control = |b: &u8| b.is_ascii_control() && !(is_field && *b == b'\t');
    let folded = |line: &[u8]| is_field && matches!(line.first(), Some(b' ' | b'\t'));
    let Some(end) = input.iter().position(control) else {
        // A folded line is known for one once a tab or its end was seen.
        let tab = input.contains(&b'\t');
        return Err(if tab && folded(input) {
            400
        } else {
            unfinished
        });
    };
    let line = &input[..end];
    if folded(line) && line.contains(&b'\t') {
        return Err(400);
    }
    match &input[end..] {
        [b'\r'] => Err(unfinished),
        [b'\r', b'\n', ..] if folded(line) => Err(400),
        [b'\r', b'\n', rest @ ..] => Ok((line, rest)),
        _ => Err(400),
    }
}

/// The version decides as soon as the line is there.
fn request_line(line: &[u8]) -> Result<(), u16> {
    let words: Vec<_> = line.split(|b| *b == b' ').collect();
    match &words[..] {
        [_, _, .., b"HTTP/1.1" | b"HTTP/1.0"] => Ok(()),
        [_, _, .., last] if words.len() > 2 && last.starts_with(b"HTTP/") => Err(505),
        [b"GET", _] => Err(505),
        _ => Err(400),
    }
}

/// The chunks' bytes, and what follows the trailer fields.
fn chunks(input: &[u8], mut body: Vec<u8>, discarded: usize) -> Result<(Vec<u8>, &[u8]), u16> {
    let digits = input.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 16 {
        return Err(400);
    }
    let size = input[..digits].iter().fold(0_u64, |size, digit| {
        size << 4 | u64::from(char::from(*digit).to_digit(16).unwrap_or(0))
    });
    let rest = &input[digits..];
    let end = rest
        .iter()
        .position(|b| b.is_ascii_control() && *b != b'\t');
    let extension = &rest[..end.ok_or(400_u16)?];
    if extension.first().is_some_and(|b| *b != b';') {
        return Err(400);
    }
    let discarded = discarded + extension.len();
    if digits + extension.len() > SIZE_LINE_BYTES_MAX || discarded > DISCARDED_BYTES_MAX {
        return Err(400);
    }
    let rest = crlf(&rest[extension.len()..])?;
    if size == 0 {
        return Ok((body, trailers(rest, 0)?));
    }
    let data = rest.len().min(usize::try_from(size).unwrap_or(usize::MAX));
    body.extend_from_slice(&rest[..data]);
    if body.len() > 4 * BODY_BYTES_MAX {
        return Err(413);
    }
    if (data as u64) < size {
        return Err(400);
    }
    chunks(crlf(&rest[data..])?, body, discarded)
}

fn trailers(input: &[u8], discarded: usize) -> Result<&[u8], u16> {
    if input.first() == Some(&b'\r') {
        return crlf(input);
    }
    let (field, rest) = line(input, true, 400)?;
    let colon = field.iter().position(|b| *b == b':').ok_or(400_u16)?;
    if colon == 0 || !field[..colon].iter().all(|b| is_token(*b)) {
        return Err(400);
    }
    let discarded = discarded + field.len();
    if discarded > DISCARDED_BYTES_MAX {
        return Err(400);
    }
    trailers(rest, discarded)
}

fn crlf(input: &[u8]) -> Result<&[u8], u16> {
    input.strip_prefix(b"\r\n").ok_or(400)
}

fn number(digits: &[u8]) -> u128 {
    digits.iter().fold(0_u128, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u128::from(digit - b'0'))
    })
}

fn trim(bytes: &[u8]) -> &[u8] {
    match bytes {
        [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] => trim(rest),
        _ => bytes,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
