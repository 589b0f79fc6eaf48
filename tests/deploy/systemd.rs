//! The systemd unit and the files beside it.

use crate::{
    compose::seconds,
    files::{env_names, list, parse, text},
    program,
};

const UNIT: &str = "deploy/systemd/pleach.service";
const CUDA: &str = "deploy/systemd/cuda.conf";
const USERS: &str = "deploy/systemd/pleach.sysusers.conf";
const FOLDERS: &str = "deploy/systemd/pleach.tmpfiles.conf";
const CONFIG: &str = "deploy/systemd/pleach.toml";

/// Lines that are neither empty nor comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Section, key and value of every line of a unit.
fn settings(file: &str) -> Vec<(String, String, String)> {
    let text = text(file);
    let mut section = None;
    let mut settings = Vec::new();
    for line in lines(&text) {
        if let Some(name) = line.strip_prefix('[') {
            section = Some(name.strip_suffix(']').unwrap_or_else(|| panic!("{file}: {line}")));
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{file}: {line}"));
        let section = section.unwrap_or_else(|| panic!("{file}: {line} is in no section"));
        settings.push((section.to_owned(), key.to_owned(), value.to_owned()));
    }
    settings
}

/// The values of a key of `[Service]`.
fn service(file: &str, key: &str) -> Vec<String> {
    let settings = settings(file).into_iter();
    settings
        .filter(|(section, name, _)| section == "Service" && name == key)
        .map(|(_, _, v)| v)
        .collect()
}

/// The one value of a key of `[Service]`.
fn one(file: &str, key: &str) -> String {
    let mut values = service(file, key);
    assert_eq!(values.len(), 1, "{file}: {key}= {values:?}");
    values.remove(0)
}

/// Fails unless every line has the form of its kind of file.
pub(crate) fn check_syntax(file: &str) {
    let n_settings = match file {
        USERS => {
            lines(&text(file)).map(|line| assert!(line.starts_with("u "), "{file}: {line}")).count()
        }
        FOLDERS => lines(&text(file))
            .map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                assert_eq!(fields.len(), 6, "{file}: {line}");
                assert!(
                    ["d", "z"].contains(&fields[0]) && fields[1].starts_with('/'),
                    "{file}: {line}"
                );
                assert!(u32::from_str_radix(fields[2], 8).is_ok(), "{file}: {line}");
            })
            .count(),
        _ => settings(file).len(),
    };
    assert!(n_settings > 0, "{file}");
}

#[test]
fn the_unit_starts_the_server_as_a_user_that_is_made() {
    let user = one(UNIT, "User");
    assert_ne!(user, "root");
    let made = text(USERS);
    let home =
        made.lines().find_map(|line| line.strip_prefix(&format!("u {user} "))).expect("the user");
    let state = format!("/var/lib/{}", one(UNIT, "StateDirectory"));
    assert!(home.ends_with(&format!(" {state}")), "{home}");
    assert_eq!(one(UNIT, "Environment"), format!("PLEACH_HOME={state}"));
    let start = one(UNIT, "ExecStart");
    let (_, arguments) = start.split_once("/pleach serve ").expect("the command");
    program::check_serve_flags(UNIT, arguments);
    assert!(arguments.ends_with("/etc/pleach/pleach.toml"), "{arguments}");
    assert_eq!(one(UNIT, "EnvironmentFile"), "-/etc/pleach/pleach.env");
    assert!(env_names("deploy/systemd/pleach.env").contains(&"PLEACH_API_KEY".to_owned()));
}

#[test]
fn the_unit_is_locked_in() {
    for (key, value) in [
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("ProtectKernelTunables", "yes"),
        ("RestrictNamespaces", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("SystemCallArchitectures", "native"),
    ] {
        assert_eq!(one(UNIT, key), value, "{key}=");
    }
    assert!(service(UNIT, "SystemCallFilter").contains(&"@system-service".to_owned()));
    // What the drop-in for a GPU takes back, it says by name.
    for key in ["PrivateDevices", "MemoryDenyWriteExecute", "PrivateUsers"] {
        assert_eq!(one(CUDA, key), "no", "{key}=");
    }
    assert_eq!(one(CUDA, "DevicePolicy"), "closed");
    assert!(service(CUDA, "DeviceAllow").iter().all(|device| device.starts_with("char-nvidia")));
}

#[test]
fn the_server_has_time_to_stop_and_folders_that_exist() {
    let config = parse(CONFIG);
    let grace = config["shutdown-grace"].as_u64().unwrap();
    assert!(seconds(&one(UNIT, "TimeoutStopSec")) > grace);
    let folders = text(FOLDERS);
    // The server refuses to start without its roots.
    for root in list(&config["adapter-root"]) {
        let root = root.as_str().unwrap();
        let is_made =
            |line: &str| line.starts_with("d ") && line.split_whitespace().nth(1) == Some(root);
        assert!(lines(&folders).any(is_made), "{root}");
    }
    let keeps =
        |line: &str| line.split_whitespace().take(3).eq(["z", "/etc/pleach/pleach.env", "0600"]);
    assert!(lines(&folders).any(keeps), "the file with the key is nobody's to read");
}
