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
        // Whole words: the loads of the hash would wait for the copy of a few bytes of any number.
        let [low, middle, high] = match length {
            0..8 => [start(user_id), 0, 0],
            8..16 => [word(user_id, 0), rest(user_id, 8), 0],
            _ => [word(user_id, 0), word(user_id, 8), rest(user_id, 16)],
        };
        let mut key = [0; INLINE_BYTES + 1];
        key[..8].copy_from_slice(&low.to_le_bytes());
        key[8..16].copy_from_slice(&middle.to_le_bytes());
        key[16..].copy_from_slice(&(high | (length as u64) << 56).to_le_bytes());
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
        let first = fold(word(&self.0, 0) ^ seeds[0], word(&self.0, 8) ^ seeds[1]);
        fold(first ^ seeds[2], word(&self.0, 16) ^ seeds[3])
    }
}

/// The 8 bytes at `at` as a number.
#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The bytes from `at` on, fewer than 8 of at least 8 in all, padded with zeros.
#[inline]
fn rest(bytes: &[u8], at: usize) -> u64 {
    let last = word(bytes, bytes.len() - 8);
    let before = 8 - (bytes.len() - at);
    // In two steps, because all 8 bytes may be before `at`.
    last >> (8 * before - 1) >> 1
}

/// Fewer than 8 bytes, padded with zeros.
#[inline]
fn start(bytes: &[u8]) -> u64 {
    let length = bytes.len();
    let at = |at: usize| u64::from(bytes[at]) << (8 * at);
    match (bytes.first_chunk(), bytes.last_chunk()) {
        (Some(first), Some(last)) => {
            // They may overlap.
            let last = u64::from(u32::from_le_bytes(*last));
            u64::from(u32::from_le_bytes(*first)) | last << (8 * (length - 4))
        }
        _ if length == 0 => 0,
        _ => at(0) | at(length / 2) | at(length - 1),
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
    use super::{INLINE_BYTES, Key};

    #[test]
    fn a_key_is_the_id_padded_with_zeros_and_its_length() {
        let text: Vec<u8> = (1..=24).collect();
        for length in 0..=INLINE_BYTES {
            let mut expected = [0; INLINE_BYTES + 1];
            expected[..length].copy_from_slice(&text[..length]);
            expected[INLINE_BYTES] = u8::try_from(length).expect("short");
            assert!(Key::new(&text[..length]) == Some(Key(expected)), "{length}");
        }
        assert!(Key::new(&text).is_none());
    }

    #[test]
    fn an_entry_fills_one_cache_line() {
        assert_eq!(size_of::<super::User>(), 64);
    }
}
