//! `kill -9` at random moments, while adapters are loaded, replaced, rolled back and removed under traffic: what was
//! acknowledged is there after the next start, with its history, and nothing is there by half.
//!
//! Rounds: 20, or what `PLEACH_KILL_ROUNDS` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    program::{program, scratch_folder},
    server::Server,
};

const ROUNDS: &str = "PLEACH_KILL_ROUNDS";
const BASE: &str = "tiny";
/// Clients that change names, each its own ones.
const N_CHANGERS: usize = 3;
const NAMES_OF_EACH: [&str; 2] = ["x", "y"];
/// Clients that ask for completions.
const N_ASKERS: usize = 2;
/// A round is killed after at most so long.
const ROUND_TIME_MAX: Duration = Duration::from_millis(600);
const BOUNDARY: &str = "border";
/// The present generation and its history.
const LINE_MAX: usize = 8;

/// Where a name points and pointed before; empty if it is not there.
type Line = Vec<String>;

/// What is known of a name.
#[derive(Clone, Debug, Default)]
struct Name {
    /// As it was last acknowledged.
    line: Line,
    /// As it is if the change that was under way was made.
    pending: Option<Line>,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Load(usize),
    Put(usize),
    Upload(usize),
    RollBack,
    Delete,
    Unload,
}

/// The same in all rounds.
#[derive(Debug)]
struct World {
    home: tempfile::TempDir,
    /// PEFT folders for the model, by name, with the generation of each.
    folders: Vec<(String, String)>,
    /// What each generation says to one prompt, log-probabilities included.
    says: BTreeMap<String, String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_is_there_by_half() {
    let rounds = std::env::var(ROUNDS).map_or(20, |rounds| rounds.parse().unwrap());
    let world = Arc::new(World::new().await);
    let names: Vec<String> = (0..N_CHANGERS)
        .flat_map(|changer| NAMES_OF_EACH.map(|name| format!("{name}{changer}")))
        .collect();
    let known: Arc<BTreeMap<String, Mutex<Name>>> =
        Arc::new(names.iter().map(|name| (name.clone(), Mutex::default())).collect());
    let (mut n_changes, mut n_answers) = (0, 0);
    for round in 0..rounds {
        let mut server = world.start();
        check(&world, &server, &known, round).await;
        let (changes, answers) = churn_and_kill(&world, &mut server, &known).await;
        n_changes += changes;
        n_answers += answers;
    }
    let server = world.start();
    check(&world, &server, &known, rounds).await;
    println!("{n_changes} changes and {n_answers} completions in {rounds} rounds");
    assert!(n_changes > rounds && n_answers > rounds, "hardly anything was done");
}

/// Changes and asks until the server is killed; how many changes were acknowledged, and how many completions came.
async fn churn_and_kill(
    world: &Arc<World>,
    server: &mut Server,
    known: &Arc<BTreeMap<String, Mutex<Name>>>,
) -> (usize, usize) {
    let is_over = Arc::new(AtomicBool::new(false));
    let mut changers = JoinSet::new();
    for changer in 0..N_CHANGERS {
        let (world, known) = (Arc::clone(world), Arc::clone(known));
        let (http, url) = (server.http.clone(), server.url.clone());
        changers.spawn(async move {
            let mut n_done = 0;
            loop {
                let name = format!("{}{changer}", NAMES_OF_EACH[random(2)]);
                let change = Change::random(world.folders.len());
                if !world.change(&http, &url, &name, change, &known[&name]).await {
                    return n_done;
                }
                n_done += 1;
            }
        });
    }
    let mut askers = JoinSet::new();
    for _ in 0..N_ASKERS {
        let (world, known, is_over) = (Arc::clone(world), Arc::clone(known), Arc::clone(&is_over));
        let (http, url) = (server.http.clone(), server.url.clone());
        askers.spawn(async move {
            let mut n_done = 0;
            while !is_over.load(Ordering::Relaxed) {
                let name = known.keys().nth(random(known.len())).unwrap();
                match ask(&http, &url, name).await {
                    Some((StatusCode::OK, answer)) => {
                        world.assert_is_its_generations(&answer);
                        n_done += 1;
                    }
                    Some((StatusCode::NOT_FOUND, _)) => {}
                    Some((status, answer)) => panic!("{status}: {answer}"),
                    None => return n_done,
                }
            }
            n_done
        });
    }
    let time = ROUND_TIME_MAX.as_micros().try_into().unwrap();
    tokio::time::sleep(Duration::from_micros(random(time).try_into().unwrap())).await;
    server.kill();
    is_over.store(true, Ordering::Relaxed);
    (changers.join_all().await.into_iter().sum(), askers.join_all().await.into_iter().sum())
}

/// Every name is where it was acknowledged to be, or where the change that was under way leads; and serves that.
async fn check(
    world: &World,
    server: &Server,
    known: &BTreeMap<String, Mutex<Name>>,
    round: usize,
) {
    let mut found: BTreeMap<String, Line> =
        lines(server).await.into_iter().collect::<BTreeMap<_, _>>();
    for (name, known) in known {
        let line = found.remove(name).unwrap_or_default();
        let Name { line: acknowledged, pending } = known.lock().unwrap().clone();
        assert!(
            line == acknowledged || Some(&line) == pending.as_ref(),
            "round {round}: {name} is {line:?}, acknowledged was {acknowledged:?}, under way {pending:?}"
        );
        *known.lock().unwrap() = Name { line: line.clone(), pending: None };
        if let Some(generation) = line.first() {
            let (status, answer) = ask(&server.http, &server.url, name).await.unwrap();
            assert_eq!(status, StatusCode::OK, "{answer}");
            assert_eq!(answer["pleach_generation"], json!(generation));
            world.assert_is_its_generations(&answer);
        }
    }
    assert!(found.is_empty(), "round {round}: nobody made {found:?}");
}

/// What is registered: the present generation of each name, then the earlier ones.
async fn lines(server: &Server) -> Vec<(String, Line)> {
    let list = server.http.get(format!("{}/v1/adapters", server.url)).send().await.unwrap();
    let list: Value = list.json().await.unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let line = |card: &Value| {
        let history = card["history"].as_array().unwrap().iter();
        let earlier = history.map(|earlier| text(&earlier["generation"]));
        std::iter::once(text(&card["generation"])).chain(earlier).collect()
    };
    list["data"].as_array().unwrap().iter().map(|card| (text(&card["name"]), line(card))).collect()
}

/// A greedy completion; `None` if the server has gone.
async fn ask(http: &reqwest::Client, url: &str, model: &str) -> Option<(StatusCode, Value)> {
    let body = json!({"model": model, "prompt": "to pleach is", "max_tokens": 4, "temperature": 0, "logprobs": 1});
    let response = http.post(format!("{url}/v1/completions")).json(&body).send().await.ok()?;
    Some((response.status(), response.json().await.ok()?))
}

fn said(answer: &Value) -> String {
    let choice = &answer["choices"][0];
    format!("{} {}", choice["text"], choice["logprobs"]["token_logprobs"])
}

impl World {
    async fn new() -> Self {
        let home = scratch_folder();
        let fixtures = pleach_test_setup::fixtures().join("models/lora/llama-plain");
        let mut names: Vec<_> = std::fs::read_dir(&fixtures)
            .unwrap()
            .map(|folder| folder.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        let mut world = Self { home, folders: Vec::new(), says: BTreeMap::new() };
        let server = world.start();
        for name in names {
            let reply = server.http.put(format!("{}/v1/adapters/once", server.url));
            let reply = reply.json(&json!({"path": name})).send().await.unwrap();
            let card: Value = reply.json().await.unwrap();
            let generation = card["generation"].as_str().unwrap_or_else(|| panic!("{card}"));
            let (status, answer) = ask(&server.http, &server.url, "once").await.unwrap();
            assert_eq!(status, StatusCode::OK, "{answer}");
            world.says.insert(generation.to_owned(), said(&answer));
            world.folders.push((name, generation.to_owned()));
        }
        let different: BTreeSet<_> = world.says.values().collect();
        assert_eq!(different.len(), world.folders.len(), "they can be told apart");
        let removed = server.http.delete(format!("{}/v1/adapters/once", server.url)).send().await;
        assert_eq!(removed.unwrap().status(), StatusCode::OK);
        world
    }

    fn start(&self) -> Server {
        let models = pleach_test_setup::fixtures().join("models");
        let mut command = program();
        command.env("PLEACH_HOME", self.home.path()).arg("serve");
        command.arg("--model").arg(models.join("llama-plain.gguf"));
        command.args(["--served-model-name", BASE, "--port", "0", "--kv-memory", "8MiB"]);
        command.arg("--adapter-root").arg(models.join("lora/llama-plain"));
        Server::run(command, None)
    }

    fn assert_is_its_generations(&self, answer: &Value) {
        let generation = answer["pleach_generation"].as_str().unwrap();
        assert_eq!(said(answer), self.says[generation], "generation {generation}");
    }

    /// Makes a change; whether the server told of its outcome.
    async fn change(
        &self,
        http: &reqwest::Client,
        url: &str,
        name: &str,
        change: Change,
        known: &Mutex<Name>,
    ) -> bool {
        let before = known.lock().unwrap().line.clone();
        let after = change.after(&before, &self.folders);
        known.lock().unwrap().pending = Some(after.clone());
        let Some(status) = self.send(http, url, name, change).await else { return false };
        let is_made = match (change, status) {
            (_, StatusCode::OK | StatusCode::CREATED) => true,
            // There is nothing to go back to, or nothing at all.
            (Change::RollBack, StatusCode::CONFLICT) if before.len() == 1 => false,
            (Change::RollBack | Change::Delete | Change::Unload, StatusCode::NOT_FOUND)
                if before.is_empty() =>
            {
                false
            }
            (change, status) => panic!("{change:?} of {name}: {status}"),
        };
        let line = if is_made { after } else { before };
        *known.lock().unwrap() = Name { line, pending: None };
        true
    }

    /// The status of the answer, once all of it is there; `None` if the server has gone.
    async fn send(
        &self,
        http: &reqwest::Client,
        url: &str,
        name: &str,
        change: Change,
    ) -> Option<StatusCode> {
        let adapter = format!("{url}/v1/adapters/{name}");
        let folder = |folder: usize| self.folders[folder].0.as_str();
        let request = match change {
            Change::Load(from) => http
                .post(format!("{url}/v1/load_lora_adapter"))
                .json(&json!({"lora_name": name, "lora_path": folder(from), "load_inplace": true})),
            Change::Put(from) => http.put(adapter).json(&json!({"path": folder(from)})),
            Change::Upload(from) => http
                .put(adapter)
                .header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
                .body(upload(folder(from))),
            Change::RollBack => http.post(format!("{adapter}/rollback")).json(&json!({})),
            Change::Delete => http.delete(adapter),
            Change::Unload => {
                let unload = http.post(format!("{url}/v1/unload_lora_adapter"));
                unload.json(&json!({"lora_name": name}))
            }
        };
        let response = request.send().await.ok()?;
        let status = response.status();
        response.bytes().await.ok()?;
        Some(status)
    }
}

impl Change {
    fn random(n_folders: usize) -> Self {
        let folder = random(n_folders);
        match random(10) {
            0..=1 => Self::Load(folder),
            2..=3 => Self::Put(folder),
            4..=5 => Self::Upload(folder),
            6..=7 => Self::RollBack,
            8 => Self::Delete,
            _ => Self::Unload,
        }
    }

    /// Where a name is after it.
    fn after(self, before: &Line, folders: &[(String, String)]) -> Line {
        let mut line = before.clone();
        match self {
            Self::Load(folder) | Self::Put(folder) | Self::Upload(folder) => {
                let generation = &folders[folder].1;
                line.retain(|earlier| earlier != generation);
                line.insert(0, generation.clone());
                line.truncate(LINE_MAX);
            }
            Self::RollBack if line.len() > 1 => line.rotate_left(1),
            Self::RollBack => {}
            Self::Delete | Self::Unload => line.clear(),
        }
        line
    }
}

/// The body of an upload of both files.
fn upload(folder: &str) -> Vec<u8> {
    let folder = pleach_test_setup::fixtures().join("models/lora/llama-plain").join(folder);
    let mut body = Vec::new();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(&std::fs::read(folder.join(name)).unwrap());
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// Below `n`.
fn random(n: usize) -> usize {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    usize::try_from(u64::from_le_bytes(bytes) % n as u64).unwrap()
}
