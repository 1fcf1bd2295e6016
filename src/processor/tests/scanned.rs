//! Bounds of a scan whose lines are spread over several chunks.

use super::scans::pool;
use super::*;
use crate::aggregate::REJECTED_LINES_MAX;
use crate::aggregate::scan::STORED_LINE_BYTES_MAX;

fn scan(text: &str, chunk_bytes: u64) -> RangeAggregate {
    let file = tempfile::tempfile().expect("a file");
    DiskFile::write_all_at(&file, text.as_bytes(), 0).expect("it is written");
    let file: Arc<dyn DiskFile> = Arc::new(file);
    let mut pool = pool(2).with_chunk_bytes(chunk_bytes);
    pool.scan(&file, 0, text.len() as u64).expect("it scans")
}

#[test]
fn the_longest_event_with_a_label_is_counted() {
    // Fails if the longest event that a server accepts is rejected when it is the first of a segment, whose
    // line is longer by the label.
    let blank = |event: &str, bytes: usize| event.replace('}', &(" ".repeat(bytes) + "}"));
    let event = line("u", 1);
    let event = event.trim_end();
    let longest = blank(event, crate::event::LINE_BYTES_MAX - event.len());
    assert_eq!(longest.len(), crate::event::LINE_BYTES_MAX);
    let label = STORED_LINE_BYTES_MAX - longest.len();
    let text = format!("{longest}{}\n{}", " ".repeat(label), line("u", 1));
    for chunk_bytes in [1 << 20, u64::MAX / 4] {
        let partial = scan(&text, chunk_bytes).partial;
        assert_eq!((partial.lines, partial.rejected_count), (2, 0));
    }
}

#[test]
fn a_byte_order_mark_is_ignored_at_the_start_only() {
    // Fails if a line is accepted in a file that is rejected in a request.
    let marked = format!("\u{feff}{}", line("u", 1));
    for chunk_bytes in [16, u64::MAX / 4] {
        let partial = scan(&marked.repeat(3), chunk_bytes).partial;
        assert_eq!((partial.lines, partial.rejected_count), (3, 2));
    }
}

#[test]
fn the_kept_rejected_lines_of_all_chunks_are_bounded() {
    // Fails if each chunk may keep as many lines as the whole range: a file of invalid lines would use
    // memory in proportion to its size.
    let invalid = usize::try_from(REJECTED_LINES_MAX).expect("few") + 500;
    let partial = scan(&"x\n".repeat(invalid), 4096).partial;
    assert_eq!(partial.rejected_count, invalid as u64);
    assert_eq!(partial.rejected.len() as u64, REJECTED_LINES_MAX);
    let offsets: Vec<u64> = partial.rejected.iter().map(|line| line.offset).collect();
    assert!((0..REJECTED_LINES_MAX).map(|line| line * 2).eq(offsets));
}
