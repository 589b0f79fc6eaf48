//! The compose files.

use serde_json::Value;

use crate::files::{env_names, list, parse, path, strings, text};

const COMPOSE: &str = "deploy/compose/compose.yaml";
const CUDA: &str = "deploy/compose/cuda.yaml";
const FOLDER: &str = "deploy/compose";

fn services(compose: &Value) -> impl Iterator<Item = (&String, &Value)> {
    compose["services"].as_object().unwrap().iter()
}

/// `30s` or `1m` in seconds.
pub(crate) fn seconds(duration: &str) -> u64 {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let scale = match unit {
        "s" => 1,
        "m" => 60,
        _ => panic!("{duration}"),
    };
    number.parse::<u64>().unwrap() * scale
}

#[test]
fn every_variable_that_is_asked_for_is_in_the_example() {
    let compose = text(COMPOSE);
    let mut asked: Vec<&str> =
        compose.split("${").skip(1).map(|piece| piece.split([':', '}']).next().unwrap()).collect();
    asked.sort_unstable();
    asked.dedup();
    let mut named = env_names("deploy/compose/example.env");
    named.sort();
    assert_eq!(asked, named);
    for name in ["PLEACH_API_KEY", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD"] {
        assert!(compose.contains(&format!("${{{name}:?")), "{name} must not be empty");
    }
}

#[test]
fn what_is_mounted_and_built_is_in_the_tree() {
    for file in [COMPOSE, CUDA] {
        let compose = parse(file);
        let volumes = compose["volumes"].as_object();
        for (name, service) in services(&compose) {
            for volume in list(&service["volumes"]) {
                let source = volume.as_str().unwrap().split(':').next().unwrap();
                if source.starts_with("..") {
                    assert!(path(FOLDER).join(source).exists(), "{name}: {source}");
                } else if !source.starts_with('$') {
                    assert!(volumes.unwrap().contains_key(source), "{name}: {source}");
                }
            }
            if let Some(dockerfile) = service["build"]["dockerfile"].as_str() {
                assert!(path(dockerfile).is_file(), "{name}: {dockerfile}");
            }
            for network in list(&service["networks"]) {
                let networks = compose["networks"].as_object().unwrap();
                assert!(networks.contains_key(network.as_str().unwrap()), "{name}: {network}");
            }
        }
    }
    assert!(path(FOLDER).join("../../Cargo.toml").is_file(), "the build's context");
    assert_eq!(parse(COMPOSE)["services"]["pleach"]["build"]["context"], "../..");
}

#[test]
fn only_this_machine_gets_in_and_images_are_pinned() {
    let compose = parse(COMPOSE);
    for (name, service) in services(&compose) {
        for port in list(&service["ports"]) {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
        let image = service["image"].as_str().unwrap();
        let (_, tag) = image.split_once(':').unwrap_or_else(|| panic!("{name}: {image}"));
        assert!(tag != "latest", "{name}: {image}");
        let options = list(&service["security_opt"]);
        assert!(options.iter().any(|option| option == "no-new-privileges:true"), "{name}");
    }
    for name in ["database", "metrics"] {
        assert_eq!(compose["networks"][name]["internal"], true, "{name}");
    }
}

#[test]
fn the_server_is_locked_in_and_has_time_to_stop() {
    let compose = parse(COMPOSE);
    let server = &compose["services"]["pleach"];
    assert_eq!(server["read_only"], true);
    assert_eq!(server["cap_drop"][0], "ALL");
    assert_eq!(server["depends_on"]["postgres"]["condition"], "service_healthy");
    let grace = server["environment"]["PLEACH_SHUTDOWN_GRACE"].as_u64().unwrap();
    assert!(seconds(server["stop_grace_period"].as_str().unwrap()) > grace);
    let root = server["environment"]["PLEACH_ADAPTER_ROOT"].as_str().unwrap();
    let mounts = list(&server["volumes"]);
    let is_root = |mount: &Value| mount.as_str().unwrap().ends_with(&format!(":{root}:ro"));
    assert!(mounts.iter().any(is_root), "{root} is not mounted");
    let database = server["environment"]["PLEACH_DATABASE"].as_str().unwrap();
    let postgres = strings(&compose["services"]["postgres"]["environment"]);
    let of = |key| postgres.iter().find(|(name, _)| *name == key).unwrap().1;
    let begin = format!("postgres://{}:", of("POSTGRES_USER"));
    let end = format!("@postgres/{}", of("POSTGRES_DB"));
    assert!(database.starts_with(&begin) && database.ends_with(&end), "{database}");
}

#[test]
fn services_are_called_what_the_others_call_them() {
    let compose = parse(COMPOSE);
    let names: Vec<_> = services(&compose).map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["pleach", "postgres", "prometheus", "grafana"]);
    let source = parse("deploy/grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(source["datasources"][0]["url"], "http://prometheus:9090");
    // Each pair shares a network.
    for (one, other) in
        [("pleach", "postgres"), ("pleach", "prometheus"), ("grafana", "prometheus")]
    {
        let networks = |name: &str| list(&compose["services"][name]["networks"]).to_vec();
        assert!(
            networks(one).iter().any(|network| networks(other).contains(network)),
            "{one}, {other}"
        );
    }
}

#[test]
fn the_gpu_lies_over_a_service_that_is_there() {
    let (compose, cuda) = (parse(COMPOSE), parse(CUDA));
    for (name, service) in services(&cuda) {
        assert!(compose["services"][name].is_object(), "{name}");
        assert_eq!(service["environment"]["PLEACH_DEVICE"], "cuda:0");
        let device = &service["deploy"]["resources"]["reservations"]["devices"][0];
        assert_eq!(device["capabilities"][0], "gpu", "{name}");
    }
}
