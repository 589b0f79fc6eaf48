//! Why a name cannot be served, found or changed.

use super::{ALIAS_BYTES_MAX, ALIASES_MAX, HIDDEN_PREFIX};
use crate::digest::GenerationDigest;

/// Why a name cannot be served, found or changed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    /// No base name at all.
    #[error("a server needs at least one name of its base model")]
    NoBaseName,
    /// A base name that is empty or holds a comma, white space or a control character.
    #[error(
        "base model name {name:?} is empty or holds a comma, white space or a control character"
    )]
    InvalidBaseName {
        /// The name.
        name: String,
    },
    /// An empty alias.
    #[error("an adapter's name may not be empty")]
    EmptyAlias,
    /// An alias beyond the limit.
    #[error(
        "an adapter's name of {bytes} bytes is too long, at most {ALIAS_BYTES_MAX} are allowed"
    )]
    AliasTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A comma, white space or control character.
    #[error(
        "adapter name {alias:?} holds {character:?}: commas, white space and control characters are not allowed"
    )]
    AliasCharacter {
        /// The alias.
        alias: String,
        /// The first such character.
        character: char,
    },
    /// The alias is a base name.
    #[error("adapter name `{alias}` is a name of the base model")]
    AliasIsBase {
        /// The alias.
        alias: String,
    },
    /// The alias could be taken for `BASE:ALIAS`.
    #[error("adapter name `{alias}` begins with the base model's name `{base}` and a colon")]
    AliasBeginsWithBase {
        /// The alias.
        alias: String,
        /// The base name.
        base: String,
    },
    /// The alias would be hidden: only what serves makes such.
    #[error(
        "adapter name `{alias}` begins with `{HIDDEN_PREFIX}`, as adapters do that are not in service yet"
    )]
    AliasHidden {
        /// The alias.
        alias: String,
    },
    /// The alias points at a generation already.
    #[error("an adapter named `{alias}` is loaded already, generation {}", generation.short())]
    AliasExists {
        /// The alias.
        alias: String,
        /// Where it points.
        generation: GenerationDigest,
    },
    /// As many as a server may have.
    #[error("there are {ALIASES_MAX} adapter names already")]
    TooManyAliases,
    /// The alias does not point where the change expects it.
    #[error("the adapter `{alias}` {}, not at the expected {}", points_at(*found), expected.short())]
    Mismatch {
        /// The alias.
        alias: String,
        /// Where it should point.
        expected: GenerationDigest,
        /// Where it points.
        found: Option<GenerationDigest>,
    },
    /// No such alias.
    #[error("there is no adapter named `{alias}`")]
    UnknownAlias {
        /// The alias.
        alias: String,
    },
    /// The alias has pointed at no other generation.
    #[error("the adapter `{alias}` has no earlier generation")]
    NoHistory {
        /// The alias.
        alias: String,
    },
    /// Nobody has this generation.
    #[error("the adapter `{alias}` has no generation {generation}")]
    UnknownGeneration {
        /// The alias.
        alias: String,
        /// The generation.
        generation: GenerationDigest,
    },
    /// The generation exists, but this alias does not point at it and has not in what is kept of its history.
    #[error("the generation {generation} is not one of the adapter `{alias}`")]
    ForeignGeneration {
        /// The alias.
        alias: String,
        /// The generation.
        generation: GenerationDigest,
    },
    /// No base name and no alias.
    #[error("the model `{model_name}` does not exist")]
    UnknownName {
        /// What was asked for.
        model_name: String,
    },
}

fn points_at(found: Option<GenerationDigest>) -> String {
    found.map_or("does not exist".to_owned(), |found| format!("points at {}", found.short()))
}
