//! Reading formulas: the grammar is in [`super::formula`].

use super::formula::{Formula, Function, Operator, Part};

/// Deepest nesting: every level is one of this program's own calls.
const DEPTH_MAX: usize = 64;

struct Reader<'a> {
    text: &'a str,
    at: usize,
    names: &'a [&'a str],
    parts: Vec<Part>,
    depth: usize,
}

impl Formula {
    /// Whether something can be named so in a formula.
    pub fn is_name(name: &str) -> bool {
        let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        let first = name.bytes().next().is_some_and(is_letter);
        first && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
    }

    /// Reads a formula of graders with these names.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn read(text: &str, names: &[&str]) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0, names, parts: Vec::new(), depth: 0 };
        reader.sum()?;
        reader.skip_space();
        if reader.at < text.len() {
            return Err(reader.expected("an operator or the end"));
        }
        Ok(Self { parts: reader.parts })
    }
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes one of these characters, if it comes next.
    fn take(&mut self, choices: &[u8]) -> Option<u8> {
        self.skip_space();
        let next = *self.text.as_bytes().get(self.at)?;
        choices.contains(&next).then(|| {
            self.at += 1;
            next
        })
    }

    fn expected(&self, what: &str) -> String {
        match self.rest().chars().next() {
            Some(found) => format!("{what} was expected at byte {}, not {found:?}", self.at),
            None => format!("{what} was expected at the end"),
        }
    }

    /// One level deeper.
    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
        }
        read(self)?;
        self.depth -= 1;
        Ok(())
    }

    fn sum(&mut self) -> Result<(), String> {
        self.product()?;
        while let Some(operator) = self.take(b"+-") {
            self.product()?;
            let operator = if operator == b'+' { Operator::Add } else { Operator::Subtract };
            self.parts.push(Part::Binary(operator));
        }
        Ok(())
    }

    fn product(&mut self) -> Result<(), String> {
        self.unary()?;
        while let Some(operator) = self.take(b"*/") {
            self.unary()?;
            let operator = if operator == b'*' { Operator::Multiply } else { Operator::Divide };
            self.parts.push(Part::Binary(operator));
        }
        Ok(())
    }

    fn unary(&mut self) -> Result<(), String> {
        if self.take(b"-").is_some() {
            self.nested(Self::unary)?;
            self.parts.push(Part::Negate);
            return Ok(());
        }
        self.primary()?;
        if self.take(b"^").is_some() {
            self.nested(Self::unary)?;
            self.parts.push(Part::Binary(Operator::Power));
        }
        Ok(())
    }

    fn primary(&mut self) -> Result<(), String> {
        if self.take(b"(").is_some() {
            self.nested(Self::sum)?;
            return self.close();
        }
        self.skip_space();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let n_word = self.rest().find(|c| !is_word(c)).unwrap_or(self.rest().len());
        let word = self.rest()[..n_word].to_owned();
        if !Formula::is_name(&word) {
            return self.number();
        }
        let begins = self.at;
        self.at += n_word;
        // A grader may be called like a function: only the function is followed by a parenthesis.
        if self.take(b"(").is_some() {
            return self.call(&word, begins);
        }
        let place = self.names.iter().position(|name| *name == word);
        let place = place.ok_or_else(|| {
            format!("{word:?} at byte {begins} is no grader; there are {}", self.names.join(", "))
        })?;
        self.parts.push(Part::Reward(place));
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let rest = self.rest();
        let mut n_bytes =
            rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        // An exponent: `1e-3`.
        let exponent = rest[n_bytes..].strip_prefix(['e', 'E']);
        if let Some(exponent) = exponent.filter(|_| n_bytes > 0) {
            let digits = exponent.trim_start_matches(['+', '-']);
            let n_sign = exponent.len() - digits.len();
            let n_digits = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            if n_digits > 0 && n_sign <= 1 {
                n_bytes += 1 + n_sign + n_digits;
            }
        }
        let number: Option<f64> =
            rest[..n_bytes].parse().ok().filter(|number: &f64| number.is_finite());
        let number = number.ok_or_else(|| self.expected("a number, a grader or `(`"))?;
        self.at += n_bytes;
        self.parts.push(Part::Number(number));
        Ok(())
    }

    fn call(&mut self, name: &str, begins: usize) -> Result<(), String> {
        let function = Function::ALL.into_iter().find(|(known, _)| *known == name);
        let Some((_, function)) = function else {
            let names: Vec<_> = Function::ALL.into_iter().map(|(known, _)| known).collect();
            let names = names.join(", ");
            return Err(format!("{name:?} at byte {begins} is no function; there are {names}"));
        };
        let mut n = 0;
        loop {
            self.nested(Self::sum)?;
            n += 1;
            if self.take(b",").is_none() {
                break;
            }
        }
        if n > 1 && !function.takes_many() {
            return Err(format!("{name} at byte {begins} takes one argument, not {n}"));
        }
        self.parts.push(Part::Call(function, n));
        self.close()
    }

    fn close(&mut self) -> Result<(), String> {
        match self.take(b")") {
            Some(_) => Ok(()),
            None => Err(self.expected("`)`")),
        }
    }
}
