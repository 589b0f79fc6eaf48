use half::f16;

use crate::{
    adapter_weights::LORA_RANK_MAX,
    cuda::{
        DevicePtr,
        ops::{
            ADAPTER_TILE_ROWS, AdapterTile, LoraShrinkParams, LoraSite, NO_SLOT, PARTS_MAX,
            StepHeader, V_STRIDE, tile_split_columns,
        },
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
    [[16, 16, 16], [4, 0, 17], [1, 512, 8], [64, 3, 255], [8, 8, 0], [32, 257, 7]];
/// Sites of a slot; the product's are the last three.
pub(super) const N_SITES: usize = 5;
pub(super) const SITES: [usize; PARTS_MAX] = [2, 3, 4];

fn rank_of(slot: u32, part: usize) -> usize {
    if slot == NO_SLOT { 0 } else { RANKS[slot as usize][part] }
}

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

/// Rows in runs of one slot, cut into tiles of at most `most` rows.
pub(super) fn adapter_tiles(slots: &[u32], most: usize) -> Vec<AdapterTile> {
    let mut tiles = Vec::new();
    let mut first_row = 0;
    for run in slots.chunk_by(|a, b| a == b).flat_map(|run| run.chunks(most)) {
        tiles.push(AdapterTile {
            slot: run[0],
            first_row: to_u32(first_row),
            n_rows: to_u32(run.len()),
            reserved: 0,
        });
        first_row += run.len();
    }
    tiles
}

/// Two ways to cut the same rows: a row's bits must not depend on it.
pub(super) const CUTS: [usize; 2] = [ADAPTER_TILE_ROWS, 7];

/// A step of rows in tiles.
pub(super) fn tiled_header(n_rows: usize, tiles: &[AdapterTile]) -> StepHeader {
    StepHeader { n_adapter_tiles: to_u32(tiles.len()), ..header(n_rows, 0) }
}

/// Ranks from 1 to 512 and none, every mix, split and whole; rows one by one.
pub(super) fn lora_shrink(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let mut shapes = vec![(6, 72, 24), (13, 576, 576)];
    if sizes == Sizes::Full {
        shapes.extend([(64, 4096, 1024), (40, 14_336, 3584)]);
    }
    let mut rows = Vec::new();
    for (n_rows, n_in, split) in shapes {
        for (mix, slots) in mixes(n_rows) {
            rows.push(one(bench, "lora_shrink", n_in, split, mix, &slots)?);
        }
    }
    Ok(rows)
}

/// The same in tiles: whole, partial, of one row.
pub(super) fn lora_shrink_tiles(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let mut shapes = vec![(21, 72, 64), (70, 8, 64), (67, 576, 192)];
    if sizes == Sizes::Full {
        let split = |n_in| tile_split_columns(to_u32(n_in), 8, 8) as usize;
        shapes.extend([(200, 4096, split(4096)), (130, 14_336, split(14_336)), (65, 4096, 4096)]);
    }
    let mut rows = Vec::new();
    for (n_rows, n_in, split) in shapes {
        for (mix, slots) in mixes(n_rows) {
            rows.push(one(bench, "lora_shrink_tiles", n_in, split, mix, &slots)?);
        }
    }
    Ok(rows)
}

/// Rows of a step, their adapters, and A of each slot and part.
struct Case<'a> {
    slots: &'a [u32],
    n_in: usize,
    x_stride: usize,
    x: Vec<f16>,
    a: Vec<Vec<f16>>,
}

impl<'a> Case<'a> {
    fn new(bench: &mut Bench<'_>, n_in: usize, slots: &'a [u32]) -> Self {
        let x_stride = n_in.next_multiple_of(64);
        let mut x = bench.random.halves(slots.len() * x_stride, 1.0);
        for row in x.chunks_exact_mut(x_stride) {
            // No kernel may look at what lies beyond K, a multiple of 8 here.
            row[n_in..].fill(f16::NAN);
        }
        let a = RANKS.iter().flatten().map(|rank| bench.random.halves(rank * n_in, 0.1)).collect();
        Self { slots, n_in, x_stride, x, a }
    }

    /// Everything but the output.
    fn params(&self, bench: &Bench<'_>, split: usize) -> Result<LoraShrinkParams, CheckError> {
        let mut sites = Vec::new();
        for (slot, ranks) in RANKS.iter().enumerate() {
            sites.extend([LoraSite::NONE; N_SITES - PARTS_MAX]);
            for (part, &rank) in ranks.iter().enumerate() {
                sites.push(LoraSite {
                    a: bench.input(&self.a[slot * PARTS_MAX + part])?,
                    rank: to_u32(rank),
                    lora_scale: 2.0,
                    ..LoraSite::NONE
                });
            }
        }
        Ok(LoraShrinkParams {
            step: bench.input(&[header(self.slots.len(), 0)])?,
            x: bench.input(&self.x)?,
            slots: bench.input(self.slots)?,
            tiles: DevicePtr::NULL,
            sites: bench.input(&sites)?,
            v: DevicePtr::NULL,
            v_plane_stride: ((self.slots.len() + ROWS_BEYOND) * V_STRIDE) as u64,
            x_stride: to_u32(self.x_stride),
            a_stride: to_u32(self.n_in),
            n_in: to_u32(self.n_in),
            split_columns: to_u32(split),
            n_sites: to_u32(N_SITES),
            n_parts: 3,
            site: SITES.map(to_u32),
            reserved: 0,
        })
    }

    /// `v` of one row and part, and the magnitude of what it is the sum of.
    fn expected(&self, t: usize, part: usize) -> (Vec<f64>, Vec<f64>) {
        let weights = widen_halves(&self.a[self.slots[t] as usize * PARTS_MAX + part]);
        let row = widen_halves(&self.x[t * self.x_stride..][..self.n_in]);
        (matmul(&weights, &row, self.n_in), matmul_magnitude(&weights, &row, self.n_in))
    }
}

fn one(
    bench: &mut Bench<'_>,
    name: &'static str,
    n_in: usize,
    split: usize,
    mix: &str,
    slots: &[u32],
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let n_rows = slots.len();
    let max_rows = n_rows + ROWS_BEYOND;
    let words = format!("{n_rows} rows of {n_in} in splits of {split}, {mix}");
    let mut compare = Comparison::new(name, words);
    let case = Case::new(bench, n_in, slots);
    let mut params = case.params(bench, split)?;
    let n_values = params.n_splits() as usize * max_rows * V_STRIDE;
    let found = if name == "lora_shrink_tiles" {
        let mut cuts = Vec::new();
        for most in CUTS {
            let tiles = adapter_tiles(slots, most);
            let v = bench.output::<f32>(n_values)?;
            params.v = v.ptr;
            params.step = bench.input(&[tiled_header(n_rows, &tiles)])?;
            params.tiles = bench.input(&tiles)?;
            params.launch_tiles(bench.sink(), to_u32(tiles.len() + ROWS_BEYOND))?;
            let (values, whole) = bench.read(&v, 0_f32)?;
            compare.guards(whole);
            cuts.push(values);
        }
        let same = cuts[0].iter().zip(&cuts[1]).all(|(a, b)| a.to_bits() == b.to_bits());
        compare.holds(same, || "other tiles give other bits".to_owned());
        cuts.swap_remove(0)
    } else {
        let v = bench.output::<f32>(n_values)?;
        params.v = v.ptr;
        params.launch(bench.sink(), to_u32(max_rows))?;
        let (values, whole) = bench.read(&v, 0_f32)?;
        compare.guards(whole);
        values
    };

    let planes: Vec<&[f32]> = found.chunks_exact(max_rows * V_STRIDE).collect();
    for t in 0..max_rows {
        for part in 0..PARTS_MAX {
            let begin = t * V_STRIDE + part * LORA_RANK_MAX;
            let rank = slots.get(t).map_or(0, |&slot| rank_of(slot, part));
            for plane in &planes {
                let beyond = &plane[begin + rank..begin + LORA_RANK_MAX];
                compare.untouched("ranks that are not there", beyond, is_fill_float);
            }
            if rank == 0 {
                continue;
            }
            let (expected, magnitude) = case.expected(t, part);
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
