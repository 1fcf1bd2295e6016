use super::*;
use crate::shutdown::Shutdown;
use std::io::Cursor;

fn batches(text: &[u8], lines_max: u32) -> Vec<Batch> {
    let source =
        InputSource::stream(Cursor::new(text.to_vec()), &Shutdown::default()).expect("thread");
    let mut batches = Batches::new(source, lines_max, Place::default(), Checksum::Kept);
    std::iter::from_fn(|| batches.next().expect("reads")).collect()
}

fn shown(batches: &[Batch]) -> Vec<(u64, String)> {
    let lines = |batch: &Batch| {
        let text = |line: &Line| String::from_utf8_lossy(&batch.text[line.range.clone()]).into();
        batch
            .lines
            .iter()
            .map(|line| (line.number, text(line)))
            .collect::<Vec<_>>()
    };
    batches.iter().flat_map(lines).collect()
}

#[test]
fn lines_keep_their_number_in_the_file() {
    let text = b"\xef\xbb\xbfa\r\n\n  b \n \nc";
    let batches = batches(text, 2);
    let expected = [
        (1, "a".to_owned()),
        (3, "b".to_owned()),
        (5, "c".to_owned()),
    ];
    assert_eq!(shown(&batches), expected);
    let end = batches.last().expect("some").end;
    assert_eq!((end.lines, end.bytes), (5, text.len() as u64));
    assert_eq!(end.crc32, crc32fast::hash(text));
    let sequence: Vec<_> = batches.iter().map(|batch| batch.sequence).collect();
    assert_eq!(sequence, (0..batches.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_line_too_long_is_named_and_not_kept() {
    let long = LINE_BYTES_MAX + (1 << 20);
    let mut text = vec![b'x'; long];
    text[..5].copy_from_slice(b"begin");
    text.extend_from_slice(b"\nb\n");
    let batches = batches(&text, 10);
    let lines: Vec<_> = batches.iter().flat_map(|batch| &batch.lines).collect();
    assert_eq!(lines[0].fault, Some(Fault::TooLong(long as u64)));
    assert_eq!(lines[0].range.len(), TOO_LONG_KEPT_BYTES);
    assert!(batches[0].text.starts_with(b"begin"));
    assert_eq!((lines[1].number, lines[1].fault), (2, None));
    assert_eq!(
        batches.last().expect("some").end.crc32,
        crc32fast::hash(&text)
    );
}

#[test]
fn a_line_without_an_end_ends_the_reading() {
    // Fails if an input without line ends, such as a device, is read for ever.
    let text = std::io::Read::chain(&b"a\n"[..], std::io::repeat(b'x'));
    let source = InputSource::stream(text, &Shutdown::default()).expect("thread");
    let mut batches = Batches::new(source, 1, Place::default(), Checksum::Kept);
    let first = batches.next().expect("reads").expect("a line");
    assert_eq!(shown(&[first]), [(1, "a".to_owned())]);
    match batches.next() {
        Err(SendError::EndlessLine { line, bytes, .. }) => {
            assert_eq!(line, 2);
            assert!(bytes > ENDLESS_BYTES, "{bytes}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_nothing() {
    assert!(batches(b"", 10).is_empty());
}
