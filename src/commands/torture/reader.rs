//! Another program that opens the database beside the server.

use std::process::Child;

use anyhow::Context as _;

use super::trial::Trial;

/// A process that opens the database, reads it and closes it; one runs at any time. It is killed when this is
/// dropped.
#[derive(Default)]
pub(super) struct Reader(Option<Child>);

impl Reader {
    /// Starts a reader if none runs. Each opens the database, adds up all users and closes it, as
    /// `sqlite3` does.
    pub(super) fn keep_reading(&mut self, trial: &mut Trial) -> anyhow::Result<()> {
        if let Some(reader) = &mut self.0 {
            let Some(status) = reader.try_wait()? else {
                return Ok(());
            };
            self.0 = None;
            // The database does not exist before the first event.
            trial.figures.reads += u64::from(status.success());
        }
        let child = trial
            .command("reader")?
            .args(["query", "--json", "--data-dir"])
            .arg(trial.data_dir(0))
            .spawn()
            .context("cannot start a reader")?;
        self.0 = Some(child);
        Ok(())
    }

    /// Waits for the last one.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        if let Some(mut reader) = self.0.take() {
            reader.wait()?;
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
