//! The fast path for event lines against the full parser: the same event, or the same error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tallyline::event::{AMOUNT_MICROS_MAX, Event, ID_BYTES_MAX, USER_ID_BYTES_MAX};

fuzz_target!(|line: &[u8]| {
    let event = Event::parse(line);
    assert_eq!(event, Event::parse_full(line));
    if let Ok(event) = event {
        assert!((1..=USER_ID_BYTES_MAX).contains(&event.user_id.len()));
        assert!(!event.user_id.chars().any(char::is_control));
        assert!(event.amount_micros <= AMOUNT_MICROS_MAX);
        if let Some(id) = event.id {
            assert!((1..=ID_BYTES_MAX).contains(&id.len()));
            assert!(!id.chars().any(char::is_control));
        }
    }
});
