//! Compares what belongs to the whole database: the table of ids, the sums, and the totals of the users.

use super::{Finding, Recount, describe};
use crate::event::Micros;
use crate::store::AppliedSum;
use crate::verify::{VerifyError, sums};

impl Recount<'_> {
    /// Compares the table of ids with the rows and the files. An id in the table without a counted line would
    /// make the next event with that id a duplicate although it was never counted.
    pub(super) fn ids(&mut self) -> Result<(), VerifyError> {
        let snapshot = self.snapshot;
        let mut kept = snapshot.ids_by_segment()?;
        let cure = "an event that bears such an id again would not count; `tallyline process --rebuild` makes the table from the files";
        if let Some(count) = kept.remove(&None) {
            self.add_finding(&Finding::Mismatch(format!(
                "{count} ids belong to segments that are not in the database: {cure}"
            )));
        }
        for fault in &snapshot.blocks.faults {
            self.add_finding(&Finding::Mismatch(format!("{fault}: {cure}")));
        }
        let more = snapshot.blocks.fault_count - snapshot.blocks.faults.len() as u64;
        if more > 0 {
            self.add_finding(&Finding::Mismatch(format!(
                "{more} more blocks of ids contradict themselves: {cure}"
            )));
        }
        for row in &snapshot.rows {
            let kept = kept.get(&Some(row.key)).copied().unwrap_or(0);
            let expected = row.id_events - row.ids_expired;
            let found = self.ids_found.get(&row.key).copied();
            if kept != expected {
                self.add_finding(&Finding::Mismatch(format!(
                    "segment {}: the database has {kept} ids of it, but {} of its counted events have an id and {} of these expired: {cure}",
                    row.id, row.id_events, row.ids_expired
                )));
            } else if let Some(found) = found.filter(|found| *found != kept) {
                self.add_finding(&Finding::Mismatch(format!(
                    "segment {}: the database has {kept} ids of it, but only {found} of them are at the offset in their row: {cure}",
                    row.id
                )));
            }
        }
        Ok(())
    }

    pub(super) fn pruned_and_expired(&mut self) {
        let pruned = &self.snapshot.pruned;
        if pruned.segments > 0 {
            self.exact = false;
            let note = format!(
                "{} segments up to number {} were pruned (--retention): their {} are in the totals and cannot be recounted; only the sum over all users is compared",
                pruned.segments,
                pruned.number,
                describe(&pruned.counts, pruned.net_check)
            );
            self.add_finding(&Finding::Note(note));
        }
        let ids: u64 = self.snapshot.rows.iter().map(|row| row.ids_expired).sum();
        if ids > 0 {
            self.add_finding(&Finding::Note(format!(
                "{ids} ids have expired (--dedup-window): an event with one of them that was sent again was counted again"
            )));
        }
    }

    /// Compares the sum of the rows and of the pruned segments with the sum of all totals.
    pub(super) fn sums(&mut self) {
        let snapshot = self.snapshot;
        let (mut events, mut net) = (snapshot.pruned.counts.events, snapshot.pruned.net_check);
        for row in &snapshot.rows {
            events += row.counts.events;
            net = net.wrapping_add(row.net_check);
        }
        if (events, net) != (snapshot.totals.events, snapshot.totals.net_check()) {
            self.add_finding(&Finding::Mismatch(format!(
                "all users together have {} events ({}), but the segments have {events} ({}): the database was changed, or mixed from two; run `tallyline process --rebuild`, which builds a new one from the files",
                snapshot.totals.events,
                snapshot.totals.revenue,
                Micros::from(net)
            )));
        }
        let applied = AppliedSum::of(&snapshot.rows);
        if applied != snapshot.applied_sum {
            self.add_finding(&Finding::Mismatch(format!(
                "{}; run `tallyline process --rebuild`, which builds a new database from the files",
                sums::describe_applied_sums(&snapshot.applied_sum, &applied)
            )));
        }
    }

    /// Compares the totals of each user, if that is possible; otherwise the snapshot only gets the sums.
    pub(super) fn users(&mut self) -> Result<(), VerifyError> {
        let users = std::mem::replace(&mut self.users, self.pool.begin());
        let users = self.pool.finish(users);
        let dir = &self.config.data_dir;
        let users = users.map_err(VerifyError::io("sum up the events of", dir))?;
        self.snapshot.set_files(users);
        for user in &self.snapshot.twice {
            self.add_finding(&Finding::Mismatch(format!(
                "user {user:?} has two totals: the database file is corrupt; run `tallyline process --rebuild`, which builds a new one from the files"
            )));
        }
        if !self.exact {
            return Ok(());
        }
        self.report.users = Some(self.snapshot.totals.users);
        let snapshot = self.snapshot;
        snapshot.differences(&mut |user, database, files| {
            self.add_finding(&Finding::Mismatch(format!(
                "user {user:?}: the files have {} from {} events, the database {} from {}",
                Micros::from(files.micros),
                files.events,
                Micros::from(database.micros),
                database.events
            )));
        })?;
        Ok(())
    }
}
