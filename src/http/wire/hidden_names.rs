//! Names that nobody can ask for, in texts that are shown: of jobs, their events, and rounds.

use pleach_adapters::registry::HIDDEN_PREFIX;

/// How the id of a job begins.
const JOB: &str = "ftjob-";

/// A text for people, in which what is kept under a hidden name is called what it is.
pub fn without_hidden(text: String) -> String {
    let hidden = format!("{HIDDEN_PREFIX}{JOB}");
    if text.contains(&hidden) {
        text.replace(&hidden, &format!("the candidate of {JOB}"))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_candidates_and_nothing_else_are_told_otherwise() {
        let told = without_hidden("`candidate:ftjob-01` and candidate:ftjob-02".to_owned());
        assert_eq!(told, "`the candidate of ftjob-01` and the candidate of ftjob-02");
        let other = "the candidate: ftjob-01".to_owned();
        assert_eq!(without_hidden(other.clone()), other);
    }
}
