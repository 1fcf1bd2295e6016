//! Reads files that a user named on the command line or in the settings, such as a token file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};

use super::open::{OpenMode, named, open_named_with};

/// The maximum size of a file named on the command line or in the settings, in bytes.
const NAMED_BYTES_MAX: u64 = 1 << 20;
/// The maximum time to read a pipe, or another source that may block.
const NAMED_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a file that a user named, such as a token file. Pipes are accepted, open databases are not.
/// Fails if there is more than a mebibyte (as in `/dev/zero`), or if a FIFO has no writer or its writer
/// does not finish within ten seconds, so that start-up neither hangs nor exhausts the memory.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_within(path, NAMED_TIMEOUT)
}

fn read_within(path: &Path, timeout: Duration) -> io::Result<Vec<u8>> {
    let named = named(path)?;
    let stat = rustix::fs::fstat(&named)?;
    let blocks = FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile;
    let more = if blocks {
        OFlags::NONBLOCK
    } else {
        OFlags::empty()
    };
    let file = open_named_with(path, &named, &stat, OpenMode::Read, more)?;
    let deadline = Instant::now() + timeout;
    let mut limited = file.take(NAMED_BYTES_MAX + 1);
    let mut bytes = Vec::new();
    loop {
        if blocks {
            await_readable(limited.get_ref(), deadline)?;
        }
        match limited.read_to_end(&mut bytes) {
            Ok(_) => break,
            // The bytes read so far are in `bytes`.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    if bytes.len() as u64 > NAMED_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it has more than {NAMED_BYTES_MAX} bytes; name a smaller file"
        )));
    }
    Ok(bytes)
}

/// Waits until a read does not block: bytes are available, or the last writer has closed the pipe.
fn await_readable(file: &File, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::new(file, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "timed out waiting for its end; check that its writer runs and closes it",
                ));
            }
            polled => return Ok(polled.map(drop)?),
        }
    }
}

/// [`read`] for UTF-8 text.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_has_a_size_limit_and_a_pipe_a_timeout() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.is_ok_and(|status| status.success()));
        let read = |path: &Path, ms| read_within(path, Duration::from_millis(ms));
        let late = read(&fifo, 1).expect_err("no writer");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);

        let at = fifo.clone();
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(at)?;
            std::io::Write::write_all(&mut file, &vec![b'x'; 200_000])
        });
        assert_eq!(read(&fifo, 60_000).expect("read").len(), 200_000);
        writer.join().expect("no panic").expect("written");

        let endless = read(Path::new("/dev/zero"), 60_000).expect_err("endless");
        assert!(endless.to_string().contains("more than 1048576 bytes"));
        let large = dir.path().join("large");
        std::fs::write(&large, vec![b'x'; 1 << 20]).expect("written");
        assert_eq!(read(&large, 1).expect("the bound").len(), 1 << 20);
        std::fs::write(&large, vec![b'x'; (1 << 20) + 1]).expect("written");
        assert!(read(&large, 1).is_err());
    }
}
