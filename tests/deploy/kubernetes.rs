//! The Kubernetes manifests.

use serde_json::Value;

use crate::{
    containers,
    files::{deployed, list, parse, path, text},
    program,
};

const BASE: &str = "deploy/kubernetes/base";
const CUDA: &str = "deploy/kubernetes/cuda";
const MONITOR: &str = "deploy/kubernetes/service-monitor";
const LABEL: &str = "app.kubernetes.io/name";

fn manifest(folder: &str, file: &str) -> Value {
    parse(&format!("{folder}/{file}.yaml"))
}

fn pod() -> Value {
    manifest(BASE, "stateful-set")["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    let pod = pod();
    assert_eq!(list(&pod["containers"]).len(), 1);
    pod["containers"][0].clone()
}

/// The element of a list whose `name` it is.
fn named<'a>(values: &'a Value, name: &str) -> &'a Value {
    let mut values = list(values).iter();
    values.find(|value| value["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn kustomizations_name_all_files_and_no_others() {
    for (folder, own) in [(BASE, vec![]), (CUDA, vec!["../base"]), (MONITOR, vec![])] {
        let kustomization = manifest(folder, "kustomization");
        let mut named: Vec<String> = list(&kustomization["resources"])
            .iter()
            .chain(list(&kustomization["patches"]).iter().map(|patch| &patch["path"]))
            .chain(
                list(&kustomization["configMapGenerator"]).iter().flat_map(|g| list(&g["files"])),
            )
            .map(|file| file.as_str().unwrap().to_owned())
            .collect();
        named.push("kustomization.yaml".to_owned());
        named.retain(|file| !own.contains(&file.as_str()));
        named.sort();
        let begin = format!("{folder}/");
        let files =
            deployed().into_iter().filter_map(|file| Some(file.strip_prefix(&begin)?.to_owned()));
        assert_eq!(named, files.collect::<Vec<_>>(), "{folder}");
    }
    assert!(path(&format!("{CUDA}/../base/kustomization.yaml")).is_file());
}

#[tokio::test]
async fn probes_ask_routes_that_need_no_key() {
    let container = container();
    for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &container[name]["httpGet"];
        program::check_open_route(name, get["path"].as_str().unwrap()).await;
        named(&container["ports"], get["port"].as_str().unwrap());
    }
    let patience = |name: &str| {
        let of = |field: &str| container[name][field].as_u64().unwrap();
        of("periodSeconds") * of("failureThreshold")
    };
    assert!(patience("startupProbe") >= 600, "the first start fetches the model");
    assert!(
        patience("readinessProbe") < patience("livenessProbe"),
        "restarting is the last resort"
    );
    let monitor = manifest(MONITOR, "service-monitor");
    let endpoint = &monitor["spec"]["endpoints"][0];
    program::check_open_route(MONITOR, endpoint["path"].as_str().unwrap()).await;
    named(&manifest(BASE, "service")["spec"]["ports"], endpoint["port"].as_str().unwrap());
}

#[test]
fn the_pod_is_that_of_the_image_and_locked_in() {
    let (pod, container) = (pod(), container());
    let (user, group) = containers::user();
    let security = &pod["securityContext"];
    assert_eq!(security["runAsNonRoot"], true);
    assert_eq!(
        (security["runAsUser"].as_u64(), security["runAsGroup"].as_u64()),
        (Some(user), Some(group))
    );
    assert_eq!(security["fsGroup"].as_u64(), Some(group), "the volume has to be writable");
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"]["drop"][0], "ALL");
    assert_eq!(pod["automountServiceAccountToken"], false);
    // Kubernetes would set PLEACH_PORT=tcp://…, and the server would refuse to start.
    assert_eq!(pod["enableServiceLinks"], false);

    let mounts = list(&container["volumeMounts"]);
    let of_path = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).unwrap();
    let home = of_path(&containers::variable("PLEACH_HOME"))["name"].clone();
    let claims = &manifest(BASE, "stateful-set")["spec"]["volumeClaimTemplates"];
    assert_eq!(claims[0]["metadata"]["name"], home);
    for mount in mounts.iter().filter(|mount| mount["name"] != home) {
        named(&pod["volumes"], mount["name"].as_str().unwrap());
    }
    let config = list(&container["args"]).last().unwrap().as_str().unwrap();
    let (folder, file) = config.rsplit_once('/').unwrap();
    let config = &named(&pod["volumes"], of_path(folder)["name"].as_str().unwrap())["configMap"];
    let generator = named(
        &manifest(BASE, "kustomization")["configMapGenerator"],
        config["name"].as_str().unwrap(),
    )
    .clone();
    assert_eq!(generator["files"][0], file);
    let arguments: Vec<_> = list(&container["args"]).iter().map(|a| a.as_str().unwrap()).collect();
    assert_eq!(arguments[0], "serve");
    program::check_serve_flags(BASE, &arguments.join(" "));
}

#[test]
fn secrets_come_by_reference_and_a_key_is_needed() {
    let container = container();
    for variable in list(&container["env"]) {
        let secret = &variable["valueFrom"]["secretKeyRef"];
        assert!(secret["name"].is_string() && secret["key"].is_string(), "{variable}");
        let is_needed = variable["name"] == "PLEACH_API_KEY";
        assert_eq!(secret["optional"].as_bool().unwrap_or(false), !is_needed, "{variable}");
    }
    named(&container["env"], "PLEACH_API_KEY");
    for file in deployed().iter().filter(|file| file.starts_with("deploy/kubernetes/")) {
        assert!(!text(file).contains("kind: Secret"), "{file}");
    }
}

#[test]
fn selectors_find_the_pod() {
    let set = manifest(BASE, "stateful-set");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let service = manifest(BASE, "service");
    let budget = manifest(BASE, "pod-disruption-budget");
    let monitor = manifest(MONITOR, "service-monitor");
    for (name, selector, labels) in [
        ("StatefulSet", &set["spec"]["selector"]["matchLabels"], labels),
        ("Service", &service["spec"]["selector"], labels),
        ("PodDisruptionBudget", &budget["spec"]["selector"]["matchLabels"], labels),
        (
            "ServiceMonitor",
            &monitor["spec"]["selector"]["matchLabels"],
            &service["metadata"]["labels"],
        ),
    ] {
        assert_eq!(selector[LABEL], labels[LABEL], "{name}");
        assert_eq!(selector.as_object().unwrap().len(), 1, "{name}");
    }
    assert_eq!(set["spec"]["serviceName"], service["metadata"]["name"]);
    // The job that the alerts look for.
    assert_eq!(service["metadata"]["name"], "pleach");
    named(&container()["ports"], service["spec"]["ports"][0]["targetPort"].as_str().unwrap());
}

#[test]
fn a_pod_has_time_to_stop() {
    let (pod, container) = (pod(), container());
    let pause = container["lifecycle"]["preStop"]["exec"]["command"][1].as_str().unwrap();
    let pause: u64 = pause.parse().unwrap();
    for folder in [BASE, CUDA] {
        let grace = parse(&format!("{folder}/pleach.toml"))["shutdown-grace"].as_u64().unwrap();
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > pause + grace, "{folder}");
    }
}

#[test]
fn the_overlay_changes_what_the_base_has() {
    let (set, patch) = (manifest(BASE, "stateful-set"), manifest(CUDA, "stateful-set"));
    for pointer in
        ["/apiVersion", "/kind", "/metadata/name", "/spec/template/spec/containers/0/name"]
    {
        assert_eq!(set.pointer(pointer), patch.pointer(pointer), "{pointer}");
    }
    let limits = &patch["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"];
    assert_eq!(limits["nvidia.com/gpu"], 1);
    for folder in [BASE, CUDA] {
        let kustomization = manifest(folder, "kustomization");
        let image = container()["image"].as_str().unwrap().to_owned();
        let tag = named(&kustomization["images"], &image)["newTag"].as_str().unwrap();
        assert!(path(&format!("deploy/container/{tag}.Dockerfile")).is_file(), "{folder}: {tag}");
    }
    assert_eq!(parse(&format!("{CUDA}/pleach.toml"))["device"], "cuda:0");
}
