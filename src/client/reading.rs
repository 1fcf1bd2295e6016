//! Opening and reading of files, for every kind of input: regular files only, inflated where necessary.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

use super::error::SendError;
use super::format;

/// Maximum number of bytes in one read.
pub(super) const BLOCK_BYTES: usize = 1 << 18;
pub(super) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    Some,
    /// No bytes at present. The caller sends what it has, then reads again.
    Idle,
    /// The end of the input, or a stop.
    End,
}

/// Device and inode: the identity of an open file on this machine.
pub(super) fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Reads once; repeats the read if it is interrupted by a signal.
pub(super) fn read_some(reader: &mut (impl Read + ?Sized), block: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// The error of a path whose metadata cannot be read.
pub(super) fn no_metadata(path: &Path, source: io::Error) -> SendError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => match std::fs::read_link(&path) {
            Ok(target) => SendError::Dangling { path, target },
            Err(_) => SendError::NoInput { path },
        },
        _ => SendError::Input { path, source },
    }
}

/// The kind of a file that is not a regular one, for messages.
pub(super) fn kind_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "not a regular file"
    }
}

/// Opens a regular file. Does not block if the path names a FIFO by now.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no longer a regular file"));
    }
    Ok(file)
}

/// A reader, inflated if the input is gzip'd, and the first bytes that it returns.
pub(super) struct Opened {
    pub(super) reader: Box<dyn Read + Send>,
    pub(super) gzip: bool,
    pub(super) head: Vec<u8>,
}

pub(super) fn inflated(mut reader: impl Read + Send + 'static) -> io::Result<Opened> {
    let mut first = Vec::new();
    (&mut reader)
        .take(GZIP_MAGIC.len() as u64)
        .read_to_end(&mut first)?;
    let gzip = first == GZIP_MAGIC;
    let whole = Cursor::new(first).chain(reader);
    let mut reader: Box<dyn Read + Send> = if gzip {
        let buffered = io::BufReader::with_capacity(1 << 16, whole);
        Box::new(MultiGzDecoder::new(buffered))
    } else {
        Box::new(whole)
    };
    let head = head(&mut reader)?;
    Ok(Opened {
        reader: Box::new(Cursor::new(head.clone()).chain(reader)),
        gzip,
        head,
    })
}

/// Reads to the end of the first line that is not empty, or of the object that begins in it; no event can
/// be sent before it is complete.
fn head(reader: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; format::HEAD_BYTES];
    let mut length = 0;
    while length < head.len() {
        let count = read_some(reader, &mut head[length..])?;
        length += count;
        let text = head[..length].trim_ascii_start();
        if count == 0 || text.contains(&b'\n') && !format::is_open_object(text) {
            break;
        }
    }
    head.truncate(length);
    Ok(head)
}

/// Counts the bytes that are read through it.
pub(super) struct Counted<R>(pub(super) R, pub(super) Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buf)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
