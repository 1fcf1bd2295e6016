//! Reads of open files: complete ranges, and the end of the last line.

use std::io;

use super::DiskFile;

/// Fills the buffer with the bytes from `from` on. Fails with `UnexpectedEof` if the file has fewer.
pub fn read_exactly(file: &dyn DiskFile, from: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], from + filled as u64)? {
            0 => {
                let end = from + filled as u64;
                let message = format!("the file ends at byte {end}, before the end of the range");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
            count => filled += count,
        }
    }
    Ok(())
}

/// The offset after the last `\n` before `size`; 0 if there is none. Reads backwards in blocks.
pub fn last_line_end(file: &dyn DiskFile, size: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let mut block = Vec::new();
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.resize(usize::try_from(end - start).unwrap_or_default(), 0);
        read_exactly(file, start, &mut block)?;
        if let Some(index) = memchr::memrchr(b'\n', &block) {
            return Ok(start + index as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
