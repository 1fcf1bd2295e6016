//! Detects how an input is split into events.

pub(super) use crate::event::BYTE_ORDER_MARK;
use crate::event::{Looks, Unfit};

/// Number of bytes at the beginning of the input that are examined.
pub(super) const HEAD_BYTES: usize = 1 << 12;

/// How an input is split into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One event a line.
    Lines,
    /// JSON arrays of events.
    Arrays,
}

/// The format of an input whose inflated content begins with `head`, or why it cannot be sent.
pub(super) fn of(head: &[u8]) -> Result<Format, Unfit> {
    match Looks::of(head) {
        Looks::Array => Ok(Format::Arrays),
        Looks::Unfit(unfit) => Err(unfit),
        Looks::Gzip => Err(Unfit::TWICE_COMPRESSED),
        Looks::Lines | Looks::Objects => Ok(Format::Lines),
    }
}
