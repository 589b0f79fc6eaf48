//! How much memory there is, and how people write amounts of it.

use std::fs;

/// Bytes that a process can still take: what the kernel calls available, within the control group's limit. `None` where
/// neither can be read.
pub fn free_bytes() -> Option<u64> {
    match (machine_bytes("MemAvailable:"), group_free()) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// Memory of the machine, free or not.
pub fn total_bytes() -> Option<u64> {
    machine_bytes("MemTotal:")
}

/// Bytes of this process that are in memory; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The most bytes of this process that were in memory at a time.
pub fn peak_bytes() -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

fn machine_bytes(field: &str) -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/meminfo").ok()?, field)
}

fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the control group (version 2) leaves.
fn group_free() -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let cached = read("memory.stat").map_or(0, |text| group_cached(&text));
    let used = number("memory.current")?.saturating_sub(cached);
    Some(number("memory.max")?.saturating_sub(used))
}

/// Pages of files: the kernel counts them as used and gives them up when memory is short.
fn group_cached(statistics: &str) -> u64 {
    let value = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        if matches!(name, "active_file" | "inactive_file") {
            value.parse::<u64>().ok()
        } else {
            None
        }
    };
    statistics.lines().filter_map(value).sum()
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
    fn fields_of_meminfo() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(2048 * 1024));
        assert_eq!(meminfo("MemTotal: 1 kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn pages_of_files_are_not_used_memory() {
        let text = "anon 5\nfile 100\nshmem 10\ninactive_file 60\nactive_file 30\n";
        assert_eq!(group_cached(text), 90);
        assert_eq!(group_cached(""), 0);
    }
}
