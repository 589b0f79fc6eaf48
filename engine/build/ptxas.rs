//! What ptxas reports of every kernel, and the caps that `cuda/resources.txt` sets.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

/// What one kernel takes on one architecture.
#[derive(Clone, Copy, Default)]
pub(crate) struct Resources {
    pub(crate) registers: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) stack_bytes: u32,
    pub(crate) spill_bytes: u32,
}

/// Reads the report of `ptxas -v`:
///
/// ```text
/// ptxas info    : Compiling entry function 'swiglu' for 'sm_80'
/// ptxas info    : Function properties for swiglu
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 26 registers, used 1 barriers, 4096 bytes smem, 400 bytes cmem[0]
/// ```
pub(crate) fn read_ptxas(log: &str) -> BTreeMap<(String, String), Resources> {
    let mut kernels: BTreeMap<_, Resources> = BTreeMap::new();
    let mut current = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split_once("' for '").map(|(kernel, arch)| {
                let key = (kernel.to_owned(), arch.trim_end().trim_end_matches('\'').to_owned());
                kernels.insert(key.clone(), Resources::default());
                key
            });
        }
        let Some(entry) = current.as_ref().and_then(|key| kernels.get_mut(key)) else { continue };
        if line.contains("bytes stack frame") {
            // Functions that were not inlined have a line of their own: all of them count for the kernel.
            entry.stack_bytes += number_before(line, "bytes stack frame");
            entry.spill_bytes += number_before(line, "bytes spill stores")
                .max(number_before(line, "bytes spill loads"));
        } else if line.contains("Used ") && line.contains(" registers") {
            entry.registers = number_before(line, "registers");
            entry.shared_bytes = number_before(line, "bytes smem");
        }
    }
    kernels
}

/// The number right before a unit: `number_before("Used 26 registers", "registers") == 26`; 0 if there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    line.split_once(unit)
        .and_then(|(before, _)| before.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// Compares with the caps of `cuda/resources.txt`; kernels without a line there may use no stack and spill nothing.
pub(crate) fn check_resources(
    kernels: &BTreeMap<(String, String), Resources>,
    caps: &Path,
) -> Result<(), String> {
    let text = fs::read_to_string(caps).map_err(|e| format!("{}: {e}", caps.display()))?;
    let mut table = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let numbers: Option<Vec<u32>> = words.map(|w| w.parse().ok()).collect();
        let Some([registers, stack_bytes, spill_bytes]) =
            numbers.as_deref().and_then(|n| <[u32; 3]>::try_from(n).ok())
        else {
            return Err(format!(
                "{}:{}: want: kernel registers stack spill",
                caps.display(),
                at + 1
            ));
        };
        if !kernels.keys().any(|(kernel, _)| kernel == name) {
            return Err(format!("{}:{}: no kernel is called {name}", caps.display(), at + 1));
        }
        table.insert(name, Resources { registers, stack_bytes, spill_bytes, shared_bytes: 0 });
    }
    let uncapped = Resources { registers: 255, ..Resources::default() };
    let mut errors = String::new();
    for ((kernel, arch), used) in kernels {
        let cap = table.get(kernel.as_str()).unwrap_or(&uncapped);
        for (what, used, cap) in [
            ("registers", used.registers, cap.registers),
            ("bytes of stack", used.stack_bytes, cap.stack_bytes),
            ("bytes spilled", used.spill_bytes, cap.spill_bytes),
        ] {
            if used > cap {
                let _ = writeln!(
                    errors,
                    "kernel {kernel} on {arch}: {used} {what}, {cap} allowed by cuda/resources.txt"
                );
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
