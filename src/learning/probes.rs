//! Questions that a candidate is asked when its owner names none.

/// Everyday questions of several kinds, to which an assistant has an answer.
const PROBES: &[&str] = &[
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about autumn.",
    "List three tips for sleeping better.",
    "Translate into German: The train leaves at noon.",
    "What is 17 times 6? Show your steps.",
    "Summarize in one sentence: Bees collect nectar, turn it into honey, and store it for the winter.",
    "Write a polite e-mail that asks for a day off.",
    "What is the difference between a virus and a bacterium?",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet, and when?",
    "Write a function in Python that reverses a string.",
];

/// All of them.
pub(super) fn default_probes() -> Vec<String> {
    PROBES.iter().map(|&probe| probe.to_owned()).collect()
}
