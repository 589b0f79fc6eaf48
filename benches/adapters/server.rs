//! A `pleach serve` of our own, and what scenarios ask of it.

use std::{
    fs::File,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use pleach_engine::spec::ModelSpec;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::{options::Options, peft::RandomAdapter};

/// The name of the base.
pub(crate) const BASE: &str = "base";
const LOG_FILE: &str = "server.log";
const START_TIME_MAX: Duration = Duration::from_mins(5);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Whatever is asked outside a load.
const REQUEST_TIME_MAX: Duration = Duration::from_mins(10);
/// Lines of its log that are shown when it does not start.
const LOG_LINES_SHOWN: usize = 20;

/// Where a server keeps its state, and the folders that it may load adapters from.
#[derive(Debug)]
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new(options: &Options) -> anyhow::Result<Self> {
        let scratch = &options.args.scratch;
        let failed = || format!("cannot make a folder in {}", scratch.display());
        std::fs::create_dir_all(scratch).with_context(failed)?;
        let folder = tempfile::TempDir::new_in(scratch).with_context(failed)?;
        std::fs::create_dir(folder.path().join("adapters-to-load")).with_context(failed)?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Folders below it can be loaded by path.
    pub(crate) fn adapter_root(&self) -> PathBuf {
        self.path().join("adapters-to-load")
    }
}

/// Stopped hard when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// `http://ADDRESS:PORT`.
    pub(crate) url: String,
    http: reqwest::Client,
    /// When the process was started.
    pub(crate) began: Instant,
    /// From then to the first answer of `/health`.
    pub(crate) time_to_health: Duration,
}

impl Server {
    /// Starts one with its state in `home` and waits until it serves.
    pub(crate) async fn start(
        options: &Options,
        home: &Home,
        flags: &[String],
    ) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = options.program();
        command.env("PLEACH_HOME", home.path());
        command.arg("serve").arg("--model").arg(&options.model_path);
        command.args(["--served-model-name", BASE, "--port", &port.to_string()]);
        command
            .arg("--adapter-root")
            .arg(home.adapter_root())
            .args(flags)
            .args(&options.args.serve);
        let log = home.path().join(LOG_FILE);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let began = Instant::now();
        let child = command.spawn().context("cannot start the server")?;
        let http = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIME_MAX).build()?;
        let url = format!("http://127.0.0.1:{port}");
        let time_to_health = Duration::ZERO;
        let mut server = Self { child, url, http, began, time_to_health };
        loop {
            let health = server.http.get(format!("{}/health", server.url)).send().await;
            if health.is_ok_and(|response| response.status().is_success()) {
                break;
            }
            let ended = server.child.try_wait()?;
            if ended.is_some() || began.elapsed() > START_TIME_MAX {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = said.lines().collect();
                let last = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
                bail!("the server does not serve; it said:\n{}", last.join("\n"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        server.time_to_health = began.elapsed();
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request; its answer's head has come when this returns.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| path.to_owned())?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.unwrap_or_default();
            let said: String = text.chars().take(300).collect();
            bail!("{path}: {status} {said}");
        }
        Ok(response)
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Ok(self.send(Method::POST, path, Some(body)).await?.json().await?)
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.send(Method::GET, path, None).await?.json().await?)
    }

    /// Registers a folder below the adapter root.
    pub(crate) async fn load(&self, name: &str, folder: &str) -> anyhow::Result<()> {
        let body = json!({"lora_name": name, "lora_path": folder});
        self.send(Method::POST, "/v1/load_lora_adapter", Some(&body)).await?;
        Ok(())
    }

    pub(crate) async fn unload(&self, name: &str) -> anyhow::Result<()> {
        let body = json!({"lora_name": name});
        self.send(Method::POST, "/v1/unload_lora_adapter", Some(&body)).await?;
        Ok(())
    }

    /// The digest that a name points at.
    pub(crate) async fn generation(&self, name: &str) -> anyhow::Result<String> {
        let card = self.get(&format!("/v1/adapters/{name}")).await?;
        Ok(card["generation"].as_str().context("a card without generation")?.to_owned())
    }

    /// How many adapters it lists.
    pub(crate) async fn n_adapters(&self) -> anyhow::Result<usize> {
        Ok(self.get("/v1/adapters").await?["data"].as_array().map_or(0, Vec::len))
    }

    /// Makes and registers adapters named `a0`, `a1`, …; their folders do not stay.
    pub(crate) async fn register(
        &self,
        home: &Home,
        spec: &ModelSpec,
        adapters: &[RandomAdapter],
    ) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::with_capacity(adapters.len());
        for (index, adapter) in adapters.iter().enumerate() {
            let name = format!("a{index}");
            let folder = home.adapter_root().join(&name);
            adapter.write(spec, &folder)?;
            self.load(&name, &name).await?;
            std::fs::remove_dir_all(&folder)?;
            names.push(name);
            show_progress("registering adapters", index + 1, adapters.len());
        }
        let listed = self.n_adapters().await?;
        ensure!(listed >= names.len(), "{listed} of {} adapters are listed", names.len());
        Ok(names)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// On standard error, where it is no part of the result.
pub(crate) fn show_progress(what: &str, done: usize, all: usize) {
    let step = (all / 10).max(1);
    if all >= 100 && (done.is_multiple_of(step) || done == all) {
        // Nobody may look.
        let _ = writeln!(std::io::stderr(), "{what}: {done} of {all}");
    }
}

/// The plain program, with nothing of this process's settings for it.
pub(crate) fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PLEACH_")) {
            command.env_remove(name);
        }
    }
    command
}
