//! Hostile and broken GGUF files: one test for each way to be refused, with the exact message.

use std::{fs, path::Path};

use pleach_engine::{
    gguf::{
        GGUF_KEYS_MAX, GGUF_STRING_BYTES_MAX, GGUF_TENSORS_MAX, GgufBuilder, GgufError, GgufFile,
    },
    quant::BlockFormat,
};

/// Opening fails with this variant and exactly this message.
macro_rules! assert_refused {
    ($bytes:expr, $variant:pat, $message:expr) => {{
        let error = GgufFile::from_bytes($bytes).unwrap_err();
        assert!(matches!(error, $variant), "{error:?}");
        assert_eq!(error.to_string(), $message);
    }};
}

/// Magic, version, number of tensors, number of keys.
fn header(version: u32, n_tensors: u64, n_keys: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(n_tensors.to_le_bytes());
    bytes.extend(n_keys.to_le_bytes());
    bytes
}

/// A file with the key "a" only, of any type number and bytes.
fn key_a(type_number: u32, payload: impl Into<Vec<u8>>) -> Vec<u8> {
    GgufBuilder::new().meta_raw("a", type_number, payload).to_bytes()
}

/// Item type and count of an array value.
fn array_head(item_type: u32, n_items: u64) -> Vec<u8> {
    let mut bytes = item_type.to_le_bytes().to_vec();
    bytes.extend(n_items.to_le_bytes());
    bytes
}

/// A file with the tensor "t" only, described in any way.
fn tensor_t(dims: &[u64], type_number: u32) -> Vec<u8> {
    GgufBuilder::new().tensor_raw("t", dims, type_number, 0).to_bytes()
}

/// Two tensors: "norm" at 0..12 of the data, "matrix" at 32..100.
fn small() -> GgufBuilder {
    let mut builder = GgufBuilder::new();
    builder.tensor_f32("norm", &[3], &[1.0, 2.0, 3.0]).tensor(
        "matrix",
        &[32, 2],
        BlockFormat::Q8_0,
        vec![7; 68],
    );
    builder
}

// The file as a whole.

#[test]
fn missing_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let error = GgufFile::open(&folder.path().join("none.gguf")).unwrap_err();
    assert!(matches!(error, GgufError::Io { .. }));
    assert!(error.to_string().contains("none.gguf"), "{error}");
    let error = GgufFile::open(folder.path()).unwrap_err();
    assert!(matches!(error, GgufError::NotAFile { .. }));
    assert_eq!(
        error.to_string(),
        format!("model path is not a regular file: {}", folder.path().display())
    );
    let empty = folder.path().join("empty.gguf");
    fs::write(&empty, []).unwrap();
    let error = GgufFile::open(&empty).unwrap_err();
    assert!(matches!(error, GgufError::Truncated { .. }));
    assert_eq!(error.to_string(), "file ends inside the header: 4 bytes needed at byte 0, 0 left");
}

#[test]
fn files_of_other_kinds() {
    assert_refused!(
        b"version https://git-lfs".to_vec(),
        GgufError::Magic { .. },
        "not a GGUF file: it begins with \"vers\" instead of \"GGUF\""
    );
    assert_refused!(
        vec![0, 1, 255, b'x'],
        GgufError::Magic { .. },
        r#"not a GGUF file: it begins with "\x00\x01\xffx" instead of "GGUF""#
    );
}

#[test]
fn big_endian_files() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/big_endian.gguf");
    assert_refused!(
        fs::read(path).unwrap(),
        GgufError::BigEndian { version: 3 },
        "big-endian GGUF file (version 3) is not supported: convert it to little-endian"
    );
}

#[test]
fn other_versions() {
    for version in [0, 1, 4, 0x0001_0003] {
        assert_refused!(
            header(version, 0, 0),
            GgufError::Version { .. },
            format!("GGUF version {version} is not supported: only 2 and 3 are")
        );
    }
}

#[test]
fn absurd_counts() {
    assert_refused!(
        header(3, 0, u64::MAX),
        GgufError::TooManyKeys { .. },
        format!("too many metadata keys: 18446744073709551615, at most {GGUF_KEYS_MAX}")
    );
    assert_refused!(
        header(3, GGUF_TENSORS_MAX + 1, 0),
        GgufError::TooManyTensors { .. },
        format!("too many tensors: 65537, at most {GGUF_TENSORS_MAX}")
    );
    assert_refused!(
        header(3, 0, 1),
        GgufError::Truncated { .. },
        "file ends inside the name of metadata key number 0: 8 bytes needed at byte 24, 0 left"
    );
    assert_refused!(
        header(3, 1, 0),
        GgufError::Truncated { .. },
        "file ends inside the name of tensor number 0: 8 bytes needed at byte 24, 0 left"
    );
}

// Metadata.

#[test]
fn absurd_arrays_before_they_are_allocated() {
    for (item_type, bytes_needed) in [(0, 1_u64 << 40), (4, 1 << 42), (10, 1 << 43), (8, 1 << 43)] {
        let error = GgufFile::from_bytes(key_a(9, array_head(item_type, 1 << 40))).unwrap_err();
        let GgufError::Truncated { what, needed, .. } = error else { panic!("{error:?}") };
        assert_eq!((what.as_str(), needed), ("metadata key \"a\"", bytes_needed));
    }
    for item_type in [4, 8] {
        let error = GgufFile::from_bytes(key_a(9, array_head(item_type, u64::MAX))).unwrap_err();
        assert!(matches!(error, GgufError::Truncated { needed: u64::MAX, .. }), "{error:?}");
    }
}

#[test]
fn long_strings() {
    assert_refused!(
        key_a(8, (GGUF_STRING_BYTES_MAX + 1).to_le_bytes()),
        GgufError::StringTooLong { .. },
        "string too long in metadata key \"a\": 67108865 bytes, at most 67108864"
    );
    assert_refused!(
        GgufBuilder::new().meta("k".repeat(65_536), 1_u32).to_bytes(),
        GgufError::StringTooLong { .. },
        "string too long in the name of metadata key number 0: 65536 bytes, at most 65535"
    );
    assert_refused!(
        GgufBuilder::new().tensor_f32("t".repeat(65), &[1], &[0.0]).to_bytes(),
        GgufError::StringTooLong { .. },
        "string too long in the name of tensor number 0: 65 bytes, at most 64"
    );
}

#[test]
fn broken_utf8() {
    let mut value = array_head(8, 2);
    value.extend(1_u64.to_le_bytes());
    value.extend(b"a");
    value.extend(2_u64.to_le_bytes());
    value.extend([b'b', 0xff]);
    assert_refused!(
        key_a(9, value),
        GgufError::Utf8 { .. },
        "invalid UTF-8 in item 1 of metadata key \"a\" at byte 67"
    );
}

#[test]
fn too_much_metadata() {
    // 40 Mi items of one byte would take 320 MiB decoded.
    let n_items = 40 << 20;
    let mut value = array_head(0, n_items);
    value.resize(value.len() + usize::try_from(n_items).unwrap(), 0);
    assert_refused!(
        key_a(9, value),
        GgufError::MetadataTooLarge { .. },
        "metadata too large at key \"a\": more than 268435456 bytes in all"
    );
}

#[test]
fn a_key_twice() {
    let mut builder = GgufBuilder::new();
    builder.meta("a.b", 1_u32).meta("c", 1_u32).meta("a.b", 1_u32);
    assert_refused!(
        builder.to_bytes(),
        GgufError::KeyTwice { .. },
        "metadata key appears twice: \"a.b\""
    );
}

#[test]
fn unknown_value_types() {
    assert_refused!(
        key_a(13, [0; 8]),
        GgufError::ValueType { .. },
        "metadata key \"a\" has unknown value type 13"
    );
    assert_refused!(
        key_a(9, array_head(99, 0)),
        GgufError::ValueType { .. },
        "metadata key \"a\" has unknown value type 99"
    );
}

#[test]
fn arrays_of_arrays() {
    let mut value = array_head(9, 1);
    value.extend(array_head(4, 0));
    assert_refused!(
        key_a(9, value),
        GgufError::NestedArray { .. },
        "metadata key \"a\" is an array of arrays, which is not supported"
    );
}

#[test]
fn bools_that_are_neither_zero_nor_one() {
    let message = "metadata key \"a\" has a bool of value 2: only 0 and 1 are";
    assert_refused!(key_a(7, [2]), GgufError::BoolValue { .. }, message);
    let mut value = array_head(7, 3);
    value.extend([0, 1, 2]);
    assert_refused!(key_a(9, value), GgufError::BoolValue { .. }, message);
}

#[test]
fn odd_alignments() {
    for alignment in [0, 24, 1 << 21] {
        assert_refused!(
            small().alignment(alignment).to_bytes(),
            GgufError::Alignment { .. },
            format!("general.alignment is {alignment}: it must be a power of two, at most 1048576")
        );
    }
    assert_refused!(
        GgufBuilder::new().meta("general.alignment", "32").to_bytes(),
        GgufError::KeyType { .. },
        "metadata key general.alignment is a string: expected an integer"
    );
    assert_refused!(
        GgufBuilder::new().meta("general.alignment", -32_i32).to_bytes(),
        GgufError::KeyRange { .. },
        "metadata key general.alignment is -32, which does not fit u64"
    );
}

#[test]
fn parts_of_split_models() {
    assert!(GgufFile::from_bytes(small().meta("split.count", 1_u16).to_bytes()).is_ok());
    assert_refused!(
        small().meta("split.count", 3_u16).to_bytes(),
        GgufError::Split { count: 3 },
        "split GGUF files are not supported: this is one of 3 parts (split.count); merge them first"
    );
}

// Tensors.

#[test]
fn a_tensor_twice() {
    assert_refused!(
        small().tensor_f32("norm", &[1], &[0.0]).to_bytes(),
        GgufError::TensorTwice { .. },
        "tensor appears twice: \"norm\""
    );
}

#[test]
fn odd_numbers_of_dimensions() {
    for n_dims in [0, 5] {
        assert_refused!(
            tensor_t(&vec![1; n_dims], 0),
            GgufError::DimsCount { .. },
            format!("tensor \"t\" has {n_dims} dimensions: 1 to 4 are supported")
        );
    }
}

#[test]
fn empty_tensors() {
    assert_refused!(
        tensor_t(&[4, 0], 0),
        GgufError::DimZero { .. },
        "tensor \"t\" is empty: its dimensions are [4, 0]"
    );
}

#[test]
fn impossible_tensors() {
    // The product passes 64 bits; or the product fits and the bytes don't.
    for dims in [[1 << 32, 1 << 32], [1 << 31, 1 << 31]] {
        assert_refused!(
            tensor_t(&dims, 0),
            GgufError::TensorTooLarge { .. },
            format!("tensor \"t\" is impossibly large: its dimensions are {dims:?}")
        );
    }
}

#[test]
fn unsupported_block_formats() {
    for (type_number, name) in [(16, "IQ2_XXS"), (24, "I8"), (39, "MXFP4"), (777, "unknown")] {
        assert_refused!(
            tensor_t(&[256], type_number),
            GgufError::TensorType { .. },
            format!("tensor \"t\" has block format {name} ({type_number}), which is not supported")
        );
    }
}

#[test]
fn rows_that_are_not_whole_blocks() {
    assert_refused!(
        tensor_t(&[576, 4], BlockFormat::Q4K.ggml_type()),
        GgufError::RowBlocks { .. },
        "tensor \"t\" has rows of 576 values: Q4_K needs a multiple of 256"
    );
}

#[test]
fn misaligned_tensors() {
    assert_refused!(
        small().tensor_raw("t", &[1], 0, 33).to_bytes(),
        GgufError::TensorMisaligned { .. },
        "tensor \"t\" is misaligned: its offset 33 is not a multiple of 32"
    );
}

#[test]
fn tensors_outside_the_file() {
    for offset in [1 << 20, u64::MAX - 31] {
        assert_refused!(
            small().tensor_raw("t", &[1], 0, offset).to_bytes(),
            GgufError::TensorOutside { .. },
            format!(
                "tensor \"t\" lies outside the file: 4 bytes at offset {offset} of 128 bytes of data"
            )
        );
    }
    let mut last_byte_missing =
        GgufBuilder::new().tensor("t", &[32], BlockFormat::F16, vec![1; 64]).to_bytes();
    last_byte_missing.pop();
    assert_refused!(
        last_byte_missing,
        GgufError::TensorOutside { .. },
        "tensor \"t\" lies outside the file: 64 bytes at offset 0 of 63 bytes of data"
    );
}

#[test]
fn overlapping_tensors() {
    assert_refused!(
        small().tensor_raw("t", &[4], 0, 96).to_bytes(),
        GgufError::TensorsOverlap { .. },
        "tensors \"matrix\" and \"t\" overlap"
    );
    assert_refused!(
        small().tensor_raw("t", &[16], 0, 0).to_bytes(),
        GgufError::TensorsOverlap { .. },
        "tensors \"norm\" and \"t\" overlap"
    );
}
