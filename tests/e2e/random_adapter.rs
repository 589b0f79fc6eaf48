//! PEFT folders with random weights for the default model.

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

const HIDDEN: usize = 576;
const KV: usize = 192;
const FFN: usize = 1536;
const N_LAYERS: usize = 30;

/// Name in PEFT files, inputs, outputs.
type Module = (&'static str, usize, usize);

const MODULES: [Module; 7] = [
    ("self_attn.q_proj", HIDDEN, HIDDEN),
    ("self_attn.k_proj", HIDDEN, KV),
    ("self_attn.v_proj", HIDDEN, KV),
    ("self_attn.o_proj", HIDDEN, HIDDEN),
    ("mlp.gate_proj", HIDDEN, FFN),
    ("mlp.up_proj", HIDDEN, FFN),
    ("mlp.down_proj", FFN, HIDDEN),
];

/// What an adapter is like. `Default` is one that loads.
#[derive(Clone, Debug)]
pub(crate) struct RandomAdapter {
    pub(crate) seed: u64,
    pub(crate) rank: usize,
    /// How many of the seven linears it changes.
    pub(crate) n_modules: usize,
    /// Added to the inputs of every `lora_A`: anything but 0 makes it an adapter of another model.
    pub(crate) extra_inputs: usize,
}

impl Default for RandomAdapter {
    fn default() -> Self {
        Self { seed: 1, rank: 4, n_modules: 7, extra_inputs: 0 }
    }
}

impl RandomAdapter {
    /// Writes the folder's two files.
    pub(crate) fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let modules = &MODULES[..self.n_modules];
        let targets: Vec<_> = modules.iter().map(|(name, ..)| name.split('.').nth(1)).collect();
        let config = json!({
            "peft_type": "LORA",
            "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "r": self.rank,
            "lora_alpha": 2 * self.rank,
            "target_modules": targets,
        });
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let mut random = Random(self.seed);
        let mut tensors = BTreeMap::new();
        for layer in 0..N_LAYERS {
            for &(module, n_in, n_out) in modules {
                let name =
                    |part| format!("base_model.model.model.layers.{layer}.{module}.{part}.weight");
                let n_in = n_in + self.extra_inputs;
                // Both parts count, and together they move the base, but not to noise.
                let amplitude = 1.0 / (n_in as f32).sqrt();
                tensors.insert(name("lora_A"), random.matrix(self.rank, n_in, amplitude));
                tensors.insert(name("lora_B"), random.matrix(n_out, self.rank, 0.05));
            }
        }
        let views = tensors.iter().map(|(name, (shape, bytes))| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn matrix(&mut self, rows: usize, columns: usize, amplitude: f32) -> (Vec<usize>, Vec<u8>) {
        let values = (0..rows * columns).flat_map(|_| (amplitude * self.next()).to_le_bytes());
        (vec![rows, columns], values.collect())
    }

    /// In -1..1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        // The upper 24 bits are exact in an f32.
        (bits >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }
}
