//! GGUF files: what gguf-py writes is read as written, and any bytes at all give a file or an error. The refusals, one by
//! one, are in `gguf_refused.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pleach_engine::{
    gguf::{GgufBuilder, GgufError, GgufFile, MetaValue},
    quant::{BlockFormat, dequantize_row},
};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf").join(name)
}

/// Two tensors: "norm" at 0..12 of the data, "matrix" at 32..100.
fn small() -> GgufBuilder {
    let mut builder = GgufBuilder::new();
    builder
        .meta("general.architecture", "llama")
        .meta("tokens", vec!["a", "", "ß"])
        .meta("scores", vec![0.5_f32, -1.0])
        .tensor_f32("norm", &[3], &[1.0, 2.0, 3.0])
        .tensor("matrix", &[32, 2], BlockFormat::Q8_0, vec![7; 68]);
    builder
}

// What is right.

#[test]
fn reads_the_metadata_that_gguf_py_writes() {
    let file = GgufFile::open(&fixture("small.gguf")).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.path(), &fixture("small.gguf"));
    assert_eq!(file.require_str("general.architecture").unwrap(), "llama");
    assert_eq!(file.require_str("general.name").unwrap(), "small");
    let ones: [(&str, MetaValue); 12] = [
        ("uint8", MetaValue::Uint(255)),
        ("int8", MetaValue::Int(-128)),
        ("uint16", MetaValue::Uint(65_535)),
        ("int16", MetaValue::Int(-32_768)),
        ("uint32", MetaValue::Uint(4_294_967_295)),
        ("int32", MetaValue::Int(-2_147_483_648)),
        ("float32", 0.1_f32.into()),
        ("uint64", MetaValue::Uint(u64::MAX)),
        ("int64", MetaValue::Int(i64::MIN)),
        ("float64", MetaValue::Float(0.1)),
        ("bool", MetaValue::Bool(true)),
        ("string", "naïve ▁ 𝄞".into()),
    ];
    for (name, expected) in ones {
        assert_eq!(file.meta(&format!("one.{name}")), Some(&expected), "{name}");
    }
    let many: [(&str, MetaValue); 11] = [
        ("uint8", MetaValue::Uints(vec![0, 255])),
        ("int8", MetaValue::Ints(vec![-128, 127])),
        ("uint16", MetaValue::Uints(vec![0, 65_535])),
        ("int16", MetaValue::Ints(vec![-32_768, 32_767])),
        ("int32", MetaValue::Ints(vec![-1, 2_147_483_647])),
        ("float32", MetaValue::Floats(vec![0.5, -2.0])),
        ("uint64", MetaValue::Uints(vec![0, u64::MAX])),
        ("int64", MetaValue::Ints(vec![i64::MIN, 1])),
        ("float64", MetaValue::Floats(vec![0.1, -0.2])),
        ("bool", MetaValue::Bools(vec![true, false, true])),
        ("string", vec!["a", "", "▁the", "\n"].into()),
    ];
    for (name, expected) in many {
        assert_eq!(file.meta(&format!("many.{name}")), Some(&expected), "{name}");
    }
    assert_eq!(file.metadata().count(), 2 + 12 + 11);
}

#[test]
fn reads_the_tensors_that_gguf_py_writes() {
    let file = GgufFile::open(&fixture("small.gguf")).unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["ramp.f32", "ramp.f16", "ramp.q8_0", "ramp.q4_1"]);
    // Half a quantization step, plus the rounding of the f16 scales.
    for (name, format, tolerance) in [
        ("ramp.f32", BlockFormat::F32, 0.0),
        ("ramp.f16", BlockFormat::F16, 0.0),
        ("ramp.q8_0", BlockFormat::Q8_0, 0.06),
        ("ramp.q4_1", BlockFormat::Q4_1, 0.08),
    ] {
        let tensor = file.require_tensor(name).unwrap();
        assert_eq!(
            (tensor.format, tensor.shape2().unwrap(), tensor.n_values()),
            (format, (3, 64), 192)
        );
        let mut values = vec![f32::NAN; tensor.n_values()];
        dequantize_row(format, file.bytes(tensor), &mut values);
        for (i, value) in values.iter().enumerate() {
            assert!((value - i as f32 / 16.0).abs() <= tolerance, "{name}, value {i}: {value}");
        }
    }
}

#[test]
fn version_2_is_read_like_3() {
    let (two, three) = (small().version(2).to_bytes(), small().to_bytes());
    let (two, three) = (GgufFile::from_bytes(two).unwrap(), GgufFile::from_bytes(three).unwrap());
    assert_eq!((two.version(), three.version()), (2, 3));
    assert!(two.metadata().eq(three.metadata()));
    assert_eq!(two.tensors(), three.tensors());
    assert_eq!(two.bytes(two.tensor("matrix").unwrap()), [7; 68]);
}

#[test]
fn a_file_on_disk_is_the_same_as_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    fs::write(&path, small().to_bytes()).unwrap();
    let (mapped, owned) =
        (GgufFile::open(&path).unwrap(), GgufFile::from_bytes(small().to_bytes()).unwrap());
    assert_eq!(mapped.file_bytes(), owned.file_bytes());
    assert_eq!(mapped.tensors(), owned.tensors());
    assert_eq!(mapped.path(), &path);
}

#[test]
fn alignment_of_the_file_is_followed() {
    for alignment in [1_u16, 8, 64, 4096] {
        let file = GgufFile::from_bytes(small().alignment(alignment.into()).to_bytes()).unwrap();
        let matrix = file.require_tensor("matrix").unwrap();
        assert_eq!(matrix.offset, 12_usize.next_multiple_of(alignment.into()), "{alignment}");
        assert_eq!(file.bytes(matrix), [7; 68], "{alignment}");
    }
}

#[test]
fn a_file_without_tensors_needs_no_data() {
    let mut bytes = GgufBuilder::new().meta("a", 1_u32).to_bytes();
    bytes.truncate(24 + 8 + 1 + 4 + 4);
    let file = GgufFile::from_bytes(bytes).unwrap();
    assert_eq!(file.require_u32("a").unwrap(), 1);
    assert!(file.tensors().is_empty());
}

#[test]
fn large_vocabularies_are_read() {
    let tokens: Vec<String> = (0..150_000).map(|id| format!("token{id}")).collect();
    let file =
        GgufFile::from_bytes(GgufBuilder::new().meta("tokens", tokens.clone()).to_bytes()).unwrap();
    assert_eq!(file.require_strings("tokens").unwrap(), tokens);
    let Some(MetaValue::Strings(array)) = file.meta("tokens") else { panic!("not strings") };
    assert_eq!(
        (array.len(), array.get(149_999), array.get(150_000)),
        (150_000, Some("token149999"), None)
    );
}

#[test]
fn shapes_of_tensors_are_checked() {
    let mut builder = GgufBuilder::new();
    builder
        .tensor_f32("vector", &[2], &[0.0; 2])
        .tensor_f32("matrix", &[2, 3], &[0.0; 6])
        .tensor_f32("matrix of four", &[2, 3, 1, 1], &[0.0; 6])
        .tensor_f32("cube", &[2, 3, 2], &[0.0; 12]);
    let file = GgufFile::from_bytes(builder.to_bytes()).unwrap();
    assert_eq!(file.require_tensor("vector").unwrap().shape1().unwrap(), 2);
    assert_eq!(file.require_tensor("matrix").unwrap().shape2().unwrap(), (3, 2));
    assert_eq!(file.require_tensor("matrix of four").unwrap().shape2().unwrap(), (3, 2));
    assert!(file.require_tensor("matrix").unwrap().shape1().is_err());
    assert!(file.require_tensor("vector").unwrap().shape2().is_err());
    let error = file.require_tensor("cube").unwrap().shape2().unwrap_err();
    assert!(matches!(error, GgufError::TensorRank { .. }));
    assert_eq!(error.to_string(), "tensor cube has dimensions [2, 3, 2]: expected 2 of them");
    let error = file.require_tensor("none").unwrap_err();
    assert!(matches!(error, GgufError::TensorMissing { .. }));
    assert_eq!(error.to_string(), "tensor is missing: none");
}

// Any bytes.

fn meta_value() -> impl Strategy<Value = MetaValue> {
    let float = any::<f32>().prop_filter("NaN is not equal to itself", |float| !float.is_nan());
    let double = any::<f64>().prop_filter("NaN is not equal to itself", |float| !float.is_nan());
    prop_oneof![
        any::<u64>().prop_map(MetaValue::from),
        any::<u8>().prop_map(MetaValue::from),
        any::<i64>().prop_map(MetaValue::from),
        any::<i8>().prop_map(MetaValue::from),
        float.clone().prop_map(MetaValue::from),
        double.clone().prop_map(MetaValue::from),
        any::<bool>().prop_map(MetaValue::from),
        any::<String>().prop_map(MetaValue::from),
        proptest::collection::vec(any::<u32>(), 0..5).prop_map(MetaValue::from),
        proptest::collection::vec(any::<u64>(), 0..5).prop_map(MetaValue::from),
        proptest::collection::vec(any::<i64>(), 0..5).prop_map(MetaValue::from),
        proptest::collection::vec(float, 0..5).prop_map(MetaValue::from),
        proptest::collection::vec(double, 0..5).prop_map(MetaValue::from),
        proptest::collection::vec(any::<bool>(), 0..5).prop_map(MetaValue::from),
        proptest::collection::vec(any::<String>(), 0..5).prop_map(MetaValue::from),
    ]
}

/// Opens the bytes; if that succeeds, everything that the file offers is read and lies inside it.
fn open_and_read_all(bytes: Vec<u8>) -> bool {
    let n_file_bytes = bytes.len();
    let Ok(file) = GgufFile::from_bytes(bytes) else { return false };
    let of_tensors: usize = file.tensors().iter().map(|tensor| file.bytes(tensor).len()).sum();
    let of_strings: usize = file
        .metadata()
        .filter_map(|(key, _)| file.strings(key).ok().flatten())
        .flatten()
        .map(str::len)
        .sum();
    assert!(of_tensors + of_strings <= n_file_bytes);
    true
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(
        meta in proptest::collection::btree_map("[a-z.]{1,10}", meta_value(), 0..6),
        tensors in proptest::collection::btree_map(
            "[a-z.]{1,12}",
            (proptest::sample::select(BlockFormat::ALL.to_vec()), 1_usize..3, 1_usize..4, any::<u8>()),
            0..5,
        ),
        version in 2_u32..4,
        alignment in prop_oneof![Just(None), (0_u32..8).prop_map(|log| Some(1 << log))],
    ) {
        let mut builder = GgufBuilder::new();
        builder.version(version);
        if let Some(alignment) = alignment {
            builder.alignment(alignment);
        }
        for (key, value) in &meta {
            builder.meta(key, value.clone());
        }
        let n_bytes = |(format, blocks, rows, _): &(BlockFormat, usize, usize, u8)| format.block_bytes() * blocks * rows;
        for (name, tensor @ (format, blocks, rows, fill)) in &tensors {
            builder.tensor(name, &[blocks * format.block_values(), *rows], *format, vec![*fill; n_bytes(tensor)]);
        }
        let file = GgufFile::from_bytes(builder.to_bytes()).unwrap();
        prop_assert_eq!(file.metadata().count(), meta.len() + usize::from(alignment.is_some()));
        for (key, value) in &meta {
            prop_assert_eq!(file.meta(key), Some(value));
        }
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, tensor @ (format, blocks, rows, fill)) in &tensors {
            let found = file.require_tensor(name).unwrap();
            prop_assert_eq!(found.format, *format);
            prop_assert_eq!(found.shape2().unwrap(), (*rows, blocks * format.block_values()));
            prop_assert_eq!(file.bytes(found), vec![*fill; n_bytes(tensor)]);
        }
    }

    #[test]
    fn mutated_files_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = fs::read(fixture("small.gguf")).unwrap();
        // Changes in the 1504 bytes of data would change nothing: aim at what is before them.
        let n_head = bytes.len() - 1504;
        for (index, byte) in changes {
            bytes[index.index(n_head)] = byte;
        }
        open_and_read_all(bytes);
    }

    #[test]
    fn mutated_lengths_never_panic(
        index in any::<prop::sample::Index>(),
        number in prop_oneof![any::<u64>(), 0_u64..64, Just(u64::MAX), (0_u32..64).prop_map(|log| 1 << log)],
    ) {
        let mut bytes = small().to_bytes();
        let at = index.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        open_and_read_all(bytes);
    }

    #[test]
    fn any_bytes_after_the_header_never_panic(
        tail in proptest::collection::vec(any::<u8>(), 0..200),
        n_tensors in 0_u64..3,
        n_keys in 0_u64..3,
    ) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_keys.to_le_bytes());
        bytes.extend(tail);
        let nothing_to_read = n_tensors + n_keys == 0;
        prop_assert!(open_and_read_all(bytes) || !nothing_to_read);
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small().to_bytes();
    // Data are 100 bytes and 28 of padding, which may be missing.
    let data_end = bytes.len() - 28;
    for length in 0..data_end {
        let error = GgufFile::from_bytes(bytes[..length].to_vec()).unwrap_err();
        assert!(
            matches!(error, GgufError::Truncated { .. } | GgufError::TensorOutside { .. }),
            "{length}: {error:?}"
        );
    }
    for length in data_end..=bytes.len() {
        assert!(open_and_read_all(bytes[..length].to_vec()), "{length}");
    }
}

// A real file.

#[test]
fn the_default_model_opens() {
    let file = GgufFile::open(&pleach_test_setup::default_model()).unwrap();
    assert_eq!(file.tensors().len(), 272);
    assert_eq!(file.require_str("general.architecture").unwrap(), "llama");
    assert_eq!(file.require_u32("llama.block_count").unwrap(), 30);
    assert_eq!(file.require_strings("tokenizer.ggml.tokens").unwrap().len(), 49_152);
    let down = file.require_tensor("blk.0.ffn_down.weight").unwrap();
    assert_eq!(down.shape2().unwrap(), (576, 1536));
    let mut row = vec![f32::NAN; 1536];
    dequantize_row(
        down.format,
        &file.bytes(down)[..down.format.row_bytes(1536).unwrap()],
        &mut row,
    );
    assert!(row.iter().all(|value| value.is_finite() && value.abs() < 10.0));
}
