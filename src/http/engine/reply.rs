//! A reply, and its bytes on the wire.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::time::Duration;

use crate::timestamp;

/// JSON.
pub(super) const JSON: &str = "application/json";

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The media type of the body; nothing is said where the body is empty.
    pub content_type: &'static str,
    /// Further headers. Values are ours: nothing a client sent may be echoed here (a line end in
    /// it would be a header of the client's own).
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body, sent whole with its length.
    pub body: Cow<'static, [u8]>,
    /// The connection ends with this reply.
    pub close: bool,
}

impl Reply {
    /// A reply with a body.
    pub fn new(
        status: u16,
        content_type: &'static str,
        body: impl Into<Cow<'static, [u8]>>,
    ) -> Self {
        Self {
            status,
            content_type,
            headers: Vec::new(),
            body: body.into(),
            close: false,
        }
    }

    /// A JSON reply.
    pub fn json(status: u16, body: String) -> Self {
        Self::new(status, JSON, body.into_bytes())
    }

    /// A reply without a body.
    pub fn empty(status: u16) -> Self {
        Self::new(status, "", Vec::new())
    }

    /// With one more header; see [`Self::headers`] for what must not be in it.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same, ending the connection.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// As it goes over the wire: without the body in answer to a HEAD. The connection is kept for
    /// so long after it, or ends with it.
    pub(super) fn encode(self, to_head: bool, kept: Option<Duration>) -> Outgoing {
        let small = self.body.len() <= COPIED_BYTES_MAX;
        let copied = if small { self.body.len() } else { 0 };
        let mut head = Vec::with_capacity(256 + copied);
        self.push_head(&mut head, kept);
        let body = match self.body {
            _ if to_head => Cow::Borrowed(&[][..]),
            body if small => {
                head.extend_from_slice(&body);
                Cow::Borrowed(&[][..])
            }
            body => body,
        };
        Outgoing {
            head,
            body,
            written: 0,
        }
    }

    // Writing to a Vec cannot fail.
    fn push_head(&self, out: &mut Vec<u8>, kept: Option<Duration>) {
        let _never = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        out.extend_from_slice(b"Date: ");
        push_date(out);
        out.extend_from_slice(b"\r\n");
        if self.status != 204 {
            let _never = write!(out, "Content-Length: {}\r\n", self.body.len());
        }
        if !self.body.is_empty() {
            let _never = write!(out, "Content-Type: {}\r\n", self.content_type);
        }
        for (name, value) in &self.headers {
            let _never = write!(out, "{name}: {value}\r\n");
        }
        let _never = match kept {
            None => write!(out, "Connection: close\r\n\r\n"),
            Some(time) => write!(
                out,
                "Connection: keep-alive\r\nKeep-Alive: timeout={}\r\n\r\n",
                time.as_secs()
            ),
        };
    }
}

/// A body up to this length is copied behind its head, so that one `write` sends both.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// What is being written to a connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    head: Vec<u8>,
    body: Cow<'static, [u8]>,
    written: usize,
}

impl Outgoing {
    /// The interim answer that asks for a body.
    pub(super) fn interim() -> Self {
        Self {
            head: b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(),
            body: Cow::Borrowed(&[]),
            written: 0,
        }
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Bytes of memory it holds.
    pub(super) fn held_bytes(&self) -> usize {
        match &self.body {
            Cow::Owned(body) => self.head.len() + body.len(),
            Cow::Borrowed(_) => self.head.len(),
        }
    }

    /// Writes as much as `to` takes; true once all is written.
    pub(super) fn write_to(&mut self, to: &mut impl Write) -> io::Result<bool> {
        loop {
            let head = self.head.get(self.written..).unwrap_or_default();
            let body_from = self.written.saturating_sub(self.head.len());
            let body = self.body.get(body_from..).unwrap_or_default();
            let written = match (head.is_empty(), body.is_empty()) {
                (true, true) => return Ok(true),
                (false, false) => to.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]),
                (false, true) => to.write(head),
                (true, false) => to.write(body),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The reason phrases of the statuses we send.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

thread_local! {
    /// The second it was made for, and the text: made once a second.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn push_date(out: &mut Vec<u8>) {
    // Clamped: a year that has no HTTP date must not end the thread.
    let ms = timestamp::now_ms();
    let now = ms.unsigned_abs() / 1000;
    DATE.with_borrow_mut(|(second, text)| {
        if *second != now {
            *text = httpdate::fmt_http_date(timestamp::of_ms(ms));
            *second = now;
        }
        out.extend_from_slice(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reply: Reply, to_head: bool, kept: Option<u64>) -> String {
        let mut bytes = Vec::new();
        let mut out = reply.encode(to_head, kept.map(Duration::from_secs));
        assert!(out.write_to(&mut bytes).expect("written"));
        let text = String::from_utf8(bytes).expect("text");
        let (before, date) = text.split_once("Date: ").expect("a date");
        format!("{before}{}", date.split_once("\r\n").expect("a line end").1)
    }

    #[test]
    fn a_reply_on_the_wire() {
        let reply = Reply::json(202, "{}".into()).with("Retry-After", "1");
        let head = "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: keep-alive\r\nKeep-Alive: timeout=75\r\n\r\n";
        assert_eq!(text(reply.clone(), false, Some(75)), format!("{head}{{}}"));
        assert_eq!(text(reply, true, Some(75)), head);
        assert_eq!(
            text(Reply::empty(204), false, None),
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            text(Reply::empty(400), false, None),
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }

    /// Takes seven bytes at a time, and nothing every other time.
    struct Slow(Vec<u8>, bool);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(7);
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reply_is_written_as_it_is_taken() {
        let body = "0123456789".repeat(10_000);
        let mut out = Reply::json(200, body.clone()).encode(false, None);
        assert!(out.held_bytes() > body.len());
        let mut slow = Slow(Vec::new(), false);
        let mut waits = 0;
        while !out.write_to(&mut slow).expect("written") {
            waits += 1;
            assert_eq!(out.written(), slow.0.len());
        }
        assert!(waits > 14_000, "{waits}");
        assert!(slow.0.ends_with(format!("\r\n\r\n{body}").as_bytes()));
    }
}
