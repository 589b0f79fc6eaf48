//! The names in a `PromQL` expression: enough to see that they exist. `promtool` checks the rest where it is at hand.

use std::collections::BTreeSet;

use crate::program::{Metrics, find};

/// Labels that Prometheus adds when it scrapes.
const SCRAPE_LABELS: [&str; 2] = ["instance", "job"];
/// Series that Prometheus makes.
const SCRAPE_SERIES: [&str; 1] = ["up"];
const RATES: [&str; 2] = ["rate", "increase"];
const LABEL_LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

/// A series in an expression.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Selector {
    pub(crate) series: String,
    /// Labels in its braces.
    pub(crate) labels: Vec<String>,
    /// The function whose parentheses are right around it, or nothing.
    pub(crate) function: String,
}

/// The names in an expression.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) selectors: Vec<Selector>,
    /// Labels after `by`, `on` and their like.
    pub(crate) grouping: Vec<String>,
}

/// Cuts an expression into names and single characters; strings and ranges (`[5m]`) are left out.
fn tokens(expression: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut tokens = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => rest[1..].find('"').expect("the string ends") + 2,
            '[' => rest.find(']').expect("the range ends") + 1,
            _ if is_name(first) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        if !matches!(first, '"' | '[') {
            tokens.push(&rest[..length]);
        }
        rest = rest[length..].trim_start();
    }
    tokens
}

/// The names in a list such as `(le, adapter)` or `{path=,status=~}`; the number of tokens that it took.
fn list(tokens: &[&str], end: &str) -> (Vec<String>, usize) {
    let length = tokens.iter().position(|&token| token == end).expect("the list ends") + 1;
    let names = tokens[..length].iter().filter(|token| token.starts_with(char::is_alphabetic));
    (names.map(|&name| name.to_owned()).collect(), length)
}

pub(crate) fn names(expression: &str) -> Names {
    let tokens = tokens(expression);
    let mut names = Names::default();
    let mut functions = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let next = tokens.get(at + 1).copied().unwrap_or_default();
        let token = tokens[at];
        at += 1;
        match token {
            "(" => functions.push(""),
            ")" => drop(functions.pop()),
            _ if !token.starts_with(char::is_alphabetic) || OPERATORS.contains(&token) => {}
            _ if LABEL_LISTS.contains(&token) => {
                let (labels, length) = list(&tokens[at..], ")");
                names.grouping.extend(labels);
                at += length;
            }
            // A function, or an aggregation whose labels come first.
            _ if next == "(" || LABEL_LISTS.contains(&next) => {
                if next == "(" {
                    functions.push(token);
                    at += 1;
                }
            }
            _ => {
                let (labels, length) =
                    if next == "{" { list(&tokens[at..], "}") } else { (Vec::new(), 0) };
                let function = functions.last().copied().unwrap_or_default();
                names.selectors.push(Selector {
                    series: token.to_owned(),
                    labels,
                    function: function.to_owned(),
                });
                at += length;
            }
        }
    }
    names
}

/// Fails unless every series and label of the expression exists, counters are looked at by rate, and gauges are not.
/// Returns the labels that the result can have.
pub(crate) fn check(place: &str, expression: &str, metrics: &Metrics) -> BTreeSet<String> {
    let names = names(expression);
    assert!(!names.selectors.is_empty(), "{place}: no series in {expression}");
    let mut all: BTreeSet<String> = SCRAPE_LABELS.map(str::to_owned).into();
    for Selector { series, labels, function } in &names.selectors {
        if SCRAPE_SERIES.contains(&series.as_str()) {
            continue;
        }
        let (_, metric) =
            find(metrics, series).unwrap_or_else(|| panic!("{place}: no metric {series}"));
        let has = |label: &String| {
            metric.labels.contains(label)
                || SCRAPE_LABELS.contains(&label.as_str())
                || (label == "le" && series.ends_with("_bucket"))
        };
        for label in labels {
            assert!(has(label), "{place}: {series} has no label {label}");
        }
        let is_rate = RATES.contains(&function.as_str());
        assert_eq!(
            is_rate,
            metric.kind != "gauge",
            "{place}: {function}({series}), a {}",
            metric.kind
        );
        all.extend(metric.labels.iter().cloned());
        if series.ends_with("_bucket") {
            all.insert("le".to_owned());
        }
    }
    for label in &names.grouping {
        assert!(all.contains(label), "{place}: nothing in {expression} has the label {label}");
    }
    if names.grouping.is_empty() { all } else { names.grouping.into_iter().collect() }
}

#[test]
fn names_of_expressions() {
    let selector = |series: &str, labels: &[&str], function: &str| Selector {
        series: series.to_owned(),
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        function: function.to_owned(),
    };
    let quantile = names(
        r#"histogram_quantile(0.99, sum by (le, tenant) (rate(a_bucket{x=~"b{c}", y="d"}[5m]))) > 5"#,
    );
    assert_eq!(quantile.selectors, [selector("a_bucket", &["x", "y"], "rate")]);
    assert_eq!(quantile.grouping, ["le", "tenant"]);
    let both = names("vllm:a > 0 and on (instance) rate(b_total[5m]) == 0 or min_over_time(c[1m])");
    let expected = [
        selector("vllm:a", &[], ""),
        selector("b_total", &[], "rate"),
        selector("c", &[], "min_over_time"),
    ];
    assert_eq!(both.selectors, expected);
    assert_eq!(both.grouping, ["instance"]);
    let sum = names("(sum(rate(a{b=\"c\"}[1m])) or vector(0)) / sum(d)");
    assert_eq!(sum.selectors, [selector("a", &["b"], "rate"), selector("d", &[], "sum")]);
}
