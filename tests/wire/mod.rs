//! HTTP on the wire, byte by byte: how the engine parses a stream. Each stream of the table is
//! parsed three times: by a plain model of RFC 9112 that shares no code with the engine, by the
//! engine in one piece, and by the engine in pieces of one byte.

mod model;
mod talk;

use std::sync::LazyLock;

use model::Reading::{self, Refused, Request};
use proptest::prelude::*;
use talk::Talk;

static TALK: LazyLock<Talk> = LazyLock::new(Talk::start);

/// A request with this method, target, Host and body.
fn request(method: &str, target: &str, host: Option<&str>, x: Option<&str>, body: &str) -> Reading {
    let headers = [host, x].map(|value| value.map(str::to_owned));
    Request(method.into(), target.into(), headers, body.into())
}

/// `GET /a`, with Host.
fn get() -> Reading {
    request("GET", "/a", Some("h"), None, "")
}

/// `POST /a` with this body.
fn post(body: &str) -> Reading {
    request("POST", "/a", Some("h"), None, body)
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

type Row = (Vec<u8>, Vec<Reading>);

/// Streams that test one request line, valid or invalid.
fn request_lines(rows: &mut Vec<Row>) {
    let line = |line: &[u8]| [line, b"\r\nHost: h\r\n\r\n", GET.as_bytes()].concat();
    for (first, method, target) in [
        (&b"GET /a HTTP/1.1"[..], "GET", "/a"),
        (b"HEAD /a HTTP/1.1", "HEAD", "/a"),
        (b"POST /a HTTP/1.1", "POST", "/a"),
        (b"OPTIONS * HTTP/1.1", "OPTIONS", "*"),
        (b"DELETE /a HTTP/1.1", "OTHER", "/a"),
        (b"get /a HTTP/1.1", "OTHER", "/a"),
        (b"M-SEARCH /a HTTP/1.1", "OTHER", "/a"),
        (b"!#$%&'*+.^_`|~ /a HTTP/1.1", "OTHER", "/a"),
        (b"GET http://h/a?b HTTP/1.1", "GET", "http://h/a?b"),
        (b"GET HTTP://H:80 HTTP/1.1", "GET", "HTTP://H:80"),
        (b"CONNECT h:443 HTTP/1.1", "OTHER", "h:443"),
        (b"GET /a?b=c&d=%20#e HTTP/1.1", "GET", "/a?b=c&d=%20#e"),
        (b"GET /\"<>\\^`{|} HTTP/1.1", "GET", "/\"<>\\^`{|}"),
        (b"GET a HTTP/1.1", "GET", "a"),
    ] {
        let first_reading = request(method, target, Some("h"), None, "");
        rows.push((line(first), vec![first_reading, get()]));
    }
    for malformed in [
        &b"GET  /a HTTP/1.1"[..],
        b"GET /a  HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b" GET /a HTTP/1.1",
        b"GET /a HTTP/1.1 ",
        b"GET\t/a\tHTTP/1.1",
        b"GET /a\tb HTTP/1.1",
        b"GET /a\x00 HTTP/1.1",
        b"GET /a\x7f HTTP/1.1",
        b"GET /a\x0b HTTP/1.1",
        b"GET /a\x0c HTTP/1.1",
        b"GET /a\x1b[0m HTTP/1.1",
        "GET /S\u{e3}o HTTP/1.1".as_bytes(),
        b"GET /\xff HTTP/1.1",
        b"G\xcbT /a HTTP/1.1",
        b"G(T /a HTTP/1.1",
        b"G\"T /a HTTP/1.1",
        b"GET:/a HTTP/1.1",
        b"/a HTTP/1.1",
        b"GET  HTTP/1.1",
        b"GET /a http/1.1",
        b"GET /a XTTP/1.1",
        b"nonsense",
        b"POST /a",
        b"{\"userId\":\"u\"}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x80\x2e\x01\x03\x01",
    ] {
        rows.push((line(malformed), vec![Refused(400)]));
    }
    for version in [
        &b"PRI * HTTP/2.0"[..],
        b"GET /a HTTP/2.0",
        b"GET /a HTTP/2",
        b"GET /a HTTP/3",
        b"GET /a HTTP/0.9",
        b"GET /a HTTP/1.2",
        b"GET /a HTTP/1.10",
        b"GET /a HTTP/1.",
        b"GET /a HTTP/",
        b"GET /a HTTP/11",
        b"GET /a",
        b"GET /",
    ] {
        rows.push((line(version), vec![Refused(505)]));
    }
}

/// A request with this header line, followed by another request.
fn with_field(field: &[u8]) -> Vec<u8> {
    let (start, end) = (b"GET /a HTTP/1.1\r\nHost: h\r\n", b"\r\n\r\n");
    [&start[..], field, end, GET.as_bytes()].concat()
}

/// Streams in which one header line is accepted.
fn accepted_fields(rows: &mut Vec<Row>) {
    let with = with_field;
    for (field, x) in [
        (&b"X: a"[..], "a"),
        (b"x:a", "a"),
        (b"X:", ""),
        (b"X: \t a b\t \t", "a b"),
        (b"X: a\tb", "a\tb"),
        (b"X: a: b", "a: b"),
        (b"X: \"a\\\"b\"", "\"a\\\"b\""),
        ("X: S\u{e3}o Paulo".as_bytes(), "S\u{e3}o Paulo"),
        (b"X: S\xe3o Paulo", "S\u{fffd}o Paulo"),
        (b"X: \xff\xfe", "\u{fffd}\u{fffd}"),
        (b"X: \x80", "\u{fffd}"),
        (b"X: a\r\nX: b", "a"),
    ] {
        let first = request("GET", "/a", Some("h"), Some(x), "");
        rows.push((with(field), vec![first, get()]));
    }
    for harmless in [
        &b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP\r\nConnection: Upgrade, HTTP2-Settings"[..],
        b"Connection: keep-alive",
        b"Connection: x-close",
        b"Connection:",
        b"cf-region: S\xc3\xa3o Paulo",
        b"!#$%&'*+-.^_`|~09: y",
        b"Expect: 100-continue",
        b"EXPECT: 100-Continue",
        b"Content-Length: 0",
        b"content-length: 000",
        b"Trailer: Y",
        b"TE: trailers",
    ] {
        rows.push((with(harmless), vec![get(), get()]));
    }
}

/// Streams in which one header line is rejected.
fn refused_fields(rows: &mut Vec<Row>) {
    let with = with_field;
    for malformed in [
        &b"X : a"[..],
        b"X\t: a",
        b": a",
        b"X",
        b"X a: b",
        b"X\xff: a",
        b"X(: a",
        b"\"X\": a",
        b" X: a",
        b"\tX: a",
        b"\x0bX: a",
        b"\x0cX: a",
        b"X: a\r\n b",
        b"X: a\r\n\tb",
        b"X: a\x00b",
        b"X: a\x01b",
        b"X: a\x08b",
        b"X: a\x0bb",
        b"X: a\x0cb",
        b"X: a\x1bb",
        b"X: a\x7fb",
        b"X: a\nY: b",
        b"X: a\rY: b",
        b"X: a\r\rY: b",
        b"X: a\n\r\nY: b",
        b"Host: h",
        b"Host:",
        b"HOST: other",
        b"Content-Length: 0\r\nContent-Length: 0",
        b"Content-Length: 0\r\ncontent-length: 1",
        b"Content-Length: 0, 0",
        b"Content-Length:",
        b"Content-Length: +0",
        b"Content-Length: -0",
        b"Content-Length: 0x0",
        b"Content-Length: 0 0",
        b"Content-Length: 0.0",
        b"Content-Length: 1e0",
        b"Content-Length: \xef\xbc\x91",
        b"Content-Length: zero",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: \"chunked\"",
        b"Transfer-Encoding: chunked;x",
        b"Transfer-Encoding:",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    ] {
        rows.push((with(malformed), vec![Refused(400)]));
    }
    for expectation in [
        &b"Expect: more"[..],
        b"Expect:",
        b"Expect: 100-continue, more",
    ] {
        rows.push((with(expectation), vec![Refused(417)]));
    }
    rows.push((
        with(&[&b"X: "[..], &[b'x'; 16 << 10]].concat()),
        vec![Refused(431)],
    ));
    rows.push((
        with("X: y\r\n".repeat(128).trim_end().as_bytes()),
        vec![Refused(431)],
    ));
    rows.push((with(b"Content-Length: 4001"), vec![Refused(413)]));
    rows.push((
        with(b"Content-Length: 99999999999999999999999"),
        vec![Refused(413)],
    ));
}

/// The head of a POST without its last lines.
const POST: &str = "POST /a HTTP/1.1\r\nHost: h\r\n";

fn with_length(length: usize, body: &str) -> String {
    format!("{POST}Content-Length: {length}\r\n\r\n{body}")
}

fn chunked(body: &str) -> String {
    format!("{POST}Transfer-Encoding: chunked\r\n\r\n{body}")
}

/// Streams of several requests, and streams that end early.
fn several_requests(rows: &mut Vec<Row>) {
    let mut row = |stream: &str, readings: &[Reading]| {
        rows.push((stream.as_bytes().to_vec(), readings.to_vec()));
    };
    row("", &[]);
    row("\r\n", &[]);
    row("\r\n\r\n\r\n", &[]);
    row(&format!("\r\n{GET}"), &[get()]);
    row(&format!("\r\n\r\n{GET}\r\n\r\n{GET}\r\n"), &[get(), get()]);
    row(&format!("\n{GET}"), &[Refused(400)]);
    row(&format!("\r{GET}"), &[Refused(400)]);
    row(&format!(" \r\n{GET}"), &[Refused(400)]);
    row("\r", &[Refused(400)]);
    row("G", &[Refused(400)]);
    row("GET /a HTTP/1.1\r\nHost: h\r\n", &[Refused(400)]);
    row("GET /a HTTP/1.1\nHost: h\n\n", &[Refused(400)]);
    row("GET /a HTTP/1.1\r\nHost: h\n\r\n", &[Refused(400)]);
    row("GET /a HTTP/1.\nHost: h\r\n\r\n", &[Refused(400)]);
    row("GET /a HTTP/1.1\r\nHost: h\r\n\n", &[Refused(400)]);
    row("GET /a HTTP/1.1\r\n\r\n", &[Refused(400)]);
    row(&GET.repeat(20), &vec![get(); 20]);
    let old = |host| request("GET", "/a", host, None, "");
    row(&format!("GET /a HTTP/1.0\r\n\r\n{GET}"), &[old(None)]);
    let kept = "GET /a HTTP/1.0\r\nHost: h\r\nConnection: Keep-Alive\r\n\r\n";
    row(&format!("{kept}{GET}"), &[get(), get()]);
    row(
        "GET /a HTTP/1.0\r\nHost: h\r\nHost: i\r\n\r\n",
        &[Refused(400)],
    );
    row(
        "GET /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[Refused(400)],
    );
    row(
        &format!("GET /a HTTP/1.0\r\nExpect: more\r\n\r\n{GET}"),
        &[old(None)],
    );
    for close in [
        "close",
        "Close",
        "te, close",
        "close, keep-alive",
        "keep-alive,\tclose",
    ] {
        let last = format!("GET /a HTTP/1.1\r\nHost: h\r\nConnection: {close}\r\n\r\n{GET}");
        row(&last, &[get()]);
    }
    row(
        "GET /a HTTP/1.1\r\nHost: h\r\nConnection: a\r\nConnection: close\r\n\r\nrest",
        &[get()],
    );
}

/// Bodies with a length.
fn bodies_with_length(rows: &mut Vec<Row>) {
    let mut row = |stream: &str, readings: &[Reading]| {
        rows.push((stream.as_bytes().to_vec(), readings.to_vec()));
    };
    row(&with_length(0, GET), &[post(""), get()]);
    row(&with_length(3, "abc"), &[post("abc")]);
    row(&with_length(3, &format!("abc{GET}")), &[post("abc"), get()]);
    row(&with_length(4, "abc"), &[Refused(400)]);
    row(
        &with_length(2, &format!("abc{GET}")),
        &[post("ab"), request("OTHER", "/a", Some("h"), None, "")],
    );
    row(
        &with_length(GET.len(), &format!("{GET}{GET}")),
        &[post(GET), get()],
    );
    let body = "x".repeat(1000);
    row(
        &with_length(1000, &format!("{body}{GET}")),
        &[post(&body), get()],
    );
    row(
        &with_length(1001, &format!("{body}x{GET}")),
        &[Refused(413), get()],
    );
    row(
        &with_length(4000, &format!("{}{GET}", body.repeat(4))),
        &[Refused(413), get()],
    );
    row(&with_length(4000, &body), &[Refused(400)]);
    row(
        &with_length(4001, &format!("{}x{GET}", body.repeat(4))),
        &[Refused(413)],
    );
    let expects = format!("{POST}Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc{GET}");
    row(&expects, &[post("abc"), get()]);
    let upgrade = format!(
        "{POST}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n{GET}"
    );
    row(&upgrade, &[post("a"), get()]);
    let body_of_get = "GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
    row(
        &format!("{body_of_get}{GET}"),
        &[request("GET", "/a", Some("h"), None, "abc"), get()],
    );
}

/// Chunked bodies.
fn chunked_bodies(rows: &mut Vec<Row>) {
    let mut row = |stream: &str, readings: &[Reading]| {
        rows.push((stream.as_bytes().to_vec(), readings.to_vec()));
    };
    for (chunks, body) in [
        ("0\r\n\r\n", ""),
        ("3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("1\r\na\r\n2\r\nbc\r\n00\r\n\r\n", "abc"),
        (
            "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
            "01234567890123456789",
        ),
        ("0000000000000003\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3;x\r\nabc\r\n0;y=z\r\n\r\n", "abc"),
        ("3;x=\"a b;c\" ;\td\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3;\u{e3}\r\nabc\r\n0\r\n\r\n", "abc"),
        ("5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n"),
        (
            "3\r\nabc\r\n0\r\nX-Sum: 1\r\nY:\r\nZ: \u{e3}\tb\r\n\r\n",
            "abc",
        ),
    ] {
        row(&format!("{}{GET}", chunked(chunks)), &[post(body), get()]);
    }
    let body = "x".repeat(1000);
    for fields in [
        "Transfer-Encoding: chunked\r\nContent-Length: 13",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, identity",
    ] {
        let stream = format!("{POST}{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{GET}");
        row(&stream, &[Refused(400)]);
    }
    for lengths in [
        "3\r\nContent-Length: 3",
        "3, 3",
        "+3",
        " 3 3",
        "3\r\nContent-Length: 2",
    ] {
        let stream = format!("{POST}Content-Length: {lengths}\r\n\r\nabc{GET}");
        row(&stream, &[Refused(400)]);
    }
    let chunk = format!("3e8\r\n{body}\r\n");
    let of = |count: usize| format!("{}0\r\n\r\n{GET}", chunk.repeat(count));
    row(&chunked(&of(1)), &[post(&body), get()]);
    row(&chunked(&of(2)), &[Refused(413), get()]);
    row(&chunked(&of(4)), &[Refused(413), get()]);
    row(&chunked(&of(5)), &[Refused(413)]);
    row(&chunked("ffffffffffffffff\r\nabc"), &[Refused(400)]);
    row(
        &chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(1100))),
        &[Refused(400)],
    );
    row(
        &chunked(&format!("0\r\n{}\r\n", "X: y\r\n".repeat(5000))),
        &[Refused(400)],
    );
    let endless = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(17);
    row(&chunked(&endless), &[Refused(400)]);
}

/// Chunked bodies that are malformed.
fn malformed_chunks(rows: &mut Vec<Row>) {
    let mut row = |stream: &str, readings: &[Reading]| {
        rows.push((stream.as_bytes().to_vec(), readings.to_vec()));
    };
    for malformed in [
        "+3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\t\r\nabc\r\n0\r\n\r\n",
        "3 ;x\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0 \r\n\r\n",
        "3\r\nabc\r\n+0\r\n\r\n",
        "0x2\r\nab\r\n0\r\n\r\n",
        "-1\r\n",
        "\r\n",
        ";x\r\n",
        "g\r\n",
        "2g\r\n",
        "2_0\r\n",
        "00000000000000003\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc\r\r0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3;a\0\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\nX\r\n\r\n",
        "3\r\nabc\r\n0\r\n: b\r\n\r\n",
        "3\r\nabc\r\n0\r\nX : b\r\n\r\n",
        "3\r\nabc\r\n0\r\n X: b\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: b\n\r\n",
        "3\r\nabc\r\n0\r\nX: a\0\r\n\r\n",
        "3\r\nabc\r\n0\r\nGET /b HTTP/1.1\r\n\r\n",
        "3\r\nabc",
        "3\r\nabc\r\n0\r\n",
    ] {
        row(&format!("{}{GET}", chunked(malformed)), &[Refused(400)]);
    }
}

#[test]
fn every_stream_is_parsed_as_expected() {
    // Fails if a rule of RFC 9112, or a stricter rule of this server, is broken: two parsers of one
    // stream may then find different requests in it.
    let mut rows = Vec::new();
    request_lines(&mut rows);
    accepted_fields(&mut rows);
    refused_fields(&mut rows);
    several_requests(&mut rows);
    bodies_with_length(&mut rows);
    chunked_bodies(&mut rows);
    malformed_chunks(&mut rows);
    assert!(rows.len() >= 150, "{}", rows.len());
    for (stream, expected) in rows {
        let text = stream.escape_ascii();
        assert_eq!(model::read(&stream), expected, "by the model: {text}");
        let whole = TALK.read(&stream, usize::MAX);
        assert_eq!(whole, expected, "in one piece: {text}");
        if stream.len() < 2000 {
            let pieces = TALK.read(&stream, 1);
            assert_eq!(pieces, expected, "byte by byte: {text}");
        }
    }
}

/// Parts of streams that form requests in the right order.
const PARTS: [&[u8]; 44] = [
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"/a",
    b"/b?c",
    b"*",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b" HTTP/2.0",
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\xff",
    b"Host: h\r\n",
    b"Host: h\r\n",
    b"X: y\r\n",
    b"X : y\r\n",
    b" folded\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 30\r\n",
    b"Content-Length: 2000\r\n",
    b"Content-Length: +3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"abc",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n",
    b"3;x\r\nabc\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"ffff\r\n",
    b"1 \r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_engine_agrees_with_the_model(
        parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..12),
        piece in prop_oneof![Just(usize::MAX), 1_usize..20],
    ) {
        // Fails if the engine and the model disagree about any stream.
        let stream = parts.concat();
        let (expected, got) = (model::read(&stream), TALK.read(&stream, piece));
        prop_assert!(
            model::agree(&expected, &got),
            "{}: the model {expected:?}, the engine {got:?}",
            stream.escape_ascii()
        );
    }
}
