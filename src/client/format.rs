//! How an input is cut into events.

pub(super) use crate::event::BYTE_ORDER_MARK;
use crate::event::{Looks, Unfit};

/// The most that is looked at.
pub(super) const HEAD_BYTES: usize = 1 << 12;

/// How an input is cut into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One event a line.
    Lines,
    /// JSON arrays of events.
    Arrays,
}

/// The format of an input that begins with `head` (inflated), or why it cannot be sent.
pub(super) fn of(head: &[u8]) -> Result<Format, Unfit> {
    match Looks::of(head) {
        Looks::Array => Ok(Format::Arrays),
        Looks::Unfit(unfit) => Err(unfit),
        Looks::Gzip => Err(Unfit::TWICE_COMPRESSED),
        Looks::Lines | Looks::Objects => Ok(Format::Lines),
    }
}
