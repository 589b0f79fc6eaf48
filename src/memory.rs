//! How much memory there is, and how people write amounts of it.

use std::fs;

/// Bytes that a process can still take: what the kernel calls available, within the control group's limit. `None` where
/// neither can be read.
pub fn free_bytes() -> Option<u64> {
    let machine =
        fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text));
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, current)| most.saturating_sub(current));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Reads `512MiB`, `2GB`, `1.5g`, `1048576`: binary units with and without the `i`, because memory is meant.
///
/// # Errors
/// A sentence that names the amount.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit in {text:?}: use KiB, MiB, GiB or plain bytes")),
    };
    let not_an_amount = || format!("{text:?} is not an amount of memory, such as 512MiB");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(not_an_amount);
    }
    let amount = number.parse::<f64>().map_err(|_| not_an_amount())? * f64::from(2_i32).powi(shift);
    // Beyond 2^63 a cast would saturate silently.
    if !(0.0..=9.0e18).contains(&amount) {
        return Err(not_an_amount());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked above"
    )]
    Ok(amount as u64)
}

/// Writes `98.4 MB` as `93.8 MiB`.
pub fn show_bytes(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, expected) in [
            ("512MiB", Some(512 << 20)),
            ("2GB", Some(2 << 30)),
            ("1.5g", Some(3 << 29)),
            (" 64 k ", Some(64 << 10)),
            ("1048576", Some(1 << 20)),
            ("0", Some(0)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.2.3M", None),
            ("5 parsecs", None),
            ("99999999999999T", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), expected, "{text:?}");
        }
        assert_eq!(show_bytes(98_362_432), "93.8 MiB");
        assert_eq!(show_bytes(12), "12 B");
    }

    #[test]
    fn meminfo() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(meminfo_available(text), Some(2048 * 1024));
        assert_eq!(meminfo_available("MemTotal: 1 kB\n"), None);
    }
}
