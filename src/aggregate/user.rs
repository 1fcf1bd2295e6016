//! A user with its sums in one cache line, and the order of user ids.
//!
//! Users with an id of more than 23 bytes are rare. They have no [`Key`] and are kept in a separate map.

use std::hash::BuildHasher as _;
use std::sync::LazyLock;

use super::delta::Sums;

/// The longest user id that is stored in the same cache line as its sums.
const INLINE_BYTES: usize = 23;
/// A user id of up to [`INLINE_BYTES`] bytes, padded with zeros; the last byte is its length.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Key([u8; INLINE_BYTES + 1]);

impl Key {
    #[inline]
    pub(super) fn new(user_id: &[u8]) -> Option<Self> {
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

    /// The length of the id in bytes.
    #[inline]
    pub(super) fn length(&self) -> u8 {
        self.0[INLINE_BYTES]
    }

    fn user_id(&self) -> &str {
        let text = &self.0[..usize::from(self.0[INLINE_BYTES])];
        // It was copied from text.
        std::str::from_utf8(text).unwrap_or_default()
    }

    /// The order of the ids, which it decides alone: no id contains a zero byte.
    #[inline]
    fn prefix(&self) -> Prefix {
        let mut bytes = self.0;
        bytes[INLINE_BYTES] = 0;
        Prefix::new(bytes)
    }

    #[inline]
    pub(super) fn hash(&self, seeds: &Seeds) -> u64 {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.0[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let first = fold(word(0) ^ seeds[0], word(8) ^ seeds[1]);
        fold(first ^ seeds[2], word(16) ^ seeds[3])
    }
}

pub(super) type Seeds = [u64; 4];

/// Random seeds, so that a client that chooses user ids cannot choose their hashes. They stay the same
/// for the whole process, so that a small set of users always uses the same few batches of a
/// `ShardBuffer`.
pub(super) static SEEDS: LazyLock<Seeds> = LazyLock::new(|| {
    let state = std::hash::RandomState::new();
    std::array::from_fn(|index| state.hash_one(index))
});

/// The two halves of the 128-bit product, combined by XOR, as in wyhash and rapidhash.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves of 128 bits")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// A user with an id of up to [`INLINE_BYTES`] bytes.
#[derive(Clone, Default)]
#[repr(align(64))]
pub(super) struct User {
    pub(super) sums: Sums,
    /// The user id; its length is 0 in an empty slot.
    pub(super) key: Key,
}

impl User {
    pub(super) fn is_empty(&self) -> bool {
        self.key.length() == 0
    }

    pub(super) fn user_id(&self) -> &str {
        self.key.user_id()
    }

    #[inline]
    pub(super) fn prefix(&self) -> Prefix {
        self.key.prefix()
    }
}

/// The first 24 bytes of a user id, padded with zeros, as numbers with the same order. No id contains a zero
/// byte, so an id is before every longer id that begins with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(u128, u64);

impl Prefix {
    const BYTES: usize = 24;
    /// After every user id: no text contains a byte 0xFF.
    pub(super) const END: Self = Self(u128::MAX, u64::MAX);

    #[inline]
    pub(super) fn new(bytes: [u8; Self::BYTES]) -> Self {
        let (mut high, mut low) = ([0; 16], [0; 8]);
        high.copy_from_slice(&bytes[..16]);
        low.copy_from_slice(&bytes[16..]);
        Self(u128::from_be_bytes(high), u64::from_be_bytes(low))
    }

    pub(super) fn of(user_id: &str) -> Self {
        let mut bytes = [0; Self::BYTES];
        let length = user_id.len().min(Self::BYTES);
        bytes[..length].copy_from_slice(&user_id.as_bytes()[..length]);
        Self::new(bytes)
    }

    /// Whether it is the complete id of every user with it.
    pub(super) fn is_complete(self) -> bool {
        self.1.trailing_zeros() >= 8
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_entry_fills_one_cache_line() {
        assert_eq!(size_of::<super::User>(), 64);
    }
}
