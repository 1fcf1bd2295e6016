//! Reads of a node's rows at its start, on connections of their own.

use uuid::Uuid;

use super::{PostgresReaders, PostgresSnapshot, Target};
use crate::data_dir::segment::SegmentId;
use crate::store::checks::Checks;
use crate::store::recovery::RecoveryRows;
use crate::store::{IdCount, StoreError};

/// See [`Database::read_for_recovery`](crate::store::Database::read_for_recovery).
pub(in crate::store) fn read_for_recovery(
    target: &Target,
    directory: Uuid,
    numbers: &[u64],
) -> Result<RecoveryRows, StoreError> {
    let readers = PostgresReaders::new(target, 1);
    readers.belong_to(directory);
    if !readers.is_there()? {
        return Ok(RecoveryRows::default());
    }
    let status = readers.status()?;
    let (mut rows, pruned) = (status.unfinished, status.pruned);
    let mut applied = status.applied.native;
    for &number in numbers {
        if applied.remove(number) {
            rows.extend(readers.segment(&SegmentId::Native(number))?);
        }
    }
    Ok(RecoveryRows {
        rows,
        applied,
        pruned,
    })
}

/// See [`Database::read_checks`](crate::store::Database::read_checks).
pub(in crate::store) fn read_checks(
    target: &Target,
    directory: Uuid,
) -> Result<Option<Checks>, StoreError> {
    let Some(snapshot) = PostgresSnapshot::open(target, directory)? else {
        return Ok(None);
    };
    let mut segments = snapshot.segment_sums()?;
    let overall_rows = snapshot.overall_rows()?;
    let pruned = snapshot.pruned()?;
    segments.0 += pruned.counts.events;
    segments.1 = segments.1.wrapping_add(pruned.net_check);
    Ok(Some(Checks {
        segments,
        totals: (overall_rows.events, overall_rows.net_check()),
        overall: snapshot.overall()?,
        overall_rows,
        applied_sum: snapshot.applied_sum()?,
        applied_rows: snapshot.applied_rows()?,
        ids: IdCount::default(),
    }))
}
