//! Sorted sums per user in memory.

use super::delta::Sums;
use super::merge::SortedSource;
use super::user::User;

/// Sums per user in memory: sorted lists, in which each user occurs once.
#[derive(Default)]
pub(crate) struct SortedTotals {
    pub(super) short: Vec<Vec<User>>,
    /// Users with long ids.
    pub(super) long: Vec<(Box<str>, Sums)>,
}

impl SortedTotals {
    pub(super) fn without_empty(mut self) -> Self {
        self.short.retain(|users| !users.is_empty());
        self
    }

    /// The number of users.
    pub(super) fn len(&self) -> usize {
        self.short.iter().map(Vec::len).sum::<usize>() + self.long.len()
    }

    /// The memory of the lists and of long ids, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let short: usize = self.short.iter().map(Vec::capacity).sum();
        let long = |user: &(Box<str>, Sums)| user.0.len() + size_of::<(Box<str>, Sums)>();
        let lists = self.short.capacity() * size_of::<Vec<User>>();
        lists + short * size_of::<User>() + self.long.iter().map(long).sum::<usize>()
    }

    /// The sources of a merge of them.
    pub(super) fn sources(&self) -> impl Iterator<Item = SortedSource<'_>> {
        let short = self.short.iter().map(|users| SortedSource::short(users));
        short.chain([SortedSource::long(&self.long)])
    }
}
