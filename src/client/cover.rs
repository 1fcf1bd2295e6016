//! The checksum of what may have been sent of a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The checksum of a file's first bytes. It is extended as the file is sent.
#[derive(Debug, Default)]
pub(super) struct Cover {
    checksum: crc32fast::Hasher,
    bytes: u64,
}

/// A file is covered this far ahead of sending, to save writes of the state.
const COVER_AHEAD_BYTES: u64 = 64 << 20;

impl Cover {
    /// Covers at least the first `end` bytes and some way ahead, or the whole file if it is shorter.
    pub(super) fn extend(&mut self, file: &File, end: u64) -> io::Result<()> {
        let end = (self.bytes + COVER_AHEAD_BYTES)
            .min(file.metadata()?.len())
            .max(end);
        self.extend_to(file, end)
    }

    /// Covers the first `end` bytes, or the whole file if it is shorter.
    pub(super) fn extend_to(&mut self, file: &File, end: u64) -> io::Result<()> {
        let mut block = vec![0; 1 << 18];
        while self.bytes < end {
            let want = usize::try_from(end - self.bytes)
                .unwrap_or(usize::MAX)
                .min(block.len());
            match file.read_at(&mut block[..want], self.bytes) {
                Ok(0) => break,
                Ok(count) => {
                    self.checksum.update(&block[..count]);
                    self.bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Number of covered bytes, and their CRC-32.
    pub(super) fn checked(&self) -> (u64, u32) {
        (self.bytes, self.checksum.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cover_grows_with_its_file() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("f");
        std::fs::write(&path, "abcdef").expect("write");
        let file = File::open(&path).expect("open");
        let mut cover = Cover::default();
        cover.extend_to(&file, 3).expect("read");
        assert_eq!(cover.checked(), (3, crc32fast::hash(b"abc")));
        cover.extend(&file, 4).expect("read");
        assert_eq!(cover.checked(), (6, crc32fast::hash(b"abcdef")));
        cover.extend(&file, 100).expect("read");
        assert_eq!(cover.checked().0, 6);
    }
}
