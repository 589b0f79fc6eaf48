use crate::{
    cuda::{
        DevicePtr,
        ops::{AdapterTile, OWN_HEAD_TILE_ROWS, OwnHeadParams, OwnMatrices, StepHeader},
    },
    reference::matmul::{matmul, matmul_magnitude},
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F32_SUM},
    header, to_u32, widen_halves,
};

/// Adapters with a head; the one without is never named by a tile.
const SLOTS: usize = 5;
const WITHOUT: usize = 2;

/// None, some and all rows with heads of their own, in tiles of every size, tails of features.
pub(super) fn own_head(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let mut shapes = vec![
        (5, 133, 72, [0, 0, 0, 0, 0]),
        (9, 133, 72, [3, 0, 0, 1, 2]),
        (40, 48, 64, [33, 7, 0, 0, 0]),
        (64, 80, 192, [16, 8, 0, 17, 23]),
    ];
    if sizes == Sizes::Full {
        shapes.push((256, 10_000, 576, [1, 200, 0, 9, 1]));
        shapes.push((8, 2000, 4096, [1, 1, 0, 1, 1]));
    }
    shapes.into_iter().map(|shape| one(bench, shape)).collect()
}

fn one(
    bench: &mut Bench<'_>,
    (n_rows, n_out, n_in, of_slot): (usize, usize, usize, [usize; SLOTS]),
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let words = format!("{n_out} of {n_in}, {n_rows} rows, of adapters {of_slot:?}");
    let mut compare = Comparison::new("own_head", words);
    let (padded, stride) = (n_in.next_multiple_of(64), n_out.next_multiple_of(64));
    let max_rows = n_rows + ROWS_BEYOND;
    // Padding is zero in both, as their writers leave it.
    let rows_of = |bench: &mut Bench<'_>, n: usize, scale| {
        let mut values = bench.random.halves(n * padded, scale);
        for row in values.chunks_exact_mut(padded) {
            row[n_in..].fill(half::f16::ZERO);
        }
        values
    };
    let x = rows_of(bench, max_rows, 1.0);
    let (mut heads, mut own) = (Vec::new(), Vec::new());
    for slot in 0..SLOTS {
        let head = rows_of(bench, n_out, 0.1);
        let ptr = if slot == WITHOUT { DevicePtr::NULL } else { bench.input(&head)? };
        own.push(OwnMatrices { head: ptr, ..OwnMatrices::NONE });
        heads.push(head);
    }
    // Any rows of the step, those of one adapter side by side.
    let mut rows = bench.random.permutation(n_rows);
    rows.truncate(of_slot.iter().sum());
    let (mut tiles, mut first) = (Vec::new(), 0);
    let mut slot_of = vec![None; max_rows];
    for (slot, &n) in of_slot.iter().enumerate() {
        for &row in &rows[first..first + n] {
            slot_of[row as usize] = Some(slot);
        }
        for begin in (0..n).step_by(OWN_HEAD_TILE_ROWS) {
            tiles.push(AdapterTile {
                slot: to_u32(slot),
                first_row: to_u32(first + begin),
                n_rows: to_u32(OWN_HEAD_TILE_ROWS.min(n - begin)),
                reserved: 0,
            });
        }
        first += n;
    }
    let before = bench.random.values(max_rows * stride, 1.0);
    let logits = bench.in_out(&before)?;
    OwnHeadParams {
        step: bench
            .input(&[StepHeader { n_adapter_tiles: to_u32(tiles.len()), ..header(n_rows, 0) }])?,
        x: bench.input(&x)?,
        tiles: bench.input(&tiles)?,
        rows: bench.input(&rows)?,
        own: bench.input(&own)?,
        logits: logits.ptr,
        x_stride: to_u32(padded),
        n_units: to_u32(padded / 64),
        n_out: to_u32(n_out),
        stride: to_u32(stride),
    }
    .launch(bench.sink(), to_u32(max_rows))?;

    let (found, whole) = bench.read(&logits, 0_f32)?;
    compare.guards(whole);
    let heads: Vec<Vec<f64>> = heads.iter().map(|head| widen_halves(head)).collect();
    for (t, found) in found.chunks_exact(stride).enumerate() {
        let sums = slot_of[t].map(|slot| {
            let x = widen_halves(&x[t * padded..][..padded]);
            (matmul(&heads[slot], &x, padded), matmul_magnitude(&heads[slot], &x, padded))
        });
        for (n, &found) in found.iter().enumerate() {
            match &sums {
                Some((expected, magnitude)) if n < n_out => {
                    let place = || format!("row {t}, feature {n}");
                    compare.near(place, f64::from(found), expected[n], magnitude[n], F32_SUM);
                }
                _ => {
                    let same = found.to_bits() == before[t * stride + n].to_bits();
                    compare.holds(same, || format!("row {t}: wrote to column {n}"));
                }
            }
        }
    }
    Ok(compare.row())
}
