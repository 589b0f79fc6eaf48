use half::f16;

use crate::{
    adapter_weights::LORA_RANK_MAX,
    cuda::{
        DevicePtr,
        ops::{LoraShrinkParams, LoraSite, NO_SLOT, PARTS_MAX, V_STRIDE},
    },
    reference::matmul::{matmul, matmul_magnitude},
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F32_SUM, is_fill_float},
    header, to_u32, widen_halves,
};

/// One resident adapter of a check: its ranks at the three sites of a product (0: none).
pub(super) const RANKS: [[usize; PARTS_MAX]; 6] =
    [[16, 16, 16], [4, 0, 17], [1, 256, 8], [64, 3, 255], [8, 8, 0], [32, 128, 7]];
/// Sites of a slot; the product's are the last three.
pub(super) const N_SITES: usize = 5;
pub(super) const SITES: [usize; PARTS_MAX] = [2, 3, 4];

/// Slots of rows, by name: alone, in runs, in turn, all different.
pub(super) fn mixes(n_rows: usize) -> Vec<(&'static str, Vec<u32>)> {
    let slots = |f: &dyn Fn(usize) -> u32| (0..n_rows).map(f).collect();
    let nth = |n: usize| to_u32(n % RANKS.len());
    vec![
        ("no adapter", slots(&|_| NO_SLOT)),
        ("all one adapter", slots(&|_| 3)),
        ("all different", slots(&nth)),
        ("runs of five", slots(&|t| nth(t / 5))),
        ("base rows between", slots(&|t| if t % 3 == 1 { NO_SLOT } else { nth(t / 4) })),
    ]
}

/// Ranks from 1 to 256 and none, every mix, with and without tiles of rows, split and whole.
pub(super) fn lora_shrink(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let mut shapes = vec![(6, 72, 24), (13, 576, 576)];
    if sizes == Sizes::Full {
        shapes.extend([(64, 4096, 1024), (200, 14_336, 3584)]);
    }
    let mut rows = Vec::new();
    for (n_rows, n_in, split) in shapes {
        for (mix, slots) in mixes(n_rows) {
            rows.push(one(bench, n_in, split, mix, &slots)?);
        }
    }
    Ok(rows)
}

fn one(
    bench: &mut Bench<'_>,
    n_in: usize,
    split: usize,
    mix: &str,
    slots: &[u32],
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let n_rows = slots.len();
    let mut compare = Comparison::new(
        "lora_shrink",
        format!("{n_rows} rows of {n_in} in splits of {split}, {mix}"),
    );
    let (x_stride, a_stride) = (n_in.next_multiple_of(64), n_in);
    let mut x = bench.random.halves(n_rows * x_stride, 1.0);
    for row in x.chunks_exact_mut(x_stride) {
        row[n_in..].fill(f16::ZERO);
    }
    let mut a = Vec::new();
    let mut sites = Vec::new();
    for ranks in RANKS {
        sites.extend([LoraSite::NONE; N_SITES - PARTS_MAX]);
        for rank in ranks {
            let values = bench.random.halves(rank * a_stride, 0.1);
            let site = LoraSite {
                a: bench.input(&values)?,
                b: DevicePtr::NULL,
                rank: to_u32(rank),
                lora_scale: 2.0,
            };
            sites.push(site);
            a.push(values);
        }
    }
    let max_rows = n_rows + ROWS_BEYOND;
    let mut params = LoraShrinkParams {
        step: bench.input(&[header(n_rows, 0)])?,
        x: bench.input(&x)?,
        slots: bench.input(slots)?,
        sites: bench.input(&sites)?,
        v: DevicePtr::NULL,
        v_plane_stride: (max_rows * V_STRIDE) as u64,
        x_stride: to_u32(x_stride),
        a_stride: to_u32(a_stride),
        n_in: to_u32(n_in),
        split_columns: to_u32(split),
        n_sites: to_u32(N_SITES),
        n_parts: 3,
        site: SITES.map(to_u32),
        reserved: 0,
    };
    let n_splits = params.n_splits() as usize;
    let mut found = Vec::new();
    for tiled in [false, true] {
        let v = bench.output::<f32>(n_splits * max_rows * V_STRIDE)?;
        params.v = v.ptr;
        params.launch_tiled(bench.sink(), to_u32(max_rows), tiled)?;
        let (values, whole) = bench.read(&v, 0_f32)?;
        compare.guards(whole);
        found.push(values);
    }
    let same = found[0].iter().zip(&found[1]).all(|(a, b)| a.to_bits() == b.to_bits());
    compare.holds(same, || "tiles of rows give other bits".to_owned());

    let planes: Vec<&[f32]> = found[0].chunks_exact(max_rows * V_STRIDE).collect();
    for t in 0..max_rows {
        for part in 0..PARTS_MAX {
            let begin = t * V_STRIDE + part * LORA_RANK_MAX;
            let slot = slots.get(t).copied().filter(|&slot| slot != NO_SLOT);
            let rank = slot.map_or(0, |slot| RANKS[slot as usize][part]);
            for plane in &planes {
                let beyond = &plane[begin + rank..begin + LORA_RANK_MAX];
                compare.untouched("ranks that are not there", beyond, is_fill_float);
            }
            let Some(slot) = slot.filter(|_| rank > 0) else { continue };
            let weights = widen_halves(&a[slot as usize * PARTS_MAX + part]);
            let row = widen_halves(&x[t * x_stride..][..n_in]);
            let (expected, magnitude) =
                (matmul(&weights, &row, n_in), matmul_magnitude(&weights, &row, n_in));
            for r in 0..rank {
                let sum: f64 = planes.iter().map(|plane| f64::from(plane[begin + r])).sum();
                compare.near(
                    || format!("row {t}, part {part}, rank {r}"),
                    sum,
                    expected[r],
                    magnitude[r],
                    F32_SUM,
                );
            }
        }
    }
    Ok(compare.row())
}
