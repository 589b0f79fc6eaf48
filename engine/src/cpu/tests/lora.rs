//! Adapters of mixed rows: shrink, expand and the base product, as a step plans them.

use std::sync::Arc;

use crate::{
    adapter_weights::{AdapterWeights, SiteWeights},
    backend::{Backend, Linear, Output, Projection},
    cpu::{
        CpuBackend, CpuBuffer, CpuMatrix, CpuVector, Isa,
        dora::{Workers, row_norms},
        lora::V_STRIDE,
        memory::Arena,
        packed::{Dense, PackedMatrix},
        resident::{BaseMatrices, site_index},
    },
    model::{Activations, CpuOptions},
    quant::BlockFormat,
    reference::{
        lora::{dora_gains, lora, lora_magnitude},
        matmul::{Int8Row, dequantized_weights, exact_weights, matmul, matmul_magnitude},
    },
    site::{Site, TargetModule},
    spec::{Architecture, ModelSpec, RopeScaling},
    step_batch::{AdapterSlot, StepBatch, StepSequence},
};

use super::{
    Random, UNTOUCHED, assert_close, bits, is_untouched, isas, random::case_seed, random_rows,
    widen,
};

/// Share of the sum of magnitudes of base and adapter.
const TOLERANCE: f64 = 1e-5;
const LAYER: usize = 1;
const ROWS_MAX: usize = 40;
const QKV: [TargetModule; 3] = [TargetModule::QProj, TargetModule::KProj, TargetModule::VProj];

fn spec() -> ModelSpec {
    ModelSpec {
        architecture: Architecture::Qwen2,
        name: String::new(),
        n_layers: 2,
        hidden: 96,
        n_heads: 3,
        n_kv_heads: 1,
        head_dim: 16,
        ffn: 64,
        vocab: 32,
        context: 64,
        rms_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    }
}

/// An adapter with this rank at each of `modules`, in all layers. Values are f16, so that both stores are exact.
fn adapter(random: &mut Random, rank: usize, modules: &[TargetModule]) -> AdapterWeights {
    let spec = spec();
    let mut values = |n: usize| -> Vec<f32> {
        random.units(n).into_iter().map(|v| half::f16::from_f32(v).to_f32()).collect()
    };
    let mut sites = Vec::new();
    for layer in 0..spec.n_layers {
        for &module in modules {
            let (n_out, n_in) = spec.linear_shape(module);
            let (a, b) = (values(rank * n_in), values(n_out * rank));
            sites.push(SiteWeights::lora(Site { layer, module }, rank, 3.0 / rank as f32, a, b));
        }
    }
    AdapterWeights { sites, ..AdapterWeights::default() }
}

/// A projection of a layer on a backend, and what it was made of.
struct Case {
    backend: CpuBackend,
    projection: Projection<CpuMatrix, CpuVector>,
    weights: Vec<Vec<Vec<u8>>>,
    biases: Vec<Vec<f32>>,
    format: BlockFormat,
    adapters: Vec<AdapterWeights>,
    slots: Vec<AdapterSlot>,
}

impl Case {
    fn new(
        random: &mut Random,
        options: CpuOptions,
        format: BlockFormat,
        modules: &[TargetModule],
        adapters: Vec<AdapterWeights>,
    ) -> Self {
        let spec = spec();
        let mut backend = CpuBackend::new(&spec, options).unwrap();
        let (mut weights, mut biases, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for &module in modules {
            let (n_out, n_in) = spec.linear_shape(module);
            let rows = random_rows(random, format, n_out, n_in, true);
            let matrix =
                CpuMatrix::new(PackedMatrix::pack(format, n_out, n_in, &mut Arena::new(0), |n| {
                    &rows[n]
                }));
            let bias = random.units(n_out);
            let on_device = backend.vector(&bias).unwrap();
            parts.push(Linear { module, matrix, bias: Some(on_device) });
            weights.push(rows);
            biases.push(bias);
        }
        backend.base = Some(Arc::new(base_of(&parts)));
        let slots = adapters.iter().map(|adapter| install(&mut backend, adapter)).collect();
        let projection = Projection { layer: LAYER, parts };
        Self { backend, projection, weights, biases, format, adapters, slots }
    }

    /// Output of the projection for rows `x`, each a sequence of its own, `[rows, all parts]`.
    fn run(&mut self, x: &[&[f32]], adapters: &[Option<usize>], output: Output) -> Vec<Vec<f32>> {
        let mut batch = StepBatch::default();
        for (row, adapter) in adapters.iter().enumerate() {
            batch.token_ids.push(0);
            batch.positions.push(0);
            batch.sequences.push(StepSequence {
                rows: row..row + 1,
                block_table: Vec::new(),
                adapter: adapter.map(|index| self.slots[index]),
            });
        }
        let n_in = x[0].len();
        let width: usize = self.biases.iter().map(Vec::len).sum();
        let mut input = self.backend.buffer(n_in).unwrap();
        for (row, x) in x.iter().enumerate() {
            input.values[row * input.stride..][..n_in].copy_from_slice(x);
        }
        let mut out = self.backend.buffer(width).unwrap();
        let CpuBuffer { values, stride } = &mut out;
        values.fill(UNTOUCHED);
        if output == Output::Add {
            values[..x.len() * *stride].fill(2.5);
        }
        // What the step before left behind.
        self.backend.v.fill(f32::NAN);
        self.backend.begin_step(&batch).unwrap();
        self.backend.project(&self.projection, &input, &mut out, output);
        assert!(
            out.values[x.len() * out.stride..].iter().copied().all(is_untouched),
            "wrote padding rows"
        );
        out.values.chunks_exact(out.stride).take(x.len()).map(|row| row[..width].to_vec()).collect()
    }

    /// Expected output of a row and the magnitude of its parts.
    fn expected(&self, x: &[f32], adapter: Option<usize>, int8: bool) -> (Vec<f64>, Vec<f64>) {
        let n_in = x.len();
        let int8 = int8 && !self.format.is_float();
        let exact = widen(x);
        let base = if int8 { Int8Row::quantize(x).values() } else { exact.clone() };
        let (mut expected, mut magnitude) = (Vec::new(), Vec::new());
        for ((linear, rows), bias) in
            self.projection.parts.iter().zip(&self.weights).zip(&self.biases)
        {
            let values = if int8 { exact_weights } else { dequantized_weights };
            let w: Vec<f64> = rows.iter().flat_map(|row| values(self.format, row, n_in)).collect();
            let (mut y, mut total) = (matmul(&w, &base, n_in), matmul_magnitude(&w, &base, n_in));
            let wanted = Site { layer: LAYER, module: linear.module };
            let weights = adapter
                .and_then(|index| self.adapters[index].sites.iter().find(|s| s.site == wanted));
            if let Some(weights) = weights {
                for (y, delta) in y.iter_mut().zip(lora(weights, &exact)) {
                    *y += delta;
                }
                for (total, delta) in total.iter_mut().zip(lora_magnitude(weights, &exact)) {
                    *total += delta;
                }
                for (n, bias) in weights.bias.iter().flatten().enumerate() {
                    let bias = f64::from(weights.lora_scale) * f64::from(*bias);
                    y[n] += bias;
                    total[n] += bias.abs();
                }
                if weights.magnitude.is_some() {
                    let format = self.format;
                    let w = rows.iter().flat_map(|row| dequantized_weights(format, row, n_in));
                    let gains = dora_gains(weights, &w.collect::<Vec<_>>());
                    for ((y, total), gain) in y.iter_mut().zip(&mut total).zip(gains) {
                        *y *= gain;
                        *total *= gain.abs();
                    }
                }
            }
            expected.extend(y.iter().zip(bias).map(|(y, bias)| y + f64::from(*bias)));
            magnitude.extend(
                total.iter().zip(bias).map(|(total, bias)| 2.0 * total + f64::from(bias.abs())),
            );
        }
        (expected, magnitude)
    }

    fn check(&mut self, random: &mut Random, what: &str, int8: bool) {
        let n_in = self.backend.spec.linear_shape(self.projection.parts[0].module).1;
        let xs: Vec<Vec<f32>> = (0..ROWS_MAX).map(|_| random.spiky(n_in)).collect();
        let n_adapters = self.adapters.len();
        let mixes: [(&str, Vec<Option<usize>>); 6] = [
            ("base only", vec![None; 5]),
            ("all the same", vec![Some(n_adapters - 1); 33]),
            ("all different", (0..n_adapters).map(Some).collect()),
            ("one against the rest", (0..9).map(|row| Some(usize::from(row == 4))).collect()),
            (
                "base rows between",
                (0..31).map(|row| (row % 2 == 1).then_some(row / 2 % n_adapters)).collect(),
            ),
            (
                "random",
                (0..ROWS_MAX)
                    .map(|_| Some(random.below(2 * n_adapters)).filter(|i| *i < n_adapters))
                    .collect(),
            ),
        ];
        for (mix, adapters) in mixes {
            for output in [Output::Write, Output::Add] {
                let what = format!("{what}, {mix}, {output:?}");
                let rows: Vec<&[f32]> = xs.iter().take(adapters.len()).map(Vec::as_slice).collect();
                let found = self.run(&rows, &adapters, output);
                for ((x, &adapter), found) in rows.iter().zip(&adapters).zip(found) {
                    let alone = self.run(&[x], &[adapter], output).remove(0);
                    assert_eq!(bits(&found), bits(&alone), "{what}: neighbours change a row");
                    let (mut expected, mut magnitude) = self.expected(x, adapter, int8);
                    if output == Output::Add {
                        for (expected, magnitude) in expected.iter_mut().zip(&mut magnitude) {
                            *expected += 2.5;
                            *magnitude += 2.5;
                        }
                    }
                    assert_close(&what, &found, &expected, &magnitude, TOLERANCE);
                }
            }
        }
    }
}

/// A base that has the weights of one projection.
fn base_of(parts: &[Linear<CpuMatrix, CpuVector>]) -> BaseMatrices {
    let nothing = Arc::new(PackedMatrix::from_f32(Dense::F32, 0, 32, 32, &[], &mut Arena::new(0)));
    let spec = spec();
    let mut linears = vec![nothing; site_index(&spec, Site::HEAD) + 1];
    for part in parts {
        let site = Site { layer: LAYER, module: part.module };
        linears[site_index(&spec, site)] = Arc::clone(&part.matrix.0);
    }
    BaseMatrices { linears, is_tied: false }
}

/// Adapters of all kinds at one projection: plain, with a bias, and with magnitudes of both signs.
fn kinds(random: &mut Random, modules: &[TargetModule]) -> Vec<AdapterWeights> {
    let mut kinds = Vec::new();
    for rank in [1, 8, 17] {
        for kind in 0..3 {
            let mut weights = adapter(random, rank, modules);
            weights.sites.retain(|site| site.site.layer == LAYER);
            for site in &mut weights.sites {
                let values = random.units(site.b.len() / rank);
                match kind {
                    0 => {}
                    1 => site.bias = Some(values),
                    _ => site.magnitude = Some(values),
                }
            }
            kinds.push(weights);
        }
    }
    kinds
}

#[test]
fn other_kinds_among_mixed_rows_equal_the_reference() {
    let mut random = Random::new(case_seed(52));
    for isa in isas() {
        for activations in [Activations::F32, Activations::Int8] {
            for format in [BlockFormat::F16, BlockFormat::Q8_0, BlockFormat::Q4_1] {
                for (modules, threads) in [(&QKV[..], 2), (&[TargetModule::DownProj][..], 1)] {
                    let adapters = kinds(&mut random, modules);
                    let options = options(isa, threads, activations);
                    let mut case = Case::new(&mut random, options, format, modules, adapters);
                    let what = format!("{isa} {activations} {format} {modules:?}");
                    case.check(&mut random, &what, activations == Activations::Int8);
                }
            }
        }
    }
}

#[test]
fn norms_of_adapted_rows_in_every_format() {
    let mut random = Random::new(case_seed(53));
    for isa in isas() {
        for format in BlockFormat::ALL {
            for (n_out, n_in, rank) in [(1, 256, 1), (37, 512, 5), (16, 256, 64)] {
                let rows = random_rows(&mut random, format, n_out, n_in, true);
                let w = PackedMatrix::pack(format, n_out, n_in, &mut Arena::new(0), |n| &rows[n]);
                let (a, b) = (random.units(rank * n_in), random.units(n_out * rank));
                let mut weights = SiteWeights::lora(Site::HEAD, rank, 0.3, a, b);
                let norms = row_norms(Workers { isa, n_threads: 1 }, &w, &weights);
                weights.magnitude = Some(vec![1.0; n_out]);
                let values: Vec<f64> =
                    rows.iter().flat_map(|row| dequantized_weights(format, row, n_in)).collect();
                let expected: Vec<f64> =
                    dora_gains(&weights, &values).iter().map(|gain| 1.0 / gain).collect();
                assert_close(&format!("{isa} {format}"), &norms, &expected, &expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn norms_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(case_seed(54));
    let (n_out, n_in, rank) = (520, 1024, 128);
    let w = PackedMatrix::from_f32(
        Dense::F32,
        n_out,
        n_in,
        32,
        &random.units(n_out * n_in),
        &mut Arena::new(0),
    );
    let (a, b) = (random.units(rank * n_in), random.units(n_out * rank));
    let weights = SiteWeights::lora(Site::HEAD, rank, 0.3, a, b);
    let isa = Isa::detect();
    let alone = row_norms(Workers { isa, n_threads: 1 }, &w, &weights);
    assert_eq!(alone.len(), n_out);
    for n_threads in [2, 3, 7] {
        let norms = row_norms(Workers { isa, n_threads }, &w, &weights);
        assert_eq!(bits(&norms), bits(&alone), "{n_threads} threads");
    }
}

#[test]
fn a_row_without_a_norm_is_refused_by_its_number() {
    let mut random = Random::new(case_seed(55));
    let options = options(Isa::detect(), 1, Activations::F32);
    let module = TargetModule::DownProj;
    let case = Case::new(&mut random, options, BlockFormat::F32, &[module], Vec::new());
    let (n_out, n_in) = spec().linear_shape(module);
    let mut backend = case.backend;
    let zeros = PackedMatrix::from_f32(
        Dense::F32,
        n_out,
        n_in,
        32,
        &vec![0.0; n_out * n_in],
        &mut Arena::new(0),
    );
    let zeros = Arc::new(zeros);
    let linears = (0..=site_index(&spec(), Site::HEAD)).map(|_| Arc::clone(&zeros)).collect();
    let site = Site { layer: LAYER, module };
    let mut b = vec![1.0; n_out];
    b[3] = 0.0;
    let weights = AdapterWeights {
        sites: vec![SiteWeights {
            magnitude: Some(vec![1.0; n_out]),
            ..SiteWeights::lora(site, 1, 1.0, vec![1.0; n_in], b)
        }],
        ..AdapterWeights::default()
    };
    backend.base = Some(Arc::new(BaseMatrices { linears, is_tied: false }));
    let error = backend.adapter_packer().pack(&weights).unwrap_err().to_string();
    assert_eq!(
        error,
        "model.layers.1.mlp.down_proj: row 3 of the adapted weight cannot be scaled to its magnitude, its norm is 0"
    );
}

fn adapters(random: &mut Random) -> Vec<AdapterWeights> {
    let mut adapters: Vec<AdapterWeights> = [1, 3, 8, 16, 17, 64, 257, 512]
        .into_iter()
        .map(|rank| adapter(random, rank, &TargetModule::ALL))
        .collect();
    // Not at every site: q alone, and v without q and k.
    adapters.push(adapter(random, 5, &[TargetModule::QProj]));
    adapters.push(adapter(random, 31, &[TargetModule::VProj, TargetModule::DownProj]));
    adapters.push(AdapterWeights::default());
    adapters
}

fn install(backend: &mut CpuBackend, weights: &AdapterWeights) -> AdapterSlot {
    let packed = backend.adapter_packer().pack(weights).unwrap();
    backend.adapters().install(&packed).unwrap()
}

fn options(isa: Isa, threads: usize, activations: Activations) -> CpuOptions {
    CpuOptions {
        isa,
        threads,
        activations,
        kv_bytes: 1 << 16,
        adapter_bytes: 1 << 30,
        max_rows: ROWS_MAX,
    }
}

#[test]
fn adapters_of_mixed_rows_equal_the_reference() {
    let mut random = Random::new(case_seed(50));
    for isa in isas() {
        for activations in [Activations::F32, Activations::Int8] {
            for format in [BlockFormat::F32, BlockFormat::Q8_0, BlockFormat::Q4_1] {
                for (modules, threads) in [(&QKV[..], 2), (&[TargetModule::DownProj][..], 1)] {
                    let adapters = adapters(&mut random);
                    let options = options(isa, threads, activations);
                    let mut case = Case::new(&mut random, options, format, modules, adapters);
                    let what = format!("{isa} {activations} {format} {modules:?}");
                    case.check(&mut random, &what, activations == Activations::Int8);
                }
            }
        }
    }
}

#[test]
fn a_slot_is_used_again_with_other_weights() {
    let mut random = Random::new(case_seed(51));
    for isa in isas() {
        let first = vec![
            adapter(&mut random, 64, &TargetModule::ALL),
            adapter(&mut random, 8, &TargetModule::ALL),
        ];
        let options = options(isa, 1, Activations::F32);
        let mut case = Case::new(&mut random, options, BlockFormat::F32, &QKV, first);
        let x = random.units(96);
        let kept = case.run(&[&x], &[Some(1)], Output::Write);
        let old = case.slots[0];
        case.backend.adapters().remove(old);
        case.adapters[0] = adapter(&mut random, 3, &TargetModule::ALL);
        case.slots[0] = install(&mut case.backend, &case.adapters[0]);
        assert_eq!(case.slots[0], old, "the free slot is taken first");
        let found = case.run(&[&x, &x], &[Some(0), Some(1)], Output::Write);
        let (expected, magnitude) = case.expected(&x, Some(0), false);
        assert_close(isa.name(), &found[0], &expected, &magnitude, TOLERANCE);
        assert_eq!(bits(&found[1]), bits(&kept[0]), "{isa}: the other adapter is as it was");
    }
}

#[test]
fn rows_of_v_hold_three_projections() {
    assert_eq!(V_STRIDE, 3 * crate::adapter_weights::LORA_RANK_MAX);
}
