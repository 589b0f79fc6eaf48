use half::f16;

use crate::{
    adapter_weights::LORA_RANK_MAX,
    cuda::{
        CudaError, DevicePtr, LaunchSink, Plain,
        ops::{EpilogueParams, EpiloguePart, EpilogueRows, LoraSite, NO_SLOT, PARTS_MAX, V_STRIDE},
        plain,
    },
    reference,
};

use super::{
    Bench, CheckError, CheckRow, ROWS_BEYOND, Sizes,
    compare::{Comparison, F16_ROUNDED, F32_SUM, is_fill_float, is_fill_half},
    header,
    lora::{CUTS, N_SITES, RANKS, SITES, adapter_tiles, mixes, tiled_header},
    to_u32,
};

/// One product: where its parts lie, and everything that its output is made of.
struct Case {
    slots: Vec<u32>,
    parts: Vec<EpiloguePart>,
    n_planes: usize,
    plane_row: usize,
    n_v_planes: usize,
    max_rows: usize,
    planes: Vec<f32>,
    v_planes: Vec<f32>,
    bias: Vec<Option<Vec<f32>>>,
    /// By slot and part, `[N][R rounded up to 8]`.
    b: Vec<Vec<f16>>,
    /// By slot and part: what `DoRA` and `lora_bias` have besides.
    gain: Vec<Option<Vec<f32>>>,
    shift: Vec<Option<Vec<f32>>>,
}

/// `v` is so many times as large as its neighbours in the rows of a slot, and `lora_scale` makes up for it.
const V_SCALES: [f32; RANKS.len()] = [1.0, 1e-3, 1e30, 1e-30, 7e4, 1.0];
const LORA_SCALE: f32 = 0.75;
/// Slots with `DoRA`, and with a bias; the others are plain. The slot that all rows of a mix have is among the first.
const DORA: [usize; 2] = [1, 3];
const BIASED: [usize; 2] = [2, 4];

/// What is varied.
struct Shape {
    n_rows: usize,
    widths: &'static [usize],
    n_planes: usize,
    n_v_planes: usize,
    has_bias: bool,
}

const SHAPES: &[Shape] = &[
    Shape { n_rows: 1, widths: &[1], n_planes: 1, n_v_planes: 1, has_bias: false },
    Shape { n_rows: 11, widths: &[64, 33, 17], n_planes: 2, n_v_planes: 2, has_bias: true },
    Shape { n_rows: 19, widths: &[257, 5], n_planes: 4, n_v_planes: 1, has_bias: false },
    Shape { n_rows: 70, widths: &[66], n_planes: 1, n_v_planes: 3, has_bias: true },
];
const SHAPES_FULL: &[Shape] = &[
    Shape { n_rows: 64, widths: &[4096, 1024, 1024], n_planes: 2, n_v_planes: 4, has_bias: false },
    Shape { n_rows: 203, widths: &[4096], n_planes: 1, n_v_planes: 4, has_bias: true },
    Shape { n_rows: 600, widths: &[576, 192, 192], n_planes: 1, n_v_planes: 1, has_bias: true },
];
const GATED: &[Shape] = &[
    Shape { n_rows: 3, widths: &[7, 7], n_planes: 1, n_v_planes: 1, has_bias: false },
    Shape { n_rows: 17, widths: &[300, 300], n_planes: 2, n_v_planes: 2, has_bias: true },
    Shape { n_rows: 67, widths: &[40, 40], n_planes: 1, n_v_planes: 1, has_bias: false },
];
const GATED_FULL: &[Shape] =
    &[Shape { n_rows: 64, widths: &[14_336, 14_336], n_planes: 1, n_v_planes: 2, has_bias: false }];

/// Every mix of adapters, written and added, rows one by one and in tiles.
pub(super) fn epilogue(bench: &mut Bench<'_>, sizes: Sizes) -> Result<Vec<CheckRow>, CheckError> {
    let full = if sizes == Sizes::Full { SHAPES_FULL } else { &[] };
    let mut rows = Vec::new();
    for shape in SHAPES.iter().chain(full) {
        for (i, (mix, slots)) in mixes(shape.n_rows).into_iter().enumerate() {
            rows.push(one(bench, shape, mix, slots, i % 2 == 1)?);
        }
    }
    Ok(rows)
}

/// The same, gated.
pub(super) fn epilogue_swiglu(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let full = if sizes == Sizes::Full { GATED_FULL } else { &[] };
    let mut rows = Vec::new();
    for shape in GATED.iter().chain(full) {
        for (mix, slots) in mixes(shape.n_rows) {
            rows.push(one_gated(bench, shape, mix, slots)?);
        }
    }
    Ok(rows)
}

/// Over the plane itself: logits.
pub(super) fn epilogue_in_place(
    bench: &mut Bench<'_>,
    sizes: Sizes,
) -> Result<Vec<CheckRow>, CheckError> {
    let shape =
        |n_rows, widths| Shape { n_rows, widths, n_planes: 1, n_v_planes: 2, has_bias: false };
    let mut shapes = vec![shape(9, &[321][..]), shape(2, &[64])];
    if sizes == Sizes::Full {
        shapes.push(shape(33, &[49_152]));
    }
    let mut rows = Vec::new();
    for shape in &shapes {
        // Without any adapter nobody asks for it.
        for (mix, slots) in mixes(shape.n_rows).into_iter().skip(1) {
            rows.push(one_in_place(bench, shape, mix, slots)?);
        }
    }
    Ok(rows)
}

impl Case {
    fn new(bench: &mut Bench<'_>, shape: &Shape, slots: Vec<u32>) -> Self {
        let max_rows = shape.n_rows + ROWS_BEYOND;
        let mut parts = Vec::new();
        let (mut plane_column, mut out_column) = (0, 0);
        for (part, &n_out) in shape.widths.iter().enumerate() {
            parts.push(EpiloguePart {
                plane_column: to_u32(plane_column),
                out_column: to_u32(out_column),
                n_out: to_u32(n_out),
                site: to_u32(SITES[part]),
            });
            plane_column += n_out.next_multiple_of(64);
            out_column += n_out.next_multiple_of(16);
        }
        let mut b = Vec::new();
        for ranks in RANKS {
            for (rank, &n_out) in ranks.into_iter().zip(shape.widths) {
                let padded = rank.next_multiple_of(8);
                let mut values = bench.random.halves(n_out * padded, 0.1);
                for row in values.chunks_exact_mut(padded.max(1)) {
                    row[rank..].fill(f16::ZERO);
                }
                b.push(values);
            }
        }
        let mut v_planes = bench.random.values(shape.n_v_planes * max_rows * V_STRIDE, 1.0);
        // Ranks that an adapter has not are never written: nothing may depend on them.
        for plane in v_planes.chunks_exact_mut(max_rows * V_STRIDE) {
            for (t, row) in plane.chunks_exact_mut(V_STRIDE).enumerate() {
                let slot = slots.get(t).copied().filter(|&slot| slot != NO_SLOT);
                for part in 0..PARTS_MAX {
                    let rank = slot.map_or(0, |slot| RANKS[slot as usize][part]);
                    row[part * LORA_RANK_MAX..][rank..LORA_RANK_MAX].fill(f32::NAN);
                }
                let scale = slot.map_or(1.0, |slot| V_SCALES[slot as usize]);
                for v in row {
                    *v *= scale;
                }
            }
        }
        // A site without ranks has nothing else either.
        let mut vectors = |kind: &[usize]| -> Vec<Option<Vec<f32>>> {
            let mut values = Vec::new();
            for (slot, ranks) in RANKS.iter().enumerate() {
                for (&rank, &n_out) in ranks.iter().zip(shape.widths) {
                    let has = kind.contains(&slot) && rank > 0;
                    // Whole words of four, as the kernels read them.
                    let n = n_out.next_multiple_of(4);
                    values.push(has.then(|| bench.random.values(n, 2.0)));
                }
            }
            values
        };
        let (gain, shift) = (vectors(&DORA), vectors(&BIASED));
        let bias = shape
            .widths
            .iter()
            .enumerate()
            .map(|(part, &n_out)| {
                (shape.has_bias && part != 1).then(|| bench.random.values(n_out, 1.0))
            })
            .collect();
        Self {
            parts,
            n_planes: shape.n_planes,
            plane_row: plane_column,
            n_v_planes: shape.n_v_planes,
            max_rows,
            planes: bench.random.values(shape.n_planes * max_rows * plane_column, 1.0),
            v_planes,
            bias,
            b,
            gain,
            shift,
            slots,
        }
    }

    fn params(
        &self,
        bench: &Bench<'_>,
        out_stride: usize,
        accumulate: bool,
    ) -> Result<EpilogueParams, CheckError> {
        let mut sites = Vec::new();
        for (slot, ranks) in RANKS.iter().enumerate() {
            sites.extend([LoraSite::NONE; N_SITES]);
            for part in 0..self.parts.len() {
                let index = slot * self.parts.len() + part;
                let vector = |values: &Option<Vec<f32>>| {
                    values.as_ref().map_or(Ok(DevicePtr::NULL), |values| bench.input(values))
                };
                sites[slot * N_SITES + SITES[part]] = LoraSite {
                    a: DevicePtr::NULL,
                    b: bench.input(&self.b[index])?,
                    gain: vector(&self.gain[index])?,
                    shift: vector(&self.shift[index])?,
                    rank: to_u32(ranks[part]),
                    lora_scale: LORA_SCALE / V_SCALES[slot],
                };
            }
        }
        let mut bias = [DevicePtr::NULL; PARTS_MAX];
        for (ptr, values) in bias.iter_mut().zip(&self.bias) {
            if let Some(values) = values {
                *ptr = bench.input(values)?;
            }
        }
        let mut parts = [EpiloguePart::NONE; PARTS_MAX];
        parts[..self.parts.len()].copy_from_slice(&self.parts);
        let any = self.slots.iter().any(|&slot| slot != NO_SLOT);
        Ok(EpilogueParams {
            step: bench.input(&[header(self.slots.len(), 0)])?,
            planes: bench.input(&self.planes)?,
            v_planes: if any { bench.input(&self.v_planes)? } else { DevicePtr::NULL },
            slots: bench.input(&self.slots)?,
            tiles: DevicePtr::NULL,
            sites: bench.input(&sites)?,
            out: DevicePtr::NULL,
            saturations: DevicePtr::NULL,
            bias,
            plane_stride: (self.max_rows * self.plane_row) as u64,
            v_plane_stride: (self.max_rows * V_STRIDE) as u64,
            parts,
            n_parts: to_u32(self.parts.len()),
            n_planes: to_u32(self.n_planes),
            plane_row: to_u32(self.plane_row),
            n_v_planes: to_u32(self.n_v_planes),
            n_sites: to_u32(N_SITES),
            out_stride: to_u32(out_stride),
            accumulate: u32::from(accumulate),
            reserved: 0,
        })
    }

    /// `y` of one row and feature of a part, and the magnitude of what it is the sum of.
    fn expected(&self, t: usize, part: usize, n: usize) -> (f64, f64) {
        let at = &self.parts[part];
        let mut terms: Vec<f64> = self
            .planes
            .chunks_exact(self.max_rows * self.plane_row)
            .map(|plane| f64::from(plane[t * self.plane_row + at.plane_column as usize + n]))
            .collect();
        let at_n = |values: &Option<Vec<f32>>| values.as_ref().map(|v| f64::from(v[n]));
        let (mut gain, mut added) = (1.0, Vec::from_iter(at_n(&self.bias[part])));
        if self.slots[t] != NO_SLOT {
            let slot = self.slots[t] as usize;
            let rank = RANKS[slot][part];
            let index = slot * self.parts.len() + part;
            gain = at_n(&self.gain[index]).unwrap_or(gain);
            added.extend(at_n(&self.shift[index]));
            let b = &self.b[index][n * rank.next_multiple_of(8)..];
            for (r, b) in b[..rank].iter().enumerate() {
                for plane in self.v_planes.chunks_exact(self.max_rows * V_STRIDE) {
                    let v = f64::from(plane[t * V_STRIDE + part * LORA_RANK_MAX + r]);
                    terms.push(f64::from(LORA_SCALE / V_SCALES[slot]) * b.to_f64() * v);
                }
            }
        }
        let sum: f64 = terms.iter().sum::<f64>() * gain + added.iter().sum::<f64>();
        let magnitude = terms.iter().map(|term| term.abs()).sum::<f64>() * gain.abs();
        (sum, magnitude + added.iter().map(|term| term.abs()).sum::<f64>())
    }
}

/// What the ways to take the rows gave, by name: one by one, in tiles, in other tiles. Bits must be those of the first way in
/// rows without an adapter, and of the second in all others.
fn run<T: Plain + PartialEq>(
    bench: &Bench<'_>,
    compare: &mut Comparison,
    case: &Case,
    before: &[T],
    params: &mut EpilogueParams,
    launch: impl Fn(&EpilogueParams, &dyn LaunchSink, EpilogueRows) -> Result<(), CudaError>,
) -> Result<Vec<(&'static str, Vec<T>)>, CheckError> {
    let n_rows = case.slots.len();
    let max_rows = to_u32(case.max_rows);
    let mut ways = vec![("one by one", EpilogueRows::Single(max_rows), Vec::new())];
    if params.v_planes.is_null() {
        ways.push(("in tiles", EpilogueRows::Plain(max_rows), Vec::new()));
    } else {
        for (name, most) in ["in tiles", "in other tiles"].into_iter().zip(CUTS) {
            let tiles = adapter_tiles(&case.slots, most);
            ways.push((name, EpilogueRows::AdapterTiles(to_u32(tiles.len() + ROWS_BEYOND)), tiles));
        }
    }
    let mut found: Vec<(&'static str, Vec<T>)> = Vec::new();
    for (name, rows, tiles) in ways {
        params.step = bench.input(&[tiled_header(n_rows, &tiles)])?;
        params.tiles = bench.input(&tiles)?;
        let out = bench.in_out(before)?;
        params.out = out.ptr;
        launch(params, bench.sink(), rows)?;
        let (values, whole) = bench.read(&out, before[0])?;
        compare.guards(whole);
        found.push((name, values));
    }
    let bytes_of = |(_, values): &(&str, Vec<T>)| plain::bytes_of_slice(values).to_vec();
    let bytes: Vec<Vec<u8>> = found.iter().map(bytes_of).collect();
    let row_bytes = bytes[0].len() / case.max_rows;
    for t in 0..case.max_rows {
        let row = t * row_bytes..(t + 1) * row_bytes;
        let is_base = case.slots.get(t).is_none_or(|&slot| slot == NO_SLOT);
        let like = &bytes[usize::from(!is_base)][row.clone()];
        let same = bytes[1..].iter().all(|other| &other[row.clone()] == like);
        compare.holds(same, || format!("row {t} has other bits in other tiles"));
    }
    Ok(found)
}

fn one(
    bench: &mut Bench<'_>,
    shape: &Shape,
    mix: &str,
    slots: Vec<u32>,
    accumulate: bool,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let n_rows = shape.n_rows;
    let words = format!(
        "{n_rows} rows of {:?}, {} planes, {mix}, added {accumulate}",
        shape.widths, shape.n_planes
    );
    let mut compare = Comparison::new("epilogue", words);
    let case = Case::new(bench, shape, slots);
    let out_stride = case.parts.iter().map(|part| part.n_out.next_multiple_of(16) as usize).sum();
    let mut params = case.params(bench, out_stride, accumulate)?;
    let before = if accumulate {
        bench.random.values(case.max_rows * out_stride, 2.0)
    } else {
        vec![f32::from_bits(u32::MAX); case.max_rows * out_stride]
    };
    let found = run(bench, &mut compare, &case, &before, &mut params, EpilogueParams::launch_as)?;

    for (t, before) in before.chunks_exact(out_stride).enumerate() {
        let row = t * out_stride..(t + 1) * out_stride;
        let mut written = vec![false; out_stride];
        for (part, at) in case.parts.iter().enumerate().filter(|_| t < n_rows) {
            for n in 0..at.n_out as usize {
                let column = at.out_column as usize + n;
                written[column] = true;
                let base = if accumulate { f64::from(before[column]) } else { 0.0 };
                let (y, magnitude) = case.expected(t, part, n);
                for (way, found) in &found {
                    compare.near(
                        || format!("{way}, row {t}, part {part}, feature {n}"),
                        f64::from(found[row.clone()][column]),
                        base + y,
                        base.abs() + magnitude,
                        F32_SUM,
                    );
                }
            }
        }
        for (way, found) in &found {
            let found = &found[row.clone()];
            for (column, &written) in written.iter().enumerate() {
                let same = found[column].to_bits() == before[column].to_bits();
                compare
                    .holds(written || same, || format!("{way}, row {t}: wrote to column {column}"));
            }
            if t >= n_rows && !accumulate {
                compare.untouched("a row beyond the step", found, is_fill_float);
            }
        }
    }
    Ok(compare.row())
}

fn one_gated(
    bench: &mut Bench<'_>,
    shape: &Shape,
    mix: &str,
    slots: Vec<u32>,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let (n_rows, width) = (shape.n_rows, shape.widths[0]);
    let words = format!("{n_rows} rows of {width}, {} planes, {mix}", shape.n_planes);
    let mut compare = Comparison::new("epilogue_swiglu", words);
    let case = Case::new(bench, shape, slots);
    let out_stride = width.next_multiple_of(64);
    let mut params = case.params(bench, out_stride, false)?;
    let saturations = bench.in_out(&[0_u32])?;
    params.saturations = saturations.ptr;
    let before = vec![f16::from_bits(u16::MAX); case.max_rows * out_stride];
    let launch = EpilogueParams::launch_swiglu_as;
    let found = run(bench, &mut compare, &case, &before, &mut params, launch)?;

    for t in 0..case.max_rows {
        let row = t * out_stride..(t + 1) * out_stride;
        for n in (0..width).filter(|_| t < n_rows) {
            let ((gate, gate_magnitude), (up, up_magnitude)) =
                (case.expected(t, 0, n), case.expected(t, 1, n));
            let exact = reference::swiglu::swiglu(gate, up);
            let expected = exact.clamp(f16::MIN.to_f64(), f16::MAX.to_f64());
            // Rounding of the result, and errors of the two sums, which the gate passes on (its slope is below 1.1).
            let sums = F32_SUM.rel * (1.1 * gate_magnitude * up.abs() + up_magnitude * gate.abs());
            let magnitude = expected.abs() + sums / F16_ROUNDED.rel;
            for (way, found) in &found {
                compare.near(
                    || format!("{way}, row {t}, feature {n}"),
                    found[row.clone()][n].to_f64(),
                    expected,
                    magnitude,
                    F16_ROUNDED,
                );
            }
        }
        for (way, found) in &found {
            let found = &found[row.clone()];
            if t >= n_rows {
                compare.untouched("a row beyond the step", found, is_fill_half);
                continue;
            }
            compare.holds(found[width..].iter().all(|&pad| pad == f16::ZERO), || {
                format!("{way}, row {t}: padding is not zero")
            });
        }
    }
    let (_, whole) = bench.read(&saturations, 0_u32)?;
    compare.guards(whole);
    Ok(compare.row())
}

fn one_in_place(
    bench: &mut Bench<'_>,
    shape: &Shape,
    mix: &str,
    slots: Vec<u32>,
) -> Result<CheckRow, CheckError> {
    bench.next_shape();
    let words = format!("{} rows of {:?}, {mix}", shape.n_rows, shape.widths);
    let mut compare = Comparison::new("epilogue_in_place", words);
    let case = Case::new(bench, shape, slots);
    let params = case.params(bench, case.plane_row, false)?;
    let planes = bench.in_out(&case.planes)?;
    EpilogueParams { planes: planes.ptr, out: planes.ptr, ..params }
        .launch_in_place(bench.sink(), to_u32(case.max_rows))?;
    let (found, whole) = bench.read(&planes, 0_f32)?;
    compare.guards(whole);
    let rows = found.chunks_exact(case.plane_row).zip(case.planes.chunks_exact(case.plane_row));
    for (t, (found, before)) in rows.enumerate() {
        let has_slot = case.slots.get(t).is_some_and(|&slot| slot != NO_SLOT);
        for (n, (&found, &before)) in found.iter().zip(before).enumerate() {
            if has_slot && n < shape.widths[0] {
                let (y, magnitude) = case.expected(t, 0, n);
                let place = || format!("row {t}, feature {n}");
                compare.near(place, f64::from(found), y, magnitude, F32_SUM);
            } else {
                let same = found.to_bits() == before.to_bits();
                compare.holds(same, || format!("row {t}: wrote to column {n}"));
            }
        }
    }
    Ok(compare.row())
}
