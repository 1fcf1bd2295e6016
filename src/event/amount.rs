//! Amounts: exact conversion from the digits of a literal to integer micros, and back to text.

use std::fmt;

use serde_json::value::RawValue;

use super::EventError;

/// Micros in one unit.
pub const MICROS_PER_UNIT: u64 = 1_000_000;
/// The largest amount of one event: 10^12 units.
pub const AMOUNT_MICROS_MAX: u64 = 1_000_000_000_000 * MICROS_PER_UNIT;

/// A signed sum in millionths of a unit, of any number of users: it may exceed 64 bits. Its text is the exact
/// decimal without trailing zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i128);

impl From<i64> for Micros {
    fn from(micros: i64) -> Self {
        Self(micros.into())
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let per_unit = u128::from(MICROS_PER_UNIT);
        let units = self.0.unsigned_abs() / per_unit;
        let micros = self.0.unsigned_abs() % per_unit;
        if micros == 0 {
            return write!(f, "{sign}{units}");
        }
        let fraction = format!("{micros:06}");
        write!(f, "{sign}{units}.{}", fraction.trim_end_matches('0'))
    }
}

/// The value of an event in micros, 0 to [`AMOUNT_MICROS_MAX`].
pub(super) fn amount(raw: &RawValue) -> Result<u64, EventError> {
    let literal = raw.get();
    let error = |code, detail: String| Err(EventError::field("/value", code, detail));
    if !literal.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return error(
            "not_number",
            format!("expected a number, found {}", shown(literal)),
        );
    }
    match micros_of_literal(literal) {
        Ok(micros) => Ok(micros),
        Err(AmountError::Negative) => error(
            "negative",
            format!(
                "{} is negative; to subtract, use \"subtract_revenue\"",
                shown(literal)
            ),
        ),
        Err(AmountError::TooManyDigits) => error(
            "too_many_digits",
            format!("{} has more than 6 digits after the point", shown(literal)),
        ),
        Err(AmountError::TooLarge) => error(
            "too_large",
            format!("{} is more than 10^12", shown(literal)),
        ),
    }
}

/// The first 64 characters of a text, for a message.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(64) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum AmountError {
    Negative,
    TooManyDigits,
    TooLarge,
}

/// The exact value of a JSON number literal in micros: its digits shifted by its exponent. Trailing
/// zeros of a fraction are not counted as digits. `literal` must be a valid JSON number.
fn micros_of_literal(literal: &str) -> Result<u64, AmountError> {
    let (negative, unsigned) = match literal.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.bytes().chain(fraction.bytes()).all(|b| b == b'0') {
        return Ok(0); // includes -0 and 0e999
    }
    if negative {
        return Err(AmountError::Negative);
    }
    // The value is (digits) * 10^shift micros. An exponent that does not fit in 64 bits is out of range.
    let exponent: i64 = match exponent.map(str::parse::<i64>) {
        None => 0,
        Some(Ok(exponent)) => exponent,
        Some(Err(_)) if exponent.is_some_and(|e| e.starts_with('-')) => {
            return Err(AmountError::TooManyDigits);
        }
        Some(Err(_)) => return Err(AmountError::TooLarge),
    };
    let all = || whole.bytes().chain(fraction.bytes());
    let zeros = all().rev().take_while(|&b| b == b'0').count();
    let length = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let shift = exponent
        .saturating_sub(length(fraction.len()))
        .saturating_add(6)
        .saturating_add(length(zeros));
    if shift < 0 {
        return Err(AmountError::TooManyDigits);
    }
    let mut micros: u64 = 0;
    for digit in all().take(whole.len() + fraction.len() - zeros) {
        micros = shifted(micros, 1)?
            .checked_add(u64::from(digit - b'0'))
            .ok_or(AmountError::TooLarge)?;
    }
    let micros = shifted(micros, shift)?;
    if micros > AMOUNT_MICROS_MAX {
        Err(AmountError::TooLarge)
    } else {
        Ok(micros)
    }
}

/// `value * 10^power`, or [`AmountError::TooLarge`] if it overflows.
fn shifted(value: u64, power: i64) -> Result<u64, AmountError> {
    if value == 0 {
        return Ok(0);
    }
    u32::try_from(power)
        .ok()
        .and_then(|power| 10u64.checked_pow(power))
        .and_then(|factor| value.checked_mul(factor))
        .ok_or(AmountError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_converted_exactly() {
        for (literal, micros) in [
            ("10.5", 10_500_000),
            ("100", 100_000_000),
            ("1e3", 1_000_000_000),
            ("1E+3", 1_000_000_000),
            ("0.000001", 1),
            ("10e-7", 1),
            ("1.5000000", 1_500_000),
            ("0", 0),
            ("-0.0", 0),
            ("0e99999999999999999999", 0),
            ("1000000000000", AMOUNT_MICROS_MAX),
            ("1e12", AMOUNT_MICROS_MAX),
            ("999999999999.999999", AMOUNT_MICROS_MAX - 1),
            ("9007199254740993e-6", 9_007_199_254_740_993), // 2^53 + 1: a float would lose it
        ] {
            assert_eq!(micros_of_literal(literal), Ok(micros), "{literal}");
        }
        for (literal, error) in [
            ("-5", AmountError::Negative),
            ("-1e-9", AmountError::Negative),
            ("0.0000001", AmountError::TooManyDigits),
            (
                "0.12345678901234567890123456789",
                AmountError::TooManyDigits,
            ),
            ("1e-99999999999999999999", AmountError::TooManyDigits),
            ("1000000000000.000001", AmountError::TooLarge),
            ("1e13", AmountError::TooLarge),
            ("1e99999999999999999999", AmountError::TooLarge),
            ("99999999999999999999999999", AmountError::TooLarge),
        ] {
            assert_eq!(micros_of_literal(literal), Err(error), "{literal}");
        }
    }

    #[test]
    fn sums_are_shown_exactly() {
        for (micros, text) in [
            (0, "0"),
            (50_000_000, "50"),
            (-10_500_000, "-10.5"),
            (1, "0.000001"),
            (i64::MIN.into(), "-9223372036854.775808"),
            (i128::from(i64::MAX) * 4, "36893488147419.103228"),
            (i128::from(i64::MAX) * 100, "922337203685477.5807"),
            (i128::from(i64::MIN) * 1_000_000, "-9223372036854775808"),
            (i128::from(i64::MAX) + 1, "9223372036854.775808"),
        ] {
            assert_eq!(Micros(micros).to_string(), text);
        }
    }
}
