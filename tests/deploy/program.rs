//! What the program has: flags, variables, routes and metrics. Asked of the program itself, not copied.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory as _;
use pleach::cli::Cli;
use pleach_store::Quotas;
use serde_json::json;

use crate::{
    files,
    support::{Setup, ids, serve},
    tenant_support::tenant,
};

/// Sources of variables that are no flags of `pleach serve`.
const OTHER_VARIABLES: [(&str, &str); 2] =
    [("PLEACH_HOME", "src/models/store.rs"), ("PLEACH_CUDA", "engine/build.rs")];

/// A metric as `/metrics` has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub(crate) kind: String,
    pub(crate) labels: BTreeSet<String>,
}

pub(crate) type Metrics = BTreeMap<String, Metric>;

/// The metrics of a scripted server that was used in every way that makes series.
pub(crate) async fn metrics() -> Metrics {
    let server = serve(Setup { tokens: ids("hello"), ..Setup::default() }).await;
    server.chat(json!({"model": "pirate"})).await;
    server.chat(json!({"model": "nobody"})).await;
    // From now on a request needs a key.
    let quotas = Quotas { requests_per_minute: Some(1), ..Quotas::default() };
    let tenant = tenant(&server, "acme", quotas).await;
    assert_eq!(tenant.chat(&server, json!({})).await.status, 200);
    assert_eq!(tenant.chat(&server, json!({})).await.status, 429);
    server.idle().await;
    let text = server.get("/metrics").await.text;
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            let labels = BTreeSet::new();
            metrics.insert(name.to_owned(), Metric { kind: kind.to_owned(), labels });
        } else if let Some((series, labels)) =
            line.split_once('{').filter(|_| !line.starts_with('#'))
        {
            let (name, _) = find(&metrics, series).unwrap_or_else(|| panic!("{line}"));
            let name = name.to_owned();
            let pairs = labels.rsplit_once('}').unwrap().0.split("\",");
            let labels = pairs.map(|pair| pair.split_once('=').unwrap().0.to_owned());
            metrics.get_mut(&name).unwrap().labels.extend(labels);
        }
    }
    metrics
}

/// The metric that a series is of, and its name: `x_bucket`, `x_sum` and `x_count` are of the histogram `x`.
pub(crate) fn find<'a>(metrics: &'a Metrics, series: &str) -> Option<(&'a str, &'a Metric)> {
    let get = |name| metrics.get_key_value(name).map(|(name, metric)| (name.as_str(), metric));
    if let Some((name, metric)) = get(series) {
        return Some((name, metric)).filter(|_| metric.kind != "histogram");
    }
    let ends = ["_bucket", "_sum", "_count"];
    let name = ends.iter().find_map(|end| series.strip_suffix(end))?;
    get(name).filter(|(_, metric)| metric.kind == "histogram")
}

fn serve_help() -> String {
    let mut command = Cli::command();
    // Global flags arrive with it.
    command.build();
    command.find_subcommand_mut("serve").unwrap().render_long_help().to_string()
}

/// The words of `text` that begin with `prefix`, which is part of them.
fn words<'a>(text: &'a str, prefix: &'a str, is_part: fn(char) -> bool) -> Vec<&'a str> {
    text.match_indices(prefix)
        .filter(|&(at, _)| !text[..at].ends_with(is_part))
        .map(|(at, _)| {
            let word = &text[at..];
            let end = word[prefix.len()..]
                .find(|c| !is_part(c))
                .map_or(word.len(), |end| end + prefix.len());
            &word[..end]
        })
        .collect()
}

pub(crate) fn variables(text: &str) -> Vec<&str> {
    words(text, "PLEACH_", |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

fn flags(text: &str) -> Vec<&str> {
    words(text, "--", |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Fails unless each is a flag of `pleach serve`.
pub(crate) fn check_serve_flags(place: &str, command: &str) {
    let help = serve_help();
    let known = flags(&help);
    for flag in flags(command) {
        assert!(known.contains(&flag), "{place}: `pleach serve` has no {flag}");
    }
}

/// Fails unless an orchestrator gets 200 from `route` without a key, of a server that has one.
pub(crate) async fn check_open_route(place: &str, route: &str) {
    let server = serve(Setup { api_key: Some("secret"), ..Setup::default() }).await;
    let reply = server.get(route).await;
    assert_eq!(reply.status, 200, "{place}: GET {route}: {}", reply.text);
}

#[test]
fn every_variable_is_one_of_the_program() {
    let help = serve_help();
    let mut known: BTreeSet<&str> = variables(&help).into_iter().collect();
    for (name, source) in OTHER_VARIABLES {
        assert!(files::text(source).contains(&format!("\"{name}\"")), "{name} is not in {source}");
        known.insert(name);
    }
    assert!(known.contains("PLEACH_KV_MEMORY") && known.contains("PLEACH_LOG"), "{known:?}");
    let mut places = files::deployed();
    places.push("docs/guides/deploy.md".to_owned());
    for place in places {
        for name in variables(&files::text(&place)) {
            assert!(known.contains(name), "{place}: nothing reads {name}");
        }
    }
}

#[test]
fn commands_of_the_guide_have_flags_that_exist() {
    let guide = files::text("docs/guides/deploy.md");
    for line in guide.lines().filter(|line| line.contains("pleach serve")) {
        let (_, command) = line.split_once("pleach serve").unwrap();
        check_serve_flags("docs/guides/deploy.md", command);
    }
    let named = guide.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    for flag in named.filter(|code| code.starts_with("--")) {
        check_serve_flags("docs/guides/deploy.md", flag);
    }
}

#[tokio::test]
async fn metrics_are_read_as_the_server_writes_them() {
    let metrics = metrics().await;
    let kind = |series: &str| find(&metrics, series).map(|(_, metric)| metric.kind.as_str());
    assert_eq!(kind("vllm:num_requests_running"), Some("gauge"));
    assert_eq!(kind("pleach_request_errors_total"), Some("counter"));
    assert_eq!(kind("pleach_time_to_first_token_seconds_bucket"), Some("histogram"));
    assert_eq!(kind("pleach_time_to_first_token_seconds"), None, "a histogram has no such series");
    assert_eq!(kind("pleach_steps_total_count"), None);
    let labels = &metrics["pleach_http_responses_total"].labels;
    assert!(labels.contains("path") && labels.contains("status"), "{labels:?}");
}
