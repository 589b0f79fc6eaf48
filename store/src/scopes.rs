//! What a key may do.

use std::fmt;

/// One thing that a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Ask for completions.
    Infer,
    /// Send feedback.
    Feedback,
    /// Load adapters and train.
    Train,
    /// Change tenants, keys and shared adapters.
    Admin,
}

impl Scope {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Infer, Self::Feedback, Self::Train, Self::Admin];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Feedback => "feedback",
            Self::Train => "train",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Infer => 1,
            Self::Feedback => 1 << 1,
            Self::Train => 1 << 2,
            Self::Admin => 1 << 3,
        }
    }
}

/// A set of scopes. Shown as their names with commas between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether the set has this one. No scope implies another.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether nothing is allowed.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes in `infer,train`, spaces around names allowed; the first word that is none as an error.
    ///
    /// # Errors
    /// The word.
    pub fn parse(text: &str) -> Result<Self, String> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(|word| scope_named(word).ok_or_else(|| word.to_owned())).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Scope::ALL.into_iter().filter(|scope| self.contains(*scope)).map(Scope::name).collect();
        f.write_str(&names.join(","))
    }
}

fn scope_named(name: &str) -> Option<Scope> {
    Scope::ALL.into_iter().find(|scope| scope.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_there_and_back() {
        for bits in 0..16 {
            let scopes = Scopes(bits);
            assert_eq!(Scopes::parse(&scopes.to_string()), Ok(scopes));
        }
        assert_eq!(Scopes::parse(" train , infer").unwrap().to_string(), "infer,train");
        assert_eq!(Scopes::parse("infer,root"), Err("root".to_owned()));
        assert!(!Scopes::parse("admin").unwrap().contains(Scope::Infer));
    }
}
