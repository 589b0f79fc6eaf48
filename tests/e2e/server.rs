//! A `pleach serve` of our own on a free port, and what tests ask of it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    time::{Duration, Instant},
};

use reqwest::{StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{program, scratch_folder, wait};

/// The name that the base is served under.
pub(crate) const BASE: &str = "smollm2";
/// Enough for one sequence of the model's whole context beside some short ones.
const KV_MEMORY: &str = "256MiB";
/// Loading takes about a second.
const START_TIME_MAX: Duration = Duration::from_mins(1);
/// Whatever is waited for comes within milliseconds, or never.
const PATIENCE: Duration = Duration::from_secs(20);
/// A request that takes longer hangs.
const REQUEST_TIME_MAX: Duration = Duration::from_mins(3);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A server, stopped hard when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where its state is, if it is its own.
    _home: Option<TempDir>,
    /// `http://ADDRESS:PORT`.
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    log: Arc<Mutex<String>>,
}

/// The answer to one request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// `serve` with the default model on a free port, which keeps its state in `home`.
pub(crate) fn serve(home: &Path, arguments: &[&str]) -> Command {
    let mut command = program();
    command.env("PLEACH_HOME", home);
    command.arg("serve").arg("--model").arg(pleach_test_setup::default_model());
    // The model is named by path: it is not fetched into that home.
    command.args(["--served-model-name", BASE, "--port", "0"]);
    // Not a flag, so that a test can give another one.
    command.env("PLEACH_KV_MEMORY", KV_MEMORY);
    command.args(arguments);
    command
}

/// `--adapter NAME=DIR` of a reference adapter.
pub(crate) fn reference_adapter(name: &str) -> [String; 2] {
    let folder = pleach_test_setup::fixtures().join("adapters").join(name);
    ["--adapter".to_owned(), format!("{name}={}", folder.display())]
}

impl Server {
    /// Starts one and waits until it listens.
    ///
    /// # Panics
    /// With what it said, when it does not get there.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let home = scratch_folder();
        let command = serve(home.path(), arguments);
        Self::run(command, Some(home))
    }

    /// Runs a command that serves, and waits until it listens; `home` goes with it.
    ///
    /// # Panics
    /// With what it said, when it does not get there.
    pub(crate) fn run(mut command: Command, home: Option<TempDir>) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = mpsc::channel();
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, url)) = line.split_once(" at http://") {
                    // The test may have given up waiting.
                    let _ = found.send(format!("http://{}", url.trim()));
                }
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push_str(&line);
                lines.push('\n');
            }
        });
        // Tests share it, and a kept connection would die with the runtime of the test that made it.
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .no_proxy()
            .timeout(REQUEST_TIME_MAX);
        let http = http.build().unwrap();
        let mut server = Self { child, _home: home, url: String::new(), http, log };
        // The channel closes when the program ends.
        let Ok(url) = address.recv_timeout(START_TIME_MAX) else {
            panic!("the server did not start; it said:\n{}", server.log());
        };
        server.url = url;
        server
    }

    /// One with both reference adapters that tests of one moment share: as long as one holds it, others get the same.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let adapters = [reference_adapter("pirate"), reference_adapter("extract")].concat();
        let server =
            Arc::new(Self::start(&adapters.iter().map(String::as_str).collect::<Vec<_>>()));
        *shared = Arc::downgrade(&server);
        server
    }

    /// What it has written to standard error.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `ADDRESS:PORT`.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Posts `body`, whatever it is, as JSON.
    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        let request = self.http.post(format!("{}{path}", self.url)).body(body);
        let response = request.header("content-type", "application/json").send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Reply { status, headers, body: response.json().await.unwrap() }
    }

    pub(crate) async fn chat(&self, body: &Value) -> Reply {
        self.post("/v1/chat/completions", body.to_string()).await
    }

    /// Asks for one token, and gets it.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) async fn assert_serves(&self) {
        let reply = self.chat(&chat_body(BASE, "Hi", 1)).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        assert_eq!(reply.body["usage"]["completion_tokens"], 1, "{}", reply.body);
    }

    /// The sum of all series of a metric.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let response = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap();
        let text = response.text().await.unwrap();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values: Vec<f64> =
            series.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no metric {name} in\n{text}");
        values.iter().sum()
    }

    /// Waits until so many sequences run.
    pub(crate) async fn wait_for_running(&self, n: usize) {
        self.wait_for("vllm:num_requests_running", n).await;
    }

    /// Waits until so many sequences wait.
    pub(crate) async fn wait_for_waiting(&self, n: usize) {
        self.wait_for("vllm:num_requests_waiting", n).await;
    }

    async fn wait_for(&self, metric: &str, value: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.metric(metric).await;
            if (found - value as f64).abs() < 0.5 {
                return;
            }
            assert!(Instant::now() < deadline, "{metric} stays {found} instead of {value}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().code(), None, "it ended by itself: {}", self.log());
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// The exit code, once it has ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub(crate) fn wait(&mut self, time_max: Duration) -> Option<i32> {
        wait(&mut self.child, time_max)
    }
}

impl Drop for Server {
    #[expect(clippy::print_stdout, reason = "the harness shows it with the failed test")]
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the server said:\n{}", self.log());
        }
    }
}

/// A greedy chat of one message.
pub(crate) fn chat_body(model: &str, text: &str, max_tokens: u32) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": max_tokens,
    })
}
