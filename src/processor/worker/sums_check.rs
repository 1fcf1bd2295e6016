//! The thread `process-check`, which compares the sums of the totals and of the segments after an unclean
//! shutdown, and after another program has changed the database.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::{ProcessorConfig, SUMS, describe};
use crate::health::Health;
use crate::verify::sums;

/// Whether the sums are to be checked, and the thread that does it.
pub(super) struct SumsCheck {
    is_due: bool,
    thread: Option<JoinHandle<()>>,
}

impl SumsCheck {
    pub(super) fn new(is_due: bool) -> Self {
        Self {
            is_due,
            thread: None,
        }
    }

    /// Makes the next [`Self::start_if_due`] check the sums.
    pub(super) fn request(&mut self) {
        self.is_due = true;
    }

    /// Starts the thread if a check is due. It sets or clears the readiness topic [`SUMS`].
    pub(super) fn start_if_due(&mut self, config: &ProcessorConfig, health: Arc<Health>) {
        if !std::mem::take(&mut self.is_due) {
            return;
        }
        let (database, directory) = (config.database.clone(), config.directory);
        let check = move || match sums::difference(&database, directory) {
            Ok(Some(difference)) => health.set(SUMS, difference),
            Ok(None) => health.clear(SUMS),
            Err(error) => {
                let error = describe(&error);
                tracing::warn!(error, "cannot check the totals");
            }
        };
        self.join();
        match Builder::new().name("process-check".to_owned()).spawn(check) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "cannot check the totals"),
        }
    }

    /// Whether the thread is still comparing.
    pub(super) fn is_running(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until the thread has ended, if there is one.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that checks the totals panicked");
        }
    }
}
