//! Names of sealed files: the label of the segment, and its length and checksum.

use std::time::SystemTime;

use super::{Label, Seal, digits};
use crate::timestamp;

const TIME_SHAPE: &[u8] = b"dddd-dd-ddTdd-dd-dd.dddZ";

/// The time in the name of a sealed native segment, `2026-11-22T06:41:00.123Z`; `None` for other names.
pub fn sealed_at(file_name: &str) -> Option<String> {
    label_in_name(file_name)?;
    let rest = file_name.strip_prefix("events-")?;
    let (date, time) = rest.get(..TIME_SHAPE.len())?.split_once('T')?;
    Some(format!("{date}T{}", time.replace('-', ":")))
}

/// The number and tag in `events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-1834-9ae0daaf.jsonl`,
/// for any data directory; `None` if it is not the name of a native segment.
pub fn label_in_name(file_name: &str) -> Option<Label> {
    name_parts(file_name).map(|(label, _)| label)
}

/// The length and checksum in the same name. `None` also for a native segment whose name has neither,
/// because recovery sealed it.
pub fn seal_in_name(file_name: &str) -> Option<Seal> {
    name_parts(file_name)?.1
}

fn name_parts(file_name: &str) -> Option<(Label, Option<Seal>)> {
    let rest = file_name.strip_suffix(".jsonl")?.strip_prefix("events-")?;
    let (time, rest) = rest.split_at_checked(TIME_SHAPE.len())?;
    let shaped = time
        .bytes()
        .zip(TIME_SHAPE)
        .all(|(byte, shape)| match shape {
            b'd' => byte.is_ascii_digit(),
            fixed => byte == *fixed,
        });
    let mut parts = rest.strip_prefix('-')?.split('-');
    let (number, tag) = (parts.next()?, parts.next()?);
    let seal = match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => None,
        (Some(bytes), Some(checksum), None) => {
            let seal = Seal {
                bytes: digits(bytes)?,
                checksum: u32::from_str_radix(checksum, 16).ok()?,
            };
            (seal.to_string() == format!("{bytes}-{checksum}")).then_some(())?;
            Some(seal)
        }
        _ => return None,
    };
    let label = format!("{number}-{tag}").parse().ok()?;
    shaped.then_some((label, seal))
}

/// The name of a sealed native segment whose acknowledged length is unknown: `events-<UTC time>-<number>-<tag>.jsonl`.
pub fn sealed_file_name(label: Label, sealed_at: SystemTime) -> String {
    let time = timestamp::rfc3339_millis(sealed_at).replace(':', "-");
    format!("events-{time}-{label}.jsonl")
}

/// The name of a sealed native segment with its length and checksum: `events-<UTC time>-<number>-<tag>-<length>-<checksum>.jsonl`.
pub fn sealed_file_name_with(label: Label, seal: Seal, sealed_at: SystemTime) -> String {
    let name = sealed_file_name(label, sealed_at);
    let stem = name.strip_suffix(".jsonl").unwrap_or(&name);
    format!("{stem}-{seal}.jsonl")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::data_dir::segment::tests::{HERE, label};
    use crate::data_dir::segment::{ACTIVE_FILE, SegmentId};

    #[test]
    fn a_sealed_name_is_read_back_as_its_number_and_tag() {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_329_660_123);
        let name = sealed_file_name(label(42), at);
        assert_eq!(
            name,
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4.jsonl"
        );
        let time = sealed_at(&name);
        assert_eq!(time.as_deref(), Some("2026-11-22T06:41:00.123Z"));
        assert_eq!(sealed_at("events_1700000000000.jsonl"), None);
        assert_eq!(sealed_at(ACTIVE_FILE), None);
        let native = (SegmentId::Native(42), Some(label(42).tag));
        assert_eq!(SegmentId::of_file(&name, HERE), Some(native));
        let imported = (SegmentId::Imported(name.clone()), None);
        assert_eq!(SegmentId::of_file(&name, HERE + 1), Some(imported));
        assert_eq!(seal_in_name(&name), None);
        let big = sealed_file_name(label(12_345_678), at);
        assert_eq!(label_in_name(&big), Some(label(12_345_678)));
        let seal = Seal {
            bytes: 1834,
            checksum: 0x0ae0_daaf,
        };
        let name = sealed_file_name_with(label(42), seal, at);
        assert_eq!(
            name,
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-1834-0ae0daaf.jsonl"
        );
        assert_eq!(seal_in_name(&name), Some(seal));
        assert_eq!(sealed_at(&name), time);
        let native = (SegmentId::Native(42), Some(label(42).tag));
        assert_eq!(SegmentId::of_file(&name, HERE), Some(native));
    }

    #[test]
    fn names_that_are_nearly_native_are_imported() {
        for name in [
            "events_1700000000000.jsonl",
            "events-2026.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042.jsonl",
            "events-2026-11-22T06-41-00.123Z-42-5e3fa1c29b77d0e4.jsonl",
            "events-2026-11-22T06-41-00.123Z-000000-5e3fa1c29b77d0e4.jsonl",
            "events-2026-11-22T06-41-00.123Z-0000042-5e3fa1c29b77d0e4.jsonl",
            "events-2026-11-22T06-41-00.123Z-4294967296-5e3fa1c29b77d0e4.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042-5E3FA1C29B77D0E4.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-1834.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-01834-9ae0daaf.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-1834-9ae0daa.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-1834-9AE0DAAF.jsonl",
            "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4-1834-9ae0daaf-1.jsonl",
            "events-2026-11-22T06-41-00Z-000042-5e3fa1c29b77d0e4.jsonl",
        ] {
            assert_eq!(
                SegmentId::of_file(name, HERE),
                Some((SegmentId::Imported(name.to_owned()), None)),
                "{name}"
            );
        }
        for name in [
            "events.jsonl",
            "events-.jsonl",
            "events_.jsonl",
            "other.jsonl",
            "events_1.json",
            "sample.jsonl",
        ] {
            assert_eq!(SegmentId::of_file(name, HERE), None, "{name}");
        }
    }
}
