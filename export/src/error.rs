//! Every way in which an export or its check can fail.

use std::{io, path::PathBuf};

use pleach_engine::{
    adapter_weights::AdapterWeightsError, backend::RunError, gguf::GgufError, model::LoadError,
    site::Site,
};
use pleach_text::{TemplateError, TextError};

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file or folder; a full disk among others. What was written is removed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// `create`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder to make is there already.
    #[error("{} is there already, and is not an empty folder", .0.display())]
    Exists(PathBuf),
    /// The model file: an unsupported architecture among others.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// A tensor of the model could not be read.
    #[error(transparent)]
    Tensor(#[from] RunError),
    /// An adapter does not fit the model.
    #[error("adapter {name}: {source}")]
    Adapter {
        /// The adapter.
        name: String,
        /// What does not fit.
        source: AdapterWeightsError,
    },
    /// Ends of a merged adapter that cannot be one matrix.
    #[error(transparent)]
    Ends(#[from] AdapterWeightsError),
    /// A kind of adapter that inputs of a graph cannot express.
    #[error(
        "adapter {name}: {site}: {kind} cannot be an input of the graph, only merged (--lora merged:{name})"
    )]
    NoInput {
        /// The adapter.
        name: String,
        /// Where it acts.
        site: Site,
        /// `DoRA`, `lora_bias`, …
        kind: &'static str,
    },
    /// A name that no adapter has.
    #[error("no adapter is called {name:?}; there {}: --adapter {name}=DIR gives one", listed(.known))]
    UnknownAdapter {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A name that cannot be a file's.
    #[error(
        "adapter name {0:?}: it becomes a file's name, so it is made of letters, digits, '-', '_' and '.', and does not begin with '.'"
    )]
    AdapterName(String),
    /// Two adapters of one name.
    #[error("adapter {0} is given twice")]
    TwiceNamed(String),
    /// An adapter that the export would leave out.
    #[error("adapter {0} would not be exported: {1}")]
    Unused(String, &'static str),
    /// A file that its format cannot express.
    #[error("{}: {bytes} bytes are more than {format} can hold", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The format.
        format: &'static str,
    },
    /// The tokenizer of the model file cannot be written.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TextError),
    /// The chat template of the model file is broken.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// A key of the model file.
    #[error(transparent)]
    Key(#[from] GgufError),
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "are none".to_owned(),
        [name] => format!("is {name}"),
        names => format!("are {}", names.join(", ")),
    }
}

impl ExportError {
    /// Wraps an error of the file system.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
