use super::*;

const EVENT: &str = r#"{"specversion":"1.0","id":"7","source":"/billing","type":"add_revenue",
    "subject":"user1","time":"2026-11-22T06:41:00Z","data":{"value":10.50,"note":1}}"#;
const LINE: &str = r#"{"userId":"user1","name":"add_revenue","value":10.50,"id":"/billing 7"}"#;

type Outcome = Result<Vec<Result<Vec<u8>, EventError>>, EventError>;

fn post(headers: &[(&str, &str)], body: &str) -> Outcome {
    let pairs: Vec<(String, &str)> = headers
        .iter()
        .map(|(k, v)| (k.to_ascii_lowercase(), *v))
        .collect();
    let find = |name: &str| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| *v);
    let mode = mode(&find)?.expect("a CloudEvent");
    lines(mode, &find, body.as_bytes())
}

fn structured(body: &str) -> Outcome {
    post(
        &[(
            "content-type",
            "application/cloudevents+json; charset=UTF-8",
        )],
        body,
    )
}

fn batch(body: &str) -> Outcome {
    post(
        &[("content-type", "application/cloudevents-batch+json")],
        body,
    )
}

fn binary(changed: &[(&'static str, &'static str)], body: &str) -> Outcome {
    let mut headers = vec![
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/billing"),
        ("ce-type", "add_revenue"),
        ("ce-subject", "user1"),
        ("content-type", "application/json"),
    ];
    headers.retain(|(name, _)| changed.iter().all(|(other, _)| name != other));
    headers.extend(changed.iter().filter(|(_, value)| *value != "(none)"));
    post(&headers, body)
}

/// The line of the only event, or the pointer and the code of its error.
fn one(outcome: Outcome) -> Result<String, (String, &'static str)> {
    let place_and_code = |e: EventError| (e.pointer.into_owned(), e.code);
    let mut events = outcome.map_err(place_and_code)?;
    assert_eq!(events.len(), 1);
    let line = events.remove(0).map_err(place_and_code)?;
    Ok(String::from_utf8(line).expect("UTF-8"))
}

fn fails(outcome: Outcome, pointer: &str, code: &'static str) {
    assert_eq!(one(outcome), Err((pointer.to_owned(), code)));
}

#[test]
fn the_three_modes_make_the_same_line() {
    assert_eq!(one(structured(EVENT)).as_deref(), Ok(LINE));
    assert_eq!(one(batch(&format!("[{EVENT}]"))).as_deref(), Ok(LINE));
    assert_eq!(
        one(binary(&[], r#" {"value":10.50} "#)).as_deref(),
        Ok(LINE)
    );
}

#[test]
fn an_event_of_our_own_as_data_must_agree_with_the_attributes() {
    let own = |data: &str| EVENT.replace(r#"{"value":10.50,"note":1}"#, data);
    for data in [
        r#"{"userId":"user1","name":"add_revenue","value":10.50}"#,
        r#"{"value":10.50,"userId":"\u0075ser1"}"#,
        r#"{"value":10.50,"name":"add_revenue","id":"7"}"#,
        r#"{"value":10.50,"id":"/billing 7"}"#,
        r#"{"value":10.50,"id":null,"userId":null}"#,
    ] {
        assert_eq!(one(structured(&own(data))).as_deref(), Ok(LINE), "{data}");
        assert_eq!(one(binary(&[], data)).as_deref(), Ok(LINE), "{data}");
        // The user of the data stands for a subject that is not there.
        if data.contains("ser1") {
            let without = own(data).replace(r#""subject":"user1","#, "");
            let line = one(structured(&without)).expect("an event");
            let user = |line: &str| Event::parse(line.as_bytes()).map(|e| e.user_id.to_string());
            assert_eq!(user(&line).ok(), Some("user1".to_owned()));
            assert!(one(binary(&[("ce-subject", "(none)")], data)).is_ok());
        }
    }
    for (data, pointer) in [
        (r#"{"userId":"user2","value":1}"#, "/data/userId"),
        (r#"{"userId":1,"value":1}"#, "/data/userId"),
        (r#"{"name":"subtract_revenue","value":1}"#, "/data/name"),
        (r#"{"id":"8","value":1}"#, "/data/id"),
        (r#"{"id":7,"value":1}"#, "/data/id"),
    ] {
        fails(structured(&own(data)), pointer, "disagrees");
        fails(binary(&[], data), pointer, "disagrees");
    }
    let without = |data| own(data).replace(r#""subject":"user1","#, "");
    fails(
        structured(&without(r#"{"userId":"","value":1}"#)),
        "/data/userId",
        "empty",
    );
    fails(
        structured(&without(r#"{"value":1}"#)),
        "/subject",
        "missing",
    );
}

#[test]
fn other_requests_have_no_mode() {
    for content_type in [None, Some("application/json"), Some("text/plain")] {
        let find = |name: &str| content_type.filter(|_| name == "content-type");
        assert_eq!(mode(&find), Ok(None));
    }
    fails(
        post(&[("content-type", "application/cloudevents+avro")], ""),
        "",
        UNSUPPORTED_FORMAT,
    );
}

#[test]
fn digits_are_kept() {
    for value in [
        "9007199254740993e-6",
        "0.000001",
        "1E+3",
        "999999999999.999999",
    ] {
        let line = one(structured(&EVENT.replace("10.50", value))).expect(value);
        assert!(line.contains(&format!("\"value\":{value},")), "{line}");
    }
}

#[test]
fn a_long_id_is_hashed() {
    let id = |zeros: usize| {
        let body = EVENT.replace("\"7\"", &format!("\"{}\"", "0".repeat(zeros)));
        one(structured(&body)).expect("an event")
    };
    assert!(id(119).contains(&format!("\"id\":\"/billing {}\"", "0".repeat(119))));
    assert!(
        id(120).ends_with(&format!("\"id\":\"{LONG_ID_SHA256}\"}}")),
        "{}",
        id(120)
    );
}

/// `printf '/billing %0120d' 0 | sha256sum`
const LONG_ID_SHA256: &str = "319ca1648f0d466c651f75a086e96e2ef2532bcfe24183674c4194bb7fc0d25d";

#[test]
fn an_error_names_the_attribute_of_the_cloud_event() {
    for (from, to, pointer, code) in [
        (r#""specversion":"1.0","#, "", "/specversion", "missing"),
        (
            r#""1.0""#,
            r#""0.3""#,
            "/specversion",
            "unsupported_version",
        ),
        (r#""1.0""#, "1.0", "/specversion", "not_string"),
        (r#""id":"7","#, "", "/id", "missing"),
        (r#""id":"7","#, r#""id":null,"#, "/id", "missing"),
        (r#""7""#, r#""""#, "/id", "empty"),
        (r#""7""#, r#""\u0007""#, "/id", "control_character"),
        (r#""/billing""#, r#""""#, "/source", "empty"),
        (r#""/billing""#, r#""a b""#, "/source", "white_space"),
        (r#""subject":"user1","#, "", "/subject", "missing"),
        (r#""user1""#, "1", "/subject", "not_string"),
        (r#""type":"add_revenue","#, "", "/type", "missing"),
        ("add_revenue", "com.example.sale", "/type", "unknown_name"),
        ("10.50", "-1", "/data/value", "negative"),
        ("10.50", r#""10.50""#, "/data/value", "not_number"),
        (r#""value":10.50,"#, "", "/data/value", "missing"),
        (
            r#""note":1"#,
            r#""value":1"#,
            "/data/value",
            "duplicate_key",
        ),
        (r#"{"value":10.50,"note":1}"#, "[1]", "/data", "not_object"),
        (r#""data""#, r#""date""#, "/data", "missing"),
        (
            r#""data":{"#,
            r#""data_base64":"MQ==","data":{"#,
            "/data_base64",
            "data_not_json",
        ),
        (r#""time""#, r#""id""#, "/id", "duplicate_key"),
        (
            r#""time""#,
            r#""datacontenttype":"text/xml","t""#,
            "/datacontenttype",
            "data_not_json",
        ),
        ("}}", "}", "", EventError::NOT_JSON),
    ] {
        let body = EVENT.replace(from, to);
        assert_ne!(body, EVENT);
        fails(structured(&body), pointer, code);
    }
    fails(structured("[]"), "", "not_object");
    fails(batch(EVENT), "", "not_array");
}

#[test]
fn each_event_of_a_batch_has_its_own_outcome() {
    assert_eq!(batch("[]"), Ok(vec![]));
    let bad = EVENT.replace("user1", "");
    let outcome = batch(&format!("[{EVENT}, {bad}, 7, {EVENT}]")).expect("an array");
    let found: Vec<_> = outcome
        .iter()
        .map(|e| e.as_ref().map_err(|e| &*e.pointer).map(|_| ()))
        .collect();
    assert_eq!(found, [Ok(()), Err("/subject"), Err(""), Ok(())]);
}

#[test]
fn headers_are_decoded_and_checked() {
    let body = r#"{"value":1}"#;
    let user = |header| one(binary(&[("ce-subject", header)], body));
    for (header, user_id) in [
        ("caf%C3%A9%20%22x%22", r#""café \"x\"""#),
        (r#""a \"quoted\" one""#, r#""a \"quoted\" one""#),
        ("100%", r#""100%""#),
        // As UTF-8 and percent-encoded.
        ("café ☕", r#""café ☕""#),
        ("caf%C3%A9%20%E2%98%95", r#""café ☕""#),
        ("café%20☕", r#""café ☕""#),
        ("%EF%BF%BD", "\"\u{fffd}\""),
    ] {
        let line = user(header).expect(header);
        assert!(
            line.starts_with(&format!("{{\"userId\":{user_id},")),
            "{line}"
        );
    }
    for not_utf8 in ["%FF", "S\u{fffd}o"] {
        assert_eq!(user(not_utf8), Err(("/subject".to_owned(), "not_utf8")));
    }
    assert_eq!(
        user("%00"),
        Err(("/subject".to_owned(), "control_character"))
    );
    fails(
        binary(&[("ce-specversion", "(none)")], body),
        "/specversion",
        "missing",
    );
    fails(
        binary(&[("ce-specversion", "2.0")], body),
        "/specversion",
        "unsupported_version",
    );
    fails(
        binary(&[("content-type", "text/plain")], body),
        "/datacontenttype",
        "data_not_json",
    );
    fails(binary(&[], ""), "/data", "missing");
    fails(binary(&[], "{"), "/data", EventError::NOT_JSON);
    assert!(one(binary(&[("content-type", "(none)")], body)).is_ok());
}
