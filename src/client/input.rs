//! The input of a send: a plain or gzip'd file, stdin, a FIFO, or a growing file.
//!
//! Owned by the thread that reads. Gzip is detected by the first two bytes, not by the file's name.
//! Stdin and FIFOs are read by a thread of their own, so that received lines are sent while the input
//! is silent, and so that a stop takes effect at once. That thread is not joined.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select};
use uuid::Uuid;

use super::error::SendError;
use super::follow::{Growing, POLL, read_up_to};
use super::format::{self, Format};
use super::reading::{
    BLOCK_BYTES, Counted, Filled, GZIP_MAGIC, inflated, kind_name, no_metadata, open_regular,
    read_some,
};
use crate::data_dir::directory_tag;
use crate::data_dir::segment::{DirectoryTag, Label};
use crate::shutdown::Shutdown;

/// What was received from stdin is sent after it was silent for this long.
const LINGER: Duration = Duration::from_millis(50);

pub(super) struct InputSource {
    path: PathBuf,
    kind: Kind,
    format: Option<Format>,
    /// The label in the first line: the input is a segment of a data directory.
    label: Option<Label>,
    /// The data directory whose segments are refused.
    own: Option<DirectoryTag>,
    /// Number of raw bytes read. For a gzip'd file these are the compressed bytes.
    raw: Arc<AtomicU64>,
    /// Bytes that were read and are returned by the next read.
    pending: Vec<u8>,
    stop: Shutdown,
}

enum Kind {
    File {
        reader: Box<dyn Read + Send>,
        /// The same file, for checksums.
        whole: File,
        gzip: bool,
    },
    Growing(Growing),
    Stdin(Receiver<io::Result<Vec<u8>>>),
}

impl InputSource {
    /// Opens an input that is read to its end: a regular file, a FIFO or a terminal.
    pub(super) fn file(path: &Path, stop: &Shutdown) -> Result<Self, SendError> {
        let kind = std::fs::metadata(path).map_err(|source| no_metadata(path, source))?;
        let kind = kind.file_type();
        if kind.is_fifo() || kind.is_char_device() {
            let opened = path.to_owned();
            // Opening a FIFO blocks until it has a writer, so that thread opens it.
            return Self::read_apart(path, move || File::open(opened), stop);
        }
        if kind.is_dir() {
            return Err(SendError::Directory {
                path: path.to_owned(),
            });
        }
        if !kind.is_file() {
            return Err(SendError::NotAFile {
                path: path.to_owned(),
                kind: kind_name(kind),
            });
        }
        let failed = |source| SendError::Input {
            path: path.to_owned(),
            source,
        };
        let whole = open_regular(path).map_err(failed)?;
        let mut source = Self {
            path: path.to_owned(),
            kind: Kind::File {
                reader: Box::new(io::empty()),
                whole,
                gzip: false,
            },
            format: None,
            label: None,
            own: None,
            raw: Arc::default(),
            pending: Vec::new(),
            stop: stop.clone(),
        };
        source.rewind()?;
        Ok(source)
    }

    /// Goes back to the beginning of a file. Fails if its content cannot be sent.
    pub(super) fn rewind(&mut self) -> Result<(), SendError> {
        use std::io::Seek as _;
        let Kind::File {
            reader,
            whole,
            gzip,
        } = &mut self.kind
        else {
            return Ok(());
        };
        let mut open = || -> io::Result<Vec<u8>> {
            let mut file = whole.try_clone()?;
            file.seek(io::SeekFrom::Start(0))?;
            self.raw.store(0, Ordering::Relaxed);
            let opened = inflated(Counted(file, Arc::clone(&self.raw)))?;
            (*reader, *gzip) = (opened.reader, opened.gzip);
            Ok(opened.head)
        };
        let head = open().map_err(|source| SendError::Input {
            path: self.path.clone(),
            source,
        })?;
        self.pending.clear();
        self.format = None;
        self.found(&head)
    }

    /// Opens a file to follow; waits until it exists. `None`: stopped meanwhile.
    pub(super) fn growing(path: &Path, stop: &Shutdown) -> Result<Option<Self>, SendError> {
        let failed = |source| SendError::Input {
            path: path.to_owned(),
            source,
        };
        let not_followed = |kind| SendError::NotFollowed {
            path: path.to_owned(),
            kind,
        };
        let mut warned = false;
        let file = loop {
            match std::fs::metadata(path) {
                Ok(metadata) if !metadata.is_file() => {
                    return Err(not_followed(kind_name(metadata.file_type())));
                }
                Ok(_) => match open_regular(path) {
                    Ok(file) => break file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
            if !warned {
                tracing::warn!("waiting for {} to be created", path.display());
                warned = true;
            }
            if stop.wait(POLL) {
                return Ok(None);
            }
        };
        let mut head = vec![0; format::HEAD_BYTES];
        let length = read_up_to(&file, 0, &mut head).map_err(failed)?;
        head.truncate(length);
        if head.starts_with(&GZIP_MAGIC) {
            return Err(not_followed("gzip'd"));
        }
        let mut source = Self {
            path: path.to_owned(),
            kind: Kind::Growing(Growing::new(file)),
            format: None,
            label: None,
            own: None,
            raw: Arc::default(),
            pending: Vec::new(),
            stop: stop.clone(),
        };
        source.found(&head)?;
        Ok(Some(source))
    }

    /// Stdin, or a stream that replaces it in a test.
    pub(super) fn stream(
        stream: impl Read + Send + 'static,
        stop: &Shutdown,
    ) -> Result<Self, SendError> {
        Self::read_apart(Path::new("-"), move || Ok(stream), stop)
    }

    /// Starts a thread that opens and reads the stream.
    fn read_apart<R: Read + Send + 'static>(
        path: &Path,
        open: impl FnOnce() -> io::Result<R> + Send + 'static,
        stop: &Shutdown,
    ) -> Result<Self, SendError> {
        let raw = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&raw);
        let (blocks, received) = bounded(4);
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let read = |reader: &mut dyn Read| -> io::Result<Vec<u8>> {
                    let mut block = vec![0; BLOCK_BYTES];
                    let count = read_some(reader, &mut block)?;
                    block.truncate(count);
                    Ok(block)
                };
                let opened = open().and_then(|stream| inflated(Counted(stream, counted)));
                let mut reader = match opened {
                    Ok(opened) => opened.reader,
                    Err(error) => {
                        let _stopped = blocks.send(Err(error));
                        return;
                    }
                };
                loop {
                    let block = read(&mut reader);
                    let last = !matches!(&block, Ok(bytes) if !bytes.is_empty());
                    if blocks.send(block).is_err() || last {
                        return;
                    }
                }
            })
            .map_err(SendError::Thread)?;
        Ok(Self {
            path: path.to_owned(),
            kind: Kind::Stdin(received),
            format: None,
            label: None,
            own: None,
            raw,
            pending: Vec::new(),
            stop: stop.clone(),
        })
    }

    /// Detects the format from the first bytes; does nothing if `head` is empty.
    fn found(&mut self, head: &[u8]) -> Result<(), SendError> {
        if head.is_empty() || self.format.is_some() {
            return Ok(());
        }
        let head = &head[..head.len().min(format::HEAD_BYTES)];
        let format = format::of(head).map_err(|unsupported| SendError::NotEvents {
            path: self.path.clone(),
            looks_like: unsupported.what,
            cure: unsupported.cure(&self.path),
        })?;
        if self.grows() && format == Format::Arrays {
            return Err(SendError::NotFollowed {
                path: self.path.clone(),
                kind: "a JSON array",
            });
        }
        self.format = Some(format);
        let line_end = memchr::memchr(b'\n', head);
        self.label = line_end.and_then(|end| Label::of_line(&head[..end]));
        self.check_own()
    }

    /// Fails if the input is a segment of this data directory, now or when its first bytes are read: each of
    /// its events is in that directory already.
    pub(super) fn refuse_segments_of(&mut self, directory: Option<Uuid>) -> Result<(), SendError> {
        self.own = directory.map(directory_tag);
        self.check_own()
    }

    fn check_own(&self) -> Result<(), SendError> {
        match self.label {
            Some(label) if Some(label.tag.directory) == self.own => Err(SendError::OwnSegment {
                path: self.path.clone(),
                number: label.number,
            }),
            _ => Ok(()),
        }
    }

    /// How the input is split into events; `None` before its first bytes.
    pub(super) fn format(&self) -> Option<Format> {
        self.format
    }

    /// Whether anything follows but white space and the end of an array. Reads the input.
    pub(super) fn has_more(&mut self) -> Result<bool, SendError> {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        loop {
            block.clear();
            if self.fill(&mut block)? == Filled::End {
                return Ok(false);
            }
            let arrays = self.format == Some(Format::Arrays);
            let nothing = |byte: &u8| byte.is_ascii_whitespace() || arrays && *byte == b']';
            if !block.iter().all(nothing) {
                return Ok(true);
            }
        }
    }

    /// Appends the next bytes to `out`.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>) -> Result<Filled, SendError> {
        if !self.pending.is_empty() {
            out.append(&mut self.pending);
            return Ok(Filled::Some);
        }
        let stop = self.stop.clone();
        let start = out.len();
        let filled = match &mut self.kind {
            Kind::File { reader, .. } => append(&mut **reader, out),
            Kind::Growing(growing) => growing.fill(&self.path, &self.raw, &stop, out),
            Kind::Stdin(blocks) => received(blocks, &stop, out),
        };
        let filled = filled.map_err(|source| SendError::Input {
            path: self.path.clone(),
            source,
        })?;
        self.found(&out[start..])?;
        Ok(filled)
    }

    /// Skips the first `bytes` (inflated) and returns their checksum, or 0 if they are skipped without
    /// being read. `Ok(None)`: the input is shorter.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<Option<u32>, SendError> {
        let failed = |source| SendError::Input {
            path: self.path.clone(),
            source,
        };
        if let Kind::Growing(growing) = &mut self.kind {
            let there = growing.skip(bytes).map_err(failed)?;
            self.raw.store(bytes, Ordering::Relaxed);
            return Ok(there.then_some(0));
        }
        if let Kind::File {
            whole: file,
            gzip: false,
            reader,
        } = &mut self.kind
        {
            use std::io::Seek as _;
            if file.metadata().map_err(failed)?.len() < bytes {
                return Ok(None);
            }
            let mut file = file.try_clone().map_err(failed)?;
            file.seek(io::SeekFrom::Start(bytes)).map_err(failed)?;
            self.raw.store(bytes, Ordering::Relaxed);
            *reader = Box::new(Counted(file, Arc::clone(&self.raw)));
            return Ok(Some(0));
        }
        let mut checksum = crc32fast::Hasher::new();
        let mut left = bytes;
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        while left > 0 {
            block.clear();
            match self.fill(&mut block)? {
                Filled::Some => {}
                Filled::Idle if !self.stop.requested() => continue,
                Filled::Idle | Filled::End => return Ok(None),
            }
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            checksum.update(&block[..take]);
            left -= take as u64;
            if take < block.len() {
                self.pending = block.split_off(take);
            }
        }
        Ok(Some(checksum.finalize()))
    }

    /// Number of raw bytes read so far.
    pub(super) fn raw_bytes(&self) -> u64 {
        self.raw.load(Ordering::Relaxed)
    }

    /// The open file and whether it is gzip'd; `None` for stdin.
    pub(super) fn open_file(&self) -> Option<(&File, bool)> {
        match &self.kind {
            Kind::File { whole, gzip, .. } => Some((whole, *gzip)),
            Kind::Growing(growing) => Some((growing.file(), false)),
            Kind::Stdin(_) => None,
        }
    }

    /// Whether the input is a growing file.
    pub(super) fn grows(&self) -> bool {
        matches!(self.kind, Kind::Growing(_))
    }

    /// The path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn append(reader: &mut dyn Read, out: &mut Vec<u8>) -> io::Result<Filled> {
    let start = out.len();
    out.resize(start + BLOCK_BYTES, 0);
    let read = read_some(reader, &mut out[start..]);
    out.truncate(start + *read.as_ref().unwrap_or(&0));
    Ok(if read? == 0 {
        Filled::End
    } else {
        Filled::Some
    })
}

fn received(
    blocks: &Receiver<io::Result<Vec<u8>>>,
    stop: &Shutdown,
    out: &mut Vec<u8>,
) -> io::Result<Filled> {
    select! {
        recv(blocks) -> block => match block {
            Ok(block) => {
                let block = block?;
                out.extend_from_slice(&block);
                Ok(if block.is_empty() { Filled::End } else { Filled::Some })
            }
            Err(_) => Ok(Filled::End),
        },
        recv(stop.channel()) -> _ => Ok(Filled::End),
        default(LINGER) => Ok(Filled::Idle),
    }
}
