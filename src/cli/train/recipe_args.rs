//! Flags of a recipe, named as a job's hyperparameters are.

use std::path::PathBuf;

use anyhow::Context as _;
use pleach_engine::{cpu::Isa, train::ProductPrecision};
use pleach_trainer::recipe::{Auto, Hyperparameters, Method};

/// How to train.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct RecipeArgs {
    /// What to learn [default: by the rows: chats and texts supervised, pairs dpo, thumbs kto]
    #[arg(long, value_enum)]
    pub(in crate::cli) method: Option<MethodName>,
    /// A PEFT folder to go on from: its linears, ranks and scales stay
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) adapter: Option<PathBuf>,
    /// Rank of the adapter, on all linears of all layers [default: 16]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(in crate::cli) rank: Option<u32>,
    /// Times that every row is learned from [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(in crate::cli) epochs: Option<u32>,
    /// Rows of a step [default: a 32nd of the rows, 1 to 16]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(in crate::cli) batch_size: Option<u32>,
    /// Factor of the learning rate that fits the model [default: 1]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(in crate::cli) learning_rate_multiplier: Option<f64>,
    /// How strongly dpo and kto stay near where they begin [default: 0.1]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(in crate::cli) beta: Option<f64>,
    /// Of everything that is random: the same seed comes to the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(in crate::cli) seed: u64,
    /// Products with frozen weights: exact, or of factors rounded to bf16, which takes AVX512-BF16 or AMX and less time
    #[arg(long, value_enum, default_value = "f32")]
    pub(in crate::cli) precision: PrecisionName,
}

/// Of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum PrecisionName {
    F32,
    Bf16,
}

impl From<PrecisionName> for ProductPrecision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
}

/// # Errors
/// What it takes and is not there, with the flag's name.
pub(in crate::cli) fn check_precision(precision: ProductPrecision, isa: Isa) -> anyhow::Result<()> {
    precision.check(isa).with_context(|| format!("--precision {precision}"))
}

/// What to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum MethodName {
    Supervised,
    Dpo,
    Kto,
}

impl From<MethodName> for Method {
    fn from(name: MethodName) -> Self {
        match name {
            MethodName::Supervised => Self::Supervised,
            MethodName::Dpo => Self::Dpo,
            MethodName::Kto => Self::Kto,
        }
    }
}

impl RecipeArgs {
    pub(in crate::cli) fn hyperparameters(&self) -> Hyperparameters {
        fn auto<T>(asked: Option<T>) -> Auto<T> {
            asked.map_or(Auto::Auto, Auto::Set)
        }
        Hyperparameters {
            batch_size: auto(self.batch_size),
            learning_rate_multiplier: auto(self.learning_rate_multiplier),
            n_epochs: auto(self.epochs),
            beta: auto(self.beta),
            lora_rank: auto(self.rank),
            ..Hyperparameters::default()
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err("expected above 0".to_owned()) }
}
