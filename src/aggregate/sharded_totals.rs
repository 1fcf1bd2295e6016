//! Sums per user, filled by many threads at once.
//!
//! The cost of adding up is the cache miss a line. So users are split by hash into parts that each
//! fit a core's cache; a [`ShardBuffer`] per thread collects events part by part and adds a batch of
//! them at a time, under the part's lock. A user's id and sums lie together in 64 bytes, and the
//! lines of several events are fetched before the first of them is needed, so that the misses that
//! are left overlap; the rare longer ids are kept apart.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::delta::Sums;
use crate::event::Kind;

const PARTS_BITS: u32 = 7;
const PARTS: usize = 1 << PARTS_BITS;
/// The longest user id that is kept beside its sums.
const INLINE_BYTES: usize = 23;
/// About what a user with a long id costs in its table, with an id of 256 bytes.
const LONG_BYTES: usize = 256 + 2 * size_of::<(Box<str>, Sums)>();
/// Events of a part that are added at once: so many that a user's line is often met again while it
/// is in the cache.
const BATCH: usize = 1024;
/// Events whose users are fetched together.
const FETCHED: usize = 16;
/// The fewest slots a table has.
const SLOTS_MIN: usize = 16;

/// A user id of up to [`INLINE_BYTES`] bytes, padded with zeros; the last byte is its length.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Key([u8; INLINE_BYTES + 1]);

impl Key {
    #[inline]
    fn new(user_id: &[u8]) -> Option<Self> {
        let length = user_id.len();
        if length > INLINE_BYTES {
            return None;
        }
        let mut key = [0; INLINE_BYTES + 1];
        key[..length].copy_from_slice(user_id);
        #[expect(clippy::cast_possible_truncation, reason = "at most 23")]
        {
            key[INLINE_BYTES] = length as u8;
        }
        Some(Self(key))
    }

    fn user_id(&self) -> &str {
        let text = &self.0[..usize::from(self.0[INLINE_BYTES])];
        // It was copied from text.
        std::str::from_utf8(text).unwrap_or_default()
    }

    #[inline]
    fn hash(&self, seeds: &Seeds) -> u64 {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.0[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let first = fold(word(0) ^ seeds[0], word(8) ^ seeds[1]);
        fold(first ^ seeds[2], word(16) ^ seeds[3])
    }
}

type Seeds = [u64; 4];

/// Random: whoever chooses user ids can't choose their hashes. Per process: few users need few batches of
/// a [`ShardBuffer`], range after range.
static SEEDS: LazyLock<Seeds> = LazyLock::new(|| {
    let state = std::hash::RandomState::new();
    std::array::from_fn(|index| state.hash_one(index))
});

/// The two halves of the product, mixed: wyhash's and rapidhash's step.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves of 128 bits")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[derive(Clone, Default)]
#[repr(align(64))]
struct User {
    sums: Sums,
    /// That of no user, of length 0, in an empty slot.
    key: Key,
}

impl User {
    fn is_empty(&self) -> bool {
        self.key.0[INLINE_BYTES] == 0
    }
}

/// ShardedTotals by hash: in the slot the hash says, or the next one that was free. So a user is one cache
/// miss, of which the place is known from the hash alone.
#[derive(Default)]
struct Table {
    /// A power of two of them, a quarter empty; or none at all.
    slots: Vec<User>,
    users: usize,
}

impl Table {
    /// The slot of a user, or the empty one that would be the user's.
    #[inline]
    fn slot(&self, hash: u64, key: &Key) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = home(hash, mask);
        while self.slots[slot].key != *key && !self.slots[slot].is_empty() {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Adds events; a table that grew meanwhile is fetched from in the next round again.
    fn add(&mut self, events: &[BufferedEvent], seeds: &Seeds) {
        if self.slots.is_empty() {
            self.slots = vec![User::default(); SLOTS_MIN];
        }
        for events in events.chunks(FETCHED) {
            let mut hashes = [0; FETCHED];
            let mut fetched = 0;
            let mask = self.slots.len() - 1;
            for (hash, event) in hashes.iter_mut().zip(events) {
                *hash = event.key.hash(seeds);
                fetched |= self.slots[home(*hash, mask)].key.0[INLINE_BYTES];
            }
            // Without a use of it, nothing would be fetched.
            std::hint::black_box(fetched);
            for (&hash, event) in hashes.iter().zip(events) {
                self.add_one(hash, event, seeds);
            }
        }
    }

    #[inline]
    fn add_one(&mut self, hash: u64, event: &BufferedEvent, seeds: &Seeds) {
        let slot = self.slot(hash, &event.key);
        let user = &mut self.slots[slot];
        user.sums.add_signed(event.amount);
        if user.is_empty() {
            user.key = event.key;
            self.users += 1;
            if self.users > self.slots.len() / 4 * 3 {
                self.grow(seeds);
            }
        }
    }

    #[cold]
    fn grow(&mut self, seeds: &Seeds) {
        let slots = vec![User::default(); self.slots.len() * 2];
        for user in std::mem::replace(&mut self.slots, slots) {
            if !user.is_empty() {
                let slot = self.slot(user.key.hash(seeds), &user.key);
                self.slots[slot] = user;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &User> {
        self.slots.iter().filter(|user| !user.is_empty())
    }
}

/// Where a user of that hash is looked for first.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are what is asked for"
)]
fn home(hash: u64, mask: usize) -> usize {
    hash as usize & mask
}

#[derive(Default)]
struct Shard {
    short: Table,
    long: HashMap<Box<str>, Sums>,
}

/// One event on its way to its part: the amount is negative if it is subtracted.
struct BufferedEvent {
    key: Key,
    amount: i64,
}

/// The sums of a range.
pub(crate) struct ShardedTotals {
    parts: Vec<Mutex<Shard>>,
    seeds: Seeds,
}

impl ShardedTotals {
    /// Bytes of memory that it holds before there is any user.
    pub(crate) const EMPTY_BYTES: usize = PARTS * size_of::<Mutex<Shard>>();

    pub(crate) fn new() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            seeds: *SEEDS,
        }
    }

    /// The most bytes of memory that so many users need until they are applied: in tables that
    /// have just grown, and sorted.
    pub(crate) fn memory_bytes(&self) -> usize {
        let sorted = size_of::<Ordered<'_>>() + size_of::<(&str, &Sums)>();
        let short = size_of::<User>() * 8 / 3 + sorted;
        let long = LONG_BYTES + sorted;
        self.parts
            .iter()
            .map(|part| {
                let part = lock(part);
                part.short.users * short + part.long.len() * long
            })
            .sum()
    }

    /// For reading; no router adds meanwhile.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        Frozen(self.parts.iter().map(lock).collect())
    }

    fn add(&self, part: usize, events: &mut Vec<BufferedEvent>) {
        lock(&self.parts[part]).short.add(events, &self.seeds);
        events.clear();
    }

    fn add_long(&self, user_id: &[u8], kind: Kind, amount_micros: u64) {
        // It comes from an event, whose strings are text.
        let user_id = std::str::from_utf8(user_id).unwrap_or_default();
        let hash =
            std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default().hash_one(user_id);
        let mut part = lock(&self.parts[usize::try_from(hash >> (64 - PARTS_BITS)).unwrap_or(0)]);
        if let Some(sums) = part.long.get_mut(user_id) {
            sums.add_event(kind, amount_micros);
        } else {
            let mut sums = Sums::default();
            sums.add_event(kind, amount_micros);
            part.long.insert(user_id.into(), sums);
        }
    }
}

fn lock(part: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All parts, held still.
pub(crate) struct Frozen<'u>(Vec<MutexGuard<'u, Shard>>);

impl Frozen<'_> {
    /// By user id, ascending.
    pub(crate) fn sorted(&self) -> Vec<(&str, &Sums)> {
        let mut order: Vec<Ordered<'_>> = Vec::with_capacity(
            self.0
                .iter()
                .map(|part| part.short.users + part.long.len())
                .sum(),
        );
        for part in &self.0 {
            let short = part
                .short
                .iter()
                .map(|user| (user.key.user_id(), &user.sums));
            let long = part.long.iter().map(|(user_id, sums)| (&**user_id, sums));
            order.extend(short.chain(long).map(|(user_id, sums)| Ordered {
                prefix: prefix(user_id),
                user: (user_id, sums),
            }));
        }
        order.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| a.user.0.cmp(b.user.0)));
        order.into_iter().map(|ordered| ordered.user).collect()
    }
}

/// A user to be sorted without looking at more than is at hand.
struct Ordered<'u> {
    prefix: u128,
    user: (&'u str, &'u Sums),
}

/// The first 16 bytes as a number that sorts as they do. An id has no zero bytes, so a shorter one
/// sorts before all that it begins.
fn prefix(user_id: &str) -> u128 {
    let mut bytes = [0; 16];
    let length = user_id.len().min(bytes.len());
    bytes[..length].copy_from_slice(&user_id.as_bytes()[..length]);
    u128::from_be_bytes(bytes)
}

/// One thread's way into [`ShardedTotals`]: collects events, adds them in batches.
pub(crate) struct ShardBuffer {
    batches: Vec<Vec<BufferedEvent>>,
}

impl ShardBuffer {
    /// The most bytes of memory it holds.
    pub(crate) const MEMORY_BYTES: usize = PARTS * BATCH * size_of::<BufferedEvent>();

    pub(crate) fn new() -> Self {
        Self {
            batches: (0..PARTS).map(|_| Vec::new()).collect(),
        }
    }

    /// Counts one event; it may be added only with [`ShardBuffer::flush`].
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
        let part = usize::try_from(key.hash(&users.seeds) >> (64 - PARTS_BITS)).unwrap_or(0);
        let batch = &mut self.batches[part];
        batch.push(BufferedEvent { key, amount });
        if batch.len() >= BATCH {
            users.add(part, batch);
        }
    }

    /// Adds everything collected.
    pub(crate) fn flush(&mut self, users: &ShardedTotals) {
        for (part, batch) in self.batches.iter_mut().enumerate() {
            if !batch.is_empty() {
                users.add(part, batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_cache_line() {
        assert_eq!(size_of::<User>(), 64);
    }

    #[test]
    fn a_table_grows_and_keeps_everybody() {
        let users = ShardedTotals::new();
        let mut router = ShardBuffer::new();
        let ids: Vec<String> = (0..40_000).map(|n| format!("user{n:05}")).collect();
        for _ in 0..3 {
            for id in &ids {
                router.count(&users, id.as_bytes(), Kind::Add, 2);
            }
        }
        router.flush(&users);
        let frozen = users.freeze();
        let sorted = frozen.sorted();
        assert_eq!(sorted.iter().map(|user| user.0).collect::<Vec<_>>(), ids);
        assert!(sorted.iter().all(|(_, sums)| sums.added() == 6));
    }

    #[test]
    fn few_users_need_few_batches_however_many_ranges_there_are() {
        let mut router = ShardBuffer::new();
        for _ in 0..100 {
            let users = ShardedTotals::new();
            router.count(&users, b"user1", Kind::Add, 1);
            router.flush(&users);
        }
        let used = router.batches.iter().filter(|batch| batch.capacity() > 0);
        assert_eq!(used.count(), 1);
    }

    #[test]
    fn users_of_every_length_are_kept_apart_and_sorted() {
        let users = ShardedTotals::new();
        let mut router = ShardBuffer::new();
        let ids: Vec<String> = (1..=256).map(|length| "x".repeat(length)).collect();
        for round in 1..=3u64 {
            for id in &ids {
                router.count(&users, id.as_bytes(), Kind::Add, round);
                router.count(&users, id.as_bytes(), Kind::Subtract, 1);
            }
        }
        router.flush(&users);
        let frozen = users.freeze();
        let sorted = frozen.sorted();
        assert_eq!(sorted.iter().map(|user| user.0).collect::<Vec<_>>(), ids);
        for (_, sums) in sorted {
            assert_eq!((sums.added(), sums.subtracted(), sums.events()), (6, 3, 6));
        }
    }
}
