//! Splitting a body into lines: the result is complete lines, each with one event, as many as
//! counted. Splitting the result again changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use tallyline::event::Event;
use tallyline::http::intake::{ERRORS_MAX, read};

fuzz_target!(|body: &[u8]| {
    let Ok(intake) = read(body.to_vec()) else {
        return;
    };
    let lines: Vec<_> = intake
        .lines
        .split_inclusive(|byte| *byte == b'\n')
        .collect();
    assert_eq!(lines.len(), intake.accepted as usize);
    assert!(u64::from(intake.accepted) + intake.refused > 0, "silence");
    for line in &lines {
        let text = line.strip_suffix(b"\n").expect("a complete line");
        assert!(!text.contains(&b'\r') && Event::parse(text).is_ok());
    }
    assert_eq!(
        intake.errors.len() as u64,
        intake.refused.min(ERRORS_MAX as u64)
    );
    if !lines.is_empty() {
        let again = read(intake.lines.clone()).expect("lines");
        assert_eq!(
            (again.lines, again.accepted, again.refused),
            (intake.lines, intake.accepted, 0)
        );
    }
    // An array has the elements that a JSON parser finds; each is accepted or rejected.
    let first = body.iter().find(|byte| !b" \t\r\n".contains(byte));
    if first == Some(&b'[') {
        let elements: Vec<Box<RawValue>> = serde_json::from_slice(body).expect("an array");
        assert_eq!(
            elements.len() as u64,
            u64::from(intake.accepted) + intake.refused
        );
    }
});
