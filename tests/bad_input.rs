//! Invalid bodies: nothing of them is appended, and the response names line, field and reason.

use serde_json::{Value, json};

use super::harness::http::Request;
use super::harness::{Scratch, Server, event};

/// Body, status, and line, pointer and code of the first error.
type Case = (Vec<u8>, u16, u64, &'static str, &'static str);

/// An event with these three fields, each written as given.
fn fields(user: &str, name: &str, value: &str) -> Vec<u8> {
    format!("{{\"userId\":{user},\"name\":{name},\"value\":{value}}}").into_bytes()
}

fn cases() -> Vec<Case> {
    let user = |user: &str| fields(user, "\"add_revenue\"", "1");
    let name = |name: &str| fields("\"u\"", name, "1");
    let value = |value: &str| fields("\"u\"", "\"add_revenue\"", value);
    let with = |more: &str| {
        format!("{{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1,{more}}}").into_bytes()
    };
    let long = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    vec![
        (b"hello".to_vec(), 400, 1, "", "not_json"),
        (b"{\"userId\":\"u\"".to_vec(), 400, 1, "", "not_json"),
        (value("NaN"), 400, 1, "", "not_json"),
        (value("01"), 400, 1, "", "not_json"),
        (user("\"\u{0}\""), 400, 1, "", "not_json"),
        (user("\"\\ud800\""), 400, 1, "", "not_json"),
        (
            b"{\"userId\":\"\xff\",\"name\":\"add_revenue\",\"value\":1}".to_vec(),
            400,
            1,
            "",
            "not_json",
        ),
        (b"7".to_vec(), 422, 1, "", "not_object"),
        (b"\"text\"".to_vec(), 422, 1, "", "not_object"),
        (b"null".to_vec(), 422, 1, "", "not_object"),
        (b"[[]]".to_vec(), 422, 1, "", "not_object"),
        (b"{}".to_vec(), 422, 1, "/userId", "missing"),
        (user("7"), 422, 1, "/userId", "not_string"),
        (user("null"), 422, 1, "/userId", "not_string"),
        (user("\"\""), 422, 1, "/userId", "empty"),
        (user(&long(257)), 422, 1, "/userId", "too_long"),
        (user("\"a\\nb\""), 422, 1, "/userId", "control_character"),
        (
            user("\"a\\u0085b\""),
            422,
            1,
            "/userId",
            "control_character",
        ),
        (name("\"steal\""), 422, 1, "/name", "unknown_name"),
        (name("[]"), 422, 1, "/name", "not_string"),
        (value("-5"), 422, 1, "/value", "negative"),
        (value("\"100\""), 422, 1, "/value", "not_number"),
        (value("null"), 422, 1, "/value", "not_number"),
        (value("0.0000001"), 422, 1, "/value", "too_many_digits"),
        (value("1000000000000.1"), 422, 1, "/value", "too_large"),
        (value("1e400"), 422, 1, "/value", "too_large"),
        (with("\"id\":\"\""), 422, 1, "/id", "empty"),
        (with("\"id\":7"), 422, 1, "/id", "not_string"),
        (
            with(&format!("\"id\":{}", long(129))),
            422,
            1,
            "/id",
            "too_long",
        ),
        (with("\"userId\":\"v\""), 422, 1, "/userId", "duplicate_key"),
        (with("\"x\":1,\"x\":1"), 422, 1, "/x", "duplicate_key"),
    ]
}

fn first_error(problem: &Value) -> (u64, String, String) {
    let error = &problem["errors"][0];
    let text = |name: &str| error[name].as_str().unwrap_or("(none)").to_owned();
    assert!(!text("detail").is_empty(), "{problem}");
    (
        error["line"].as_u64().unwrap_or(0),
        text("pointer"),
        text("code"),
    )
}

#[test]
fn each_invalid_event_is_rejected_with_field_and_reason() {
    // Fails if one kind of invalid input is accepted, or reported with another code or status.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    for (body, status, line, pointer, code) in cases() {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let reply = server.post("/liveEvent", &body);
        assert_eq!(reply.status, status, "{shown}: {}", reply.text());
        let problem = reply.problem(status);
        let expected = (line, pointer.to_owned(), code.to_owned());
        assert_eq!(first_error(&problem), expected, "{shown}: {problem}");
    }
    let status = server.assert_balanced();
    assert_eq!(
        (&status["accepted"], &status["lines"]),
        (&json!(0), &json!(0))
    );
    server.get("/readyz").expect(200);
}

#[test]
fn values_of_the_maximum_length_are_accepted() {
    // Fails if a length limit is off by one.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event(&"é".repeat(128), 1));
    let id = "i".repeat(128);
    server.accept(format!(
        "{{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1e12,\"id\":\"{id}\"}}"
    ));
}

#[test]
fn a_batch_with_an_invalid_line_is_rejected_and_the_line_named() {
    // Fails if part of a rejected batch is appended (a retry would count it twice), or if the line
    // number is wrong.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let good = event("u", 1);
    let item = good.trim_end();
    let bad = r#"{"userId":"u","name":"add_revenue","value":-5}"#;
    for (body, status, line) in [
        (format!("{good}{good}{bad}\n{good}"), 422, 3),
        (format!("\n\n{good}\r\n{bad}"), 422, 5),
        (format!("{good}{{\"userId\""), 400, 2),
        (format!("[{item},{item},{item},{bad}]"), 422, 4),
        (format!("[{item},\n\n\n7]"), 422, 2),
    ] {
        let problem = server.post("/liveEvent", &body).problem(status);
        assert_eq!(first_error(&problem).0, line, "{body}: {problem}");
    }
    // A line that is not JSON makes the whole body invalid JSON.
    let problem = server
        .post("/liveEvent", format!("{bad}\nnonsense\n{bad}"))
        .problem(400);
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(3));
    let status = server.assert_balanced();
    assert_eq!(
        (&status["accepted"], &status["lines"]),
        (&json!(0), &json!(0))
    );
}

#[test]
fn an_empty_body_is_rejected() {
    // Fails if an empty body or list is acknowledged: a client that sends nothing by mistake would
    // not notice.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.post("/liveEvent", "").problem(400);
    server.post("/liveEvent", " \r\n \n").problem(400);
    server.post("/liveEvent", "[]").problem(422);
    server.post("/liveEvent", " [ ] ").problem(422);
    server
        .post("/liveEvent", format!("[{}", event("u", 1)))
        .problem(400);
    server
        .post("/liveEvent", format!("[{}] x", event("u", 1)))
        .problem(400);
    assert_eq!(server.counter("accepted"), 0);
}

#[test]
fn a_body_over_the_limit_is_413_and_the_response_arrives() {
    // Fails if the limit is not enforced, or the connection is closed before the client can read
    // the response.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let body = event("u", 1).repeat((9 << 20) / 46 + 1);
    assert!(body.len() > 9 << 20 && body.len() < 32 << 20);
    server.post("/liveEvent", &body).problem(413);
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let chunked = Request::new("POST", "/liveEvent").header("Transfer-Encoding", "chunked");
    server.ask(&chunked.body(chunk)).problem(413);
    assert_eq!(server.counter("accepted"), 0);
    let under = event("u", 1).repeat((7 << 20) / 46);
    let answer = server.post("/liveEvent", &under).expect(202).json();
    assert_eq!(answer["accepted"], (7 << 20) / 46);
    server.get("/readyz").expect(200);
}
