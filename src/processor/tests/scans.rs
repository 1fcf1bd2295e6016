//! Scans of any bytes, compared with a simple model.

use super::*;
use crate::data_dir::disk::FileStat;

/// The expected sums of a scan, computed in the simplest way: per user (added, subtracted, events), then the
/// numbers of lines and of rejected lines.
pub(super) fn model(text: &[u8]) -> (BTreeMap<String, (u128, u128, u64)>, u64, u64) {
    let mut users = BTreeMap::<String, (u128, u128, u64)>::new();
    let (mut lines, mut rejected) = (0, 0);
    for line in text.split(|&byte| byte == b'\n') {
        if line.trim_ascii().is_empty() {
            continue;
        }
        lines += 1;
        match Event::parse(line) {
            Err(_) => rejected += 1,
            // Those with an id, too: as if all of them counted.
            Ok(event) => {
                let sums = users.entry(event.user_id.into_owned()).or_default();
                match event.kind {
                    Kind::Add => sums.0 += u128::from(event.amount_micros),
                    Kind::Subtract => sums.1 += u128::from(event.amount_micros),
                }
                sums.2 += 1;
            }
        }
    }
    (users, lines, rejected)
}

pub(super) fn any_line() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => ("[a-c]{1,3}", -5i64..1000).prop_map(|(user, amount)| line(&user, amount)),
        1 => ("[a-z]{20,40}", 0i64..1000).prop_map(|(user, amount)| line(&user, amount)),
        2 => ("[ab]{1,3}", 0i64..1000).prop_map(|(user, amount)| line(&format!("a-common-prefix-of-long-ids-{user}"), amount)),
        1 => "[a-z]{1,2}".prop_map(|id| format!("{{\"userId\":\"a\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{id}\"}}\n")),
        1 => Just("\n".to_owned()),
        1 => Just(" \r\n".to_owned()),
        1 => "[ -~]{0,200}".prop_map(|junk| junk + "\n"),
    ]
}

pub(super) fn pool(threads: usize) -> Pool {
    let unbounded = MemoryBudget {
        threads,
        cache_bytes: 0,
        range_bytes: usize::MAX,
    };
    Pool::new(&unbounded)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any chunks and number of threads give the same sums, counts, checksum, rejected lines and ids.
    #[test]
    fn a_scan_depends_on_the_bytes_alone(
        lines in prop::collection::vec(any_line(), 0..60),
        ended: bool,
        chunk_bytes in 1u64..400,
        threads in 1usize..4,
    ) {
        let mut text = lines.concat().into_bytes();
        if !ended {
            text.pop();
        }
        let file = tempfile::tempfile().expect("a file");
        DiskFile::write_all_at(&file, &text, 0).expect("it is written");
        let file: Arc<dyn DiskFile> = Arc::new(file);
        let scan = |chunk_bytes, threads| -> RangeAggregate {
            let mut pool = pool(threads).with_chunk_bytes(chunk_bytes);
            pool.scan(&file, 0, text.len() as u64).expect("it scans")
        };
        let aggregate = scan(chunk_bytes, threads);
        let (users, lines, rejected) = model(&text);
        let sums: BTreeMap<String, (u128, u128, u64)> = aggregate
            .users
            .to_vec()
            .expect("they are read")
            .into_iter()
            .map(|(user, sums)| (user, (sums.added(), sums.subtracted(), sums.events())))
            .collect();
        prop_assert_eq!(sums, users);
        prop_assert_eq!(aggregate.to, text.len() as u64);
        prop_assert_eq!(aggregate.partial.checksum.clone().finalize(), crc32fast::hash(&text));
        prop_assert_eq!((aggregate.partial.lines, aggregate.partial.rejected_count), (lines, rejected));
        let seen = |partial: &PartialAggregate| {
            let ids: Vec<_> = partial.with_id.iter().map(|event| (event.offset, event.id.to_owned())).collect();
            (ids, partial.rejected.clone())
        };
        let at_once = scan(u64::MAX / 4, 1);
        prop_assert_eq!(seen(&aggregate.partial), seen(&at_once.partial));
    }
}

/// Lines that cross the blocks in which a chunk is read, and chunks that begin within a longer line.
#[test]
fn lines_longer_than_a_block_are_scanned() {
    let mut text = String::new();
    for number in 0..40_000 {
        text += &line(&format!("user{}", number % 7), number % 90);
        if number % 9_000 == 0 {
            writeln!(text, "{{\"x\":\"{}\"}}", "y".repeat(700_000)).expect("written");
        }
    }
    let text = text.trim_end();
    let file = tempfile::tempfile().expect("a file");
    DiskFile::write_all_at(&file, text.as_bytes(), 0).expect("it is written");
    let file: Arc<dyn DiskFile> = Arc::new(file);
    let (users, lines, rejected) = model(text.as_bytes());
    for chunk_bytes in [100_000, 300_000, 1_000_000, u64::MAX] {
        let mut pool = pool(2).with_chunk_bytes(chunk_bytes);
        let aggregate = pool.scan(&file, 0, text.len() as u64).expect("it scans");
        assert_eq!(
            (aggregate.partial.lines, aggregate.partial.rejected_count),
            (lines, rejected)
        );
        assert_eq!(
            aggregate.partial.checksum.clone().finalize(),
            crc32fast::hash(text.as_bytes())
        );
        let found = aggregate.users.to_vec().expect("they are read");
        for (user, sums) in &found {
            assert_eq!(
                (sums.added(), sums.subtracted(), sums.events()),
                users[user],
                "{user}"
            );
        }
        assert_eq!(found.len(), users.len());
    }
}

#[test]
fn a_line_that_is_too_long_is_rejected_once_with_any_chunks() {
    let long = "x".repeat(crate::event::LINE_BYTES_MAX + 5);
    let text = format!("{}{long}\n{}", line("a", 1), line("a", 2));
    let file = tempfile::tempfile().expect("a file");
    DiskFile::write_all_at(&file, text.as_bytes(), 0).expect("it is written");
    let file: Arc<dyn DiskFile> = Arc::new(file);
    for chunk_bytes in [1 << 20, u64::MAX / 4] {
        let mut pool = pool(2).with_chunk_bytes(chunk_bytes);
        let aggregate = pool.scan(&file, 0, text.len() as u64).expect("it scans");
        assert_eq!(
            (aggregate.partial.lines, aggregate.partial.rejected_count),
            (3, 1)
        );
        let rejected = &aggregate.partial.rejected[0];
        assert_eq!(
            (rejected.code, rejected.line.len()),
            ("line_too_long", 1024)
        );
        assert_eq!(
            aggregate.partial.checksum.clone().finalize(),
            crc32fast::hash(text.as_bytes())
        );
    }
}

/// A file whose reads panic from the offset on.
struct PanickingFile {
    file: std::fs::File,
    from: u64,
}

impl DiskFile for PanickingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        assert!(offset < self.from, "as the test wants");
        DiskFile::read_at(&self.file, buf, offset)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
        unreachable!("a scan only reads")
    }
    fn sync_data(&self) -> std::io::Result<()> {
        unreachable!("a scan only reads")
    }
    fn set_len(&self, _: u64) -> std::io::Result<()> {
        unreachable!("a scan only reads")
    }
    fn stat(&self) -> std::io::Result<FileStat> {
        self.file.stat()
    }
    fn release_cache(&self, _: u64) {}
    fn try_lock(&self) -> std::io::Result<bool> {
        unreachable!("a scan only reads")
    }
    fn unlock(&self) {}
}

#[test]
fn a_panic_on_any_thread_is_an_error_of_the_range() {
    // The calling thread scans, too.
    let text = line("a", 1).repeat(1000);
    let length = text.len() as u64;
    let file = tempfile::tempfile().expect("a file");
    DiskFile::write_all_at(&file, text.as_bytes(), 0).expect("it is written");
    let panicking: Arc<dyn DiskFile> = Arc::new(PanickingFile {
        file: file.try_clone().expect("a second handle"),
        from: length / 2,
    });
    let file: Arc<dyn DiskFile> = Arc::new(file);
    for threads in 1..4 {
        let mut pool = pool(threads).with_chunk_bytes(100);
        let Err(error) = pool.scan(&panicking, 0, length) else {
            panic!("the scan must fail");
        };
        assert!(error.to_string().contains("panicked"), "{error}");
        let whole = pool.scan(&file, 0, length).expect("the pool is usable");
        assert_eq!(whole.partial.lines, 1000);
    }
}
