use super::*;

const ONE: &str = r#"{"userId":"u","name":"add_revenue","value":1}"#;
const BAD: &str = r#"{"userId":"u","name":"add_revenue","value":-1}"#;

fn lines(body: &str) -> (String, u32, Vec<(u64, &'static str)>) {
    let intake = read(body.as_bytes().to_vec()).expect(body);
    let errors = intake
        .errors
        .iter()
        .map(|e| (e.line, e.error.code))
        .collect();
    let lines = String::from_utf8(intake.lines).expect("text");
    (lines, intake.accepted, errors)
}

#[test]
fn a_clean_body_is_not_copied() {
    let body = format!("{ONE}\n{ONE}\n").into_bytes();
    let at = body.as_ptr();
    let intake = read(body).expect("lines");
    assert_eq!(intake.lines.as_ptr(), at);
    assert_eq!((intake.accepted, intake.refused), (2, 0));
    // With one byte to spare for the line end.
    let mut body = Vec::with_capacity(ONE.len() + 1);
    body.extend_from_slice(ONE.as_bytes());
    let at = body.as_ptr();
    let intake = read(body).expect("a line");
    assert_eq!(intake.lines.as_ptr(), at);
    assert_eq!(intake.lines, format!("{ONE}\n").as_bytes());
}

#[test]
fn other_bodies_are_converted_to_clean_lines() {
    let two = format!("{ONE}\n{ONE}\n");
    for body in [
        format!("{ONE}\n{ONE}"),
        format!("{ONE}\r\n{ONE}\r\n"),
        format!("\n\n{ONE}\n \t\r\n{ONE}\n\n"),
        format!("[{ONE},{ONE}]"),
        format!(" \r\n[\n {ONE} ,\r\n{ONE}\n]\n"),
    ] {
        assert_eq!(lines(&body), (two.clone(), 2, vec![]), "{body:?}");
    }
    assert_eq!(lines(ONE), (format!("{ONE}\n"), 1, vec![]));
}

#[test]
fn an_object_over_several_lines_is_one_line() {
    let pretty = "{\r\n  \"userId\": \"u\",\n  \"name\": \"add_revenue\",\n  \"value\": 1\n}\n";
    let one = "{  \"userId\": \"u\",  \"name\": \"add_revenue\",  \"value\": 1}\n";
    assert_eq!(lines(pretty), (one.into(), 1, vec![]));
    let array = format!("[{pretty},{ONE}]");
    assert_eq!(lines(&array), (format!("{one}{ONE}\n"), 2, vec![]));
    let bad = pretty.replace("1\n}", "-1\n}");
    assert_eq!(lines(&bad), (String::new(), 0, vec![(1, "negative")]));
}

#[test]
fn an_invalid_line_is_reported_with_its_number() {
    let (kept, accepted, errors) = lines(&format!("{ONE}\n\n{BAD}\n{ONE}\nnonsense\n"));
    assert_eq!((kept, accepted), (format!("{ONE}\n{ONE}\n"), 2));
    assert_eq!(errors, [(3, "negative"), (5, "not_json")]);
    let (_, _, errors) = lines(&format!("[{ONE},{BAD},7]"));
    assert_eq!(errors, [(2, "negative"), (3, "not_object")]);
    let (_, _, errors) = lines("{\n{\n");
    assert_eq!(errors, [(1, "not_json"), (2, "not_json")]);
    let (_, _, errors) = lines("7");
    assert_eq!(errors, [(1, "not_object")]);
}

#[test]
fn a_body_without_events_in_a_known_format_has_its_name() {
    let format = |body: &str| {
        let intake = read(body.as_bytes().to_vec()).expect(body);
        assert_eq!(intake.accepted, 0, "{body}");
        (intake.refused, intake.format.map(|format| format.what))
    };
    let wrapper = Some("a JSON object with the events in an array");
    for (body, expected) in [
        (
            "userId,name,value\nu,add_revenue,1\n".to_owned(),
            (2, Some("CSV")),
        ),
        (format!("{{\"events\":[{ONE},{ONE}]}}"), (1, wrapper)),
        (
            format!("{{\"events\":[{ONE}]}}\n{{\"events\":[{ONE}]}}\n"),
            (2, wrapper),
        ),
        // The last element is an event on a line of its own.
        (format!("{{\"events\":[\n{ONE},\n{ONE}\n]}}"), (1, wrapper)),
        (
            format!("{ONE}{ONE}"),
            (1, Some("JSON objects without line ends between them")),
        ),
        ("\u{1f}\u{8b}".to_owned(), (1, None)),
        (BAD.replace(',', ",\n"), (1, None)),
        (format!("{BAD}\n{BAD}\n"), (2, None)),
    ] {
        assert_eq!(format(&body), expected, "{body}");
    }
    // Other lines of the body are events: those in another format are reported one by one.
    let mixed = read(format!("a,b,c\nd,e,f\n{ONE}\n").into()).expect("lines");
    assert_eq!((mixed.accepted, mixed.refused, mixed.format), (1, 2, None));
}

#[test]
fn a_form_feed_is_an_invalid_line() {
    // Fails if a body that is not empty is neither accepted nor refused.
    for body in ["\u{c}", "\n\u{c}\n["] {
        let intake = read(body.into()).expect("lines");
        assert_eq!(intake.accepted, 0);
        assert!(intake.refused > 0, "{body:?}");
    }
}

#[test]
fn a_body_without_events_is_an_error() {
    for body in ["", " \r\n\t"] {
        assert_eq!(read(body.into()), Err(IntakeError::Empty));
    }
    assert_eq!(read("[ ]".into()), Err(IntakeError::EmptyArray));
    for body in ["[", "[1,", "[1]]", "[\"\n\"]"] {
        let read = read(body.into());
        assert!(matches!(read, Err(IntakeError::NotJson(_))), "{body}");
    }
}

#[test]
fn errors_are_listed_up_to_a_bound_and_counted_above_it() {
    let intake = read(format!("{BAD}\n").repeat(1000).into()).expect("lines");
    assert_eq!((intake.accepted, intake.refused), (0, 1000));
    assert_eq!(intake.errors.len(), ERRORS_MAX);
    assert!(!intake.syntax);
}

proptest::proptest! {
    /// For any body, the result is complete lines, each one a valid event, and their number.
    #[test]
    fn every_accepted_line_is_a_valid_event(parts in proptest::collection::vec(0..8_usize, 0..30), array: bool) {
        let pieces = [ONE, BAD, "\n", "\r\n", " ", "{", "}", "\n\n"];
        let mut body: String = parts.iter().map(|&part| pieces[part]).collect();
        if array {
            body = format!("[{}]", parts.iter().map(|&p| pieces[p]).collect::<Vec<_>>().join(","));
        }
        if let Ok(intake) = read(body.into_bytes()) {
            let lines: Vec<_> = intake.lines.split_inclusive(|b| *b == b'\n').collect();
            proptest::prop_assert_eq!(lines.len(), intake.accepted as usize);
            for line in lines {
                proptest::prop_assert!(line.ends_with(b"\n"));
                proptest::prop_assert!(Event::parse(&line[..line.len() - 1]).is_ok());
            }
        }
    }
}
