//! Counts the ids in blocks of sequential numbers, and finds blocks that contradict the rows of segments.

use std::collections::HashMap;

use rusqlite::Connection;

use super::{SELECT_ID_BLOCKS, each_row};
use crate::store::id_blocks::{self, Block};

/// How many blocks with a fault are described at most.
const FAULTS_MAX: usize = 20;

/// The counts of the blocks of sequential ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdBlockCounts {
    /// Numbers that were counted, by the key of the segment that their runs name.
    pub by_segment: HashMap<i64, u64>,
    /// Blocks that contradict themselves or the rows of the segments, each described; the first
    /// [`FAULTS_MAX`] of them.
    pub faults: Vec<String>,
    /// How many such blocks there are.
    pub fault_count: u64,
}

impl IdBlockCounts {
    /// The number of ids in all blocks without a fault.
    pub(in crate::store) fn ids(&self) -> u64 {
        self.by_segment.values().sum()
    }
}

/// A row of `id_block`.
pub(in crate::store) struct BlockRow {
    pub(in crate::store) numbers: Vec<u8>,
    pub(in crate::store) prefix: String,
    pub(in crate::store) width: i64,
    pub(in crate::store) block: i64,
}

/// Counts the ids of blocks.
pub(super) struct BlockCounter<'a> {
    /// The applied bytes of each segment by its key.
    applied: &'a HashMap<i64, u64>,
    pub(super) counts: IdBlockCounts,
    block: Block,
}

impl<'a> BlockCounter<'a> {
    pub(super) fn new(applied: &'a HashMap<i64, u64>) -> Self {
        Self {
            applied,
            counts: IdBlockCounts::default(),
            block: Block::default(),
        }
    }

    /// `own` returns the key of a segment of a run, if it is one of the data directory.
    pub(super) fn add(&mut self, row: &BlockRow, own: &dyn Fn(i64) -> Option<i64>) {
        let fault = match self.block.decode(&row.numbers) {
            Err(error) => Some(error.to_string()),
            Ok(()) => self.block.runs().iter().find_map(|run| {
                let key = own(run.segment)?;
                let end = self.applied.get(&key)?;
                (run.last_offset >= *end).then(|| {
                    format!(
                        "it names a line at offset {} of segment key {key}, past what is applied",
                        run.last_offset
                    )
                })
            }),
        };
        let counts = &mut self.counts;
        let Some(fault) = fault else {
            for run in self.block.runs() {
                if let Some(key) = own(run.segment) {
                    *counts.by_segment.entry(key).or_default() += u64::from(run.count);
                }
            }
            return;
        };
        counts.fault_count += 1;
        if counts.faults.len() < FAULTS_MAX {
            counts.faults.push(format!(
                "block {} of the ids {:?} with {} digits: {fault}",
                row.block, row.prefix, row.width
            ));
        }
    }
}

/// Counts all blocks of ids; `applied` has the applied bytes of each segment by its key.
pub(in crate::store) fn count_blocks(
    connection: &Connection,
    applied: &HashMap<i64, u64>,
) -> rusqlite::Result<IdBlockCounts> {
    let mut counter = BlockCounter::new(applied);
    let mut block = BlockRow {
        numbers: Vec::new(),
        prefix: String::new(),
        width: 0,
        block: 0,
    };
    each_row(connection, SELECT_ID_BLOCKS, &mut |row| {
        block.numbers.clear();
        // The bytes of another type are malformed in any case.
        block
            .numbers
            .extend_from_slice(id_blocks::bytes(row).unwrap_or_default());
        row.get_ref(1)?.as_str()?.clone_into(&mut block.prefix);
        block.width = row.get(2)?;
        block.block = row.get(3)?;
        counter.add(&block, &Some);
        Ok(())
    })?;
    Ok(counter.counts)
}
