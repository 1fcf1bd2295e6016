//! A second parser of HTTP/1.1 (RFC 9112), as simple as possible: it has all bytes at once and
//! parses them by recursive descent. It shares no code with the engine; if they disagree, one of
//! them is wrong.

/// The limits of the engine that it is compared with.
pub(crate) const HEAD_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 128;
pub(crate) const BODY_BYTES_MAX: usize = 1000;
const SIZE_LINE_BYTES_MAX: usize = 1024;
const DISCARDED_BYTES_MAX: usize = 16 << 10;

/// The result for a part of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// A request: method, target, the values of `Host` and `X`, body.
    Request(String, String, [Option<String>; 2], Vec<u8>),
    /// A response with this status. Nothing after it is parsed, unless the connection is kept open.
    Refused(u16),
    /// The same, but whether the connection is kept open depends on when the body arrives.
    RefusedPerhapsLast(u16),
}

use Reading::{Refused, RefusedPerhapsLast, Request};

/// Parses a stream that ends after `input`.
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

/// Whether the results of the engine are those of the model.
pub(crate) fn agree(expected: &[Reading], got: &[Reading]) -> bool {
    match (expected, got) {
        ([RefusedPerhapsLast(status), _more @ ..], [Refused(got)]) if status == got => true,
        // A part of the body arrived before the request was rejected.
        ([RefusedPerhapsLast(_)], [Refused(400)]) | ([], []) => true,
        ([RefusedPerhapsLast(status), expected @ ..], [Refused(got), more @ ..]) => {
            status == got && agree(expected, more)
        }
        ([first, expected @ ..], [got, more @ ..]) => first == got && agree(expected, more),
        _ => false,
    }
}

/// A request and what follows it, if the connection is kept open.
fn message(input: &[u8]) -> Result<(Reading, Option<&[u8]>), u16> {
    let (method, target, version, fields, rest) = head(input)?;
    let new = version == b"HTTP/1.1";
    let named: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), trim(value)))
        .collect();
    if !target.iter().all(u8::is_ascii_graphic) {
        return Err(400);
    }
    let all = |name: &str| {
        let of_name = named.iter().filter(|(given, _)| given == name.as_bytes());
        of_name.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    // The first invalid field decides.
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
    let method = match method {
        known @ (b"GET" | b"HEAD" | b"POST" | b"OPTIONS") => text(known),
        _ => "OTHER".to_owned(),
    };
    let headers = [first("host"), first("x")];
    Ok((Request(method, text(target), headers, body), rest))
}

/// Method, target, version, fields, and the remaining bytes.
type Head<'a> = (
    &'a [u8],
    &'a [u8],
    &'a [u8],
    Vec<(&'a [u8], &'a [u8])>,
    &'a [u8],
);

/// Parses from the first byte on: the first invalid byte decides.
fn head(input: &[u8]) -> Result<Head<'_>, u16> {
    let window = &input[..input.len().min(HEAD_BYTES_MAX)];
    let unfinished = if input.len() > HEAD_BYTES_MAX {
        431
    } else {
        400
    };
    let (method, target, version, mut rest) = request_line(window, unfinished)?;
    let mut fields = Vec::new();
    loop {
        match rest {
            [] | [b'\r'] => return Err(unfinished),
            [b'\r', b'\n', after @ ..] => {
                let length = window.len() - after.len();
                return Ok((method, target, version, fields, &input[length..]));
            }
            _ => {}
        }
        let (field, after) = field(rest, unfinished)?;
        if fields.len() == FIELDS_MAX {
            return Err(431);
        }
        fields.push(field);
        rest = after;
    }
}

/// Bytes up to the next space or control character, and the remaining ones.
fn word(input: &[u8]) -> (&[u8], &[u8]) {
    let is_end = |b: &u8| b.is_ascii_control() || *b == b' ';
    input.split_at(input.iter().position(is_end).unwrap_or(input.len()))
}

type RequestLine<'a> = (&'a [u8], &'a [u8], &'a [u8], &'a [u8]);

/// Method, target, version, and the bytes after the line.
fn request_line(input: &[u8], unfinished: u16) -> Result<RequestLine<'_>, u16> {
    let (method, rest) = word(input);
    if !method.iter().all(|b| is_token(*b)) {
        return Err(400);
    }
    let (target, rest) = match rest {
        [] => return Err(unfinished),
        [b' ', rest @ ..] if !method.is_empty() => word(rest),
        _ => return Err(400),
    };
    let (version, rest) = match rest {
        [] => return Err(unfinished),
        [b' ', rest @ ..] if !target.is_empty() && std::str::from_utf8(target).is_ok() => {
            word(rest)
        }
        // HTTP/0.9
        [b'\r', ..] if method == b"GET" && target.iter().all(u8::is_ascii_graphic) => {
            return Err(505);
        }
        _ => return Err(400),
    };
    match (version, rest) {
        (b"HTTP/1.1" | b"HTTP/1.0", [b'\r', b'\n', rest @ ..]) => {
            Ok((method, target, version, rest))
        }
        (b"HTTP/1.1" | b"HTTP/1.0", [] | [b'\r']) => Err(unfinished),
        (b"HTTP/1.1" | b"HTTP/1.0", _) => Err(400),
        (start, []) if b"HTTP/1.".starts_with(start) => Err(unfinished),
        // The line end is invalid, not the version.
        (start, [b'\n', ..]) if b"HTTP/1.".starts_with(start) => Err(400),
        (other, _) if other.starts_with(b"HTTP/") => Err(505),
        _ => Err(400),
    }
}

type Field<'a> = (&'a [u8], &'a [u8]);

/// Name and value of a field, and the bytes after its line.
fn field(input: &[u8], unfinished: u16) -> Result<(Field<'_>, &[u8]), u16> {
    let name = input.iter().take_while(|b| is_token(**b)).count();
    let (name, rest) = input.split_at(name);
    let value = match rest {
        [] => return Err(unfinished),
        [b':', value @ ..] if !name.is_empty() => value,
        _ => return Err(400),
    };
    let is_end = |b: &u8| b.is_ascii_control() && *b != b'\t';
    let end = value.iter().position(is_end).ok_or(unfinished)?;
    match &value[end..] {
        [b'\r'] => Err(unfinished),
        [b'\r', b'\n', rest @ ..] => Ok(((name, &value[..end]), rest)),
        _ => Err(400),
    }
}

/// The bytes of the chunks, and what follows the trailer fields.
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
    let ((name, value), rest) = field(input, 400)?;
    let discarded = discarded + name.len() + 1 + value.len();
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
