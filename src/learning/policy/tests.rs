use serde_json::json;

use super::*;

fn read(document: &Value) -> Result<Policy, PolicyProblem> {
    Policy::read(document.as_object().unwrap())
}

#[test]
fn all_has_defaults_that_are_right_and_are_written_as_they_are_read() {
    let policy = read(&json!({})).unwrap();
    assert_eq!(policy, Policy::default());
    let written = serde_json::to_value(&policy).unwrap();
    assert_eq!(read(&written).unwrap(), policy);
    assert_eq!(written["signals"]["metrics"]["liked"], json!({"good": true}));
    assert_eq!(written["hyperparameters"]["n_epochs"], "auto");
}

#[test]
fn fields_at_fault_are_named() {
    for (document, field) in [
        (json!({"is_onn": true}), "is_onn"),
        (json!({"method": "sft"}), "method"),
        (json!({"method": "reinforcement"}), "method"),
        (json!({"hyperparameters": {"eval_samples": 3}}), "hyperparameters.eval_samples"),
        (json!({"train_when": {"examples": "many"}}), "train_when.examples"),
        (json!({"train_when": {"exampels": 3}}), "train_when.exampels"),
        (json!({"train_when": {"age_hours": -1.0}}), "train_when.age_hours"),
        (json!({"user_share_max": 0.0}), "user_share_max"),
        (json!({"folds": 1}), "folds"),
        (json!({"gate": {"alpha": 0.0}}), "gate.alpha"),
        (json!({"gate": {"margn": 0.0}}), "gate.margn"),
        (json!({"rollout": {"shadow": {"share": 0.1}}}), "rollout.shadow"),
        (json!({"rollout": {"shadow": {"share": 0, "requests": 9}}}), "rollout.shadow.share"),
        (json!({"rollout": {"shadow": {"share": 1, "requests": 0}}}), "rollout.shadow.requests"),
        (json!({"probes": []}), "probes"),
        (json!({"probes": ["", "x"]}), "probes[0]"),
        (json!({"rollout": {"canary": [{"share": 0.1}]}}), "rollout.canary"),
        (
            json!({"rollout": {"canary": [
                {"share": 0.5, "requests": 1}, {"share": 0.1, "requests": 1}
            ]}}),
            "rollout.canary[1].share",
        ),
        (
            json!({"rollout": {"guardrails": {"latency_ratio_max": 0.5}}}),
            "rollout.guardrails.latency_ratio_max",
        ),
        (json!({"signals": {"metrics": {"liked": {}}}}), "signals.metrics.liked"),
        (
            json!({"signals": {"metrics": {"score": {"good_from": 1.0, "bad_to": 2.0}}}}),
            "signals.metrics.score",
        ),
        (json!({"signals": {"metrics": {"a b": {"good": true}}}}), "signals.metrics.a b"),
        (
            json!({"signals": {"metrics": {"n".repeat(129): {"good": true}}}}),
            format!("signals.metrics.{}…", "n".repeat(64)).as_str(),
        ),
        (json!({"x".repeat(1 << 20): 1}), format!("{}…", "x".repeat(64)).as_str()),
        // Each question is short enough, and so are all of them, but not as they are written.
        (json!({"probes": vec!["\u{1}".repeat(4000); 64]}), "probes"),
        (json!({"hyperparameters": {"n_epochs": "some"}}), "hyperparameters.n_epochs"),
        (json!({"hyperparameters": {"n_epochs": 51}}), "hyperparameters.n_epochs"),
        (json!({"hyperparameters": {"batch_size": 0}}), "hyperparameters.batch_size"),
        (json!({"hyperparameters": {"lora_rank": 257}}), "hyperparameters.lora_rank"),
        (json!({"hyperparameters": {"beta": 0.0}}), "hyperparameters.beta"),
        (
            json!({"hyperparameters": {"learning_rate_multiplier": -1.0}}),
            "hyperparameters.learning_rate_multiplier",
        ),
    ] {
        let problem = read(&document).unwrap_err();
        assert_eq!(problem.field, field, "{document}: {problem}");
    }
}

#[test]
fn values_of_a_metric_are_good_bad_or_nothing() {
    let policy = Policy::default();
    let judge = |metric: &str, value: Value| policy.signals.metrics[metric].judge(&value);
    assert_eq!(judge("liked", json!(true)), Some(true));
    assert_eq!(judge("liked", json!(false)), Some(false));
    assert_eq!(judge("liked", json!(1.0)), None);
    assert_eq!(judge("score", json!(4.0)), Some(true));
    assert_eq!(judge("score", json!(3)), None);
    assert_eq!(judge("score", json!(2)), Some(false));
    assert_eq!(judge("score", json!(true)), None);
}
