//! What a training is: kept beside it, so that it is gone on with as it began.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use pleach_engine::train::ProductPrecision;
use pleach_trainer::recipe::{Auto, Hyperparameters, Method, Recipe, precision_name};
use serde::{Deserialize, Serialize};

use super::{Args, rows::RowFile};
use crate::models::DEFAULT_MODEL;

/// Settings and files of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setup {
    /// As it was typed; a path is absolute.
    pub(super) model: String,
    /// Of the model's file; empty before it was read.
    pub(super) base_sha256: String,
    pub(super) data: RowFile,
    pub(super) validation: Option<RowFile>,
    /// To go on from.
    pub(super) adapter: Option<PathBuf>,
    /// Its generation.
    pub(super) parent: Option<String>,
    pub(super) method: Method,
    pub(super) hyperparameters: Hyperparameters,
    pub(super) seed: u64,
    #[serde(default, with = "precision_name")]
    pub(super) precision: ProductPrecision,
    pub(super) suffix: Option<String>,
    pub(super) validate_every: Option<u64>,
    pub(super) patience: u32,
}

impl Setup {
    /// # Errors
    /// Files that are not there, settings that do not fit.
    pub(super) fn of(args: &Args) -> anyhow::Result<Self> {
        let data = args.data.as_deref().context("--data is missing")?;
        let data = RowFile::open("--data", data)?;
        let validation = args.validation.as_deref();
        let validation = validation.map(|path| RowFile::open("--validation", path)).transpose()?;
        let recipe = &args.recipe;
        let method = match recipe.method {
            Some(name) => name.into(),
            None => data.method()?,
        };
        let hyperparameters = recipe.hyperparameters();
        ensure!(
            hyperparameters.beta == Auto::Auto || method != Method::Supervised,
            "--beta is a setting of dpo and kto"
        );
        let adapter = recipe.adapter.as_deref();
        let absolute = |path: &std::path::Path| {
            path.canonicalize().with_context(|| format!("--adapter {}", path.display()))
        };
        Ok(Self {
            model: model_of(args.model.as_deref()),
            base_sha256: String::new(),
            data,
            validation,
            adapter: adapter.map(absolute).transpose()?,
            parent: None,
            method,
            hyperparameters,
            seed: recipe.seed,
            precision: recipe.precision.into(),
            suffix: args.suffix.clone(),
            validate_every: args.validate_every,
            patience: args.patience,
        })
    }

    pub(super) fn recipe(&self) -> Recipe {
        let Self { method, hyperparameters, seed, precision, .. } = *self;
        Recipe { method, hyperparameters, seed, precision }
    }

    /// # Errors
    /// Rows that are not what they were.
    pub(super) fn check_files(&self) -> anyhow::Result<()> {
        self.data.check()?;
        self.validation.as_ref().map_or(Ok(()), RowFile::check)
    }
}

/// A model that can be found from any folder.
pub(super) fn model_of(asked: Option<&str>) -> String {
    let Some(asked) = asked else { return DEFAULT_MODEL.to_owned() };
    let path = std::path::Path::new(asked);
    let absolute = path.is_file().then(|| path.canonicalize().ok()).flatten();
    absolute.map_or_else(|| asked.to_owned(), |path| path.display().to_string())
}
