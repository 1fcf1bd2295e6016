//! Detects how an input is split into events.

pub(super) use crate::event::BYTE_ORDER_MARK;
use crate::event::{InputFormat, Unsupported, without_bom};
use serde::de::IgnoredAny;

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

/// Whether the text is the beginning of an object that ends later.
pub(super) fn is_open_object(text: &[u8]) -> bool {
    let is_object = without_bom(text).trim_ascii_start().starts_with(b"{");
    is_object
        && serde_json::from_slice::<IgnoredAny>(without_bom(text))
            .is_err_and(|error| error.is_eof())
}

/// The format of an input whose inflated content begins with `head`, or why it cannot be sent.
pub(super) fn of(head: &[u8]) -> Result<Format, Unsupported> {
    match InputFormat::of(head) {
        InputFormat::Array => Ok(Format::Arrays),
        InputFormat::Unsupported(unsupported) => Err(unsupported),
        InputFormat::Gzip => Err(Unsupported::TWICE_COMPRESSED),
        InputFormat::Objects => Err(Unsupported::OBJECTS),
        InputFormat::Joined => Err(Unsupported::JOINED),
        InputFormat::Lines => Ok(Format::Lines),
    }
}
