//! Byte counts as people write them: `10 GB`, `512 MiB`, `1_000`.
//!
//! Units: B, kB (or KB), MB, GB, TB (powers of 1,000), KiB, MiB, GiB, TiB (powers of 1,024); up to
//! three decimals. Refuses: signs, other units, what passes 64 bits. Fails: [`NoSize`].

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// A number of bytes in a configuration file: a text with a unit, or a plain integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A text that is no byte count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a size: write a number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, as in \"10 GB\"")]
pub struct NoSize;

impl FromStr for Size {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        parse(text).map(Self).ok_or(NoSize)
    }
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_' && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = factor(unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u128 = whole.replace('_', "").parse().ok()?;
    if fraction.is_empty() || fraction.len() > 3 || fraction.contains('_') {
        return None;
    }
    let thousandths: u128 = format!("{fraction:0<3}").parse().ok()?;
    let bytes = whole.checked_mul(factor)?.checked_add(thousandths * factor / 1_000)?;
    u64::try_from(bytes).ok()
}

fn factor(unit: &str) -> Option<u128> {
    Some(match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    })
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"10 GB\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
        u64::try_from(bytes).map(Size).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
        Ok(Size(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_mean_them() {
        for (text, bytes) in [
            ("10 GB", 10_000_000_000),
            ("10GB", 10_000_000_000),
            ("1.5 TB", 1_500_000_000_000),
            ("32 MiB", 32 << 20),
            ("1_000", 1_000),
            ("7 B", 7),
            ("0.25 KiB", 256),
            (" 16 KB ", 16_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "GB", "-1 GB", "ten GB", "10 GiBi", "10 gb", "1.2345 GB", "1. GB", "1.2.3", "20000000 TiB"]
        {
            assert_eq!(text.parse::<Size>(), Err(NoSize), "{text}");
        }
    }
}
