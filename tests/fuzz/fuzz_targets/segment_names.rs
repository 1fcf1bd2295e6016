//! Names and positions: parsing never panics, a number has one spelling, and formatting a parsed
//! value gives the same text.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use tallyline::data_dir::segment::{Position, SegmentId, label_in_name, sealed_at, sealed_file_name};

fuzz_target!(|text: &str| {
    if let Ok(position) = text.parse::<Position>() {
        assert!(position.segment > 0);
        assert_eq!(position.to_string().parse(), Ok(position));
    }
    let Some(label) = label_in_name(text) else {
        assert!(sealed_at(text).is_none());
        if let Some((id, tag)) = SegmentId::of_file(text, 0) {
            assert!(id == SegmentId::Imported(text.to_owned()) && tag.is_none());
        }
        return;
    };
    assert!(label.number > 0 && sealed_at(text).is_some());
    assert!(text.ends_with(&format!("-{:06}-{}.jsonl", label.number, label.tag)));
    let name = sealed_file_name(label, UNIX_EPOCH + Duration::from_millis(label.number));
    assert_eq!(label_in_name(&name), Some(label));
    let native = SegmentId::of_file(text, label.tag.directory);
    assert_eq!(native, Some((SegmentId::Native(label.number), Some(label.tag))));
    let imported = SegmentId::of_file(text, !label.tag.directory);
    assert_eq!(imported, Some((SegmentId::Imported(text.to_owned()), None)));
});
