//! Grafana: the dashboard and how it is provisioned.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    files::{list, parse, text},
    program, promql,
};

const DASHBOARD: &str = "deploy/grafana/dashboards/pleach.json";
const DATA_SOURCES: &str = "deploy/grafana/provisioning/datasources/prometheus.yml";
/// Columns of Grafana's grid.
const GRID_COLUMNS: u64 = 24;
/// What Grafana replaces in expressions, beside the dashboard's own variables.
const RATE_INTERVAL: &str = "__rate_interval";

/// What must be in sight, as parts of expressions.
const SHOWN: [&str; 16] = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_hits_total",
    "pleach_adapter_generations{",
    "pleach_adapter_bytes{",
    "pleach_adapter_loads_total",
    "pleach_adapter_evictions_total",
    "sum by (le, adapter) (rate(pleach_time_to_first_token_seconds_bucket",
    "pleach_tenant_requests_total",
    "pleach_tenant_tokens_total",
    "sum by (le, tenant) (rate(pleach_tenant_time_to_first_token_seconds_bucket",
    "pleach_tenant_refused_total",
    "pleach_request_errors_total",
    "status=\"429\"",
    "sum by (status) (rate(pleach_http_responses_total",
];
/// Shown as P50, P95 and P99.
const LATENCIES: [&str; 4] = [
    "pleach_time_to_first_token_seconds",
    "pleach_inter_token_latency_seconds",
    "pleach_e2e_latency_seconds",
    "pleach_queue_time_seconds",
];

fn panels(dashboard: &Value) -> impl Iterator<Item = (&str, &Value)> {
    list(&dashboard["panels"]).iter().map(|panel| (panel["title"].as_str().unwrap(), panel))
}

/// Title, expression and legend of every target.
fn expressions(dashboard: &Value) -> Vec<(&str, &str, &str)> {
    let targets = panels(dashboard).flat_map(|(title, panel)| {
        list(&panel["targets"]).iter().map(move |target| (title, target))
    });
    targets
        .map(|(title, target)| {
            (title, target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap())
        })
        .collect()
}

/// Names after `$` or in `{{…}}`.
fn names_after<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    let pieces = text.split(mark).skip(1);
    pieces.map(|piece| piece.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
}

#[tokio::test]
async fn panels_look_at_series_that_the_server_has() {
    let metrics = program::metrics().await;
    let dashboard = parse(DASHBOARD);
    let variables = list(&dashboard["templating"]["list"]);
    let mut names: BTreeSet<&str> =
        variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    names.insert(RATE_INTERVAL);
    for (title, expression, legend) in expressions(&dashboard) {
        let labels = promql::check(title, expression, &metrics);
        for label in names_after(legend, "{{") {
            assert!(labels.contains(label), "{title}: the result has no label {label}");
        }
        for name in names_after(expression, "$") {
            assert!(names.contains(name), "{title}: no variable ${name}");
        }
    }
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let query = variable["query"]["query"].as_str().unwrap();
        let inside = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (selector, label) = inside.rsplit_once(", ").unwrap();
        let series = promql::names(selector).selectors.remove(0).series;
        let (_, metric) = program::find(&metrics, &series).unwrap_or_else(|| panic!("no {series}"));
        assert!(label == "instance" || metric.labels.contains(label), "{query}");
    }
}

#[test]
fn what_an_operator_asks_for_is_in_sight() {
    let dashboard = parse(DASHBOARD);
    let expressions = expressions(&dashboard);
    for part in SHOWN {
        assert!(
            expressions.iter().any(|(_, expr, _)| expr.contains(part)),
            "no panel shows {part}"
        );
    }
    for latency in LATENCIES {
        for quantile in ["0.5", "0.95", "0.99"] {
            let begin =
                format!("histogram_quantile({quantile}, sum by (le) (rate({latency}_bucket");
            assert!(expressions.iter().any(|(_, expr, _)| expr.starts_with(&begin)), "{begin}");
        }
    }
}

#[test]
fn panels_have_places_of_their_own() {
    let dashboard = parse(DASHBOARD);
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for (title, panel) in panels(&dashboard) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is there twice");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(side("x") + side("w") <= GRID_COLUMNS, "{title}: beyond the grid");
        for cell in (side("x")..side("x") + side("w"))
            .flat_map(|x| (side("y")..side("y") + side("h")).map(move |y| (x, y)))
        {
            assert!(taken.insert(cell), "{title}: over another panel at {cell:?}");
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: no unit");
        }
    }
}

#[test]
fn the_data_source_is_the_one_that_the_dashboard_begins_with() {
    let source = &parse(DATA_SOURCES)["datasources"][0];
    let dashboard = parse(DASHBOARD);
    let variables = list(&dashboard["templating"]["list"]);
    let variable = variables.iter().find(|variable| variable["name"] == "datasource").unwrap();
    assert_eq!(variable["current"]["value"], source["uid"]);
    assert_eq!(variable["query"], source["type"]);
    let interval = parse("deploy/prometheus/prometheus.yml")["global"]["scrape_interval"].clone();
    assert_eq!(source["jsonData"]["timeInterval"], interval, "$__rate_interval would be wrong");
    let provider = &parse("deploy/grafana/provisioning/dashboards/pleach.yml")["providers"][0];
    let folder = provider["options"]["path"].as_str().unwrap();
    assert!(
        text("deploy/compose/compose.yaml").contains(&format!("../grafana/dashboards:{folder}:ro"))
    );
}
