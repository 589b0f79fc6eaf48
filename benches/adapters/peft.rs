//! PEFT folders for the model at hand, as many as a scenario needs, no two of one digest.

use std::{fs, path::Path};

use anyhow::Context as _;
use half::f16;
use pleach_adapters::peft::{CONFIG_FILE, TENSOR_FILE};
use pleach_engine::{
    site::{Site, TargetModule},
    spec::ModelSpec,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;

/// Random numbers of an adapter are drawn from so many.
const TABLE_LEN: usize = 4096;
/// Largest value of `lora_B`. With inputs of norm 1 and scale 2 it moves outputs by some hundredths: answers stay text.
const B_MAX: f32 = 0.005;
const SCALE: usize = 2;

/// A random adapter on all linears.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RandomAdapter {
    /// Weights are drawn from it.
    pub(crate) seed: u64,
    pub(crate) rank: usize,
}

impl RandomAdapter {
    /// Makes `folder` with its two files; weights are stored as f16.
    pub(crate) fn write(self, spec: &ModelSpec, folder: &Path) -> anyhow::Result<()> {
        let mut random = SplitMix64(self.seed);
        let mut tensors = Vec::new();
        for layer in 0..spec.n_layers {
            for module in TargetModule::ALL {
                let (n_out, n_in) = spec.linear_shape(module);
                let path = Site { layer, module }.path();
                let a_max = 1.0 / (n_in as f32).sqrt();
                let shapes = [("A", [self.rank, n_in], a_max), ("B", [n_out, self.rank], B_MAX)];
                for (factor, shape, most) in shapes {
                    let name = format!("base_model.model.{path}.lora_{factor}.weight");
                    tensors.push((name, shape, random.matrix(shape, most)));
                }
            }
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F16, shape.to_vec(), bytes).map(|view| (name, view))
        });
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let config = json!({
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": SCALE * self.rank,
            "target_modules": TargetModule::ALL.map(TargetModule::name),
        });
        write(folder, config.to_string().as_bytes(), &safetensors::serialize(views, None)?)
    }

    /// Bytes that it takes on the device at most: f16, both factors padded to whole tiles of sixteen.
    pub(crate) fn resident_bytes(self, spec: &ModelSpec) -> u64 {
        let padded = self.rank.next_multiple_of(16);
        let of_site = |module| {
            let (n_out, n_in) = spec.linear_shape(module);
            padded * (n_out.next_multiple_of(16) + n_in.next_multiple_of(16)) * size_of::<f16>()
        };
        (spec.n_layers * TargetModule::ALL.map(of_site).iter().sum::<usize>()) as u64
    }
}

/// Copies an adapter with one weight changed by the least that its type can tell: another generation that computes the
/// same, but for rounding.
pub(crate) fn write_twin(of: &Path, folder: &Path) -> anyhow::Result<()> {
    let read = |name: &str| {
        fs::read(of.join(name)).with_context(|| format!("{} has no {name}", of.display()))
    };
    let (config, mut tensors) = (read(CONFIG_FILE)?, read(TENSOR_FILE)?);
    let begin = {
        let parsed = SafeTensors::deserialize(&tensors)?;
        let first = parsed.iter().next().context("an adapter without tensors")?.1;
        // Both are slices of `tensors`.
        first.data().as_ptr().addr() - tensors.as_ptr().addr()
    };
    // The lowest bit of the mantissa, in every type of little-endian floats.
    tensors[begin] ^= 1;
    write(folder, &config, &tensors)
}

fn write(folder: &Path, config: &[u8], tensors: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write an adapter into {}", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    fs::write(folder.join(CONFIG_FILE), config).with_context(failed)?;
    fs::write(folder.join(TENSOR_FILE), tensors).with_context(failed)
}

/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Values in `-most..most`, f16, little-endian. From a table: thousands of adapters are made before anything is
    /// measured.
    fn matrix(&mut self, shape: [usize; 2], most: f32) -> Vec<u8> {
        let table: Vec<[u8; 2]> = (0..TABLE_LEN)
            .map(|index| {
                let unit = (index as f32 + 0.5) / (TABLE_LEN / 2) as f32 - 1.0;
                f16::from_f32(most * unit).to_le_bytes()
            })
            .collect();
        let mut bytes = Vec::with_capacity(shape[0] * shape[1] * size_of::<f16>());
        for _ in 0..(shape[0] * shape[1]).div_ceil(4) {
            let mut bits = self.next();
            for _ in 0..4 {
                let index = usize::try_from(bits & (TABLE_LEN as u64 - 1)).unwrap_or(0);
                bytes.extend_from_slice(&table[index]);
                bits >>= 16;
            }
        }
        bytes.truncate(shape[0] * shape[1] * size_of::<f16>());
        bytes
    }
}
