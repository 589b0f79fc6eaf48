//! Keeps `deploy/` honest without a container runtime: every file parses, and the metrics, labels, flags, variables,
//! routes and paths in them are those of the program and of the tree.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[allow(dead_code, reason = "the scripted server of the HTTP tests; a part of it is used here")]
#[path = "../http_api/support.rs"]
mod support;
#[allow(dead_code, reason = "as above")]
#[path = "../http_api/tenant_support.rs"]
mod tenant_support;

mod files;
mod program;

mod alerts;
mod compose;
mod containers;
mod dashboard;
mod kubernetes;
mod promql;
mod systemd;
