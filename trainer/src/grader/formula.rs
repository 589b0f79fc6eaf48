//! What a `multi` makes of its graders' rewards: `0.7 * correct + 0.3 * min(short, 1)`.
//!
//! ```text
//! sum     = product (("+" | "-") product)*
//! product = unary (("*" | "/") unary)*
//! unary   = "-" unary | power
//! power   = primary ("^" unary)?
//! primary = number | name | function "(" sum ("," sum)* ")" | "(" sum ")"
//! ```

/// A formula, read: its parts in the order in which they are computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Formula {
    pub(super) parts: Vec<Part>,
}

/// Takes operands from a stack and puts its result there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Number(f64),
    /// The reward of a grader, by its place.
    Reward(usize),
    Negate,
    Binary(Operator),
    /// With so many arguments.
    Call(Function, usize),
}

/// What takes a left and a right side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Power,
}

/// What a formula can call, as `OpenAI` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Exp,
    Sqrt,
    Log,
}

impl Function {
    pub(super) const ALL: [(&'static str, Self); 8] = [
        ("min", Self::Min),
        ("max", Self::Max),
        ("abs", Self::Abs),
        ("floor", Self::Floor),
        ("ceil", Self::Ceil),
        ("exp", Self::Exp),
        ("sqrt", Self::Sqrt),
        ("log", Self::Log),
    ];

    /// Whether it takes any number of arguments, instead of one.
    pub(super) fn takes_many(self) -> bool {
        matches!(self, Self::Min | Self::Max)
    }

    fn of(self, arguments: &[f64]) -> f64 {
        let first = arguments.first().copied().unwrap_or(f64::NAN);
        // What is not a number stays none: `f64::min` would hide it.
        let pick = |better: fn(f64, f64) -> bool| {
            arguments.iter().copied().fold(first, |best, value| {
                if value.is_nan() || better(value, best) { value } else { best }
            })
        };
        match self {
            Self::Min => pick(|value, best| value < best),
            Self::Max => pick(|value, best| value > best),
            Self::Abs => first.abs(),
            Self::Floor => first.floor(),
            Self::Ceil => first.ceil(),
            Self::Exp => first.exp(),
            Self::Sqrt => first.sqrt(),
            Self::Log => first.ln(),
        }
    }
}

impl Formula {
    /// Its value for these rewards, in the order of the names that it was read with; may be infinite or no number.
    pub fn value(&self, rewards: &[f64]) -> f64 {
        let mut stack: Vec<f64> = Vec::new();
        for part in &self.parts {
            let value = match *part {
                Part::Number(number) => number,
                Part::Reward(place) => rewards.get(place).copied().unwrap_or(f64::NAN),
                Part::Negate => -stack.pop().unwrap_or(f64::NAN),
                Part::Call(function, n) => {
                    let arguments = stack.split_off(stack.len().saturating_sub(n));
                    function.of(&arguments)
                }
                Part::Binary(operator) => {
                    let right = stack.pop().unwrap_or(f64::NAN);
                    let left = stack.pop().unwrap_or(f64::NAN);
                    match operator {
                        Operator::Add => left + right,
                        Operator::Subtract => left - right,
                        Operator::Multiply => left * right,
                        Operator::Divide => left / right,
                        Operator::Power => left.powf(right),
                    }
                }
            };
            stack.push(value);
        }
        stack.pop().unwrap_or(f64::NAN)
    }
}
