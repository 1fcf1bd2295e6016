//! Durations and sizes as written on the command line and in the config file.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer};

/// A duration in humantime's format (`10ms`, `1m 30s`), or `forever` (`None`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Option<Duration>);

/// A text that is not a [`Span`].
#[derive(Debug, thiserror::Error)]
#[error("{0}; write a duration such as 10ms, 1s, 5m, 2h or 30days, or forever")]
pub struct SpanError(humantime::DurationError);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        match text {
            "forever" => Ok(Self(None)),
            _ => humantime::parse_duration(text)
                .map(|duration| Self(Some(duration)))
                .map_err(SpanError),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("forever"),
            Some(duration) => humantime::format_duration(duration).fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        String::deserialize(json)?.parse().map_err(D::Error::custom)
    }
}

/// A number of bytes: `4096`, `64KiB`, `256MiB`, `1GB`. Its text is exact and reads as the same number, since
/// `serve --check` prints a config file. The crate `bytesize` rounds: it parses a number with a unit as `f64`
/// and shows one decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A text that is not a [`Size`].
#[derive(Debug, thiserror::Error)]
#[error("write a whole number of bytes such as 4096, 64KiB, 256MiB or 1GB")]
pub struct SizeError;

/// Units and their bytes, largest first. Sizes are shown in the units of 1024.
const UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let (number, factor) = UNITS
            .iter()
            .find_map(|&(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
            .unwrap_or((text, 1));
        let number = number.trim_end();
        // Digits only: `u64::from_str` would accept a `+` as well.
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SizeError);
        }
        let number: u64 = number.parse().map_err(|_| SizeError)?;
        number.checked_mul(factor).map(Self).ok_or(SizeError)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |&&(unit, factor): &&(&str, u64)| {
            unit.ends_with("iB") && self.0 > 0 && self.0.is_multiple_of(factor)
        };
        match UNITS.iter().find(whole) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(toml: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 4096 or \"256MiB\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
        }
        toml.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown_in_their_largest_whole_unit() {
        for (text, bytes, shown) in [
            ("0", 0, "0"),
            ("4096", 4096, "4KiB"),
            ("256MiB", 256 << 20, "256MiB"),
            ("1 GiB", 1 << 30, "1GiB"),
            ("1GB", 1_000_000_000, "1000000000"),
            ("7B", 7, "7"),
        ] {
            let size: Size = text.parse().expect(text);
            assert_eq!(
                (size.0, size.to_string().as_str()),
                (bytes, shown),
                "{text}"
            );
            assert_eq!(size.to_string().parse::<Size>().expect(text), size);
        }
        for text in ["", "MiB", "-1", "+1", "1.5MiB", "1XB", "99999999TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_are_humantimes_or_forever() {
        let span = |text: &str| text.parse::<Span>().map(|span| span.0);
        assert_eq!(span("forever").ok(), Some(None));
        assert_eq!(span("10ms").ok(), Some(Some(Duration::from_millis(10))));
        assert_eq!(span("1m 30s").ok(), Some(Some(Duration::from_secs(90))));
        for text in ["", "10", "ever", "-1s"] {
            assert!(span(text).is_err(), "{text}");
        }
        assert_eq!(Span(None).to_string(), "forever");
    }
}
