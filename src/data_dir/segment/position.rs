//! Positions: the place of a line in the native segments.

use std::fmt;
use std::str::FromStr;

use super::digits;

/// A position in the native segments: the byte `offset` of segment `segment`. Written `42-1834`.
///
/// Positions are ordered by segment, then by offset, which is the order of acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's number, from 1.
    pub segment: u64,
    /// Bytes from the start of the segment, up to a line end.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.segment, self.offset)
    }
}

/// A position that is not `number-offset`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a position is SEGMENT-OFFSET, two whole numbers such as 42-1834")]
pub struct PositionError;

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (segment, offset) = text.split_once('-').ok_or(PositionError)?;
        let segment = digits(segment).ok_or(PositionError)?;
        let offset = digits(offset).ok_or(PositionError)?;
        if segment == 0 {
            return Err(PositionError);
        }
        Ok(Self { segment, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_digits_dash_digits() {
        let position = Position {
            segment: 42,
            offset: 1834,
        };
        assert_eq!(position.to_string(), "42-1834");
        assert_eq!("42-1834".parse(), Ok(position));
        for bad in [
            "",
            "42",
            "-1",
            "42-",
            "+42-1",
            "42-+1",
            "0-5",
            "42-1834-",
            "99999999999999999999-1",
            " 42-1",
        ] {
            assert_eq!(bad.parse::<Position>(), Err(PositionError), "{bad}");
        }
        assert!(
            Position {
                segment: 2,
                offset: 0
            } > Position {
                segment: 1,
                offset: 99
            }
        );
    }
}
