//! The result of aggregating a range of lines, which the store applies. No I/O.

use std::ops::Range;

use crate::event::{Event, Kind};

/// The maximum number of bytes of a rejected line that are stored.
pub const REJECTED_LINE_BYTES_MAX: usize = 1024;

/// The sums of a user's events. Added and subtracted amounts are summed separately in 128 bits: neither
/// sum overflows within 2^60 events, and together they bound every intermediate total. The size is 40
/// bytes, so that it fits in a cache line together with a user id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    added: Wide,
    subtracted: Wide,
    events: u64,
}

/// A 128-bit integer with an alignment of 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wide {
    low: u64,
    high: u64,
}

impl Wide {
    #[inline]
    fn add(&mut self, amount: u64) {
        let (low, carry) = self.low.overflowing_add(amount);
        self.low = low;
        self.high += u64::from(carry);
    }

    fn subtract(&mut self, other: Self) {
        let (low, borrow) = self.low.overflowing_sub(other.low);
        self.low = low;
        self.high -= other.high + u64::from(borrow);
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves of 128 bits")]
    fn of(value: u128) -> Self {
        Self {
            low: value as u64,
            high: (value >> 64) as u64,
        }
    }

    fn value(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

impl Sums {
    /// Adds one event to the sums of its kind.
    #[inline]
    pub fn add_event(&mut self, kind: Kind, amount_micros: u64) {
        match kind {
            Kind::Add => self.added.add(amount_micros),
            Kind::Subtract => self.subtracted.add(amount_micros),
        }
        self.events += 1;
    }

    /// Adds one event; negative micros are subtracted.
    #[inline]
    pub fn add_signed(&mut self, micros: i64) {
        if micros < 0 {
            self.subtracted.add(micros.unsigned_abs());
        } else {
            self.added.add(micros.unsigned_abs());
        }
        self.events += 1;
    }

    /// Subtracts events that were added before.
    pub fn subtract(&mut self, other: &Self) {
        self.added.subtract(other.added);
        self.subtracted.subtract(other.subtracted);
        self.events -= other.events;
    }

    /// Adds the events of another sum.
    pub(crate) fn add(&mut self, other: &Self) {
        self.added.add(other.added.low);
        self.added.high += other.added.high;
        self.subtracted.add(other.subtracted.low);
        self.subtracted.high += other.subtracted.high;
        self.events += other.events;
    }

    /// The sums with these amounts in micros.
    pub(super) fn of(added: u128, subtracted: u128, events: u64) -> Self {
        Self {
            added: Wide::of(added),
            subtracted: Wide::of(subtracted),
            events,
        }
    }

    /// The sum of the added amounts, in micros.
    pub fn added(&self) -> u128 {
        self.added.value()
    }

    /// The sum of the subtracted amounts, in micros.
    pub fn subtracted(&self) -> u128 {
        self.subtracted.value()
    }

    /// The number of events.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Added minus subtracted amounts, exact within 2^60 events.
    pub fn net(&self) -> i128 {
        self.added()
            .cast_signed()
            .wrapping_sub(self.subtracted().cast_signed())
    }

    /// Added minus subtracted amounts, modulo 2^64. It is exact if the result fits in an `i64`, and
    /// serves as a check value otherwise.
    pub fn net_wrapping(&self) -> i64 {
        self.added
            .low
            .wrapping_sub(self.subtracted.low)
            .cast_signed()
    }
}

/// The signed micros of one event. An amount is at most 10^18, so it fits.
pub(crate) fn signed(kind: Kind, amount_micros: u64) -> i64 {
    let amount = i64::try_from(amount_micros).unwrap_or(i64::MAX);
    match kind {
        Kind::Add => amount,
        Kind::Subtract => -amount,
    }
}

/// An event with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdEvent<'a> {
    /// Bytes from the start of the segment to the start of its line.
    pub offset: u64,
    /// The id of the event.
    pub id: &'a str,
    /// The id of the user, 1 to 256 bytes.
    pub user_id: &'a str,
    /// Whether the amount is added or subtracted.
    pub kind: Kind,
    /// The amount in micros.
    pub amount_micros: u64,
}

impl IdEvent<'_> {
    /// 48 bits of a hash of user, kind and amount, as a signed number. It is stored in the database and
    /// must never change, so the portable variant of the hash is used. If two payloads collide, a
    /// conflict is reported as a duplicate; the second event is not counted in either case.
    pub(crate) fn payload(&self) -> i64 {
        let secrets = &rapidhash::v3::DEFAULT_RAPID_SECRETS;
        let user = rapidhash::v3::rapidhash_v3_seeded(self.user_id.as_bytes(), secrets);
        let mut bytes = [0; 17];
        bytes[..8].copy_from_slice(&user.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.amount_micros.to_le_bytes());
        bytes[16] = u8::from(self.kind == Kind::Add);
        let hash = rapidhash::v3::rapidhash_v3_seeded(&bytes, secrets);
        // 47 bits and a sign: SQLite stores it in 6 bytes.
        let high = i64::try_from(hash >> 16).unwrap_or_default();
        high - (1 << 47)
    }

    /// The low 32 bits of [`IdEvent::payload`], for ids in blocks.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the low bits are wanted"
    )]
    pub(crate) fn payload_hash(&self) -> u32 {
        self.payload() as u32
    }
}

/// The most bytes per event while the events are sorted by id.
const SORTED_BYTES: usize = 41;

/// Events with ids, in file order. Their strings share one buffer.
#[derive(Debug, Default)]
pub struct IdEvents {
    text: String,
    events: Vec<Packed>,
}

#[derive(Debug)]
struct Packed {
    offset: u64,
    amount_micros: u64,
    text_start: usize,
    id_length: u16,
    user_length: u16,
    kind: Kind,
}

impl IdEvents {
    /// Adds an event with an id, from the line at `offset`.
    pub fn push(&mut self, offset: u64, id: &str, event: &Event<'_>) {
        let length = |text: &str| u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.events.push(Packed {
            offset,
            amount_micros: event.amount_micros,
            text_start: self.text.len(),
            id_length: length(id),
            user_length: length(&event.user_id),
            kind: event.kind,
        });
        self.text.push_str(id);
        self.text.push_str(&event.user_id);
    }

    /// Adds all events of `other`, which follow in the file.
    pub fn append(&mut self, other: &Self) {
        let shift = self.text.len();
        self.text.push_str(&other.text);
        self.events.extend(other.events.iter().map(|event| Packed {
            text_start: event.text_start + shift,
            ..*event
        }));
    }

    /// The maximum memory in bytes until the events are applied: the events, a copy sorted by id, and
    /// those that do not count sorted by user.
    pub fn memory_bytes(&self) -> usize {
        let event = size_of::<Packed>() + SORTED_BYTES + size_of::<(&str, i64)>();
        self.text.len() + self.events.len() * event
    }

    /// The events in file order.
    pub fn iter(&self) -> impl Iterator<Item = IdEvent<'_>> {
        self.events.iter().map(|event| self.unpacked(event))
    }

    /// The event with this index in file order.
    pub(crate) fn get(&self, index: usize) -> Option<IdEvent<'_>> {
        self.events.get(index).map(|event| self.unpacked(event))
    }

    fn unpacked(&self, event: &Packed) -> IdEvent<'_> {
        let user_start = event.text_start + usize::from(event.id_length);
        let part = |range: Range<usize>| self.text.get(range).unwrap_or_default();
        IdEvent {
            offset: event.offset,
            id: part(event.text_start..user_start),
            user_id: part(user_start..user_start + usize::from(event.user_length)),
            kind: event.kind,
            amount_micros: event.amount_micros,
        }
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// A line that is not counted, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Bytes from the start of the segment to the start of the line.
    pub offset: u64,
    /// The stable reason code, see [`crate::event::EventError::code`].
    pub code: &'static str,
    /// The reason as text.
    pub reason: String,
    /// The line's first [`REJECTED_LINE_BYTES_MAX`] bytes, as text.
    pub line: String,
}

impl Rejected {
    /// Truncates the line to [`REJECTED_LINE_BYTES_MAX`] bytes.
    pub fn new(offset: u64, code: &'static str, reason: String, line: &[u8]) -> Self {
        let kept = &line[..line.len().min(REJECTED_LINE_BYTES_MAX)];
        let line = String::from_utf8_lossy(kept).into_owned();
        Self {
            offset,
            code,
            reason,
            line,
        }
    }
}

/// A counted line of one user, for the overflow replay of that user's lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserLine {
    /// Bytes from the start of the segment to the start of the line.
    pub offset: u64,
    /// The id of the user, 1 to 256 bytes.
    pub user_id: String,
    /// Whether the amount is added or subtracted.
    pub kind: Kind,
    /// The amount in micros.
    pub amount_micros: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_hash_never_changes() {
        let mut event = IdEvent {
            offset: 7,
            id: "a",
            user_id: "user1",
            kind: Kind::Add,
            amount_micros: 100,
        };
        let first = event.payload();
        assert_eq!(
            first, PAYLOAD_OF_USER1_ADD_100,
            "stored in databases: must not change"
        );
        assert!((-(1 << 47)..1 << 47).contains(&first));
        assert_eq!(
            event.payload_hash(),
            PAYLOAD_HASH_OF_USER1_ADD_100,
            "stored in databases, too"
        );
        event.offset = 8;
        event.id = "b";
        assert_eq!(
            event.payload(),
            first,
            "neither the offset nor the id is part of the payload"
        );
        event.kind = Kind::Subtract;
        assert_ne!(event.payload(), first);
    }

    const PAYLOAD_OF_USER1_ADD_100: i64 = -89_014_658_269_851;
    const PAYLOAD_HASH_OF_USER1_ADD_100: u32 = 2_833_907_045;

    #[test]
    fn added_events_can_be_subtracted() {
        let mut sums = Sums::default();
        for _ in 0..40 {
            sums.add_event(Kind::Add, 1_000_000_000_000_000_000);
        }
        let before = sums;
        let mut some = Sums::default();
        for _ in 0..19 {
            some.add_signed(1_000_000_000_000_000_000);
            some.add_signed(-3);
        }
        sums.add(&some);
        sums.subtract(&some);
        assert_eq!(sums, before);
    }

    #[test]
    fn a_difference_borrows_from_the_high_half() {
        // Fails if more than 2^64 micros minus a smaller sum with a larger low half is wrong by 2^64.
        let mut sums = Sums::of(1 << 64, 1 << 65, 4);
        sums.subtract(&Sums::of(1, 2, 3));
        assert_eq!(sums, Sums::of((1 << 64) - 1, (1 << 65) - 2, 1));
    }

    #[test]
    fn the_net_wraps_and_is_exact_if_it_fits() {
        let mut sums = Sums::default();
        for _ in 0..20 {
            sums.add_event(Kind::Add, 1_000_000_000_000_000_000);
        }
        for _ in 0..21 {
            sums.add_event(Kind::Subtract, 1_000_000_000_000_000_000);
        }
        assert_eq!(sums.net_wrapping(), -1_000_000_000_000_000_000);
        assert_eq!(
            (sums.events(), sums.added() > u128::from(u64::MAX)),
            (41, true)
        );
    }
}
