//! Prometheus: what it scrapes, and its alerts.

use std::{collections::BTreeSet, process::Command};

use crate::{
    files::{list, parse, path, strings},
    program, promql,
};

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const CONFIG: &str = "deploy/prometheus/prometheus.yml";
const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

/// Labels that a template of an annotation looks at.
fn template_labels(template: &str) -> Vec<&str> {
    let pieces = template.split("$labels.").skip(1);
    pieces
        .map(|piece| piece.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
        .collect()
}

#[tokio::test]
async fn alerts_look_at_series_that_the_server_has() {
    let metrics = program::metrics().await;
    let alerts = parse(ALERTS);
    let mut seen = BTreeSet::new();
    for rule in list(&alerts["groups"]).iter().flat_map(|group| list(&group["rules"])) {
        let name = rule["alert"].as_str().unwrap();
        assert!(seen.insert(name.to_owned()), "{name} is there twice");
        let labels = promql::check(name, rule["expr"].as_str().unwrap(), &metrics);
        assert!(rule["for"].is_string(), "{name}: one bad scrape must not fire");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(SEVERITIES.contains(&severity), "{name}: {severity}");
        let annotations = strings(&rule["annotations"]);
        let keys: Vec<_> = annotations.iter().map(|&(key, _)| key).collect();
        assert_eq!(keys, ["summary", "description"], "{name}");
        for (_, text) in &annotations {
            program::check_serve_flags(name, text);
        }
        for label in annotations.iter().flat_map(|&(_, text)| template_labels(text)) {
            assert!(labels.contains(label), "{name}: the result has no label {label}");
        }
    }
    for name in ["PleachDown", "PleachStuck", "PleachBusy", "PleachTenantRefused"] {
        assert!(seen.contains(name), "no alert {name}");
    }
}

#[tokio::test]
async fn prometheus_scrapes_the_server_under_the_job_of_the_alerts() {
    let config = parse(CONFIG);
    for file in list(&config["rule_files"]) {
        let file = format!("deploy/prometheus/{}", file.as_str().unwrap());
        assert!(path(&file).is_file(), "{file}");
    }
    let jobs = list(&config["scrape_configs"]);
    let server = jobs.iter().find(|job| job["job_name"] == "pleach").expect("a job pleach");
    assert_eq!(server["static_configs"][0]["targets"][0], "pleach:8000");
    assert!(server["metrics_path"].is_null(), "else look at it here");
    program::check_open_route(CONFIG, "/metrics").await;
}

/// Prometheus' own word, where its tool is installed.
#[test]
fn promtool_takes_the_files_and_the_alerts_fire_as_they_should() {
    for arguments in [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]] {
        let mut promtool = Command::new("promtool");
        let output = match promtool.args(arguments).current_dir(path("deploy/prometheus")).output()
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: no promtool");
                return;
            }
            output => output.unwrap(),
        };
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
        assert!(output.status.success(), "{arguments:?}: {}", said.concat());
    }
}
