//! Message framing by header fields: the length of the body, and whether the connection persists.
//!
//! If a proxy and this server found different ends of a message, a part of one client's body could
//! become the request of another client (request smuggling). An ambiguous head is therefore rejected
//! (RFC 9112, 6.3 and 11.2). No I/O.

use super::Refusal;

/// Whether the connection stays open after the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It stays open, unless the reply closes it.
    Kept,
    /// It is closed after the reply.
    Ends,
}

/// The length of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// The number of bytes; 0 if there is no body.
    Bytes(u64),
    /// The body is chunked.
    Chunked,
}

/// The framing of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) persistence: Persistence,
    pub(super) body: Length,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// Checks the header fields that frame the message.
pub(super) fn check<'a>(
    is_http11: bool,
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Framing, Refusal> {
    let mut length = None;
    let (mut chunked, mut expects_continue) = (false, false);
    let (mut hosts, mut close, mut keep_alive) = (0, false, false);
    for (name, value) in fields {
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case("content-length") {
            if length.replace(content_length(value)?).is_some() {
                return malformed("there is more than one Content-Length");
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked {
                return malformed("there is more than one Transfer-Encoding");
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return malformed("the Transfer-Encoding is not `chunked`");
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case("host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case("expect") && is_http11 {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::Expectation);
            }
            expects_continue = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                close |= option.eq_ignore_ascii_case(b"close");
                keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
    }
    match (hosts, chunked) {
        (2.., _) => return malformed("there is more than one Host"),
        (0, _) if is_http11 => return malformed("there is no Host, which HTTP/1.1 requires"),
        (_, true) if length.is_some() => {
            return malformed("there are both Transfer-Encoding and Content-Length");
        }
        (_, true) if !is_http11 => return malformed("there is a Transfer-Encoding in HTTP/1.0"),
        _ => {}
    }
    Ok(Framing {
        persistence: if !close && (is_http11 || keep_alive) {
            Persistence::Kept
        } else {
            Persistence::Ends
        },
        body: if chunked {
            Length::Chunked
        } else {
            Length::Bytes(length.unwrap_or(0))
        },
        expects_continue,
    })
}

fn malformed<T>(why: &'static str) -> Result<T, Refusal> {
    Err(Refusal::Malformed(why))
}

/// 1*DIGIT (RFC 9110, 8.6).
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return malformed("the Content-Length is not a whole number");
    }
    // A number of more than 64 bits saturates, and is refused as too large.
    let digits = value.iter().map(|digit| u64::from(digit - b'0'));
    Ok(digits.fold(0, |length: u64, digit| {
        length.saturating_mul(10).saturating_add(digit)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(is_http11: bool, fields: &[(&str, &str)]) -> Result<Framing, Refusal> {
        let fields = fields.iter();
        check(
            is_http11,
            fields.map(|(name, value)| (*name, value.as_bytes())),
        )
    }

    fn with_host(fields: &[(&str, &str)]) -> Result<Framing, Refusal> {
        framing(true, &[&[("Host", "h")], fields].concat())
    }

    #[test]
    fn an_ambiguous_head_is_malformed() {
        for (fields, why) in [
            (
                &[("Content-Length", "3"), ("content-length", "3")][..],
                "there is more than one Content-Length",
            ),
            (
                &[("Content-Length", "3"), ("Transfer-Encoding", "chunked")],
                "there are both Transfer-Encoding and Content-Length",
            ),
            (
                &[
                    ("Transfer-Encoding", "chunked"),
                    ("Transfer-Encoding", "chunked"),
                ],
                "there is more than one Transfer-Encoding",
            ),
            (
                &[("Transfer-Encoding", "gzip, chunked")],
                "the Transfer-Encoding is not `chunked`",
            ),
            (
                &[("Transfer-Encoding", "identity")],
                "the Transfer-Encoding is not `chunked`",
            ),
            (
                &[("Transfer-Encoding", "")],
                "the Transfer-Encoding is not `chunked`",
            ),
            (&[("Host", "evil")], "there is more than one Host"),
        ] {
            assert_eq!(with_host(fields), malformed(why), "{fields:?}");
        }
        for length in [
            "+3", "-3", "3, 3", "0x3", "", "3 3", "three", "3.0", "\u{ff13}",
        ] {
            assert_eq!(
                with_host(&[("Content-Length", length)]),
                malformed("the Content-Length is not a whole number"),
                "{length}"
            );
        }
        assert_eq!(
            framing(false, &[("Transfer-Encoding", "chunked")]),
            malformed("there is a Transfer-Encoding in HTTP/1.0")
        );
        assert_eq!(
            framing(true, &[]),
            malformed("there is no Host, which HTTP/1.1 requires")
        );
        assert!(framing(false, &[]).is_ok());
    }

    #[test]
    fn the_length_of_the_body_follows_from_the_fields() {
        let body = |fields: &[(&str, &str)]| with_host(fields).map(|framing| framing.body);
        assert_eq!(body(&[]), Ok(Length::Bytes(0)));
        assert_eq!(body(&[("Content-Length", "007")]), Ok(Length::Bytes(7)));
        assert_eq!(
            body(&[("Transfer-Encoding", "Chunked")]),
            Ok(Length::Chunked)
        );
        assert_eq!(
            body(&[("Content-Length", "99999999999999999999999")]),
            Ok(Length::Bytes(u64::MAX))
        );
        // Java's HttpClient sends these with its first request.
        let upgrade = [
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", "h2c"),
        ];
        let chunked = [&upgrade[..], &[("Transfer-Encoding", "chunked")]].concat();
        assert_eq!(body(&chunked), Ok(Length::Chunked));
        let framing = with_host(&upgrade).expect("valid");
        assert_eq!(framing.persistence, Persistence::Kept);
    }

    #[test]
    fn expectations() {
        let expect = |is_http11, value| {
            let framing = framing(is_http11, &[("Host", "h"), ("Expect", value)]);
            framing.map(|framing| framing.expects_continue)
        };
        assert_eq!(expect(true, "100-Continue"), Ok(true));
        assert_eq!(expect(true, "200-ok"), Err(Refusal::Expectation));
        assert_eq!(expect(false, "100-continue"), Ok(false));
    }

    #[test]
    fn whether_the_connection_persists() {
        let persistence = |is_http11, values: &[&str]| {
            let mut fields = vec![("Host", "h")];
            fields.extend(values.iter().map(|value| ("Connection", *value)));
            framing(is_http11, &fields).expect("valid").persistence
        };
        assert_eq!(persistence(true, &[]), Persistence::Kept);
        assert_eq!(persistence(true, &["Close"]), Persistence::Ends);
        assert_eq!(persistence(true, &["x-close"]), Persistence::Kept);
        assert_eq!(persistence(true, &["te, close"]), Persistence::Ends);
        assert_eq!(
            persistence(true, &["keep-alive", "close"]),
            Persistence::Ends
        );
        assert_eq!(persistence(false, &[]), Persistence::Ends);
        assert_eq!(persistence(false, &["Keep-Alive"]), Persistence::Kept);
        assert_eq!(
            persistence(false, &["keep-alive, close"]),
            Persistence::Ends
        );
    }
}
