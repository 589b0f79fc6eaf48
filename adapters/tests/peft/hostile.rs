//! Files made to hurt: every claim of a tensor file is checked, and no mutation of either file panics.

use pleach_adapters::{
    AdapterError,
    peft::{TENSOR_HEADER_BYTES_MAX, TensorFileError, load_peft_bytes},
};
use proptest::prelude::*;
use serde_json::json;

use crate::support::{config, config_with, raw_file, tensors_for, to_file, toy_spec};

fn error_of(file: &[u8]) -> TensorFileError {
    let error = load_peft_bytes(config().to_string().as_bytes(), file, &toy_spec(2)).unwrap_err();
    let AdapterError::TensorFile(error) = error else {
        panic!("not refused as a tensor file: {error}")
    };
    error
}

fn check(header: &str, data: &[u8], message: &str) {
    assert_eq!(error_of(&raw_file(header, data)).to_string(), message);
}

fn entry(name: &str, shape: &[u64], offsets: [u64; 2]) -> String {
    format!("\"{name}\":{}", json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}))
}

fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

#[test]
fn headers_that_lie_about_their_length() {
    assert_eq!(error_of(b"").to_string(), "truncated: the header needs 8 bytes, the file has 0");
    assert_eq!(
        error_of(&[1; 7]).to_string(),
        "truncated: the header needs 8 bytes, the file has 7"
    );
    let short = [&100_u64.to_le_bytes(), b"{}".as_slice()].concat();
    assert_eq!(
        error_of(&short).to_string(),
        "truncated: the header needs 108 bytes, the file has 10"
    );
    for header_bytes in [TENSOR_HEADER_BYTES_MAX as u64 + 1, u64::MAX, u64::MAX - 7] {
        let error = error_of(&header_bytes.to_le_bytes());
        assert!(
            matches!(error, TensorFileError::HeaderTooLong { header_bytes: found } if found == header_bytes)
        );
    }
}

#[test]
fn headers_that_are_no_table_of_tensors() {
    for header in ["", "[]", "{", "{\"a\":", "\u{0}", "{\"a\":1,}"] {
        let error = error_of(&raw_file(header, &[]));
        assert!(matches!(error, TensorFileError::Header(_)), "{header}: {error}");
    }
    for value in [
        "1",
        "{}",
        "{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}",
        "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}",
        "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}",
    ] {
        let error = error_of(&raw_file(&format!("{{\"t\":{value}}}"), &[0; 4]));
        assert!(
            matches!(&error, TensorFileError::Entry { tensor, .. } if tensor == "t"),
            "{value}: {error}"
        );
    }
    check(
        "{\"t\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
        &[0; 4],
        "tensor `t` has dtype I32, only F32, F16 and BF16 are read",
    );
}

#[test]
fn byte_ranges_that_do_not_fit() {
    let huge = 1 << 62;
    for (shape, offsets) in [
        (vec![2], [0, 4]),
        (vec![1], [4, 0]),
        (vec![huge, 16], [0, 0]),
        (vec![u64::MAX], [0, u64::MAX]),
    ] {
        let error = error_of(&raw_file(&header(&[entry("t", &shape, offsets)]), &[0; 4]));
        assert!(
            matches!(&error, TensorFileError::Size { tensor, .. } if tensor == "t"),
            "{shape:?}: {error}"
        );
    }
    check(
        &header(&[entry("one", &[2], [0, 8]), entry("two", &[2], [4, 12])]),
        &[0; 12],
        "tensor `two` overlaps `one`",
    );
    check(
        &header(&[entry("one", &[2], [0, 8]), entry("two", &[2], [0, 8])]),
        &[0; 8],
        "tensor `two` overlaps `one`",
    );
    check(&header(&[entry("t", &[2], [0, 8])]), &[0; 4], "tensor `t` ends at byte 8 of 4");
    check(
        &header(&[entry("t", &[1], [4, 8])]),
        &[0; 8],
        "bytes 0..4 of the data belong to no tensor",
    );
    check(
        &header(&[entry("t", &[1], [0, 4])]),
        &[0; 9],
        "bytes 4..9 of the data belong to no tensor",
    );
    check(
        &header(&[entry("t", &[1], [0, 4]), entry("t", &[1], [4, 8])]),
        &[0; 8],
        "tensor `t` is described twice",
    );
    // Eight honest sizes whose sum passes 2^64.
    let step = 1 << 61;
    let entries: Vec<_> =
        (0..7).map(|i| entry(&format!("t{i}"), &[step / 4], [i * step, (i + 1) * step])).collect();
    check(&header(&entries), &[], &format!("tensor `t0` ends at byte {step} of 0"));
}

#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    // Digits, quotes and brackets keep a header JSON more often than random bytes do.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"0123456789[]{},:\"-.eE".to_vec())];
    prop_oneof![
        4 => (at(), byte).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => (at(), 0_u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        1 => at().prop_map(Mutation::Cut),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (at(), 1_usize..64).prop_map(|(at, n)| Mutation::Remove(at, n)),
    ]
}

/// `head` limits the place of a mutation to the first bytes, where the header is.
fn mutate(bytes: &mut Vec<u8>, mutation: Mutation, head: usize) {
    let place = |at: prop::sample::Index, bytes: &[u8]| {
        at.index(bytes.len().clamp(1, head)).min(bytes.len())
    };
    match mutation {
        Mutation::Set(at, byte) => {
            let at = place(at, bytes);
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
        }
        Mutation::Flip(at, bit) => {
            let at = place(at, bytes);
            if let Some(old) = bytes.get_mut(at) {
                *old ^= 1 << bit;
            }
        }
        Mutation::Cut(at) => bytes.truncate(place(at, bytes)),
        Mutation::Insert(at, new) => {
            let at = place(at, bytes);
            bytes.splice(at..at, new);
        }
        Mutation::Remove(at, n) => {
            let at = place(at, bytes);
            bytes.drain(at..(at + n).min(bytes.len()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever still loads must satisfy the engine's own check and be finite.
    #[test]
    fn mutated_tensor_files_load_right_or_fail(
        mutations in prop::collection::vec(mutation(), 1..6), everywhere in any::<bool>(),
    ) {
        let mut file = to_file(&tensors_for(&config(), &toy_spec(2)));
        let head = if everywhere { usize::MAX } else { 900 };
        for mutation in mutations {
            mutate(&mut file, mutation, head);
        }
        match load_peft_bytes(config().to_string().as_bytes(), &file, &toy_spec(2)) {
            Ok(loaded) => prop_assert_eq!(loaded.weights.check(&toy_spec(2)), Ok(())),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn mutated_configs_load_right_or_fail(mutations in prop::collection::vec(mutation(), 1..6)) {
        let edits = json!({"rank_pattern": {"q_proj": 2}, "target_modules": ".*(q_proj|down_proj)", "use_rslora": true});
        let config = config_with(edits);
        let tensors = to_file(&tensors_for(&config, &toy_spec(2)));
        let mut text = config.to_string().into_bytes();
        for mutation in mutations {
            mutate(&mut text, mutation, usize::MAX);
        }
        match load_peft_bytes(&text, &tensors, &toy_spec(2)) {
            Ok(loaded) => prop_assert_eq!(loaded.weights.check(&toy_spec(2)), Ok(())),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    /// Any text as a pattern: accepted or refused, never a panic and never long.
    #[test]
    fn any_pattern(pattern in "[a-z0-9.*+?()\\[\\]{}|^$\\\\:=!<>,&~-]{0,24}") {
        let edits = json!({"target_modules": pattern, "rank_pattern": {&pattern: 2}, "exclude_modules": [&pattern]});
        let text = config_with(edits).to_string();
        if let Err(error) = load_peft_bytes(text.as_bytes(), &raw_file("{}", &[]), &toy_spec(2)) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
