//! Counts the applied bytes of one file and compares the result with the segment's row.

use std::collections::{HashMap, HashSet};

use super::{Finding, Recount, describe};
use crate::aggregate::delta::signed;
use crate::aggregate::scan::PartialAggregate;
use crate::aggregate::{REJECTED_LINES_MAX, lines};
use crate::data_dir::SegmentFile;
use crate::event::Event;
use crate::store::{Counts, IdStatus, SegmentRow, UserSum};
use crate::verify::VerifyError;

/// Progress is reported after so many bytes.
const STEP_BYTES: u64 = 128 << 20;

/// The sums over the applied bytes of one file.
#[derive(Default)]
pub(super) struct FileSums {
    pub(super) counts: Counts,
    pub(super) net: i64,
    /// Events counted here by the row of their id.
    pub(super) id_events: u64,
    /// Net revenue of those, in micros.
    pub(super) id_net: i64,
    /// Events whose id has no row. They are included in `counts` if ids of the segment have expired.
    pub(super) unknown: u64,
    /// Net revenue of those included, in micros.
    pub(super) unknown_net: i64,
}

impl FileSums {
    /// Whether everything matches the row except events whose ids have expired; which of those were counted
    /// cannot be determined. Only for a row with expired ids.
    fn agrees_but_for_expired(&self, row: &SegmentRow) -> bool {
        let events = self.counts.events - self.id_events - self.unknown;
        let net = self
            .net
            .wrapping_sub(self.id_net)
            .wrapping_sub(self.unknown_net);
        self.counts.lines == row.counts.lines
            && self.id_events + row.ids_expired == row.id_events
            && events == row.counts.events - row.id_events
            && net == row.net_check.wrapping_sub(row.id_net_check)
    }
}

impl Recount<'_> {
    /// Counts the applied bytes, and adds their sums per user to those of the other files.
    pub(super) fn add_up(
        &mut self,
        row: &SegmentRow,
        file: &SegmentFile,
    ) -> Result<FileSums, VerifyError> {
        let end = row.applied_bytes;
        let overflows = self.snapshot.overflows(&row.id, end)?;
        let mut sums = FileSums::default();
        let mut at = 0;
        while at < end {
            let partial = self
                .pool
                .scan_into(&mut self.users, &file.file, at, end, STEP_BYTES)
                .map_err(VerifyError::io("read", &file.path))?;
            self.users.begin_range();
            self.add(row, &partial, &overflows, &mut sums)?;
            at += partial.bytes();
            (self.on_progress)(self.report.bytes + at, self.bytes_total);
        }
        if !overflows.is_empty() {
            self.subtract_overflows(file, end, &overflows, &mut sums)?;
        }
        let counts = &mut sums.counts;
        counts.rejected = counts.lines - counts.events - counts.duplicates;
        Ok(sums)
    }

    fn add(
        &self,
        row: &SegmentRow,
        partial: &PartialAggregate,
        overflows: &HashSet<u64>,
        sums: &mut FileSums,
    ) -> Result<(), VerifyError> {
        sums.counts.lines += partial.lines;
        sums.counts.events += partial.lines - partial.rejected_count;
        sums.net = sums.net.wrapping_add(partial.net_check);
        // The sums have the events with an id as if all of them counted.
        let mut uncounted = HashMap::<&str, UserSum>::new();
        let mut uncounted_events = 0;
        self.snapshot
            .statuses(row.key, &partial.with_id, &mut |event, fate| {
                let net = signed(event.kind, event.amount_micros);
                match fate {
                    // The id may have been counted later, somewhere else.
                    _ if overflows.contains(&event.offset) => {}
                    IdStatus::Contradicted => {}
                    IdStatus::Duplicate => sums.counts.duplicates += 1,
                    IdStatus::Unknown => {
                        sums.unknown += 1;
                        if row.ids_expired > 0 {
                            sums.unknown_net = sums.unknown_net.wrapping_add(net);
                            return;
                        }
                    }
                    IdStatus::Counted => {
                        sums.id_events += 1;
                        sums.id_net = sums.id_net.wrapping_add(net);
                        return;
                    }
                }
                uncounted_events += 1;
                sums.net = sums.net.wrapping_sub(net);
                let sum = uncounted.entry(event.user_id).or_default();
                sum.micros = sum.micros.wrapping_sub(net);
                sum.events -= 1;
            })?;
        sums.counts.events -= uncounted_events;
        Ok(self.snapshot.correct(uncounted.into_iter())?)
    }

    /// Subtracts lines without an id that overflowed a total: the scan included them, but they were not
    /// counted.
    fn subtract_overflows(
        &self,
        file: &SegmentFile,
        end: u64,
        overflows: &HashSet<u64>,
        sums: &mut FileSums,
    ) -> Result<(), VerifyError> {
        let mut subtracted = Vec::new();
        lines::each(&*file.file, 0, end, |offset, line| {
            if overflows.contains(&offset)
                && let Ok(event) = Event::parse(line)
                && event.id.is_none()
            {
                let micros = signed(event.kind, event.amount_micros).wrapping_neg();
                subtracted.push((event.user_id.into_owned(), UserSum { micros, events: -1 }));
            }
        })
        .map_err(VerifyError::io("read", &file.path))?;
        for (_, sum) in &subtracted {
            sums.counts.events -= 1;
            sums.net = sums.net.wrapping_add(sum.micros);
        }
        let sums = subtracted.iter().map(|(user, sum)| (&**user, *sum));
        Ok(self.snapshot.correct(sums)?)
    }

    pub(super) fn compare(&mut self, row: &SegmentRow, file: &SegmentFile, sums: &FileSums) {
        if sums.counts == row.counts && sums.net == row.net_check {
            return;
        }
        let path = file.path.display();
        if row.ids_expired > 0 && sums.agrees_but_for_expired(row) {
            self.exact = false;
            return self.add_finding(&Finding::Note(format!(
                "segment {} ({path}): {} ids of it have expired (--dedup-window), and {} events have an id that is not kept, so which of these were counted cannot be determined; everything else matches",
                row.id, row.ids_expired, sums.unknown
            )));
        }
        if row.counts.rejected > REJECTED_LINES_MAX
            && sums.counts.lines == row.counts.lines
            && sums.counts.duplicates == row.counts.duplicates
            && sums.counts.events > row.counts.events
        {
            self.exact = false;
            return self.add_finding(&Finding::Note(format!(
                "segment {} ({path}): only the first {REJECTED_LINES_MAX} of its {} rejected lines are kept, so whether {} events overflowed a total cannot be determined",
                row.id,
                row.counts.rejected,
                sums.counts.events - row.counts.events
            )));
        }
        self.add_finding(&Finding::Mismatch(format!(
            "segment {} ({path}): the file has {}, the database {}{}",
            row.id,
            describe(&sums.counts, sums.net),
            describe(&row.counts, row.net_check),
            match sums.unknown {
                0 => String::new(),
                unknown => format!("; {unknown} events have an id that is not in the database"),
            }
        )));
    }
}
