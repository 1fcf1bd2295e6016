//! Names and positions: no name panics, a number has one spelling, what is read is written back.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use tallyline::segment::{Position, SegmentId, sealed_at, sealed_file_name};

fuzz_target!(|text: &str| {
    if let Ok(position) = text.parse::<Position>() {
        assert!(position.segment > 0);
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    match SegmentId::of_file(text) {
        Some(SegmentId::Ours(number)) => {
            assert!(number > 0 && sealed_at(text).is_some());
            assert!(text.ends_with(&format!("-{number:06}.jsonl")));
            let name = sealed_file_name(number, UNIX_EPOCH + Duration::from_millis(number >> 24));
            assert_eq!(SegmentId::of_file(&name), Some(SegmentId::Ours(number)));
        }
        Some(SegmentId::Elsewhere(name)) => assert!(name == text && sealed_at(text).is_none()),
        None => assert!(sealed_at(text).is_none()),
    }
});
