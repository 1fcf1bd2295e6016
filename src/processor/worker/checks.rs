//! What a round checks and stores before it applies: the files of the database, and the report.

use std::path::Path;
use std::time::Duration;

use super::Worker;
use crate::processor::ProcessError;
use crate::processor::applier::Applier;
use crate::store::NodeReport;

impl Worker {
    /// Fails if a file of the database was replaced, or if another program wrote to it. The startup scan then
    /// reads the rows again and checks the sums.
    pub(super) fn check_database(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        if let Some(what) = applier.writer.replaced() {
            self.sums_check.request();
            // Only a file can be replaced.
            let path = self.config.database.file().map(Path::to_owned);
            let path = path.unwrap_or_default();
            return Err(ProcessError::Replaced { path, what });
        }
        match applier.writer.is_changed_by_others() {
            Ok(false) => {
                applier.check_in_place()?;
                self.report(applier)
            }
            Ok(true) => {
                self.sums_check.request();
                Err(ProcessError::ChangedByOthers {
                    database: self.config.database.clone(),
                })
            }
            // The next check finds out.
            Err(error) if error.is_locked() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores what `tallyline nodes` shows about this node.
    fn report(&self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let progress = &self.status.progress;
        let (ledger, _) = progress.ledger(|| self.journal.tail().lines);
        let lag = Duration::from_secs_f64(progress.lag_seconds());
        let report = NodeReport {
            pending_lines: ledger.pending,
            lag_ms: u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
            reasons: self.status.health.reasons().join("\n"),
        };
        Ok(applier.writer.report(&report)?)
    }
}
