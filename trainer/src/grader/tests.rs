//! Graders against what `OpenAI` says of them, and similarities against public implementations (rapidfuzz 3.14.6, nltk
//! 3.10.4 with its smoothing method 2, rouge-score 0.1.2).

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(grader: &Value) -> Result<Grader, GraderError> {
    Grader::read(grader, "grader")
}

fn check(operation: &str, input: &str, reference: &str) -> Value {
    json!({"type": "string_check", "name": "c", "operation": operation, "input": input, "reference": reference})
}

fn similarity(metric: &str) -> Value {
    json!({
        "type": "text_similarity", "name": "s", "evaluation_metric": metric,
        "input": "{{sample.output_text}}", "reference": "{{item.reference}}",
    })
}

fn row(item: &Value) -> Map<String, Value> {
    item.as_object().unwrap().clone()
}

#[test]
fn strings_are_checked_as_their_operation_says() {
    let item = row(&json!({"answer": "Paris"}));
    for (operation, output, reward) in [
        ("eq", "Paris", 1.0),
        ("eq", "paris", 0.0),
        ("eq", "Paris.", 0.0),
        ("ne", "Paris", 0.0),
        ("ne", "paris", 1.0),
        ("like", "It is Paris.", 1.0),
        ("like", "It is paris.", 0.0),
        ("ilike", "It is PARIS.", 1.0),
        ("ilike", "It is Lyon.", 0.0),
        ("like", "", 0.0),
    ] {
        let grader =
            read(&check(operation, "{{sample.output_text}}", "{{ item.answer }}")).unwrap();
        let found = grader.grade(&item, output);
        assert_eq!(found, Graded { reward, ..Graded::default() }, "{operation} {output:?}");
    }
}

#[test]
fn templates_are_filled_from_the_row_and_the_answer() {
    let item = row(&json!({
        "a": "x", "n": 3, "flag": true, "deep": {"list": [1, {"b": "y"}], "odd name": "z"},
    }));
    let output = r#"{"unit": "km", "values": [4, 5]}"#;
    for (template, expected) in [
        ("plain { text }", "plain { text }"),
        ("{{item.a}}-{{ item.n }}-{{item.flag}}", "x-3-true"),
        ("{{item.deep.list[1].b}}{{item.deep.list.1.b}}", "yy"),
        ("{{item.deep['odd name']}}{{item.deep[\"odd name\"]}}", "zz"),
        ("{{item.deep.list}}", r#"[1,{"b":"y"}]"#),
        ("<{{sample.output_text}}>", "<{\"unit\": \"km\", \"values\": [4, 5]}>"),
        ("{{sample.output_json.unit}} {{sample.output_json.values[1]}}", "km 5"),
        ("{{sample.output_json}}", r#"{"unit":"km","values":[4,5]}"#),
    ] {
        let grader = read(&check("eq", template, expected)).unwrap();
        let found = grader.grade(&item, output);
        assert_eq!(found, Graded { reward: 1.0, ..Graded::default() }, "{template}");
        assert_eq!(grader.missing_from(&item), None, "{template}");
    }
    let absent = read(&check("ne", "{{item.deep.none}}", "x")).unwrap();
    assert_eq!(absent.missing_from(&item).as_deref(), Some("item.deep.none"));
    let found = absent.grade(&item, "");
    assert_eq!((found.reward, found.missing.as_deref()), (0.0, Some("item.deep.none")));
    // What is asked of an answer may be absent: it is not the row's fault.
    let parsed = read(&check("ne", "{{sample.output_json.unit}}", "x")).unwrap();
    assert_eq!(parsed.missing_from(&item), None);
    for output in ["no JSON", "[1]", "{}"] {
        let found = parsed.grade(&item, output);
        assert!(found.is_unparsed && found.reward == 0.0, "{output}: {found:?}");
    }
}

/// Input, reference, `fuzzy_match`, `bleu`, `gleu`, `rouge_1`, `rouge_2`, `rouge_3`, `rouge_l`.
type Alike = (&'static str, &'static str, [f64; 7]);

#[test]
fn similarities_are_those_of_public_implementations() {
    let cases: [Alike; 7] = [
        (
            "the cat sat on the mat",
            "the cat is on the mat",
            [0.930_233, 0.485_492, 0.5, 0.833_333, 0.6, 0.25, 0.833_333],
        ),
        (
            "The quick brown fox, jumps over it.",
            "the quick brown dog jumps over the lazy fox",
            [0.743_59, 0.239_803, 0.233_333, 0.75, 0.428_571, 0.166_667, 0.625],
        ),
        (
            "Paris is the capital of France.",
            "The capital of France is Paris, of course.",
            [0.575_342, 0.257_703, 0.264_706, 0.857_143, 0.5, 0.4, 0.571_429],
        ),
        ("yes", "no", [0.0; 7]),
        ("a b c d e f g", "a b c d e f g", [1.0; 7]),
        // nltk takes an n-gram that cannot be there for a half; then equal short texts would not be equal.
        ("42 km", "42 kilometres", [0.555_556, 0.5f64.sqrt(), 1.0 / 3.0, 0.5, 0.0, 0.0, 0.5]),
        ("yes", "yes", [1.0; 7]),
    ];
    let names = ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_l"];
    for (input, reference, expected) in cases {
        for (name, expected) in names.into_iter().zip(expected) {
            let item = row(&json!({"reference": reference}));
            let found = read(&similarity(name)).unwrap().grade(&item, input);
            assert!(
                (found.reward - expected).abs() < 1e-6,
                "{name} {input:?}: {found:?}, not {expected}"
            );
        }
    }
    let item = row(&json!({"reference": ""}));
    for metric in Metric::ALL {
        let grader = read(&similarity(metric.name())).unwrap();
        let (equal, nothing) = (grader.grade(&item, ""), grader.grade(&item, "word"));
        let found = [equal.reward.to_bits(), nothing.reward.to_bits()];
        assert_eq!(found, [1f64.to_bits(), 0], "{metric:?}");
        assert!(grader.grade(&item, &"word ".repeat(4000)).is_truncated, "{metric:?}");
    }
}

fn multi(formula: &str) -> Value {
    json!({
        "type": "multi", "name": "m", "calculate_output": formula,
        "graders": {
            "right": check("eq", "{{sample.output_text}}", "{{item.reference}}"),
            "near": similarity("fuzzy_match"),
        },
    })
}

#[test]
#[expect(clippy::suboptimal_flops, reason = "as the formula has it")]
fn formulas_are_computed_as_they_are_written() {
    let item = row(&json!({"reference": "abcd"}));
    // Two of three and of four characters are the same.
    let near = 4.0 / 7.0;
    for (formula, expected) in [
        ("right", 0.0),
        ("near", near),
        ("0.25 * right + 0.75*near", 0.75 * near),
        ("1 - 2 - 3", -4.0),
        ("8 / 4 / 2 + 2 * 3 ^ 2 ^ 0.5", 1.0 + 2.0 * 3f64.powf(2f64.sqrt())),
        ("-2 ^ 2", -4.0),
        ("2 ^ -1", 0.5),
        ("(1 + 2) * -(3)", -9.0),
        ("max(right, near, .1) - min(1, near)", 0.0),
        ("abs(-3) + floor(1.7) + ceil(1.2)", 6.0),
        ("exp(0) + sqrt(9) + log(1) + 1e-1 + 2E+1", 24.1),
    ] {
        let found = read(&multi(formula)).unwrap().grade(&item, "abx");
        assert!((found.reward - expected).abs() < 1e-12, "{formula}: {found:?}, not {expected}");
        let parts = [("right".to_owned(), 0.0), ("near".to_owned(), near)];
        assert_eq!(found.sub_rewards, parts, "{formula}");
    }
    for formula in ["1 / right", "log(right)", "sqrt(-1)", "max(right, log(-1))", "exp(1000)"] {
        let found = read(&multi(formula)).unwrap().grade(&item, "abx");
        assert!(found.is_not_finite && found.reward == 0.0, "{formula}: {found:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_its_place() {
    let with = |grader: Value, name: &str, value: Value| {
        let mut grader = grader;
        grader[name] = value;
        grader
    };
    let plain = || check("eq", "a", "b");
    for (grader, place) in [
        (json!(3), "grader"),
        (json!({}), "grader.type"),
        (with(plain(), "type", json!("magic")), "grader.type"),
        (with(plain(), "name", json!(null)), "grader.name"),
        (with(plain(), "operation", json!("equals")), "grader.operation"),
        (with(plain(), "input", json!(1)), "grader.input"),
        (with(plain(), "input", json!("{{item.a")), "grader.input"),
        (with(plain(), "input", json!("{{item}}")), "grader.input"),
        (with(plain(), "input", json!("{{other.a}}")), "grader.input"),
        (with(plain(), "input", json!("{{item.a b}}")), "grader.input"),
        (with(plain(), "input", json!("{{}}")), "grader.input"),
        (with(plain(), "reference", json!("{{sample.output_tools}}")), "grader.reference"),
        (with(plain(), "reference", json!("{{sample.output_text.x}}")), "grader.reference"),
        (with(plain(), "pass_threshold", json!(1)), "grader.pass_threshold"),
        (with(plain(), "input", json!("x".repeat(70_000))), "grader.input"),
        (similarity("levenshtein"), "grader.evaluation_metric"),
        (multi("right +"), "grader.calculate_output"),
        (multi("wrong"), "grader.calculate_output"),
        (multi("sin(right)"), "grader.calculate_output"),
        (multi("abs(right, near)"), "grader.calculate_output"),
        (multi("min()"), "grader.calculate_output"),
        (multi("right near"), "grader.calculate_output"),
        (multi("(right"), "grader.calculate_output"),
        (multi("1..2"), "grader.calculate_output"),
        (multi(&"(".repeat(100_000)[..60_000]), "grader.calculate_output"),
        (multi(&"-".repeat(60_000)), "grader.calculate_output"),
        (with(multi("1"), "graders", json!({})), "grader.graders"),
        (with(multi("1"), "graders", json!({"a b": plain()})), "grader.graders.a b"),
        (with(multi("1"), "graders", json!({"a": multi("1")})), "grader.graders.a.type"),
        (
            with(multi("1"), "graders", json!({"a": {"type": "string_check"}})),
            "grader.graders.a.operation",
        ),
    ] {
        match read(&grader) {
            Err(GraderError::Invalid { place: found, reason }) => {
                assert_eq!(found, place, "{reason}");
            }
            other => panic!("{grader}: {other:?}"),
        }
    }
    for (grader, place) in [
        (json!({"type": "python", "name": "p", "source": "…"}), "grader.type"),
        (json!({"type": "score_model", "name": "p", "model": "m", "input": []}), "grader.type"),
        (json!({"type": "label_model", "name": "p"}), "grader.type"),
        (similarity("meteor"), "grader.evaluation_metric"),
        (similarity("cosine"), "grader.evaluation_metric"),
    ] {
        let refused = read(&grader).unwrap_err();
        let is_unsupported =
            matches!(&refused, GraderError::Unsupported { place: found, .. } if found == place);
        assert!(is_unsupported, "{refused:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_and_any_answer_has_a_finite_reward(
        formula in "[-+*/^(), a-z0-9.]{0,24}",
        template in "(\\{\\{|\\}\\}|item|sample|output_json|[.\\[\\]' a0])*",
        output in ".{0,40}",
        reference in ".{0,40}",
    ) {
        let item = row(&json!({"reference": reference, "a": [0, {"a": 1}]}));
        let mut both = multi(&formula);
        both["graders"]["near"]["input"] = json!(template);
        for grader in [read(&both), read(&multi(&formula)), read(&check("ilike", &template, &output))] {
            let Ok(grader) = grader else { continue };
            prop_assert!(grader.grade(&item, &output).reward.is_finite());
        }
    }

    #[test]
    fn likeness_is_between_none_and_equality(input in "[ab c.]{0,30}", reference in "[ab c.]{0,30}") {
        for metric in Metric::ALL {
            let (value, _) = metric.of(&input, &reference);
            prop_assert!((0.0..=1.0 + 1e-12).contains(&value), "{metric:?}: {value}");
            let (same, _) = metric.of(&input, &input);
            prop_assert!((same - 1.0).abs() < 1e-12, "{metric:?}: {same}");
        }
    }
}
