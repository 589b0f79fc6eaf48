//! A model without a server: what training and measuring go through.

use std::{ffi::OsString, path::Path};

use anyhow::Context as _;
use pleach_engine::{
    cpu::FrozenBase,
    gguf::GgufFile,
    model::{Activations, CpuOptions, load_cpu, read_spec},
    spec::ModelSpec,
    train::TrainOptions,
};
use pleach_text::{ChatTemplate, Tokenizer};
use pleach_trainer::recipe::{ACTIVATION_BYTES, Compute, Text};
use sha2::{Digest as _, Sha256};

use crate::{
    cli::serve::settings::{read_bytes, read_isa, read_threads},
    hex::hex,
};

/// Tokens whose keys and values the loader wants room for; nothing is decoded here.
const KV_TOKENS: usize = 64;

/// With what to compute.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ComputeArgs {
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Kernels: portable, avx2, avx512-vnni or avx512-amx [default: the best here]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// Memory for activations that are kept for the backward half; the rest is computed again [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    activation_memory: Option<String>,
}

impl ComputeArgs {
    /// As they were typed: threads, kernels, memory for activations.
    pub(in crate::cli) fn flags(&self) -> [Option<OsString>; 3] {
        let text = |text: &Option<String>| text.clone().map(Into::into);
        let threads = self.threads.map(|threads| threads.to_string().into());
        [threads, text(&self.isa), text(&self.activation_memory)]
    }

    /// # Errors
    /// The flag that means nothing here.
    pub(in crate::cli) fn read(&self) -> anyhow::Result<Compute> {
        let flag = "--activation-memory";
        let asked = self.activation_memory.as_deref().map(|text| read_bytes(flag, text));
        let activation_bytes = match asked.transpose()? {
            Some(bytes) => usize::try_from(bytes).context(flag)?,
            None => ACTIVATION_BYTES,
        };
        Ok(Compute {
            isa: read_isa(self.isa.as_deref())?,
            threads: read_threads(self.threads)?,
            activation_bytes,
            unit_work: TrainOptions::UNIT_WORK_UNSLICED,
        })
    }
}

/// A model and what reads its text.
#[derive(Debug)]
pub(in crate::cli) struct OpenBase {
    pub(in crate::cli) frozen: FrozenBase,
    pub(in crate::cli) file_bytes: u64,
    /// Of the file, 64 hexadecimal digits.
    pub(in crate::cli) sha256: String,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl OpenBase {
    /// Reads a GGUF file.
    ///
    /// # Errors
    /// What cannot be read, by the file's name.
    pub(in crate::cli) fn open(path: &Path, compute: Compute) -> anyhow::Result<Self> {
        Self::read(path, compute).with_context(|| path.display().to_string())
    }

    fn read(path: &Path, compute: Compute) -> anyhow::Result<Self> {
        let file = GgufFile::open(path)?;
        let spec = read_spec(&file)?;
        let of_token = 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * size_of::<u16>();
        let options = CpuOptions {
            isa: compute.isa,
            threads: compute.threads,
            activations: Activations::Int8,
            kv_bytes: KV_TOKENS * of_token,
            adapter_bytes: 0,
            max_rows: 1,
        };
        let sha256 = hex(&Sha256::digest(file.file_bytes()));
        Ok(Self {
            frozen: load_cpu(&file, options)?.frozen_base(),
            file_bytes: file.file_bytes().len() as u64,
            sha256,
            tokenizer: Tokenizer::from_gguf(&file)?,
            // A model without a usable template still learns from texts.
            template: ChatTemplate::from_gguf(&file).ok(),
        })
    }

    pub(in crate::cli) fn spec(&self) -> &ModelSpec {
        self.frozen.spec()
    }

    pub(in crate::cli) fn text(&self) -> Text<'_> {
        Text { tokenizer: &self.tokenizer, template: self.template.as_ref() }
    }
}
