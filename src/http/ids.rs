//! Random ids and seeds.

use crate::telemetry::unix_time;

/// `prefix` and 32 random hexadecimal digits.
pub fn random(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random_u64(), random_u64())
}

/// `prefix` and 32 hexadecimal digits, of which the first are the time: what is made later has the larger id.
pub fn ordered(prefix: &str) -> String {
    let ms = unix_time().as_millis() & 0xffff_ffff_ffff;
    let random = u128::from(random_u64()) << 64 | u128::from(random_u64());
    format!("{prefix}{ms:012x}{:020x}", random >> 48)
}

/// A number from the operating system's generator.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        // No system we run on lacks one. Ids and seeds are no secrets, so the hasher's keys will do.
        Err(_) => std::hash::BuildHasher::hash_one(
            &std::hash::RandomState::new(),
            std::time::Instant::now(),
        ),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_differ() {
        let id = super::random("chatcmpl-");
        assert_eq!(id.len(), "chatcmpl-".len() + 32);
        assert_ne!(id, super::random("chatcmpl-"));
    }

    #[test]
    fn later_ids_are_larger() {
        let first = super::ordered("chatcmpl-");
        std::thread::sleep(std::time::Duration::from_millis(2));
        let second = super::ordered("chatcmpl-");
        assert_eq!((first.len(), second.len()), ("chatcmpl-".len() + 32, "chatcmpl-".len() + 32));
        assert!(first < second, "{first} {second}");
    }
}
