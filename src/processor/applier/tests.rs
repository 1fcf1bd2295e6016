//! Which bytes of a file are read when it is verified.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use super::*;
use crate::data_dir::disk::{Disk as _, DiskFile, FileLayer, RealDisk};
use crate::data_dir::segment::{ACTIVE_FILE, sealed_file_name_with};
use crate::data_dir::testing::{label, write_active};

const FIRST: &str = "{\"userId\": \"u\", \"name\": \"add_revenue\", \"value\": 1}\n";
const SECOND: &str = "{\"userId\": \"u\", \"name\": \"add_revenue\", \"value\": 2}\n";

/// A file that notes the lowest offset that was read.
struct LowestRead {
    file: Arc<dyn DiskFile>,
    offset: Arc<AtomicU64>,
}

impl FileLayer for LowestRead {
    fn below(&self) -> &dyn DiskFile {
        &*self.file
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.offset.fetch_min(offset, Ordering::Relaxed);
        self.file.read_at(buf, offset)
    }
}

struct Ignores;

impl Watch for Ignores {
    fn committed(&mut self, _: &[Commit<'_>], _: Duration) {}

    fn locked(&mut self, _: &StoreError) -> bool {
        false
    }

    fn unlocked(&mut self) {}
}

/// Applies a first line from the active file, appends a second one and seals the file, then writes `changed`
/// over its end and verifies it. Returns the lowest offset that was read relative to the end of the first line,
/// and how many bytes of the first line are reported as applied; or why the file is corrupt.
fn verify_after_sealing(changed: &str) -> Result<(u64, u64), String> {
    let dir = tempfile::tempdir().expect("a directory");
    write_active(dir.path(), 1, FIRST);
    let config = ProcessorConfig::new(dir.path());
    let config = config.established(&RealDisk).expect("a directory.json");
    let mut pool = Pool::new(&config.memory_budget());
    let mut applier = Applier::open(&config, &mut pool).expect("a database");
    let lowest = Arc::new(AtomicU64::new(u64::MAX));
    let open = |path: &Path| SegmentFile {
        id: SegmentId::Native(1),
        tag: Some(label(dir.path(), 1).tag),
        path: path.to_owned(),
        file: Arc::new(LowestRead {
            file: RealDisk.open_read(path).expect("it opens"),
            offset: Arc::clone(&lowest),
        }),
    };
    let active = dir.path().join(ACTIVE_FILE);
    let mut bytes = fs::read(&active).expect("it is read");
    let first_end = bytes.len() as u64;
    let segment = open(&active);
    let confirmed = applier.confirm(&segment).expect("it is read");
    assert!(matches!(confirmed, Confirmed::At(0)));
    let watch = &mut Ignores;
    applier
        .apply(&segment, first_end, RangeEnd::Active, watch)
        .expect("it is applied");

    bytes.extend_from_slice(SECOND.as_bytes());
    let seal = Seal {
        bytes: bytes.len() as u64,
        checksum: crc32fast::hash(&bytes),
    };
    let name = sealed_file_name_with(label(dir.path(), 1), seal, UNIX_EPOCH);
    let path = dir.path().join(name);
    let at = bytes.len() - changed.len();
    bytes[at..].copy_from_slice(changed.as_bytes());
    fs::write(&active, bytes).expect("it is written");
    fs::rename(&active, &path).expect("it is renamed");
    lowest.store(u64::MAX, Ordering::Relaxed);
    match applier.confirm(&open(&path)).expect("it is read") {
        Confirmed::At(at) => Ok((lowest.load(Ordering::Relaxed) - first_end, first_end - at)),
        Confirmed::Corrupt(corrupt) => Err(corrupt.reason),
        _ => panic!("it is the same segment"),
    }
}

#[test]
fn only_bytes_that_are_not_applied_are_read_when_a_segment_is_sealed() {
    assert_eq!(verify_after_sealing(""), Ok((0, 0)));
}

#[test]
fn bytes_that_are_not_applied_are_verified_when_a_segment_is_sealed() {
    let reason = verify_after_sealing("3}\n").expect_err("it is corrupt");
    assert!(reason.contains("has another content now"), "{reason}");
}
