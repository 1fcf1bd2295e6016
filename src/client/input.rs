//! Where the bytes come from: a file, a gzip'd file, stdin, or a file that grows.
//!
//! Owned by the thread that reads. Whether the input is gzip'd is told by its first two bytes, not
//! by its name. Stdin is read by a thread of its own, so that what has come can be sent while
//! nothing more comes, and so that a stop is heard; that thread is left behind at the end.

use std::fs::{File, Metadata};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select};
use flate2::read::MultiGzDecoder;

use super::error::SendError;
use crate::stop::Stop;

/// Bytes read at once.
const BLOCK_BYTES: usize = 1 << 18;
/// How long stdin may be silent before what has come is sent.
const LINGER: Duration = Duration::from_millis(50);
/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(200);
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// More bytes.
    Some,
    /// Nothing for now: send what there is, then ask again.
    Idle,
    /// Nothing ever again, or a stop.
    End,
}

/// An open input.
pub(super) struct Source {
    path: PathBuf,
    kind: Kind,
    /// Raw bytes read; those of the file, whatever they inflate to.
    raw: Arc<AtomicU64>,
    /// Read already, to be given out next.
    pending: Vec<u8>,
    stop: Stop,
}

enum Kind {
    File {
        reader: Box<dyn Read + Send>,
        /// The same file again, for checksums.
        whole: File,
        gzip: bool,
    },
    Growing {
        file: File,
        /// Whether `Idle` was said since the last bytes: then it is time to wait.
        idle: bool,
    },
    Stdin(Receiver<io::Result<Vec<u8>>>),
}

/// Which file it is on this machine, while it is open.
pub(super) fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Source {
    /// Opens a file to be read to its end.
    pub(super) fn file(path: &Path, stop: &Stop) -> Result<Self, SendError> {
        let raw = Arc::new(AtomicU64::new(0));
        let open = || -> io::Result<Kind> {
            let file = File::open(path)?;
            if file.metadata()?.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            let counted = Counted(file.try_clone()?, Arc::clone(&raw));
            let (reader, gzip) = inflated(counted)?;
            Ok(Kind::File {
                reader,
                whole: file,
                gzip,
            })
        };
        let kind = open().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SendError::NoInput {
                path: path.to_owned(),
            },
            _ => SendError::Input {
                path: path.to_owned(),
                source,
            },
        })?;
        Ok(Self {
            path: path.to_owned(),
            kind,
            raw,
            pending: Vec::new(),
            stop: stop.clone(),
        })
    }

    /// Opens a file that grows, waiting until it is there; `None`: stopped meanwhile.
    pub(super) fn growing(path: &Path, stop: &Stop) -> Result<Option<Self>, SendError> {
        let failed = |source| SendError::Input {
            path: path.to_owned(),
            source,
        };
        let mut told = false;
        let file = loop {
            match File::open(path) {
                Ok(file) => break file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !told {
                        tracing::warn!("waiting for {} to appear", path.display());
                        told = true;
                    }
                    if stop.wait(POLL) {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        };
        let mut magic = [0; 2];
        if file.read_at(&mut magic, 0).map_err(failed)? == 2 && magic == GZIP_MAGIC {
            return Err(SendError::FollowCompressed {
                path: path.to_owned(),
            });
        }
        Ok(Some(Self {
            path: path.to_owned(),
            kind: Kind::Growing { file, idle: false },
            raw: Arc::default(),
            pending: Vec::new(),
            stop: stop.clone(),
        }))
    }

    /// Stdin, or whatever a test puts in its place.
    pub(super) fn stream(
        stream: impl Read + Send + 'static,
        stop: &Stop,
    ) -> Result<Self, SendError> {
        let raw = Arc::new(AtomicU64::new(0));
        let counted = Counted(stream, Arc::clone(&raw));
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
                let mut reader = match inflated(counted) {
                    Ok((reader, _gzip)) => reader,
                    Err(error) => {
                        let _nobody_listens = blocks.send(Err(error));
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
            path: "-".into(),
            kind: Kind::Stdin(received),
            raw,
            pending: Vec::new(),
            stop: stop.clone(),
        })
    }

    /// Appends what comes next to `out`.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>) -> Result<Filled, SendError> {
        if !self.pending.is_empty() {
            out.append(&mut self.pending);
            return Ok(Filled::Some);
        }
        let stop = self.stop.clone();
        let filled = match &mut self.kind {
            Kind::File { reader, .. } => append(&mut **reader, out),
            Kind::Growing { file, idle } => grown(file, idle, &self.path, &self.raw, &stop, out),
            Kind::Stdin(blocks) => received(blocks, &stop, out),
        };
        filled.map_err(|source| SendError::Input {
            path: self.path.clone(),
            source,
        })
    }

    /// Goes past the first `bytes` (inflated); gives the checksum of them where they were read.
    /// `Ok(None)`: there are not so many.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<Option<u32>, SendError> {
        if let Kind::Growing { file, .. }
        | Kind::File {
            whole: file,
            gzip: false,
            ..
        } = &mut self.kind
        {
            use std::io::Seek as _;
            let failed = |source| SendError::Input {
                path: self.path.clone(),
                source,
            };
            if file.metadata().map_err(failed)?.len() < bytes {
                return Ok(None);
            }
            let mut file = file.try_clone().map_err(failed)?;
            file.seek(io::SeekFrom::Start(bytes)).map_err(failed)?;
            self.raw.store(bytes, Ordering::Relaxed);
            if let Kind::File { reader, .. } = &mut self.kind {
                *reader = Box::new(Counted(file, Arc::clone(&self.raw)));
            }
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

    /// Raw bytes read so far.
    pub(super) fn raw_bytes(&self) -> u64 {
        self.raw.load(Ordering::Relaxed)
    }

    /// The open file, where it is one, and whether it is gzip'd.
    pub(super) fn open_file(&self) -> Option<(&File, bool)> {
        match &self.kind {
            Kind::File { whole, gzip, .. } => Some((whole, *gzip)),
            Kind::Growing { file, .. } => Some((file, false)),
            Kind::Stdin(_) => None,
        }
    }

    /// Whether it may grow for ever.
    pub(super) fn grows(&self) -> bool {
        matches!(self.kind, Kind::Growing { .. })
    }

    /// For messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads once, whatever interrupts.
fn read_some(reader: &mut (impl Read + ?Sized), block: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
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
    stop: &Stop,
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

/// The next bytes of a growing file. It ends where its path has come to lead to another file, or
/// where it was cut short, and only once all that it holds was read.
fn grown(
    file: &File,
    idle: &mut bool,
    path: &Path,
    raw: &AtomicU64,
    stop: &Stop,
    out: &mut Vec<u8>,
) -> io::Result<Filled> {
    // Looked at before the read: what was written until then is read below.
    let moved = *idle && {
        if stop.wait(POLL) {
            return Ok(Filled::End);
        }
        let metadata = file.metadata()?;
        if metadata.len() < raw.load(Ordering::Relaxed) {
            tracing::warn!("{} was cut short; starting over with it", path.display());
            return Ok(Filled::End);
        }
        match std::fs::metadata(path) {
            Ok(at_path) => identity(&at_path) != identity(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        }
    };
    let start = out.len();
    out.resize(start + BLOCK_BYTES, 0);
    let read = file.read_at(&mut out[start..], raw.load(Ordering::Relaxed));
    let count = *read.as_ref().unwrap_or(&0);
    out.truncate(start + count);
    read?;
    raw.fetch_add(count as u64, Ordering::Relaxed);
    *idle = count == 0;
    match count {
        0 if moved => Ok(Filled::End),
        0 => Ok(Filled::Idle),
        _ => Ok(Filled::Some),
    }
}

/// The reader, inflated if its first two bytes say so.
fn inflated(mut reader: impl Read + Send + 'static) -> io::Result<(Box<dyn Read + Send>, bool)> {
    let mut first = Vec::new();
    (&mut reader)
        .take(GZIP_MAGIC.len() as u64)
        .read_to_end(&mut first)?;
    let gzip = first == GZIP_MAGIC;
    let whole = Cursor::new(first).chain(reader);
    Ok(if gzip {
        (
            Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(
                1 << 16,
                whole,
            ))),
            true,
        )
    } else {
        (Box::new(whole), false)
    })
}

/// Counts what passes.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buf)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
