//! The head of a request: request line and header fields, parsed by `httparse`.
//!
//! An incomplete head is parsed again from its start after each read. An invalid head is thus rejected
//! at its first invalid byte, and no parser state is kept between reads. Bytes above 0x7f in values
//! are opaque (RFC 9110, 5.5). No I/O.

use std::mem::MaybeUninit;
use std::ops::Range;

use httparse::{Error, Status};

use super::Refusal;
use super::framing::{self, Framing};

/// The maximum length of a head in bytes, line ends included.
pub(super) const HEAD_BYTES_MAX: usize = 16 << 10;
/// The maximum number of header fields in a head.
const FIELDS_MAX: usize = 128;
/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// The request methods that a route may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD: as GET, without the body.
    Head,
    /// POST
    Post,
    /// OPTIONS
    Options,
    /// Any other method; no route has it.
    Other,
}

/// A complete, valid head.
#[derive(Debug)]
pub(super) struct Head {
    /// The lines of the head, each ended by CRLF. Invalid UTF-8 is replaced by U+FFFD, which occurs in
    /// no value that the server expects.
    text: String,
    /// The range of the target in `text`.
    target: Range<usize>,
    fields: Vec<Field>,
    pub(super) method: Method,
    pub(super) framing: Framing,
    /// The version is 1.1, not 1.0.
    pub(super) is_http11: bool,
}

/// The place of a field in the text of its head.
#[derive(Clone, Copy, Debug)]
struct Field {
    start: u16,
    colon: u16,
    end: u16,
}

impl Head {
    /// Parses the head at the start of `input` and returns it with its length in bytes, or `None` if it
    /// is not complete.
    pub(super) fn read(input: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        if input.first() == Some(&TLS_HANDSHAKE) {
            return Err(Refusal::Tls);
        }
        let window = &input[..input.len().min(HEAD_BYTES_MAX)];
        // httparse accepts a bare LF as a line end: it gets only the bytes before the first one.
        let is_bare = |at: &usize| !window[..*at].ends_with(b"\r");
        let bare_lf = memchr::memchr_iter(b'\n', window).find(is_bare);
        let lines = &window[..bare_lf.unwrap_or(window.len())];
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(lines, &mut fields) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if bare_lf.is_some() => {
                return malformed("a line ends with LF instead of CRLF");
            }
            Ok(Status::Partial) if input.len() > HEAD_BYTES_MAX => {
                return Err(Refusal::HeadTooLarge);
            }
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(refusal(error, lines)),
        };
        let target = request.path.unwrap_or_default();
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return malformed("the request target has bytes that must be percent-encoded");
        }
        let is_http11 = request.version == Some(1);
        let fields = request.headers.iter();
        let framing = framing::check(is_http11, fields.map(|field| (field.name, field.value)))?;
        let method_name = request.method.unwrap_or_default();
        let start = method_name.len() + 1;
        // `from_utf8` is faster than `from_utf8_lossy`.
        let text = String::from_utf8(lines[..length].to_vec())
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        let head = Self {
            method: method(method_name),
            target: start..start + target.len(),
            framing,
            is_http11,
            fields: fields_of(text.as_bytes(), request.headers.len()),
            text,
        };
        Ok(Some((head, length)))
    }

    /// Method and path as sent, for the log. The query is left out, because it may contain confidential
    /// data.
    pub(super) fn line(&self) -> &str {
        let line = &self.text[..self.target.end];
        line.split('?').next().unwrap_or_default()
    }

    /// The request target as sent.
    pub(super) fn target(&self) -> &str {
        &self.text[self.target.clone()]
    }

    /// The value of the first field `name`, in any case, without white space around it.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let part = |from: u16, to: u16| &self.text[from.into()..to.into()];
        let is_named = |field: &&Field| {
            usize::from(field.colon - field.start) == name.len()
                && part(field.start, field.colon).eq_ignore_ascii_case(name)
        };
        let field = self.fields.iter().find(is_named)?;
        Some(part(field.colon + 1, field.end).trim_ascii())
    }
}

/// The fields of a head, which are its lines after the first. A head is shorter than 64 KiB, even if U+FFFD
/// has replaced each of its bytes.
fn fields_of(text: &[u8], count: usize) -> Vec<Field> {
    let mut fields = Vec::with_capacity(count);
    let mut ends = memchr::memchr_iter(b'\n', text);
    let mut start = ends.next().map_or(text.len(), |end| end + 1);
    for end in ends {
        if let Some(colon) = memchr::memchr(b':', &text[start..end]) {
            let place = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
            fields.push(Field {
                start: place(start),
                colon: place(start + colon),
                end: place(end),
            });
        }
        start = end + 1;
    }
    fields
}

/// The length in bytes of the empty lines before the request line, which are ignored (RFC 9112, 2.2).
pub(super) fn empty_lines(input: &[u8]) -> usize {
    let lines = input.chunks_exact(2).take_while(|line| *line == b"\r\n");
    2 * lines.count()
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    }
}

fn malformed<T>(why: &'static str) -> Result<T, Refusal> {
    Err(Refusal::Malformed(why))
}

fn refusal(error: Error, bytes: &[u8]) -> Refusal {
    let line = bytes.split(u8::is_ascii_control).next().unwrap_or_default();
    let mut parts = line.split(|byte| *byte == b' ');
    let parts = (parts.next(), parts.next(), parts.next());
    match (error, parts) {
        (Error::TooManyHeaders, _) => Refusal::HeadTooLarge,
        (Error::HeaderName, _) => Refusal::Malformed(
            "a header name is not a token, or is not followed directly by a colon",
        ),
        (Error::HeaderValue, _) => Refusal::Malformed("the value of a header is not valid"),
        (Error::Version | Error::NewLine, (.., Some(version)))
            if version.starts_with(b"HTTP/") && !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") =>
        {
            Refusal::Version
        }
        // HTTP/0.9 has no version.
        (Error::Token, (Some(b"GET"), Some(target), None))
            if target.iter().all(u8::is_ascii_graphic) && bytes.get(line.len()) == Some(&b'\r') =>
        {
            Refusal::Version
        }
        _ => Refusal::Malformed("the request line is not METHOD TARGET VERSION, ended by CRLF"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::framing::Persistence;
    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
        let found = Head::read(&bytes[empty_lines(bytes)..])?;
        Ok(found.map(|(head, _)| head))
    }

    /// Reads the bytes one by one: after how many of them the head is complete or rejected.
    fn piecemeal(bytes: &[u8]) -> (usize, Option<Refusal>) {
        for end in 1..=bytes.len() {
            match read(&bytes[..end]) {
                Ok(None) => {}
                found => return (end, found.err()),
            }
        }
        (bytes.len(), None)
    }

    #[test]
    fn a_head_is_parsed_with_its_fields() {
        let head =
            read(b"\r\nPOST /a?b HTTP/1.1\r\nHOST: h\r\nX-Name:  a\tb \r\nx-name: c\r\n\r\nbody");
        let head = head.expect("valid").expect("complete");
        assert_eq!(head.method, Method::Post);
        assert_eq!(head.line(), "POST /a");
        assert_eq!(head.target(), "/a?b");
        assert_eq!(head.header("host"), Some("h"));
        assert_eq!(head.header("X-NAME"), Some("a\tb"));
        assert_eq!(head.header("y"), None);
        assert_eq!(head.framing.persistence, Persistence::Kept, "HTTP/1.1");
    }

    #[test]
    fn bytes_over_0x7f_in_values_are_opaque() {
        let head = read("GET / HTTP/1.1\r\nHost: h\r\ncf-region: São Paulo\r\n\r\n".as_bytes());
        let head = head.expect("valid").expect("complete");
        assert_eq!(head.header("cf-region"), Some("São Paulo"));
        let head = read(b"GET / HTTP/1.1\r\nHost: h\r\nOrigin: S\xe3o\r\nX: y\r\n\r\n");
        let head = head.expect("valid").expect("complete");
        assert_eq!(head.header("origin"), Some("S\u{fffd}o"));
        assert_eq!(head.header("x"), Some("y"));
        let long = [
            &b"GET / HTTP/1.1\r\nHost: h\r\nX: "[..],
            &[0xff; 16_300],
            b"\r\nY: z\r\n\r\n",
        ]
        .concat();
        let head = read(&long).expect("valid").expect("complete");
        assert_eq!(head.header("y"), Some("z"));
    }

    #[test]
    fn an_invalid_head_is_rejected_at_its_first_invalid_byte() {
        let get = b"GET / HTTP/1.1\r\nHost: h\r\n".len();
        let line =
            Refusal::Malformed("the request line is not METHOD TARGET VERSION, ended by CRLF");
        let name = Refusal::Malformed(
            "a header name is not a token, or is not followed directly by a colon",
        );
        let lf = Refusal::Malformed("a line ends with LF instead of CRLF");
        for (bytes, at, refusal) in [
            (
                &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
                12,
                Refusal::Version,
            ),
            (b"GET /\r\n", 6, Refusal::Version),
            (b"GET / HTTP/3\r\nHost", 12, Refusal::Version),
            (b"GET / HTTP/1.10\r\nHost", 15, Refusal::Version),
            (b"\x16\x03\x01\x02\x00", 1, Refusal::Tls),
            (b"GET / HTTP/1.1\nHost: h\n\n", 15, lf),
            (b"GET / HTTP/1.1\r\nHost: h\nX\0", get - 1, lf),
            (b"GET / HTTP/1.1\r\rHost: h", 16, line),
            (b"GET / HTTP/1.1 \r\nHost: h", 15, line),
            (b"GET /\x00 HTTP/1.1\r\n", 6, line),
            (b"GET\t/ HTTP/1.1\r\n", 4, line),
            (b"GET / http/1.1\r\n", 7, line),
            (b"G(T / HTTP/2.0\r\n", 2, line),
            (b"nonsense\r\n", 9, line),
            (b"GET / HTTP/1.1\r\nHost: h\r\n\tfolded: a", get + 1, name),
            (b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n", get + 1, name),
            (
                b"GET / HTTP/1.1\r\nHost: h\r\n\x0bfolded\r\n",
                get + 1,
                name,
            ),
        ] {
            let text = bytes.escape_ascii();
            assert_eq!(piecemeal(bytes), (at, Some(refusal)), "{text}");
            assert_eq!(read(bytes).err(), Some(refusal), "{text}");
        }
    }

    #[test]
    fn the_size_of_a_head_is_bounded() {
        let head = |bytes: usize| {
            let start = "GET / HTTP/1.1\r\nHost: h\r\nX: ";
            let padding = "x".repeat(bytes - start.len() - 4);
            format!("{start}{padding}\r\n\r\n").into_bytes()
        };
        assert!(read(&head(HEAD_BYTES_MAX)).is_ok_and(|head| head.is_some()));
        let (at, found) = piecemeal(&head(HEAD_BYTES_MAX + 1));
        assert_eq!(
            (at, found),
            (HEAD_BYTES_MAX + 1, Some(Refusal::HeadTooLarge))
        );
        let fields = |count: usize| {
            let fields = "X: y\r\n".repeat(count);
            format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes()
        };
        assert!(read(&fields(FIELDS_MAX - 1)).is_ok());
        assert_eq!(read(&fields(FIELDS_MAX)).err(), Some(Refusal::HeadTooLarge));
    }
}
