//! What the reference curves begin with and what they say (`tests/fixtures/training`).

use half::f16;
use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    site::{Site, TargetModule},
    spec::ModelSpec,
};
use pleach_trainer::Targeted;
use serde_json::Value;

/// Twisted 32-bit numbers as PyTorch's CPU generator draws them (Matsumoto and Nishimura, `mt19937ar.c`).
struct MersenneTwister {
    state: [u32; 624],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624u32 {
            let before = state[i as usize - 1];
            state[i as usize] =
                (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i);
        }
        Self { state, next: 624 }
    }

    fn draw(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if y % 2 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// In `-bound..bound`, as `torch.Tensor.uniform_`.
    fn uniform(&mut self, bound: f32) -> f32 {
        let unit = (self.draw() & 0x00ff_ffff) as f32 / (1u32 << 24) as f32;
        unit.mul_add(2.0 * bound, -bound)
    }
}

/// The adapter that all curves begin with: what `make_init.py` draws with seed 7. Every linear costs PEFT as many numbers
/// again, which it throws away: those of `torch.nn.Linear` itself.
pub(crate) fn initial_adapter(spec: &ModelSpec) -> AdapterWeights {
    const RANK: usize = 4;
    let mut random = MersenneTwister::new(7);
    let mut sites = Vec::new();
    for layer in 0..spec.n_layers {
        for module in TargetModule::ALL {
            let (n_out, n_in) = spec.linear_shape(module);
            (0..RANK * (n_in + n_out)).for_each(|_| {
                random.draw();
            });
            let bound = 1.0 / (n_in as f32).sqrt();
            let a = (0..RANK * n_in).map(|_| f16::from_f32(random.uniform(bound)).to_f32());
            let site = Site { layer, module };
            sites.push(SiteWeights::lora(site, RANK, 2.0, a.collect(), vec![0.0; RANK * n_out]));
        }
    }
    AdapterWeights { sites, ..AdapterWeights::default() }
}

pub(crate) fn curve(name: &str) -> Value {
    let path = pleach_test_setup::fixtures().join(format!("training/{name}_curve.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(crate) fn targeted(tokens: &Value) -> Targeted {
    let numbers = |key: &str| tokens[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap());
    let ids: Vec<u32> = numbers("ids").map(|id| u32::try_from(id).unwrap()).collect();
    Targeted::new(&ids, numbers("targets").map(|flag| flag == 1))
}

/// Indices of a list.
pub(crate) fn indices(value: &Value) -> Vec<usize> {
    let index = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    value.as_array().unwrap().iter().map(index).collect()
}

/// Values of a tensor of the fixture, widened.
pub(crate) fn tensor(name: &str) -> Vec<f32> {
    let path = pleach_test_setup::fixtures().join("training/tensors.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}"));
    let data = tensor.data();
    if tensor.dtype() == safetensors::Dtype::F16 {
        let halves = data.as_chunks::<2>().0.iter();
        return halves.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect();
    }
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
