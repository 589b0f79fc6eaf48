//! Files of rows, requests that send them, and a trainer that does as it is told.

use std::{
    io::Read as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, header},
};
use pleach::training::{Run, RunError, Trained, Trainer, checkpoint_name};
use pleach_store::{JobEvent, JobReport, JobSignal, JobStatus, NewCheckpoint};
use serde_json::json;

use crate::support::{Reply, Server, write_adapter};

const BOUNDARY: &str = "border";

/// So many rows to learn from, each another.
pub(crate) fn rows(n: usize) -> String {
    let row = |index: usize| {
        let messages = json!([
            {"role": "user", "content": format!("question {index}")},
            {"role": "assistant", "content": format!("answer {index}")},
        ]);
        json!({"messages": messages}).to_string() + "\n"
    };
    (0..n).map(row).collect()
}

/// Name, file's name if it is one, content.
pub(crate) type FormPart<'a> = (&'a str, Option<&'a str>, &'a [u8]);

/// A form of texts and files; a file has a name of its own.
pub(crate) fn form(path: &str, key: Option<&str>, parts: &[FormPart<'_>]) -> Request<Body> {
    let mut body = Vec::new();
    for (name, filename, content) in parts {
        let filename = filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    let mut request = Request::post(path)
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"));
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    request.body(Body::from(body)).unwrap()
}

/// Sends a file to train on.
pub(crate) async fn send_file(server: &Server, key: Option<&str>, content: &str) -> Reply {
    let parts: [FormPart<'_>; 2] =
        [("purpose", None, b"fine-tune"), ("file", Some("rows.jsonl"), content.as_bytes())];
    server.send(form("/v1/files", key, &parts)).await
}

/// The id of a file that is sent.
pub(crate) async fn new_file(server: &Server, key: Option<&str>, content: &str) -> String {
    let reply = send_file(server, key, content).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["id"].as_str().unwrap().to_owned()
}

/// A trainer that follows a script instead of computing: so many steps, each when it is allowed. What it trains says T, or U
/// if it goes on from an adapter.
#[derive(Debug)]
pub(crate) struct Script {
    n_steps: u64,
    /// Steps that may be made.
    allowed: AtomicU64,
    /// Steps that were made, by which process ever.
    pub(crate) made: Mutex<Vec<u64>>,
    /// How it ends, if not well.
    fails: bool,
}

impl Script {
    /// Of `n_steps` steps that may be made at once.
    pub(crate) fn steps(n_steps: u64) -> Arc<Self> {
        Self::allowing(n_steps, n_steps)
    }

    /// Of `n_steps` steps, of which so many may be made at first.
    pub(crate) fn allowing(n_steps: u64, n_allowed: u64) -> Arc<Self> {
        let (allowed, made) = (AtomicU64::new(n_allowed), Mutex::default());
        Arc::new(Self { n_steps, allowed, made, fails: false })
    }

    /// Makes no step.
    pub(crate) fn waits() -> Arc<Self> {
        Self::allowing(1, 0)
    }

    /// Fails after reading its files.
    pub(crate) fn fails() -> Arc<Self> {
        let (allowed, made) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self { n_steps: 0, allowed, made, fails: true })
    }

    pub(crate) fn allow(&self, n_steps: u64) {
        self.allowed.store(n_steps, Ordering::Relaxed);
    }
}

impl Trainer for Script {
    fn train(&self, run: &Run) -> Result<Trained, RunError> {
        let mut rows = String::new();
        run.source(&run.job.training_file, "training_file")?
            .read_to_string(&mut rows)
            .map_err(RunError::server)?;
        if self.fails {
            return Err(RunError::job(
                "invalid_training_file",
                "too few rows",
                Some("training_file"),
            ));
        }
        // What it goes on from is read, as it is by a trainer that computes.
        let letter = if run.parent()?.is_some() { 'U' } else { 'T' };
        let tell = |report: JobReport| must_go_on(run, &report);
        tell(JobReport { status: Some(JobStatus::Queued), ..JobReport::default() })?;
        tell(JobReport { status: Some(JobStatus::Running), ..JobReport::default() })?;
        let folder = run.folder()?;
        let path = folder.path().join("state");
        let first = if run.restore(&path)? {
            std::fs::read_to_string(&path).unwrap().parse().unwrap()
        } else {
            0
        };
        for step in first..self.n_steps {
            loop {
                let may_go_on = self.allowed.load(Ordering::Relaxed) > step;
                if run.is_stopping() {
                    return Err(RunError::Interrupted);
                }
                // After the look at what is allowed: a pause before that is heard before the step.
                tell(JobReport::default())?;
                if may_go_on {
                    break;
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            std::fs::write(&path, (step + 1).to_string()).map_err(RunError::server)?;
            self.made.lock().unwrap().push(step);
            let metrics = json!({"step": step + 1, "train_loss": 1.5});
            let event =
                JobEvent { metrics: Some(metrics), ..JobEvent::info(format!("Step {}", step + 1)) };
            tell(JobReport {
                events: vec![event],
                state: Some(run.put_file(&path)?),
                trained_tokens: Some(100 * (step + 1)),
                ..JobReport::default()
            })?;
            if step == 0 {
                let folder = run.folder()?;
                write_adapter(folder.path(), 'C');
                let model = checkpoint_name(&run.model_name, 1);
                let checkpoint = NewCheckpoint { step: 1, model, metrics: json!({"step": 1}) };
                run.checkpoint(folder, "00", checkpoint, JobReport::default())?;
            }
        }
        let folder = run.folder()?;
        write_adapter(folder.path(), letter);
        let (csv, data_sha256) =
            (format!("step,train_loss\n{}\n", rows.lines().count()), "00".to_owned());
        Ok(Trained { folder, trained_tokens: 100 * self.n_steps, csv, data_sha256 })
    }
}

fn must_go_on(run: &Run, report: &JobReport) -> Result<(), RunError> {
    match run.report(report)? {
        JobSignal::GoOn => Ok(()),
        JobSignal::Pause | JobSignal::Stop => Err(RunError::Interrupted),
    }
}
