//! Python regular expressions in the three forms in which PEFT applies them to module paths.
//!
//! Both engines backtrack and agree on what people write here. Where Rust's syntax gives a set operation to characters
//! that Python takes literally, the pattern is refused instead of guessed.

use fancy_regex::{Regex, RegexBuilder};

use super::{error::ConfigError, fields::shorten};

/// Longest pattern. Lists of full module paths joined by `|` reach some ten thousand bytes.
const PATTERN_BYTES_MAX: usize = 64 << 10;

/// Backtracking steps for one path (paths have some 40 characters); only look-around and back-references take any.
const BACKTRACK_STEPS_MAX: usize = 20_000;

/// Bytes of one compiled automaton.
const COMPILED_BYTES_MAX: usize = 4 << 20;

/// Literal in Python, set operations in Rust (Python warns that they may become so there too).
const AMBIGUOUS: [&str; 4] = ["&&", "--", "~~", "[["];

/// A compiled pattern that knows which setting it came from.
#[derive(Debug)]
pub(super) struct Pattern {
    key: &'static str,
    source: String,
    regex: Regex,
}

impl Pattern {
    /// `re.fullmatch(source, path)`, for `target_modules` and `exclude_modules`.
    pub(super) fn full(key: &'static str, source: &str) -> Result<Self, ConfigError> {
        // Alone first: `a)|(b` is no pattern, though it would be one between our parentheses.
        Self::compile(key, source, source)?;
        Self::compile(key, source, &format!(r"\A(?:{source})\z"))
    }

    /// `re.match(rf"(.*\.)?({source})$", path)`, for keys of `rank_pattern` and `alpha_pattern`. The groups are kept,
    /// so that back-references count as in PEFT.
    pub(super) fn suffix(key: &'static str, source: &str) -> Result<Self, ConfigError> {
        Self::compile(key, source, &format!(r"\A(?:(.*\.)?({source})\z)"))
    }

    /// `re.match(rf"(?:^|.*?\.){source}\.(?P<idx>\d+)\.", path)`, for `layers_pattern`.
    pub(super) fn layers(key: &'static str, source: &str) -> Result<Self, ConfigError> {
        Self::compile(key, source, &format!(r"\A(?:(?:^|.*?\.){source}\.(\d+)\.)"))
    }

    /// What PEFT asks instead when there is no `layers_pattern`: any one component, but not the first of the path.
    pub(super) fn any_layers(key: &'static str) -> Result<Self, ConfigError> {
        Self::compile(key, "", r"\A.*?\.[^.]*\.(\d+)\.")
    }

    fn compile(key: &'static str, source: &str, regex: &str) -> Result<Self, ConfigError> {
        let refuse =
            |reason: String| ConfigError::Pattern { key, pattern: shorten(source), reason };
        if source.len() > PATTERN_BYTES_MAX {
            return Err(refuse(format!(
                "it has {} bytes, more than {PATTERN_BYTES_MAX}",
                source.len()
            )));
        }
        if let Some(operator) = AMBIGUOUS.into_iter().find(|operator| source.contains(operator)) {
            return Err(refuse(format!(
                "`{operator}` means different things to different engines; escape it"
            )));
        }
        let regex = RegexBuilder::new(regex)
            .backtrack_limit(BACKTRACK_STEPS_MAX)
            .delegate_size_limit(COMPILED_BYTES_MAX)
            .build()
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self { key, source: source.to_owned(), regex })
    }

    /// Whether the path matches.
    pub(super) fn is_match(&self, path: &str) -> Result<bool, ConfigError> {
        self.regex.is_match(path).map_err(|error| self.failed(&error))
    }

    /// The index that [`Self::layers`] or [`Self::any_layers`] caught; `None` when the path does not match.
    pub(super) fn layer_index(&self, path: &str) -> Result<Option<usize>, ConfigError> {
        let captures = self.regex.captures(path).map_err(|error| self.failed(&error))?;
        // Ours is the last group, whatever groups the pattern brought along.
        let digits = captures.as_ref().and_then(|captures| captures.get(captures.len() - 1));
        let Some(digits) = digits else { return Ok(None) };
        let index = digits.as_str().parse().map_err(|_| ConfigError::Pattern {
            key: self.key,
            pattern: shorten(&self.source),
            reason: format!("it catches `{}`, which is no layer index", digits.as_str()),
        })?;
        Ok(Some(index))
    }

    fn failed(&self, error: &fancy_regex::Error) -> ConfigError {
        ConfigError::Pattern {
            key: self.key,
            pattern: shorten(&self.source),
            reason: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "model.layers.10.self_attn.q_proj";

    #[test]
    fn full_takes_the_whole_path_and_tries_every_alternative() {
        let check = |source: &str, expected: bool| {
            assert_eq!(
                Pattern::full("target_modules", source).unwrap().is_match(PATH).unwrap(),
                expected,
                "{source}"
            );
        };
        check("q_proj", false);
        check(r".*\.q_proj", true);
        check(r".*\.(q|v)_proj", true);
        check("model|model.layers.10.self_attn.q_proj", true);
        check(r"^model\.layers\.1\d\..*$", true);
        check(r"model\.layers\.(?!10\.).*", false);
        check(r"model\.layers\.(?:[0-9]|1[0-5])\.self_attn\.[qk]_proj", true);
        check(r"(?i).*Q_PROJ", true);
        check(r".*\.\d{,2}\..*", true);
        check(r".*q_pro", false);
    }

    #[test]
    fn suffix_begins_after_a_dot() {
        let check = |source: &str, expected: bool| {
            assert_eq!(
                Pattern::suffix("rank_pattern", source).unwrap().is_match(PATH).unwrap(),
                expected,
                "{source}"
            );
        };
        check("q_proj", true);
        check("proj", false);
        check("0.self_attn.q_proj", false);
        check("10.self_attn.q_proj", true);
        check("^model.layers.10.self_attn.q_proj", true);
        check("^layers.10.self_attn.q_proj", false);
        check("q_proj|v_proj", true);
        check(r"self_attn\..*", true);
    }

    #[test]
    fn layers_catches_the_index_after_a_component() {
        let check = |source: &str, path: &str, expected: Option<usize>| {
            let pattern = Pattern::layers("layers_pattern", source).unwrap();
            assert_eq!(pattern.layer_index(path).unwrap(), expected, "{source} {path}");
        };
        check("layers", PATH, Some(10));
        check("layers", "layers.3.mlp.up_proj", Some(3));
        check("(lay)(ers)", PATH, Some(10));
        check("ayers", PATH, None);
        check("h", PATH, None);
        // The alternatives reach to the ends, as in PEFT: the first one catches nothing.
        check("layers|x", PATH, None);
        let any = Pattern::any_layers("layers_pattern").unwrap();
        assert_eq!(any.layer_index(PATH).unwrap(), Some(10));
        assert_eq!(any.layer_index("layers.3.mlp.up_proj").unwrap(), None);
        let huge = Pattern::layers("layers_pattern", "layers").unwrap();
        assert!(huge.layer_index("layers.99999999999999999999999.x").is_err());
    }

    #[test]
    fn hostile_patterns_are_refused() {
        for source in [
            "(",
            "a)|(b",
            "a{2,1}",
            &"(".repeat(5000),
            "(a{1000}){1000}{1000}",
            "[a&&b]",
            "[[a]",
            "[a--b]",
        ] {
            let error = Pattern::full("target_modules", source).unwrap_err();
            assert!(
                matches!(error, ConfigError::Pattern { key: "target_modules", .. }),
                "{source}: {error}"
            );
        }
        let slow =
            Pattern::full("target_modules", r"(?=(.*.*.*.*.*.*)*\d\d\d\d)(.|.)*\1x").unwrap();
        assert!(matches!(slow.is_match(PATH), Err(ConfigError::Pattern { .. })));
    }
}
