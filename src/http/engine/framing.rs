//! Whether a request's head says one thing only, and what follows it.
//!
//! Defect 6 (CVE-2026-66752, -66753): the library takes any `Transfer-Encoding` for chunked, the
//! first `Content-Length` of several, and `+3` for a length. A proxy in front may read the same
//! head differently, and then one user's body is another user's request. What two readers could
//! read in two ways is refused before anything else is done with it. Pure, no I/O.

/// How long the connection lives after this request, as the library will have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// HTTP/1.1 keeps it open.
    Kept,
    /// HTTP/1.0 and the client asked to keep it open: the reply must say so too.
    KeptOnRequest,
    /// The library reads no further request from it.
    Ends,
}

/// What follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Nothing.
    None,
    /// At most [`IN_MEMORY_BYTES_MAX`] bytes that the library has read already.
    InMemory,
    /// That many bytes, still on the wire.
    OnWire(u64),
    /// Chunks, still on the wire.
    Chunked,
    /// That many bytes, and the library leaves counting them to us (`Connection: upgrade`).
    Uncounted(u64),
}

/// The library reads bodies up to this length before it hands the request out.
pub(super) const IN_MEMORY_BYTES_MAX: u64 = 1024;

/// A head that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) persistence: Persistence,
    pub(super) body: Body,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// Checks a head. `minor` is the HTTP/1 minor version. An error says what is wrong, in words.
pub(super) fn check<'a>(
    minor: u8,
    headers: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Head, &'static str> {
    let mut length: Option<u64> = None;
    let (mut chunked, mut expects_continue) = (false, false);
    let (mut hosts, mut connection) = (0, None);
    for (name, value) in headers {
        if !is_token(name) {
            return Err("a header's name is not a token");
        }
        if value.bytes().any(|b| (b < b' ' && b != b'\t') || b == 0x7f) {
            return Err("a header's value holds a control character");
        }
        if name.eq_ignore_ascii_case("content-length") {
            if length.is_some() {
                return Err("more than one Content-Length");
            }
            length = Some(content_length(value)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked {
                return Err("more than one Transfer-Encoding");
            }
            if !value.eq_ignore_ascii_case("chunked") {
                return Err("a Transfer-Encoding other than chunked");
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case("host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case("expect") {
            expects_continue = true;
        } else if name.eq_ignore_ascii_case("connection") && connection.is_none() {
            connection = Some(value.to_ascii_lowercase());
        }
    }
    if hosts > 1 {
        return Err("more than one Host");
    }
    if hosts == 0 && minor >= 1 {
        return Err("no Host, which HTTP/1.1 asks for");
    }
    if chunked && length.is_some() {
        return Err("both Transfer-Encoding and Content-Length");
    }
    if chunked && minor == 0 {
        return Err("Transfer-Encoding in HTTP/1.0");
    }
    let connection = connection.as_deref().unwrap_or_default();
    let upgrade = connection.contains("upgrade");
    if chunked && upgrade {
        // The library would hand out the chunks undecoded.
        return Err("both Transfer-Encoding and Connection: upgrade");
    }
    Ok(Head {
        persistence: persistence(minor, connection),
        body: match length {
            None if chunked => Body::Chunked,
            None | Some(0) => Body::None,
            Some(bytes) if upgrade => Body::Uncounted(bytes),
            Some(bytes) if bytes <= IN_MEMORY_BYTES_MAX && !expects_continue => Body::InMemory,
            Some(bytes) => Body::OnWire(bytes),
        },
        expects_continue,
    })
}

/// Mirrors what the library does with the first `Connection` header.
fn persistence(minor: u8, connection: &str) -> Persistence {
    if connection.contains("close") || connection.contains("upgrade") {
        Persistence::Ends
    } else if minor >= 1 {
        Persistence::Kept
    } else if connection.contains("keep-alive") {
        Persistence::KeptOnRequest
    } else {
        Persistence::Ends
    }
}

fn content_length(value: &str) -> Result<u64, &'static str> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a Content-Length that is not a whole number");
    }
    // More than 64 bits is more than any limit; it is refused as too large.
    Ok(value.parse().unwrap_or(u64::MAX))
}

fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(minor: u8, headers: &[(&str, &str)]) -> Result<Head, &'static str> {
        check(minor, headers.iter().copied())
    }

    fn with_host(headers: &[(&str, &str)]) -> Result<Head, &'static str> {
        let host = [("Host", "127.0.0.1")];
        check(1, host.iter().chain(headers).copied())
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        for (headers, why) in [
            (
                &[("Content-Length", "3"), ("content-length", "3")][..],
                "more than one Content-Length",
            ),
            (
                &[("Content-Length", "3"), ("Transfer-Encoding", "chunked")],
                "both Transfer-Encoding and Content-Length",
            ),
            (
                &[
                    ("Transfer-Encoding", "chunked"),
                    ("Transfer-Encoding", "chunked"),
                ],
                "more than one Transfer-Encoding",
            ),
            (
                &[("Transfer-Encoding", "gzip, chunked")],
                "a Transfer-Encoding other than chunked",
            ),
            (
                &[("Transfer-Encoding", "identity")],
                "a Transfer-Encoding other than chunked",
            ),
            (
                &[("Transfer-Encoding", "chunked"), ("Connection", "Upgrade")],
                "both Transfer-Encoding and Connection: upgrade",
            ),
            (
                &[("X", "a\nContent-Length: 5")],
                "a header's value holds a control character",
            ),
            (
                &[("X", "a\rb")],
                "a header's value holds a control character",
            ),
            (
                &[("X", "a\0")],
                "a header's value holds a control character",
            ),
            (&[("X\0", "a")], "a header's name is not a token"),
            (&[("", "a")], "a header's name is not a token"),
            (&[("Host", "evil")], "more than one Host"),
        ] {
            assert_eq!(with_host(headers), Err(why), "{headers:?}");
        }
        for length in ["+3", "-3", "3, 3", "0x3", "", "3 3", "three", "3.0"] {
            assert_eq!(
                with_host(&[("Content-Length", length)]),
                Err("a Content-Length that is not a whole number"),
                "{length}"
            );
        }
        assert_eq!(
            head(0, &[("Transfer-Encoding", "chunked")]),
            Err("Transfer-Encoding in HTTP/1.0")
        );
        assert_eq!(head(1, &[]), Err("no Host, which HTTP/1.1 asks for"));
    }

    #[test]
    fn what_follows_an_honest_head() {
        let body = |headers: &[(&str, &str)]| with_host(headers).map(|head| head.body);
        assert_eq!(body(&[]), Ok(Body::None));
        assert_eq!(body(&[("Content-Length", "0")]), Ok(Body::None));
        assert_eq!(body(&[("Content-Length", "1024")]), Ok(Body::InMemory));
        assert_eq!(body(&[("Content-Length", "1025")]), Ok(Body::OnWire(1025)));
        assert_eq!(
            body(&[("Content-Length", "5"), ("Expect", "100-continue")]),
            Ok(Body::OnWire(5))
        );
        assert_eq!(
            body(&[
                ("Content-Length", "5"),
                ("Connection", "Upgrade, HTTP2-Settings")
            ]),
            Ok(Body::Uncounted(5))
        );
        assert_eq!(body(&[("Transfer-Encoding", "Chunked")]), Ok(Body::Chunked));
        assert_eq!(
            body(&[("Content-Length", "99999999999999999999999")]),
            Ok(Body::OnWire(u64::MAX))
        );
    }

    #[test]
    fn how_long_the_connection_lives() {
        let persistence = |minor, value| {
            head(minor, &[("Host", "h"), ("Connection", value)]).map(|head| head.persistence)
        };
        assert_eq!(with_host(&[]).map(|h| h.persistence), Ok(Persistence::Kept));
        assert_eq!(head(0, &[]).map(|h| h.persistence), Ok(Persistence::Ends));
        assert_eq!(persistence(0, "Keep-Alive"), Ok(Persistence::KeptOnRequest));
        assert_eq!(persistence(1, "Close"), Ok(Persistence::Ends));
        assert_eq!(persistence(1, "keep-alive"), Ok(Persistence::Kept));
    }
}
