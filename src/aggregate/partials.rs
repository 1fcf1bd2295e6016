//! Joins the partial aggregates of chunks in the order of the chunks.

use std::collections::BTreeMap;

use super::scan::PartialAggregate;

/// The partial aggregates received so far. They are joined in order; those after a gap wait in `early`.
#[derive(Default)]
pub(super) struct PartialAggregates {
    joined: PartialAggregate,
    next: usize,
    early: BTreeMap<usize, PartialAggregate>,
    pub(super) memory_bytes: usize,
}

impl PartialAggregates {
    pub(super) fn insert(&mut self, index: usize, partial: PartialAggregate) {
        self.memory_bytes += partial.memory_bytes();
        self.early.insert(index, partial);
        while let Some(partial) = self.early.remove(&self.next) {
            self.joined.append(partial);
            self.next += 1;
        }
    }

    pub(super) fn join(self) -> PartialAggregate {
        self.joined
    }
}
