//! Texts that are read and continued. Plain language of several kinds, so that distributions are those of real use.

/// Continued as they are.
pub(super) const TEXTS: [&str; 3] = [
    "The lighthouse keeper wrote down the weather every evening: wind from the south-west, a heavy sea, two fishing boats \
     on their way home. On the twelfth of March the entry is longer than usual. A ship had run aground on the sandbank \
     east of the harbour, and the whole village went out with ropes and lanterns to bring the crew",
    "To make bread you need flour, water, salt and time. Mix 500 grams of flour with 350 grams of water, wait half an \
     hour, add 10 grams of salt and a little yeast, and fold the dough every thirty minutes. After four hours",
    "fn main() {\n    let numbers = vec![3, 1, 4, 1, 5, 9, 2, 6];\n    let mut sorted = numbers.clone();\n    sorted.sort();\n    \
     for (index, number) in sorted.iter().enumerate() {\n        println!(",
];

/// Asked, where the model has a chat template.
pub(super) const QUESTION: &str =
    "What should I look at when I buy a used bicycle? Name three things.";
