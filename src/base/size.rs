//! Sizes in bytes, as people write and read them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::name::quoted;
use super::{Error, Result};

/// A number of bytes. Units are binary: `1G` = `1GiB` = 2³⁰.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// 2²⁰ bytes.
    pub const MIB: u64 = 1 << 20;
    /// 2³⁰ bytes.
    pub const GIB: u64 = 1 << 30;

    /// Parses `512M`, `1G`, `1.5GiB`, `8192`; a bare number counts `bare_unit` bytes.
    ///
    /// # Errors
    /// [`super::Kind::Usage`] for anything else, zero, and more than 2⁶² bytes.
    pub fn parse(text: &str, bare_unit: u64) -> Result<Self> {
        Self::parse_inner(text, bare_unit).ok_or_else(|| {
            Error::usage(format!("{} is not a size", quoted(text)))
                .hint("write a number with a unit: 512M, 1G, 1.5G, 8GiB")
        })
    }

    fn parse_inner(text: &str, bare_unit: u64) -> Option<Self> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = match unit.to_ascii_lowercase().as_str() {
            "" => bare_unit,
            "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let whole: u128 = whole.parse().ok()?;
        // Exact decimal arithmetic: 0.1G must not depend on rounding of floats.
        let part = match part {
            "" if number.contains('.') => return None,
            "" => 0,
            digits if digits.len() <= 9 => {
                digits.parse::<u128>().ok()? * u128::from(unit) / 10u128.pow(u32::try_from(digits.len()).ok()?)
            }
            _ => return None,
        };
        let bytes = whole.checked_mul(u128::from(unit))?.checked_add(part)?;
        (1..=1 << 62).contains(&bytes).then(|| ByteSize(u64::try_from(bytes).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for ByteSize {
    /// Three significant digits and a binary unit: `209 MiB`, `1.5 GiB`, `12 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1023.5 && unit < UNITS.len() - 1 {
            value /= 1024.0;
            unit += 1;
        }
        let digits = usize::from(unit > 0 && value < 9.95);
        let mut text = format!("{value:.digits$}");
        if let Some(whole) = text.strip_suffix(".0") {
            text.truncate(whole.len());
        }
        f.pad(&format!("{text} {}", UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        let mib = |text| ByteSize::parse(text, ByteSize::MIB).map(|s| s.0);
        assert_eq!(mib("512").unwrap(), 512 << 20);
        assert_eq!(mib("512M").unwrap(), 512 << 20);
        assert_eq!(mib("1g").unwrap(), 1 << 30);
        assert_eq!(mib("1.5GiB").unwrap(), 3 << 29);
        for bad in ["", "G", "0", "-1", "1.", ".5G", "1x", "1 G", "nan", "1e9", "99999999T", "1.0000000001G"] {
            assert!(mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prints_three_digits() {
        for (bytes, text) in
            [(12, "12 B"), (1 << 20, "1 MiB"), (209 << 20, "209 MiB"), (3 << 29, "1.5 GiB"), (1023 << 20, "1023 MiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
