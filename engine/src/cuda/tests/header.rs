//! `cuda/common/tile.cuh` says the same as `tile.rs` and `repack.rs`: compiled with the host's C++ compiler, it lists
//! its offsets and decodes packed bytes. Without a compiler the test says so and passes.

use std::{env, ffi::OsString, fmt::Write as _, fs, path::Path, process::Command};

use super::{Random, quantized, random_rows, repack_rows};
use crate::cuda::{
    plain::bytes_of_slice,
    tile::{BLOCKS, LANES, Place, STRIPE_ROWS, TileLayout, UNIT_K},
};

/// Compiles the program beside the kernels; `None` if there is no compiler.
fn compile(dir: &Path) -> Option<std::path::PathBuf> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| OsString::from("g++"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let program = dir.join("tile_offsets");
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-I"])
        .arg(root.join("common"))
        .arg("-o")
        .arg(&program)
        .arg(root.join("tests/tile_offsets.cpp"))
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

/// What the program prints without arguments.
fn offsets() -> String {
    let mut text = String::new();
    for format in quantized() {
        let codes = format.code_layout().unwrap();
        let tiles = TileLayout::new(codes);
        let n_units = 8;
        let number = |flag| u32::from(flag);
        writeln!(
            text,
            "format {} bits {} offset {} group {} min {} super {}",
            format.ggml_type(),
            codes.bits,
            codes.offset,
            codes.group,
            number(codes.has_min),
            number(codes.super_block)
        )
        .unwrap();
        writeln!(
            text,
            "unit {} super {} stripe {}",
            tiles.unit_bytes(),
            tiles.super_bytes(),
            tiles.stripe_bytes(n_units)
        )
        .unwrap();
        for unit in 0..n_units {
            let stripe = 3 * tiles.stripe_bytes(n_units);
            writeln!(
                text,
                "at {} {}",
                stripe + tiles.unit_offset(unit),
                stripe + tiles.super_offset(unit)
            )
            .unwrap();
        }
        for block in 0..BLOCKS {
            for lane in 0..LANES {
                writeln!(
                    text,
                    "lane {} {}",
                    tiles.p4_offset(block, lane),
                    tiles.extra_offset(block, lane)
                )
                .unwrap();
            }
        }
        for row in 0..STRIPE_ROWS {
            for which in 0..2 {
                for group in 0..tiles.unit_groups() {
                    write!(text, "{} ", tiles.meta_offset(row, which, group)).unwrap();
                }
                writeln!(text, "{}", tiles.super_scale_offset(row, which)).unwrap();
            }
        }
    }
    for row in 0..STRIPE_ROWS {
        for k in 0..UNIT_K {
            let p = Place::new(row, k);
            writeln!(
                text,
                "place {} {} {} {} {} {} {} {} {}",
                p.block,
                p.lane,
                p.step,
                p.reg,
                p.element,
                p.p4_shift(),
                p.p1_shift(),
                p.p2_word(),
                p.p2_shift()
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn kernels_and_engine_agree_on_every_offset_and_value() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = compile(dir.path()) else {
        eprintln!("skipped: no C++ compiler (CXX or g++)");
        return;
    };
    let listed = Command::new(&program).output().unwrap();
    assert!(listed.status.success());
    let (listed, expected) = (String::from_utf8(listed.stdout).unwrap(), offsets());
    for (at, (listed, expected)) in listed.lines().zip(expected.lines()).enumerate() {
        assert_eq!(listed, expected, "line {}", at + 1);
    }
    assert_eq!(listed.lines().count(), expected.lines().count());

    let mut random = Random(23);
    let (matrix_file, values_file) = (dir.path().join("matrix"), dir.path().join("values"));
    for format in quantized() {
        let (n_out, n_in) = (100, 768);
        let rows = random_rows(format, n_out, n_in, 0.1, &mut random);
        let packed = repack_rows(format, &rows, n_in);
        fs::write(&matrix_file, &packed.bytes).unwrap();
        let status = Command::new(&program)
            .args([
                format.ggml_type().to_string(),
                packed.n_out_padded.to_string(),
                packed.n_in_padded.to_string(),
            ])
            .args([&matrix_file, &values_file])
            .status()
            .unwrap();
        assert!(status.success(), "{format}");
        let expected: Vec<f32> = (0..packed.n_out_padded)
            .flat_map(|n| (0..packed.n_in_padded).map(move |k| (n, k)))
            .map(|(n, k)| packed.value(n, k))
            .collect();
        assert!(
            fs::read(&values_file).unwrap() == bytes_of_slice(&expected),
            "{format}: values differ"
        );
    }
}
