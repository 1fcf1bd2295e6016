//! Starts writing a new database to the disk while its first transaction is still running.
//!
//! A commit waits until the disk has every changed page. Without this, the pages of a large first transaction
//! reach the disk only then, while nothing else runs. Here the writer moves them from SQLite's cache to the
//! file from time to time, and a thread asks the kernel to write out the file system of the directory.
//!
//! The file itself is not opened, because closing it would release SQLite's locks. Correctness does not depend
//! on any of this: SQLite syncs its rollback journal before it changes the file, and the file at the commit.
//! Errors are therefore ignored: the commit reports them.

use std::path::Path;
use std::thread::Builder;

use crossbeam_channel::Sender;
use rusqlite::Connection;

use crate::data_dir::disk;

/// The number of rows of totals after which pages are written: about 4 MB.
const ROWS: usize = 128 << 10;

/// Writes the pages of one transaction. The thread ends after this is dropped.
pub(super) struct WriteBack {
    /// Rows since pages were last written.
    rows: usize,
    /// Requests; `None` before the first one.
    requests: Option<Sender<()>>,
}

impl WriteBack {
    pub(super) fn new() -> Self {
        Self {
            rows: 0,
            requests: None,
        }
    }

    /// Called after `rows` rows were inserted into the database at `path`.
    pub(super) fn inserted(&mut self, rows: usize, connection: &Connection, path: &Path) {
        self.rows += rows;
        if self.rows < ROWS {
            return;
        }
        self.rows = 0;
        if connection.cache_flush().is_err() {
            return;
        }
        let requests = match &self.requests {
            Some(requests) => requests,
            None => match start(path) {
                Some(requests) => self.requests.insert(requests),
                None => return,
            },
        };
        // If the thread is busy, a later request includes these pages.
        let _is_busy = requests.try_send(());
    }
}

/// Starts the thread; `None` if that is impossible.
fn start(path: &Path) -> Option<Sender<()>> {
    let dir = path.parent()?.to_owned();
    let (sender, requests) = crossbeam_channel::bounded(1);
    Builder::new()
        .name("process-flush".to_owned())
        .spawn(move || {
            for () in requests {
                if disk::sync_file_system(&dir).is_err() {
                    return;
                }
            }
        })
        .ok()?;
    Some(sender)
}
