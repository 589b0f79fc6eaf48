//! The model card of a generation: what it came from, in Markdown, with the head that model hubs read.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use pleach_store::GenerationDigest;
use pleach_text::chat_template::strftime;
use pleach_trainer::gate::Verdict;
use serde_json::Value;

use super::Provenance;

/// The card of what `name` means, an adapter of the base `base`.
pub fn model_card(name: &str, base: &str, provenance: &Provenance) -> String {
    let Provenance { lineage, ancestors, examples } = provenance;
    let from = &lineage.from;
    let mut card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\ntags:\n- lora\n- pleach\n---\n\n# {}\n\n\
         An adapter of {}, trained by pleach.\n\n",
        Value::from(base),
        plain(name),
        code(base),
    );
    let mut rows = vec![
        ("Generation", code(&from.generation.to_string())),
        ("SHA-256 of the base's file", code(&from.base_sha256)),
        ("Went on from", generations(ancestors)),
        ("Registered", date(lineage.created_ms)),
    ];
    rows.extend(from.job.as_ref().map(|job| ("Job", code(job))));
    rows.extend(from.round.as_ref().map(|round| ("Round", code(round))));
    table(&mut card, ["", ""], &rows);

    card.push_str("\n## Data\n\n");
    match &from.data_sha256 {
        Some(sha256) => line(&mut card, &format!("SHA-256 of all rows: {}.", code(sha256))),
        None => line(&mut card, "The digest of its rows is not known."),
    }
    match examples {
        Some(counts) => {
            let (completions, feedback) = (counts.completions, counts.feedback);
            line(&mut card, &format!("Made of {completions} completions and {feedback} feedback."));
        }
        None => line(&mut card, "Of what the file was made is not known."),
    }

    card.push_str("\n## Recipe\n\n");
    let mut settings = vec![("seed".to_owned(), code(&from.seed.to_string()))];
    flatten("", &from.recipe, &mut settings);
    table(&mut card, ["setting", "value"], &settings);

    card.push_str("\n## Verdict of the gate\n\n");
    match &lineage.verdict {
        None => line(&mut card, "It was not judged."),
        Some(verdict) => match serde_json::from_value::<Verdict>(verdict.clone()) {
            Ok(verdict) => card.push_str(&verdict.to_markdown()),
            // One of another version.
            Err(_) => line(&mut card, &code(&verdict.to_string())),
        },
    }
    card
}

fn line(card: &mut String, text: &str) {
    card.push_str(text);
    card.push('\n');
}

fn table<T: AsRef<str>>(card: &mut String, head: [&str; 2], rows: &[(T, String)]) {
    let [left, right] = head;
    // Writing to a string cannot fail.
    let _ = writeln!(card, "| {left} | {right} |\n|---|---|");
    for (left, right) in rows {
        let _ = writeln!(card, "| {} | {right} |", plain(left.as_ref()));
    }
}

fn generations(ancestors: &[GenerationDigest]) -> String {
    if ancestors.is_empty() {
        return "nothing: its first training".to_owned();
    }
    let all: Vec<_> = ancestors.iter().map(|digest| code(&digest.to_string())).collect();
    all.join(", ")
}

/// A JSON document as rows; names of what is inside others have dots.
fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{name}"), value, rows);
            }
        }
        Value::Null => {}
        Value::String(text) => rows.push((prefix.to_owned(), code(text))),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            rows.push((prefix.to_owned(), code(&value.to_string())));
        }
    }
}

/// In UTC, to the minute.
fn date(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    strftime("%F %R UTC", UNIX_EPOCH + since).unwrap_or_default()
}

/// Text that nothing is read into: of a name that somebody chose.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if character.is_control() {
            out.push(' ');
            continue;
        }
        if character.is_ascii_punctuation() && !"-.:/,'".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// Text as code in a cell of a table.
fn code(text: &str) -> String {
    let of_cell = |character: char| match character {
        '`' => '\'',
        '|' => '¦',
        other if other.is_control() => ' ',
        other => other,
    };
    format!("`{}`", text.chars().map(of_cell).collect::<String>())
}

#[cfg(test)]
mod tests {
    use pleach_store::{ExampleCounts, NewLineage, StoredLineage};
    use serde_json::json;

    use super::*;

    fn provenance() -> Provenance {
        let digest = |byte| GenerationDigest([byte; 32]);
        let from = NewLineage {
            generation: digest(0xaa),
            base_sha256: "bb".repeat(32),
            parent: Some(digest(0xcc)),
            round: Some("round-1".to_owned()),
            job: Some("ftjob-1".to_owned()),
            data_sha256: Some("dd".repeat(32)),
            recipe: json!({"method": "kto", "hyperparameters": {"beta": 0.5, "n_epochs": "auto"}}),
            seed: u64::MAX,
        };
        let verdict = json!({
            "passed": true, "look": 2, "alpha": 0.05, "checks": [{
                "name": "kl", "passed": true, "value": 0.25, "bound": {"at_most": 0.5},
                "message": "near enough",
            }],
        });
        let lineage = StoredLineage {
            from,
            verdict: Some(verdict),
            created_ms: 1_700_000_000_000,
            is_kept: true,
        };
        let examples = Some(ExampleCounts { completions: 7, feedback: 9 });
        Provenance { lineage, ancestors: vec![digest(0xcc), digest(0xee)], examples }
    }

    #[test]
    fn a_card_tells_all_that_is_known() {
        let card = model_card("mia", "tiny: \"one\"", &provenance());
        let [aa, bb, cc, dd, ee] =
            ["aa", "bb", "cc", "dd", "ee"].map(|byte| format!("`{}`", byte.repeat(32)));
        for expected in [
            "---\nlibrary_name: peft\nbase_model: \"tiny: \\\"one\\\"\"\ntags:".to_owned(),
            "\n# mia\n".to_owned(),
            format!("| Generation | {aa} |"),
            format!("| SHA-256 of the base's file | {bb} |"),
            format!("| Went on from | {cc}, {ee} |"),
            "| Registered | 2023-11-14 22:13 UTC |".to_owned(),
            "| Job | `ftjob-1` |".to_owned(),
            "| Round | `round-1` |".to_owned(),
            format!("SHA-256 of all rows: {dd}."),
            "Made of 7 completions and 9 feedback.".to_owned(),
            format!("| seed | `{}` |", u64::MAX),
            "| method | `kto` |".to_owned(),
            "| hyperparameters.beta | `0.5` |".to_owned(),
            "| hyperparameters.n\\_epochs | `auto` |".to_owned(),
            "Passed at look 2".to_owned(),
            "| `kl` | yes | 0.25 | at most 0.5 | near enough |".to_owned(),
        ] {
            assert!(card.contains(&expected), "{expected:?} is not in\n{card}");
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut provenance = provenance();
        provenance.ancestors.clear();
        provenance.examples = None;
        let StoredLineage { from, verdict, .. } = &mut provenance.lineage;
        (from.round, from.job, from.data_sha256, *verdict) = (None, None, None, None);
        let card = model_card("mia", "tiny", &provenance);
        for expected in [
            "| Went on from | nothing: its first training |",
            "The digest of its rows is not known.",
            "Of what the file was made is not known.",
            "It was not judged.",
        ] {
            assert!(card.contains(expected), "{expected:?} is not in\n{card}");
        }
        assert!(!card.contains("Round") && !card.contains("| Job"), "{card}");
    }

    #[test]
    fn what_somebody_chose_is_text_and_nothing_else() {
        let mut provenance = provenance();
        provenance.lineage.from.recipe = json!({"a|b`": "`x` | y\n# z"});
        let card = model_card("x`|](http://x)\n# y <b>", "`|\n---\n", &provenance);
        assert!(card.contains("# x\\`\\|\\]\\(http://x\\) \\# y \\<b\\>\n"), "{card}");
        assert!(card.contains("| a\\|b\\` | `'x' ¦ y # z` |"), "{card}");
        assert!(card.contains("An adapter of `'¦ --- `, trained"), "{card}");
        assert_eq!(card.matches("\n---\n").count(), 1, "{card}");
    }
}
