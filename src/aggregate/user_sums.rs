//! The sums per user of a range, wherever they are: in memory, and in spilled runs.
//!
//! [`UserSums::blocks`] gives every user once, in ascending order of the ids. It can be called any number of
//! times, because a range is attempted again after a lock or for an overflow replay. For many users a thread
//! merges ahead while the caller writes to the database.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::Receiver;

#[cfg(any(test, feature = "testing"))]
use super::delta::Sums;
use super::merge::{SortedSource, merge};
use super::run::Run;
use super::sorted::SortedTotals;
pub(crate) use super::user_block::UserBlock;

/// Up to this many users are merged by the caller at once, which is faster than a thread.
const INLINE_USERS: usize = 8192;
/// The number of blocks that are merged ahead.
const AHEAD: usize = 8;

/// The sums per user of a range.
#[derive(Clone)]
pub struct UserSums(Arc<Parts>);

struct Parts {
    memory: Vec<SortedTotals>,
    runs: Vec<Run>,
    /// The number of events in all sums.
    events: u64,
}

impl UserSums {
    /// Sums with `events` events in total.
    pub(super) fn new(memory: Vec<SortedTotals>, runs: Vec<Run>, events: u64) -> Self {
        Self(Arc::new(Parts {
            memory,
            runs,
            events,
        }))
    }

    #[cfg(test)]
    pub(crate) fn in_memory(memory: Vec<SortedTotals>) -> Self {
        let short = memory.iter().flat_map(|part| part.short.iter().flatten());
        let long = memory.iter().flat_map(|part| &part.long);
        let events = short.map(|user| user.sums.events()).sum::<u64>()
            + long.map(|user| user.1.events()).sum::<u64>();
        Self::new(memory, Vec::new(), events)
    }

    /// The sums of these users, which are in ascending order.
    #[cfg(any(test, feature = "testing"))]
    pub fn of<'u>(users: impl IntoIterator<Item = (&'u str, Sums)>) -> Self {
        let long: Vec<_> = users
            .into_iter()
            .map(|(user_id, sums)| (Box::from(user_id), sums))
            .collect();
        let events = long.iter().map(|user| user.1.events()).sum();
        let memory = SortedTotals {
            short: Vec::new(),
            long,
        };
        Self::new(vec![memory], Vec::new(), events)
    }

    /// Bytes of memory, without spilled runs.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.memory.iter().map(SortedTotals::memory_bytes).sum()
    }

    /// All users, for tests and small ranges.
    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> io::Result<Vec<(String, Sums)>> {
        let mut all = Vec::new();
        for block in self.blocks()? {
            all.extend(block?.iter().map(|(user, sums)| (user.to_owned(), *sums)));
        }
        Ok(all)
    }

    /// Every user once, in ascending order of the ids.
    pub(crate) fn blocks(&self) -> io::Result<Blocks> {
        let users: usize = self.0.memory.iter().map(SortedTotals::len).sum();
        if self.0.runs.is_empty() && users <= INLINE_USERS {
            let mut ready = Vec::new();
            self.0.merge(|block| {
                ready.push(Ok(block));
                Ok(true)
            })?;
            return Ok(Blocks::Ready(ready.into_iter()));
        }
        let (sender, blocks) = crossbeam_channel::bounded(AHEAD);
        let parts = Arc::clone(&self.0);
        let thread = Builder::new()
            .name("process-merge".to_owned())
            .spawn(move || {
                let merged = parts.merge(|block| Ok(sender.send(Ok(block)).is_ok()));
                if let Err(error) = merged {
                    // The receiver is closed if the transaction has failed already.
                    let _unread = sender.send(Err(error));
                }
            })?;
        Ok(Blocks::Merging(Merging {
            blocks: Some(blocks),
            thread: Some(thread),
        }))
    }
}

impl Parts {
    /// Fails unless the users have all events: a run that was lost or read twice would be a wrong total.
    fn merge(&self, mut each: impl FnMut(UserBlock) -> io::Result<bool>) -> io::Result<()> {
        let runs = self.runs.iter().map(SortedSource::run);
        let memory = self.memory.iter().flat_map(SortedTotals::sources);
        let sources: Vec<SortedSource<'_>> =
            memory.map(Ok).chain(runs).collect::<io::Result<_>>()?;
        let mut events = 0;
        let mut is_complete = true;
        merge(sources, |block| {
            events += block.iter().map(|user| user.1.events()).sum::<u64>();
            is_complete = each(block)?;
            Ok(is_complete)
        })?;
        if is_complete && events != self.events {
            return Err(io::Error::other(format!(
                "the sums per user have {events} events instead of {}; please report this",
                self.events
            )));
        }
        Ok(())
    }
}

/// Blocks of users in ascending order.
pub(crate) enum Blocks {
    Ready(std::vec::IntoIter<io::Result<UserBlock>>),
    Merging(Merging),
}

/// A thread that merges. Dropping this ends it.
pub(crate) struct Merging {
    /// `None` only in `drop`.
    blocks: Option<Receiver<io::Result<UserBlock>>>,
    thread: Option<JoinHandle<()>>,
}

impl Merging {
    fn next(&mut self) -> Option<io::Result<UserBlock>> {
        if let Some(Ok(block)) = self.blocks.as_ref().map(Receiver::recv) {
            return Some(block);
        }
        let panicked = self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err());
        panicked.then(|| {
            Err(io::Error::other(
                "merging the sums panicked; please report this",
            ))
        })
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        self.blocks = None;
        if let Some(thread) = self.thread.take() {
            // A panic is of no interest: the transaction has failed.
            drop(thread.join());
        }
    }
}

impl Iterator for Blocks {
    type Item = io::Result<UserBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Ready(blocks) => blocks.next(),
            Self::Merging(merging) => merging.next(),
        }
    }
}
