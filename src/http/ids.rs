//! Random ids and seeds.

/// `prefix` and 32 random hexadecimal digits.
pub fn random(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random_u64(), random_u64())
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
}
