use half::f16;

use crate::{
    backend::MatrixSource,
    cuda::{
        DevicePtr,
        ops::{EmbedAdaptersParams, EmbedParams, LoraSite, NO_SLOT, OwnMatrices},
        repack::repack,
    },
    quant::{BlockFormat, dequantize_row},
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F32_SUM, is_fill_float},
    header, to_u32,
};

/// Every block format, rows in tiles that are not full, an id outside the table; bit-equal.
pub(super) fn embed(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let (vocab, n_rows) = if sizes == Sizes::Full { (1000, 200) } else { (133, 7) };
    BlockFormat::ALL.into_iter().map(|format| one(bench, format, vocab, n_rows)).collect()
}

fn one(
    bench: &mut Bench<'_>,
    format: BlockFormat,
    vocab: usize,
    n_rows: usize,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    // Not a multiple of 64 where the format allows it.
    let width = if format.block_values() == 256 { 512 } else { 576 + 32 };
    let mut compare =
        Comparison::new("embed", format!("{n_rows} rows of {width} of {vocab}, {}", format.name()));
    let row_bytes = format.row_bytes(width).expect("whole blocks");
    let bytes: Vec<u8> =
        (0..vocab * row_bytes).map(|_| bench.random.bits().to_le_bytes()[3]).collect();
    let row = |n: usize| &bytes[n * row_bytes..][..row_bytes];
    let source = MatrixSource { name: "check", format, n_out: vocab, n_in: width, row: &row };
    let matrix = repack(&source).expect("whole blocks");
    let mut token_ids: Vec<u32> = (0..n_rows).map(|_| to_u32(bench.random.below(vocab))).collect();
    token_ids[0] = to_u32(vocab);
    let x_stride = width.next_multiple_of(64);
    let max_rows = n_rows + ROWS_BEYOND;
    let out = bench.output::<f32>(max_rows * x_stride)?;
    let params = EmbedParams {
        step: bench.input(&[header(n_rows, 0)])?,
        table: bench.input(&matrix.bytes)?,
        token_ids: bench.input(&token_ids)?,
        x: out.ptr,
        vocab: to_u32(vocab),
        width: to_u32(width),
        width_padded: to_u32(matrix.n_in_padded),
        x_stride: to_u32(x_stride),
        format: format.ggml_type(),
        reserved: 0,
    };
    params.launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&out, 0_f32)?;
    compare.guards(whole);
    let mut expected = vec![0.0; width];
    for (t, found) in found.chunks_exact(x_stride).enumerate() {
        compare.untouched("the padding", &found[width..], is_fill_float);
        if t >= n_rows {
            compare.untouched("a row beyond the step", found, is_fill_float);
            continue;
        }
        match token_ids[t] as usize {
            known if known < vocab => dequantize_row(format, row(known), &mut expected),
            _ => expected.fill(0.0),
        }
        let bad =
            found.iter().zip(&expected).position(|(found, expected)| !same(*found, *expected));
        compare.holds(bad.is_none(), || {
            let i = bad.unwrap_or_default();
            format!("row {t}, column {i}: found {}, expected {}", found[i], expected[i])
        });
    }
    Ok(compare.row())
}

/// Adapters of a check: rank on the embedding (0: none), and whether they have an embedding of their own.
const ADAPTERS: [(usize, bool); 5] = [(3, false), (0, true), (256, true), (8, false), (0, false)];
const LORA_SCALE: f32 = 0.75;
/// Sites of a slot; the embedding is the last.
const N_SITES: usize = 4;

/// `LoRA` on the embedding, embeddings of adapters' own, both, neither, base rows between, an id outside the table.
pub(super) fn embed_adapters(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let mut shapes = vec![(7, 72, 133), (13, 257, 40)];
    if sizes == Sizes::Full {
        shapes.push((300, 4096, 1000));
    }
    shapes.into_iter().map(|shape| one_adapted(bench, shape)).collect()
}

fn one_adapted(
    bench: &mut Bench<'_>,
    (n_rows, width, vocab): (usize, usize, usize),
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let mut compare =
        Comparison::new("embed_adapters", format!("{n_rows} rows of {width} of {vocab}"));
    let (own_stride, max_rows) = (width.next_multiple_of(64), n_rows + ROWS_BEYOND);
    let slots: Vec<u32> =
        (0..n_rows).map(|t| if t % 6 == 5 { NO_SLOT } else { to_u32(t % 6) }).collect();
    let mut token_ids: Vec<u32> = (0..n_rows).map(|_| to_u32(bench.random.below(vocab))).collect();
    token_ids[0] = to_u32(vocab);
    // Beyond the rank all is zero.
    let factor = |bench: &mut Bench<'_>, n: usize, rank: usize, scale| {
        let mut values = bench.random.halves(n * rank.next_multiple_of(8), scale);
        for row in values.chunks_exact_mut(rank.next_multiple_of(8).max(1)) {
            row[rank..].fill(f16::ZERO);
        }
        values
    };
    let (mut sites, mut own, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (rank, has_own) in ADAPTERS {
        let (a, b) = (factor(bench, vocab, rank, 1.0), factor(bench, width, rank, 0.1));
        let table = bench.random.halves(vocab * own_stride, 1.0);
        sites.extend([LoraSite::NONE; N_SITES - 1]);
        sites.push(LoraSite {
            a: bench.input(&a)?,
            b: bench.input(&b)?,
            rank: to_u32(rank),
            lora_scale: LORA_SCALE,
            ..LoraSite::NONE
        });
        let embedding = if has_own { bench.input(&table)? } else { DevicePtr::NULL };
        own.push(OwnMatrices { embedding, ..OwnMatrices::NONE });
        values.push((a, b, table));
    }
    let before = bench.random.values(max_rows * own_stride, 1.0);
    let x = bench.in_out(&before)?;
    EmbedAdaptersParams {
        step: bench.input(&[header(n_rows, 0)])?,
        token_ids: bench.input(&token_ids)?,
        slots: bench.input(&slots)?,
        sites: bench.input(&sites)?,
        own: bench.input(&own)?,
        x: x.ptr,
        vocab: to_u32(vocab),
        width: to_u32(width),
        own_stride: to_u32(own_stride),
        x_stride: to_u32(own_stride),
        n_sites: to_u32(N_SITES),
        site: to_u32(N_SITES - 1),
    }
    .launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&x, 0_f32)?;
    compare.guards(whole);
    let rows = found.chunks_exact(own_stride).zip(before.chunks_exact(own_stride));
    for (t, (found, before)) in rows.enumerate() {
        let adapter = slots.get(t).filter(|&&slot| slot != NO_SLOT).map(|&slot| slot as usize);
        let adapter = adapter.filter(|_| (token_ids[t] as usize) < vocab);
        for (i, (&found, &before)) in found.iter().zip(before).enumerate() {
            let Some(adapter) = adapter.filter(|_| i < width) else {
                let same = found.to_bits() == before.to_bits();
                compare.holds(same, || format!("row {t}: wrote to column {i}"));
                continue;
            };
            let ((rank, has_own), (a, b, table)) = (ADAPTERS[adapter], &values[adapter]);
            let (padded, token) = (rank.next_multiple_of(8), token_ids[t] as usize);
            let base =
                if has_own { table[token * own_stride + i].to_f64() } else { f64::from(before) };
            let (a, b) = (&a[token * padded..][..rank], &b[i * padded..][..rank]);
            let terms =
                a.iter().zip(b).map(|(a, b)| f64::from(LORA_SCALE) * a.to_f64() * b.to_f64());
            let magnitude = terms.clone().map(f64::abs).sum::<f64>() + base.abs();
            let place = || format!("row {t}, column {i}");
            compare.near(place, f64::from(found), base + terms.sum::<f64>(), magnitude, F32_SUM);
        }
    }
    Ok(compare.row())
}

/// Bit-equal, or NaN both: scales of random bytes may be.
fn same(found: f32, expected: f32) -> bool {
    found.to_bits() == expected.to_bits()
        || (found.is_nan() && expected.is_nan())
        || (found == 0.0 && expected == 0.0)
}
