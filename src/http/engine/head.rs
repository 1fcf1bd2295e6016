//! The head of a request: request line and header fields.
//!
//! [`Scanner`] finds the head's end while its bytes arrive, and rejects at once what no later byte
//! can mend: bare line ends, control characters, folded lines, another version of HTTP. [`Head`]
//! is the complete head, read by `httparse`. Bytes over 0x7f in values are opaque (RFC 9110, 5.5).
//! No I/O.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Refusal;
use super::framing::{self, Framing};

/// The longest head in bytes, with its line ends.
pub(super) const HEAD_BYTES_MAX: usize = 16 << 10;
/// Header fields of a head.
const FIELDS_MAX: usize = 128;

/// The request methods that are distinguished.
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
    /// Any other.
    Other,
}

/// How much of a head has been examined. It starts anew for each head.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// Bytes before this offset are examined.
    at: usize,
    /// Where the current line begins; 0 until the request line is complete.
    line: usize,
}

impl Scanner {
    /// Examines what was added to `input`; the head's length once all of it is there.
    pub(super) fn scan(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        let found = self.lines(&input[..input.len().min(HEAD_BYTES_MAX)])?;
        if found.is_none() && input.len() > HEAD_BYTES_MAX {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(found)
    }

    fn lines(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        loop {
            let rest = input.get(self.at..).unwrap_or_default();
            let Some(control) = rest.iter().position(u8::is_ascii_control) else {
                self.at = input.len();
                return Ok(None);
            };
            self.at += control;
            match (rest[control], rest.get(control + 1)) {
                (b'\r', None) => return Ok(None),
                (b'\r', Some(b'\n')) => {
                    let line = &input[self.line..self.at];
                    self.at += 2;
                    match self.line {
                        0 => check_request_line(line)?,
                        _ if line.is_empty() => return Ok(Some(self.at)),
                        _ => check_not_folded(line)?,
                    }
                    self.line = self.at;
                }
                (b'\t', _) if self.line > 0 => {
                    check_not_folded(&input[self.line..=self.at])?;
                    self.at += 1;
                }
                (0x16, _) if self.at == 0 => return Err(Refusal::Tls),
                (b'\n', _) => return malformed("a line ends with LF instead of CRLF"),
                (b'\r', _) => return malformed("a CR is not followed by LF"),
                _ => return malformed("the head contains a control character"),
            }
        }
    }
}

fn malformed<T>(why: &'static str) -> Result<T, Refusal> {
    Err(Refusal::Malformed(why))
}

/// Whether the version can be served; the rest of the line is checked with the whole head.
fn check_request_line(line: &[u8]) -> Result<(), Refusal> {
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next_back()) {
        (_, _, Some(b"HTTP/1.1" | b"HTTP/1.0")) => Ok(()),
        (_, _, Some(version)) if version.starts_with(b"HTTP/") => Err(Refusal::Version),
        (Some(b"GET"), Some(_), None) => Err(Refusal::Version), // HTTP/0.9
        _ => malformed("the request line is not METHOD TARGET VERSION"),
    }
}

fn check_not_folded(line: &[u8]) -> Result<(), Refusal> {
    match line.first() {
        Some(b' ' | b'\t') => malformed("a header line begins with white space"),
        _ => Ok(()),
    }
}

/// How many bytes of empty lines there are before a request line: they are ignored (RFC 9112, 2.2).
pub(super) fn empty_lines(input: &[u8]) -> usize {
    let lines = input.chunks_exact(2).take_while(|line| *line == b"\r\n");
    2 * lines.count()
}

/// A complete, valid head.
#[derive(Debug)]
pub(super) struct Head {
    text: String,
    pub(super) method: Method,
    pub(super) is_http11: bool,
    pub(super) framing: Framing,
    target: Span,
    fields: Vec<(Span, Span)>,
}

/// A part of the head's text.
type Span = Range<u16>;

impl Head {
    /// Parses what [`Scanner::scan`] found to be a head.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        // Values need not be UTF-8. What is not becomes U+FFFD, which equals nothing expected.
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(text.as_bytes(), &mut headers) {
            Ok(httparse::Status::Complete(length)) if length == text.len() => {}
            Ok(_) => return malformed("the head does not end where its empty line is"),
            Err(error) => return Err(refusal(error)),
        }
        let span = |part: &[u8]| {
            let start = part.as_ptr().addr() - text.as_ptr().addr();
            let offset = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
            offset(start)..offset(start + part.len())
        };
        let target = request.path.unwrap_or_default();
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return malformed("the request target has bytes that must be percent-encoded");
        }
        let value = |value: &[u8]| span(value.trim_ascii());
        let spans =
            |header: &httparse::Header<'_>| (span(header.name.as_bytes()), value(header.value));
        let fields: Vec<_> = request.headers.iter().map(spans).collect();
        let is_http11 = request.version == Some(1);
        let framing = {
            let text = |span: &Span| &text[usize::from(span.start)..usize::from(span.end)];
            let named = fields.iter().map(|(name, value)| (text(name), text(value)));
            framing::check(is_http11, named)?
        };
        Ok(Self {
            method: method(request.method.unwrap_or_default()),
            target: span(target.as_bytes()),
            is_http11,
            framing,
            fields,
            text,
        })
    }

    fn text(&self, span: &Span) -> &str {
        &self.text[usize::from(span.start)..usize::from(span.end)]
    }

    /// The method as sent, for the log.
    pub(super) fn method_name(&self) -> &str {
        self.text.split(' ').next().unwrap_or_default()
    }

    /// The request target as sent.
    pub(super) fn target(&self) -> &str {
        self.text(&self.target)
    }

    /// The value of the first field of that name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let is_named = |(field, _): &&(Span, Span)| self.text(field).eq_ignore_ascii_case(name);
        let (_, value) = self.fields.iter().find(is_named)?;
        Some(self.text(value))
    }
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

fn refusal(error: httparse::Error) -> Refusal {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => Refusal::HeadTooLarge,
        Error::HeaderName => Refusal::Malformed(
            "a header name is not a token, or is not followed directly by a colon",
        ),
        Error::HeaderValue => Refusal::Malformed("the value of a header is not valid"),
        Error::Token | Error::NewLine | Error::Status | Error::Version => {
            Refusal::Malformed("the request line is not METHOD TARGET VERSION")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
        let bytes = &bytes[empty_lines(bytes)..];
        let found = Scanner::default().scan(bytes)?;
        let head = found.map(|length| Head::parse(&bytes[..length]));
        head.transpose()
    }

    /// Byte by byte the same is read, and a fault is found with the byte that makes it one.
    fn piecemeal(bytes: &[u8]) -> (usize, Result<Option<usize>, Refusal>) {
        let mut scanner = Scanner::default();
        for end in 1..=bytes.len() {
            match scanner.scan(&bytes[..end]) {
                Ok(None) => {}
                found => return (end, found),
            }
        }
        (bytes.len(), Ok(None))
    }

    #[test]
    fn a_head_is_read_with_its_fields() {
        let head =
            read(b"\r\nPOST /a?b HTTP/1.1\r\nHOST: h\r\nX-Name:  a\tb \r\nx-name: c\r\n\r\nbody");
        let head = head.expect("valid").expect("complete");
        assert_eq!(head.method, Method::Post);
        assert_eq!(head.method_name(), "POST");
        assert_eq!(head.target(), "/a?b");
        assert_eq!(head.header("host"), Some("h"));
        assert_eq!(head.header("X-NAME"), Some("a\tb"));
        assert_eq!(head.header("y"), None);
        assert!(head.is_http11);
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
    fn a_fault_is_found_with_the_byte_that_makes_it() {
        let get = b"GET / HTTP/1.1\r\nHost: h\r\n".len();
        for (bytes, at, refusal) in [
            (
                &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
                16,
                Refusal::Version,
            ),
            (b"GET /\r\n", 7, Refusal::Version),
            (b"GET / HTTP/3\r\nHost", 14, Refusal::Version),
            (b"\x16\x03\x01\x02\x00", 1, Refusal::Tls),
            (
                b"GET / HTTP/1.1\nHost: h\n\n",
                15,
                Refusal::Malformed("a line ends with LF instead of CRLF"),
            ),
            (
                b"GET / HTTP/1.1\r\rHost: h",
                16,
                Refusal::Malformed("a CR is not followed by LF"),
            ),
            (
                b"GET /\x00 HTTP/1.1\r\n",
                6,
                Refusal::Malformed("the head contains a control character"),
            ),
            (
                b"GET\t/ HTTP/1.1\r\n",
                4,
                Refusal::Malformed("the head contains a control character"),
            ),
            (
                b"GET / HTTP/1.1\r\nHost: h\r\n\tfolded: a",
                get + 1,
                Refusal::Malformed("a header line begins with white space"),
            ),
            (
                b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n",
                get + 9,
                Refusal::Malformed("a header line begins with white space"),
            ),
            (
                b"GET / HTTP/1.1\r\nHost: h\r\n\x0bfolded\r\n",
                get + 1,
                Refusal::Malformed("the head contains a control character"),
            ),
            (
                b"nonsense\r\n",
                10,
                Refusal::Malformed("the request line is not METHOD TARGET VERSION"),
            ),
        ] {
            let text = bytes.escape_ascii();
            assert_eq!(piecemeal(bytes), (at, Err(refusal)), "{text}");
            assert_eq!(Scanner::default().scan(bytes), Err(refusal), "{text}");
        }
    }

    #[test]
    fn a_head_has_a_bound() {
        let head = |bytes: usize| {
            let start = "GET / HTTP/1.1\r\nHost: h\r\nX: ";
            let padding = "x".repeat(bytes - start.len() - 4);
            format!("{start}{padding}\r\n\r\n").into_bytes()
        };
        assert!(read(&head(HEAD_BYTES_MAX)).is_ok_and(|head| head.is_some()));
        let (at, found) = piecemeal(&head(HEAD_BYTES_MAX + 1));
        assert_eq!(
            (at, found),
            (HEAD_BYTES_MAX + 1, Err(Refusal::HeadTooLarge))
        );
        let fields = |count: usize| {
            let fields = "X: y\r\n".repeat(count);
            format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes()
        };
        assert!(read(&fields(FIELDS_MAX - 1)).is_ok());
        assert_eq!(read(&fields(FIELDS_MAX)).err(), Some(Refusal::HeadTooLarge));
    }
}
