//! Sums per user, updated concurrently by several threads.
//!
//! The cost of summing is one cache miss per line. Users are therefore divided by hash into shards. Each thread
//! collects events per shard in a [`ShardBuffer`] and adds them in batches, under the lock of the shard. A user's
//! id and sums share one cache line of 64 bytes, and the cache lines of several events are prefetched together, so
//! that their misses overlap. Batches for small tables fit in a core's cache; those for large tables are larger, so
//! that the addresses of a page are translated once for several events. Ids of more than 23 bytes are rare and are
//! kept in a separate map.
//!
//! A buffer keeps its events from one chunk to the next, so that its batches are full. They reach the tables
//! with [`ShardBuffer::flush`], before the sums are taken.
//!
//! [`ShardedTotals::take_sorted`] sorts each shard where it lies, which needs no further memory.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::delta::Sums;
use super::sorted::SortedTotals;
use super::table::{BufferedEvent, Table};
use super::user::{Key, SEEDS, Seeds, User};
use crate::event::Kind;

/// With more shards, the stores into their batches miss the caches and hold up those that follow; with fewer, many
/// threads would wait for each other. Measurements are in `tests/bench/README.md`.
const SHARD_BITS: u32 = 5;
const SHARDS: usize = 1 << SHARD_BITS;
/// The approximate memory of a user with a long id, assuming an id of 256 bytes.
const LONG_BYTES: usize = 256 + 2 * size_of::<(Box<str>, Sums)>();
/// The number of events of a shard that are added in one batch, while its table is small.
const BATCH_EVENTS: usize = 512;
/// A batch for a large table has an event for so many slots, divided by the number of threads: several events for
/// each page of the table. The batches of all threads then use an eighth of the memory of the tables.
const SLOTS_PER_EVENT: usize = 4;

#[derive(Default)]
struct Shard {
    users: Mutex<ShardUsers>,
    /// The slots of the table, and the users with short and with long ids. Stored with every change of `users`, and
    /// read without waiting for its lock.
    slots: AtomicUsize,
    short: AtomicUsize,
    long: AtomicUsize,
}

#[derive(Default)]
struct ShardUsers {
    short: Table,
    long: HashMap<Box<str>, Sums>,
}

impl Shard {
    fn change<T>(&self, change: impl FnOnce(&mut ShardUsers) -> T) -> T {
        self.change_locked(lock(&self.users), change)
    }

    /// Does nothing if another thread changes it at present.
    fn try_change(&self, change: impl FnOnce(&mut ShardUsers)) {
        match self.users.try_lock() {
            Ok(users) => self.change_locked(users, change),
            Err(TryLockError::Poisoned(users)) => self.change_locked(users.into_inner(), change),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn change_locked<T>(
        &self,
        mut users: MutexGuard<'_, ShardUsers>,
        change: impl FnOnce(&mut ShardUsers) -> T,
    ) -> T {
        let changed = change(&mut users);
        self.slots.store(users.short.slots(), Relaxed);
        self.short.store(users.short.len(), Relaxed);
        self.long.store(users.long.len(), Relaxed);
        changed
    }
}

/// The sums of a range.
pub(crate) struct ShardedTotals {
    shards: Vec<Shard>,
    /// The number of threads that add to them.
    threads: usize,
    seeds: Seeds,
    buffers: Mutex<Buffers>,
}

struct Buffers {
    /// The buffers that no thread uses at present.
    idle: Vec<ShardBuffer>,
    /// The number of events that the others had when they were handed out.
    events_handed_out: usize,
}

impl ShardedTotals {
    /// Empty sums for so many threads; `buffers` are the empty buffers of a former range.
    pub(crate) fn new(threads: usize, buffers: Vec<ShardBuffer>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            threads,
            seeds: *SEEDS,
            buffers: Mutex::new(Buffers {
                idle: buffers,
                events_handed_out: 0,
            }),
        }
    }

    /// A buffer for the calling thread, which returns it to [`ShardedTotals::keep_buffer`].
    pub(super) fn buffer(&self) -> ShardBuffer {
        let mut buffers = lock(&self.buffers);
        let mut buffer = buffers.idle.pop().unwrap_or_default();
        buffer.events_before = buffer.events;
        buffers.events_handed_out += buffer.events;
        buffer
    }

    /// Keeps a buffer for the next chunk. It may have events.
    pub(super) fn keep_buffer(&self, buffer: ShardBuffer) {
        let mut buffers = lock(&self.buffers);
        buffers.events_handed_out -= buffer.events_before;
        buffers.idle.push(buffer);
    }

    /// Takes out all buffers that no thread uses.
    pub(super) fn take_buffers(&self) -> Vec<ShardBuffer> {
        std::mem::take(&mut lock(&self.buffers).idle)
    }

    /// The number of buffers that no thread uses.
    pub(super) fn idle_buffers(&self) -> usize {
        lock(&self.buffers).idle.len()
    }

    /// The number of events in all buffers, without those of the chunks in progress.
    pub(super) fn buffered_events(&self) -> usize {
        let buffers = lock(&self.buffers);
        let idle: usize = buffers.idle.iter().map(|buffer| buffer.events).sum();
        idle + buffers.events_handed_out
    }

    /// The maximum memory of the tables and of the batches for large tables, in bytes, after `more` users with
    /// short ids are added. The hash distributes them evenly. Sorting needs no more.
    pub(super) fn memory_bytes_with(&self, more: usize) -> usize {
        let more = more.div_ceil(SHARDS);
        let bytes = |shard: &Shard| {
            let users = shard.short.load(Relaxed) + more;
            let slots = shard.slots.load(Relaxed).max(Table::slots_for(users));
            let batches = self.threads * (self.batch_events(slots) - BATCH_EVENTS);
            slots * size_of::<User>()
                + batches * size_of::<BufferedEvent>()
                + shard.long.load(Relaxed) * LONG_BYTES
        };
        self.shards.iter().map(bytes).sum()
    }

    /// The memory that the users alone need, in bytes.
    pub(super) fn used_bytes(&self) -> usize {
        let bytes = |shard: &Shard| {
            Table::used_bytes(shard.short.load(Relaxed)) + shard.long.load(Relaxed) * LONG_BYTES
        };
        self.shards.iter().map(bytes).sum()
    }

    /// The number of users.
    pub(crate) fn len(&self) -> usize {
        let users = |shard: &Shard| shard.short.load(Relaxed) + shard.long.load(Relaxed);
        self.shards.iter().map(users).sum()
    }

    /// Takes the users of one of `parts` equal parts out, and sorts them.
    pub(super) fn take_sorted(&self, part: usize, parts: usize) -> SortedTotals {
        let mut sorted = SortedTotals::default();
        for shard in self.shards.iter().skip(part).step_by(parts) {
            let ShardUsers { short, long } = shard.change(std::mem::take);
            sorted.short.push(short.into_sorted());
            sorted.long.extend(long);
        }
        sorted.long.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        sorted
    }

    /// Reuses the memory of a part whose sums are no longer needed; nothing may have been added meanwhile.
    pub(super) fn reuse(&self, part: usize, parts: usize, sorted: SortedTotals) {
        let shards = self.shards.iter().skip(part).step_by(parts);
        for (shard, users) in shards.zip(sorted.short) {
            shard.change(|shard| shard.short = Table::emptied(users));
        }
    }

    /// Puts back a part that was taken; nothing may have been added meanwhile.
    pub(super) fn put_back(&self, part: usize, parts: usize, sorted: SortedTotals) {
        let shards = self.shards.iter().skip(part).step_by(parts);
        for (shard, users) in shards.zip(sorted.short) {
            shard.change(|shard| shard.short = Table::of(users, &self.seeds));
        }
        for (user_id, sums) in sorted.long {
            let shard = &self.shards[long_shard(&user_id)];
            shard.change(|shard| shard.long.insert(user_id, sums));
        }
    }

    /// Adds a batch to its shard and empties it.
    fn add(&self, shard: usize, batch: &mut Batch) {
        self.shards[shard].change(|users| self.add_to(users, batch));
    }

    /// Does the same, unless another thread adds to the shard at present.
    fn try_add(&self, shard: usize, batch: &mut Batch) {
        self.shards[shard].try_change(|users| self.add_to(users, batch));
    }

    fn add_to(&self, users: &mut ShardUsers, batch: &mut Batch) {
        users.short.add(&batch.events, &self.seeds);
        batch.events.clear();
        batch.events_max = self.batch_events(users.short.slots());
    }

    /// The number of events of a batch for a table with so many slots.
    fn batch_events(&self, slots: usize) -> usize {
        (slots / SLOTS_PER_EVENT / self.threads).max(BATCH_EVENTS)
    }

    fn add_long(&self, user_id: &[u8], kind: Kind, amount_micros: u64) {
        // It comes from an event, so it is valid UTF-8.
        let user_id = std::str::from_utf8(user_id).unwrap_or_default();
        self.shards[long_shard(user_id)].change(|shard| {
            if let Some(sums) = shard.long.get_mut(user_id) {
                sums.add_event(kind, amount_micros);
            } else {
                let mut sums = Sums::default();
                sums.add_event(kind, amount_micros);
                shard.long.insert(user_id.into(), sums);
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shard of a user with a long id.
fn long_shard(user_id: &str) -> usize {
    let hash =
        std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default().hash_one(user_id);
    usize::try_from(hash >> (64 - SHARD_BITS)).unwrap_or(0)
}

/// A thread's buffer in front of [`ShardedTotals`]: it collects events and adds them in batches.
pub(crate) struct ShardBuffer {
    batches: Vec<Batch>,
    /// The number of events in all batches.
    events: usize,
    /// That number when the buffer was handed out.
    events_before: usize,
}

/// The events of a shard.
struct Batch {
    events: Vec<BufferedEvent>,
    /// It is added when it has so many, or some before if no other thread adds to the shard then. A thread that
    /// waits is often woken on the core of the one for which it waited, and stays there.
    events_max: usize,
}

impl Default for ShardBuffer {
    fn default() -> Self {
        let empty = || Batch {
            events: Vec::new(),
            events_max: BATCH_EVENTS,
        };
        Self {
            batches: (0..SHARDS).map(|_| empty()).collect(),
            events: 0,
            events_before: 0,
        }
    }
}

impl ShardBuffer {
    /// The maximum memory of a buffer in bytes, half a mebibyte, without what
    /// [`ShardedTotals::memory_bytes_with`] counts.
    pub(super) const MEMORY_BYTES: usize = SHARDS * BATCH_EVENTS * size_of::<BufferedEvent>();

    /// Adds one event to the buffer. It may reach `users` only with [`ShardBuffer::flush`].
    #[inline]
    pub(crate) fn count(
        &mut self,
        users: &ShardedTotals,
        user_id: &[u8],
        kind: Kind,
        amount_micros: u64,
    ) {
        let Some(key) = Key::new(user_id) else {
            return users.add_long(user_id, kind, amount_micros);
        };
        let amount = amount_micros.cast_signed();
        let amount = match kind {
            Kind::Add => amount,
            Kind::Subtract => -amount,
        };
        let shard = usize::try_from(key.hash(&users.seeds) >> (64 - SHARD_BITS)).unwrap_or(0);
        let batch = &mut self.batches[shard];
        batch.events.push(BufferedEvent { key, amount });
        self.events += 1;
        let events = batch.events.len();
        if events >= batch.events_max / 4 * 3 {
            if events < batch.events_max {
                users.try_add(shard, batch);
            } else {
                users.add(shard, batch);
            }
            self.events -= events - batch.events.len();
            batch
                .events
                .reserve_exact(batch.events_max - batch.events.len());
        }
    }

    /// Adds all collected events to `users`. Two threads that flush with different `part`s of `parts` rarely
    /// wait for each other.
    pub(crate) fn flush(&mut self, users: &ShardedTotals, part: usize, parts: usize) {
        let first = part * SHARDS / parts.max(1);
        for shard in (first..SHARDS).chain(0..first) {
            let batch = &mut self.batches[shard];
            if !batch.events.is_empty() {
                users.add(shard, batch);
            }
            batch.events.shrink_to(BATCH_EVENTS);
            batch.events_max = BATCH_EVENTS;
        }
        self.events = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::user_sums::UserSums;

    #[test]
    fn a_table_keeps_all_users_when_it_grows() {
        let users = ShardedTotals::new(1, Vec::new());
        let mut buffer = ShardBuffer::default();
        let ids: Vec<String> = (0..40_000).map(|n| format!("user{n:05}")).collect();
        for _ in 0..3 {
            for id in &ids {
                buffer.count(&users, id.as_bytes(), Kind::Add, 2);
            }
        }
        buffer.flush(&users, 0, 1);
        let sorted = all(&users);
        assert!(sorted.iter().map(|user| &user.0).eq(&ids));
        assert!(sorted.iter().all(|(_, sums)| sums.added() == 6));
    }

    /// The users in order.
    fn all(users: &ShardedTotals) -> Vec<(String, Sums)> {
        UserSums::in_memory(vec![users.take_sorted(0, 1)])
            .to_vec()
            .expect("they are in memory")
    }

    #[test]
    fn a_part_that_is_put_back_is_the_same_and_one_that_is_reused_is_empty() {
        let users = ShardedTotals::new(1, Vec::new());
        let mut buffer = ShardBuffer::default();
        for number in 0..2000 {
            let long = "x".repeat(number % 50);
            buffer.count(&users, format!("{number}{long}").as_bytes(), Kind::Add, 1);
        }
        buffer.flush(&users, 0, 1);
        for part in 0..3 {
            let sorted = users.take_sorted(part, 3);
            users.put_back(part, 3, sorted);
        }
        assert_eq!(users.len(), 2000);
        buffer.count(&users, b"7xxxxxxx", Kind::Add, 1);
        buffer.flush(&users, 0, 1);
        assert_eq!(users.len(), 2000, "a user is found again");
        for part in 0..2 {
            let sorted = users.take_sorted(part, 2);
            users.reuse(part, 2, sorted);
        }
        assert_eq!(users.len(), 0);
        buffer.count(&users, b"a", Kind::Add, 1);
        buffer.flush(&users, 0, 1);
        assert_eq!(all(&users).len(), 1);
    }

    #[test]
    fn few_users_use_few_batches_over_many_ranges() {
        let mut buffer = ShardBuffer::default();
        for _ in 0..100 {
            let users = ShardedTotals::new(1, Vec::new());
            buffer.count(&users, b"user1", Kind::Add, 1);
            buffer.flush(&users, 0, 1);
        }
        let used = buffer
            .batches
            .iter()
            .filter(|batch| batch.events.capacity() > 0);
        assert_eq!(used.count(), 1);
    }

    #[test]
    fn batches_grow_with_the_tables_within_the_estimate_and_shrink_again() {
        let threads = 3;
        let users = ShardedTotals::new(threads, Vec::new());
        let mut buffer = ShardBuffer::default();
        let bytes = |buffer: &ShardBuffer| {
            let events: usize = buffer.batches.iter().map(|b| b.events.capacity()).sum();
            events * size_of::<BufferedEvent>()
        };
        for round in 0..4 {
            for user in 0..400_000 {
                let user = format!("user{user}");
                buffer.count(&users, user.as_bytes(), Kind::Add, 1);
            }
            let slots: usize = users.shards.iter().map(|s| s.slots.load(Relaxed)).sum();
            let batches = users.memory_bytes_with(0) - slots * size_of::<User>();
            assert!(threads * bytes(&buffer) <= batches + threads * ShardBuffer::MEMORY_BYTES);
            assert!(batches <= slots * size_of::<User>() / 8);
            let is_larger = bytes(&buffer) > ShardBuffer::MEMORY_BYTES;
            assert!(is_larger, "round {round}: {}", bytes(&buffer));
        }
        buffer.flush(&users, 0, 1);
        assert!(bytes(&buffer) <= ShardBuffer::MEMORY_BYTES);
        let sorted = all(&users);
        assert_eq!(sorted.len(), 400_000);
        assert!(sorted.iter().all(|(_, sums)| sums.added() == 4));
    }

    #[test]
    fn user_ids_of_every_length_are_distinct_and_sorted() {
        let users = ShardedTotals::new(1, Vec::new());
        let mut buffer = ShardBuffer::default();
        let ids: Vec<String> = (1..=256).map(|length| "x".repeat(length)).collect();
        for round in 1..=3u64 {
            for id in &ids {
                buffer.count(&users, id.as_bytes(), Kind::Add, round);
                buffer.count(&users, id.as_bytes(), Kind::Subtract, 1);
            }
        }
        buffer.flush(&users, 0, 1);
        let sorted = all(&users);
        assert!(sorted.iter().map(|user| &user.0).eq(&ids));
        for (_, sums) in sorted {
            assert_eq!((sums.added(), sums.subtracted(), sums.events()), (6, 3, 6));
        }
    }
}
