//! Sums per user, filled by many threads at once.
//!
//! The cost of adding up is the cache miss a line. So users are split by hash into parts that each
//! fit a core's cache; a [`Router`] per thread collects events part by part and adds a batch of
//! them at a time, under the part's lock. A user's id and sums lie together in 64 bytes; the rare
//! longer ids are kept apart.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::event::Kind;
use crate::store::Sums;

const PARTS_BITS: u32 = 7;
const PARTS: usize = 1 << PARTS_BITS;
/// The longest user id that is kept beside its sums.
const INLINE_BYTES: usize = 23;
/// Events of a part that are added at once: so many that a user's line is often met again while it
/// is in the cache.
const BATCH: usize = 1024;

/// A user id of up to [`INLINE_BYTES`] bytes, padded with zeros; the last byte is its length.
#[derive(Clone, Copy, PartialEq, Eq)]
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

/// Random per process: whoever chooses user ids can't choose their hashes.
type Seeds = [u64; 4];

/// The two halves of the product, mixed: wyhash's and rapidhash's step.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves of 128 bits")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[repr(align(64))]
struct User {
    sums: Sums,
    key: Key,
}

#[derive(Default)]
struct Part {
    short: HashTable<User>,
    long: HashMap<Box<str>, Sums>,
}

/// One event on its way to its part: the amount is negative if it is subtracted.
struct Routed {
    key: Key,
    amount: i64,
}

/// The sums of a range.
pub(super) struct Users {
    parts: Vec<Mutex<Part>>,
    seeds: Seeds,
}

impl Users {
    pub(super) fn new() -> Self {
        let state = std::hash::RandomState::new();
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            seeds: std::array::from_fn(|index| state.hash_one(index)),
        }
    }

    /// About how many bytes of memory are held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.parts
            .iter()
            .map(|part| {
                let part = lock(part);
                part.short.allocation_size() + part.long.len() * (64 + 256)
            })
            .sum()
    }

    /// For reading; no router adds meanwhile.
    pub(super) fn freeze(&self) -> Frozen<'_> {
        Frozen(self.parts.iter().map(lock).collect())
    }

    fn add(&self, part: usize, events: &mut Vec<Routed>) {
        let mut part = lock(&self.parts[part]);
        for event in events.drain(..) {
            let hash = event.key.hash(&self.seeds);
            let found = part.short.entry(
                hash,
                |user| user.key == event.key,
                |user| user.key.hash(&self.seeds),
            );
            let kind = if event.amount < 0 {
                Kind::Subtract
            } else {
                Kind::Add
            };
            let amount = event.amount.unsigned_abs();
            match found {
                Entry::Occupied(mut user) => user.get_mut().sums.add_event(kind, amount),
                Entry::Vacant(vacant) => {
                    let mut sums = Sums::default();
                    sums.add_event(kind, amount);
                    vacant.insert(User {
                        sums,
                        key: event.key,
                    });
                }
            }
        }
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

fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All parts, held still.
pub(super) struct Frozen<'u>(Vec<MutexGuard<'u, Part>>);

impl Frozen<'_> {
    /// By user id, ascending.
    pub(super) fn sorted(&self) -> Vec<(&str, &Sums)> {
        let mut order: Vec<Ordered<'_>> = Vec::with_capacity(
            self.0
                .iter()
                .map(|part| part.short.len() + part.long.len())
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

/// One thread's way into [`Users`]: collects events, adds them in batches.
pub(super) struct Router {
    batches: Vec<Vec<Routed>>,
}

impl Router {
    pub(super) fn new() -> Self {
        Self {
            batches: (0..PARTS).map(|_| Vec::new()).collect(),
        }
    }

    /// Counts one event; it may be added only with [`Router::flush`].
    #[inline]
    pub(super) fn count(&mut self, users: &Users, user_id: &[u8], kind: Kind, amount_micros: u64) {
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
        batch.push(Routed { key, amount });
        if batch.len() >= BATCH {
            users.add(part, batch);
        }
    }

    /// Adds everything collected.
    pub(super) fn flush(&mut self, users: &Users) {
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
    fn users_of_every_length_are_kept_apart_and_sorted() {
        let users = Users::new();
        let mut router = Router::new();
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
