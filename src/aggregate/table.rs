//! The hash table of a shard: users with short ids.

use super::user::{Key, Seeds, User};

/// The number of events whose users are prefetched together.
const FETCHED: usize = 32;
/// The minimum number of slots of a table.
const SLOTS_MIN: usize = 8;

/// An event that is added to a table; the amount is negative if it is subtracted.
pub(super) struct BufferedEvent {
    pub(super) key: Key,
    pub(super) amount: i64,
}

/// A hash table with linear probing. A lookup usually costs one cache miss, at an address that depends
/// only on the hash.
#[derive(Default)]
pub(super) struct Table {
    /// The number of slots is 0 or a power of two; at least a quarter is empty.
    slots: Vec<User>,
    users: usize,
}

impl Table {
    /// The slot of a user, or the empty slot in which to insert it.
    #[inline]
    fn slot(&self, hash: u64, key: &Key) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = home(hash, mask);
        while self.slots[slot].key != *key && !self.slots[slot].is_empty() {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Adds events. If the table grows, the remaining prefetched lines of the round are of no use.
    pub(super) fn add(&mut self, events: &[BufferedEvent], seeds: &Seeds) {
        if self.slots.is_empty() {
            self.slots = vec![User::default(); SLOTS_MIN];
        }
        for events in events.chunks(FETCHED) {
            let mut hashes = [0; FETCHED];
            for (hash, event) in hashes.iter_mut().zip(events) {
                *hash = event.key.hash(seeds);
            }
            // In a loop of its own, so that the processor reaches all of the loads before the first ends.
            let mut fetched = 0;
            let mask = self.slots.len() - 1;
            for hash in &hashes[..events.len()] {
                fetched |= self.slots[home(*hash, mask)].key.length();
            }
            // Keeps the compiler from removing the loads.
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

    /// The number of slots that a table has which grew to this number of users.
    pub(super) fn slots_for(users: usize) -> usize {
        if users == 0 {
            return 0;
        }
        (users * 4 / 3 + 1).next_power_of_two().max(SLOTS_MIN)
    }

    /// The number of users.
    pub(super) fn len(&self) -> usize {
        self.users
    }

    /// The number of slots.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The memory that so many users alone need, in bytes.
    pub(super) fn used_bytes(users: usize) -> usize {
        users * size_of::<User>() * 4 / 3
    }

    /// The users in ascending order, sorted where they lie.
    pub(super) fn into_sorted(self) -> Vec<User> {
        let mut users = self.slots;
        users.retain(|user| !user.is_empty());
        users.sort_unstable_by_key(User::prefix);
        users
    }

    /// An empty table in the memory of `users`, which came from [`Table::into_sorted`].
    pub(super) fn emptied(mut users: Vec<User>) -> Self {
        let slots = users.capacity();
        users.clear();
        if slots.is_power_of_two() {
            users.resize(slots, User::default());
        }
        Self {
            slots: users,
            users: 0,
        }
    }

    /// A table with these users.
    pub(super) fn of(users: Vec<User>, seeds: &Seeds) -> Self {
        let mut table = Self {
            slots: vec![User::default(); Self::slots_for(users.len())],
            users: users.len(),
        };
        for user in users {
            let slot = table.slot(user.key.hash(seeds), &user.key);
            table.slots[slot] = user;
        }
        table
    }
}

/// The first slot to probe for a hash.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "only the low bits are used"
)]
fn home(hash: u64, mask: usize) -> usize {
    hash as usize & mask
}
