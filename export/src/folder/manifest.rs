//! `pleach.json`: what was exported, of what, and the digests by which a check knows it again. ONNX Runtime itself runs
//! any adapter file with any model of fitting shapes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use pleach_adapters::GenerationDigest;
use pleach_engine::site::TargetModule;
use serde::{Deserialize, Serialize};

use super::{MANIFEST_FILE, MODEL_FILE};
use crate::{
    decoder::Form,
    digest,
    error::ExportError,
    export::ExportOptions,
    weights::{Precision, WeightsWritten},
};

/// Version of this file's form.
const FORMAT: u32 = 1;
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// How adapters are in an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lora {
    /// Optional inputs of the graph, filled from a file at each run.
    Inputs,
    /// One, in the weights.
    Merged,
    /// Not at all.
    None,
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Version of pleach.
    pub pleach: String,
    /// Operators of the graph.
    pub form: Form,
    /// Of the weights.
    pub precision: Precision,
    /// Of products with blocks of codes: 0 keeps activations in f32, 4 rounds them to int8.
    pub accuracy_level: u8,
    /// Modules whose activations stay in f32 all the same.
    #[serde(default)]
    pub f32_activations: Vec<String>,
    /// Adapters' form.
    pub lora: Lora,
    /// What was exported.
    pub base: ExportedBase,
    /// Adapters by name.
    pub adapters: BTreeMap<String, ExportedAdapter>,
    /// What became of the weights.
    pub weights: Vec<WeightsWritten>,
    /// Every other file of the folder by its path in it.
    pub files: BTreeMap<String, ExportedFile>,
}

/// The base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedBase {
    /// Its name.
    pub name: String,
    /// Its family.
    pub architecture: String,
    /// SHA-256 of its file.
    pub sha256: String,
    /// Where the file was.
    pub path: String,
}

/// An adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportedAdapter {
    /// Digest of its generation.
    pub generation: String,
    /// Its file in the folder; none where it is merged.
    pub file: Option<String>,
    /// Largest rank.
    pub rank_max: usize,
    /// Which modules it acts on.
    pub target_modules: Vec<String>,
    /// Where its PEFT folder was.
    pub path: String,
}

impl ExportedAdapter {
    pub(crate) fn new(
        digest: GenerationDigest,
        rank_max: usize,
        target_modules: &[TargetModule],
        path: String,
    ) -> Self {
        let target_modules = target_modules.iter().map(|module| module.name().to_owned()).collect();
        Self { generation: digest.to_string(), file: None, rank_max, target_modules, path }
    }
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedFile {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// Why a folder is not what it says, or says nothing.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No manifest.
    #[error("{folder} is no export of pleach: it has no {MANIFEST_FILE}")]
    Missing {
        /// The folder.
        folder: String,
    },
    /// A manifest that cannot be read.
    #[error("{file}: {problem}")]
    Unreadable {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that is not the one that was exported.
    #[error("{file} is not the file that was exported: {problem}")]
    OtherFile {
        /// The file.
        file: String,
        /// What differs.
        problem: String,
    },
    /// Another base than the one that was exported.
    #[error("wrong base: {path} has SHA-256 {found}, the export is of {name} with {expected}")]
    WrongBase {
        /// The given file.
        path: String,
        /// Its digest.
        found: String,
        /// Name of the exported base.
        name: String,
        /// Its digest.
        expected: String,
    },
    /// Another adapter than the one that was exported.
    #[error("wrong adapter: {path} is generation {found}, the export of {name} is of {expected}")]
    WrongAdapter {
        /// The given folder.
        path: String,
        /// Its generation.
        found: String,
        /// Name of the adapter.
        name: String,
        /// The exported generation.
        expected: String,
    },
}

impl Manifest {
    pub(crate) fn new(options: &ExportOptions, lora: Lora, base: ExportedBase) -> Self {
        let names = options.f32_activations.iter().map(|module| module.name().to_owned());
        Self {
            format: FORMAT,
            pleach: env!("CARGO_PKG_VERSION").to_owned(),
            form: options.form,
            precision: options.precision,
            accuracy_level: options.accuracy_level,
            f32_activations: names.collect(),
            lora,
            base,
            adapters: BTreeMap::new(),
            weights: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    /// The manifest of a folder.
    ///
    /// # Errors
    /// If there is none that can be read.
    pub fn read(folder: &Path) -> Result<Self, ManifestError> {
        let path = folder.join(MANIFEST_FILE);
        let unreadable = |problem: String| ManifestError::Unreadable {
            file: path.display().to_string(),
            problem,
        };
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ManifestError::Missing { folder: folder.display().to_string() });
            }
            Err(error) => return Err(unreadable(error.to_string())),
        };
        if size > MANIFEST_BYTES_MAX {
            return Err(unreadable(format!("{size} bytes are too many")));
        }
        let bytes = fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(unreadable(format!("form {} is not {FORMAT}", manifest.format)));
        }
        Ok(manifest)
    }

    /// Compares every file of the folder with its digest.
    ///
    /// # Errors
    /// The first one that differs.
    pub fn check_files(&self, folder: &Path) -> Result<(), ManifestError> {
        for (name, expected) in &self.files {
            let path = folder.join(name);
            let other = |problem: String| ManifestError::OtherFile {
                file: path.display().to_string(),
                problem,
            };
            let size = fs::metadata(&path).map_err(|error| other(error.to_string()))?.len();
            if size != expected.bytes {
                return Err(other(format!("{size} bytes, {} expected", expected.bytes)));
            }
            let found = digest::of_file(&path).map_err(|error| other(error.to_string()))?;
            if found != expected.sha256 {
                return Err(other(format!("SHA-256 {found}, {} expected", expected.sha256)));
            }
        }
        if self.files.contains_key(MODEL_FILE) {
            return Ok(());
        }
        let file = folder.join(MODEL_FILE).display().to_string();
        Err(ManifestError::OtherFile { file, problem: "the manifest does not list it".to_owned() })
    }

    /// Compares a model file with the base that was exported.
    ///
    /// # Errors
    /// [`ManifestError::WrongBase`].
    pub fn check_base(&self, path: &Path, sha256: &str) -> Result<(), ManifestError> {
        if sha256 == self.base.sha256 {
            return Ok(());
        }
        Err(ManifestError::WrongBase {
            path: path.display().to_string(),
            found: sha256.to_owned(),
            name: self.base.name.clone(),
            expected: self.base.sha256.clone(),
        })
    }

    /// Compares an adapter with the one that was exported under this name.
    ///
    /// # Errors
    /// [`ManifestError::WrongAdapter`].
    pub fn check_adapter(
        &self,
        name: &str,
        path: &Path,
        digest: GenerationDigest,
    ) -> Result<(), ManifestError> {
        let expected = self.adapters.get(name).map(|adapter| adapter.generation.as_str());
        let found = digest.to_string();
        if expected == Some(&*found) {
            return Ok(());
        }
        Err(ManifestError::WrongAdapter {
            path: path.display().to_string(),
            found,
            name: name.to_owned(),
            expected: expected.unwrap_or("none").to_owned(),
        })
    }

    /// The modules of that name; a manifest names no others.
    pub(crate) fn f32_activations(&self) -> BTreeSet<TargetModule> {
        self.f32_activations.iter().filter_map(|name| TargetModule::from_name(name)).collect()
    }

    /// Whether the weights are those of the model file (and of a merged adapter), however they are written.
    pub fn is_exact(&self) -> bool {
        self.weights.iter().all(|weights| weights.exact)
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>, ExportError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        text.map_err(ExportError::io("write", MANIFEST_FILE))
    }
}
