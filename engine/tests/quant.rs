//! Block formats: `dequantize_row` against gguf-py's values bit for bit, codes and scales against `dequantize_row`.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::PathBuf;

use pleach_engine::quant::{BlockFormat, CodeRow, Scales, dequantize_row, unpack_row};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn golden() -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/quant/blocks.safetensors");
    std::fs::read(path).expect("the fixture is committed")
}

/// Formats with codes: all but the floats.
fn quantized() -> impl Iterator<Item = BlockFormat> + Clone {
    BlockFormat::ALL.into_iter().filter(|format| !format.is_float())
}

fn assert_same_bits(what: &str, expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert_eq!(
            expected.to_bits(),
            found.to_bits(),
            "{what}, value {i}: expected {expected}, found {found}"
        );
    }
}

/// The formulas of [`Scales`], written out.
fn values_of(format: BlockFormat, row: &CodeRow) -> Vec<f32> {
    let half = |bits: u16| half::f16::from_bits(bits).to_f32();
    let layout = format.code_layout().unwrap();
    let value = |(k, code): (usize, &u8)| {
        assert!(u32::from(*code) < 1 << layout.bits, "{format}: code {code}");
        let q = f32::from(i16::from(*code) - i16::try_from(layout.offset).unwrap());
        let g = k / layout.group;
        match &row.scales {
            Scales::Half { d, m: None } => q * half(d[g]),
            Scales::Half { d, m: Some(m) } => q * half(d[g]) + half(m[g]),
            Scales::Super { d, sc, dmin, mn } => {
                let scaled = q * (half(d[k / 256]) * f32::from(sc[g]));
                match (dmin, mn) {
                    (Some(dmin), Some(mn)) => scaled - half(dmin[k / 256]) * f32::from(mn[g]),
                    (None, None) => scaled,
                    (Some(_), None) | (None, Some(_)) => panic!("{format}: half a minimum"),
                }
            }
        }
    };
    row.codes.iter().enumerate().map(value).collect()
}

/// Makes the f16 scales of random blocks finite.
fn tame_halves(format: BlockFormat, bytes: &mut [u8]) {
    let places: &[usize] = match format {
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::Bf16 => &[],
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for at in places {
            if block[at + 1] & 0x7c == 0x7c {
                block[at + 1] ^= 0x04;
            }
        }
    }
}

#[test]
fn every_format_gives_the_values_of_gguf_py() {
    let file = golden();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let mut n_checked = 0;
    for format in BlockFormat::ALL {
        for kind in ["random", "real"] {
            let Ok(values) = golden.tensor(&format!("{format}.{kind}.values")) else {
                // gguf-py cannot quantize to K formats, and F32 needs no quantizing.
                let none_expected = format.block_values() == 256 || format == BlockFormat::F32;
                assert!(kind == "real" && none_expected, "{format} {kind} is missing");
                continue;
            };
            let bytes = golden.tensor(&format!("{format}.{kind}.bytes")).unwrap();
            assert_eq!(bytes.shape()[1], format.block_bytes(), "{format}");
            assert_eq!(values.shape()[1], format.block_values(), "{format}");
            let expected: Vec<f32> = values
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let mut found = vec![f32::NAN; expected.len()];
            dequantize_row(format, bytes.data(), &mut found);
            assert_same_bits(&format!("{format} {kind}"), &expected, &found);
            n_checked += 1;
        }
    }
    assert_eq!(n_checked, 13 + 7, "13 formats, 7 of them with real values too");
}

#[test]
fn golden_blocks_are_reproduced_by_codes_and_scales() {
    let file = golden();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let mut row = CodeRow::default();
    for format in quantized() {
        let bytes = golden.tensor(&format!("{format}.random.bytes")).unwrap();
        let mut expected = vec![f32::NAN; bytes.shape()[0] * format.block_values()];
        dequantize_row(format, bytes.data(), &mut expected);
        unpack_row(format, bytes.data(), expected.len(), &mut row);
        assert_same_bits(format.name(), &expected, &values_of(format, &row));
    }
}

#[test]
fn floats_have_no_codes() {
    for format in BlockFormat::ALL {
        assert_eq!(format.code_layout().is_none(), format.is_float(), "{format}");
    }
}

#[test]
#[should_panic(expected = "bytes of a Q4_1 row of 64 values")]
fn a_row_needs_all_of_its_bytes() {
    dequantize_row(BlockFormat::Q4_1, &[0; 39], &mut [0.0; 64]);
}

#[test]
fn scales_have_one_item_per_block_or_group() {
    let mut row = CodeRow::default();
    // One row serves all formats, twice: the variant of its scales changes on the way.
    for format in quantized().chain(quantized()) {
        let k = 3 * format.block_values();
        unpack_row(format, &vec![0; format.row_bytes(k).unwrap()], k, &mut row);
        let layout = format.code_layout().unwrap();
        assert_eq!(row.codes.len(), k, "{format}");
        match &row.scales {
            Scales::Half { d, m } => {
                assert!(!layout.super_block, "{format}");
                assert_eq!(d.len(), 3, "{format}");
                assert_eq!(m.as_ref().map(Vec::len), layout.has_min.then_some(3), "{format}");
            }
            Scales::Super { d, sc, dmin, mn } => {
                assert!(layout.super_block, "{format}");
                assert_eq!((d.len(), sc.len()), (3, k / layout.group), "{format}");
                assert_eq!(dmin.as_ref().map(Vec::len), layout.has_min.then_some(3), "{format}");
                assert_eq!(
                    mn.as_ref().map(Vec::len),
                    layout.has_min.then_some(k / layout.group),
                    "{format}"
                );
            }
        }
    }
}

#[test]
fn a_row_like_the_last_one_allocates_nothing() {
    let mut row = CodeRow::default();
    for format in quantized() {
        let k = 2 * format.block_values();
        let bytes = vec![1; format.row_bytes(k).unwrap()];
        unpack_row(format, &bytes, k, &mut row);
        let before = (row.codes.as_ptr(), row.clone());
        unpack_row(format, &bytes, k, &mut row);
        assert_eq!((row.codes.as_ptr(), &row), (before.0, &before.1), "{format}");
    }
}

proptest! {
    #[test]
    fn codes_and_scales_lose_nothing(
        format in proptest::sample::select(quantized().collect::<Vec<_>>()),
        n_blocks in 1_usize..4,
        mut bytes in proptest::collection::vec(any::<u8>(), 3 * 210),
    ) {
        bytes.truncate(n_blocks * format.block_bytes());
        tame_halves(format, &mut bytes);
        let mut expected = vec![f32::NAN; n_blocks * format.block_values()];
        dequantize_row(format, &bytes, &mut expected);
        let mut row = CodeRow::default();
        unpack_row(format, &bytes, expected.len(), &mut row);
        assert_same_bits(format.name(), &expected, &values_of(format, &row));
    }
}
