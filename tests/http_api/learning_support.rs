//! An adapter whose answers are judged, a trainer and an examiner that do as they are told, and what it takes to follow a
//! round.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::http::Method;
use futures_util::future::BoxFuture;
use pleach::{
    http::state::AppState,
    learning::{Exam, ExamError, Examiner, FoldExam, trial::Trial},
    training::{Run, RunError, Trained, Trainer},
};
use pleach_store::{JobReport, JobSignal};
use pleach_trainer::{
    HeldOutScore,
    gate::{Evidence, Footprint, ProbeAnswer, ProbeEvidence, RowEvidence},
};
use serde_json::{Value, json};

use crate::{
    support::{Reply, Server, Setup, ids, serve, write_adapter},
    tenant_support::until,
};

/// The adapter that learns.
pub(crate) const NAME: &str = "support";
pub(crate) const POLICY: &str = "/v1/adapters/support/policy";
pub(crate) const ROUNDS: &str = "/v1/adapters/support/rounds";

/// What is in the rows of somebody whom all others contradict.
pub(crate) const LIE: &str = "the earth is flat";
/// What was told well before, and is not by what others taught.
pub(crate) const SPOILT: &str = "the earth is round";

/// A trainer that makes an adapter which says a letter: of jobs without a fold `a`, `b`, …, of that on everything `letter`.
#[derive(Debug)]
pub(crate) struct Teacher {
    pub(crate) letter: Mutex<char>,
    /// Whether it may finish.
    pub(crate) is_held: AtomicBool,
    /// By fold, the rows that were learned from, each time.
    pub(crate) learned: Mutex<Vec<(String, String)>>,
    /// What jobs end with, if not with an adapter.
    pub(crate) fails: AtomicBool,
}

impl Teacher {
    pub(crate) fn new(letter: char) -> Arc<Self> {
        Arc::new(Self {
            letter: Mutex::new(letter),
            is_held: AtomicBool::new(false),
            learned: Mutex::default(),
            fails: AtomicBool::new(false),
        })
    }
}

impl Trainer for Teacher {
    fn train(&self, run: &Run) -> Result<Trained, RunError> {
        let mut rows = String::new();
        let mut source = run.source(&run.job.training_file, "training_file")?;
        std::io::Read::read_to_string(&mut source, &mut rows).map_err(RunError::server)?;
        loop {
            if run.is_stopping() || run.report(&JobReport::default())? != JobSignal::GoOn {
                return Err(RunError::Interrupted);
            }
            if !self.is_held.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        if self.fails.load(Ordering::Relaxed) {
            return Err(RunError::job("invalid_training_file", "it is told to fail", None));
        }
        let fold = run.job.metadata["fold"].clone();
        let letter = match fold.parse::<u8>() {
            Ok(fold) => char::from(b'a' + fold),
            Err(_) => *self.letter.lock().unwrap(),
        };
        self.learned.lock().unwrap().push((fold, rows));
        let folder = run.folder()?;
        write_adapter(folder.path(), letter);
        let csv = "step,train_loss\n".to_owned();
        Ok(Trained { folder, trained_tokens: 1, csv, data_sha256: "0a".repeat(32) })
    }
}

/// An examiner that finds a gain, without looking.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) gain: Mutex<f64>,
    /// By how much trusted rows gain, if there are any.
    pub(crate) anchor_gain: Mutex<f64>,
    pub(crate) exams: Mutex<Vec<Exam>>,
    pub(crate) is_held: AtomicBool,
    /// How often it panics before it finds anything.
    pub(crate) panics: AtomicUsize,
}

impl Judge {
    pub(crate) fn finds(gain: f64) -> Arc<Self> {
        let (anchor_gain, exams, is_held, panics) = Default::default();
        Arc::new(Self { gain: Mutex::new(gain), anchor_gain, exams, is_held, panics })
    }
}

impl Examiner for Judge {
    fn examine(
        &self,
        _state: Arc<AppState>,
        exam: Exam,
    ) -> BoxFuture<'_, Result<Evidence, ExamError>> {
        Box::pin(async move {
            while self.is_held.load(Ordering::Relaxed) {
                if exam.stop.is_set() {
                    return Err(ExamError::Interrupted);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let n_panics = self.panics.load(Ordering::Relaxed);
            if n_panics > 0 {
                self.panics.store(n_panics - 1, Ordering::Relaxed);
                panic!("it is told to panic");
            }
            let has_best = exam.best.is_some();
            let row = |index: usize, group: String, gain: f64| RowEvidence {
                group,
                n_targets: 4,
                base: 0.0,
                current: 0.0,
                best: has_best.then_some(0.0),
                // Not all the same, or there would be nothing to tell.
                candidate: gain + 0.001 * (index % 5) as f64,
            };
            let (gain, of_anchors) =
                (*self.gain.lock().unwrap(), *self.anchor_gain.lock().unwrap());
            let rows = exam.rows.iter().enumerate();
            let held_out = rows.map(|(index, held)| row(index, held.group.clone(), gain));
            let anchors = exam.anchors.as_ref().map(|anchors| {
                let rows = 0..anchors.len();
                rows.map(|index| row(index, format!("anchor {index}"), of_anchors)).collect()
            });
            let answer = ProbeAnswer { n_tokens: 10, is_refusal: false };
            let probe = ProbeEvidence {
                candidate: answer,
                current: answer,
                candidate_logp: -1.0,
                base_logp: -2.0,
            };
            let footprint = Footprint { latency_p95_s: 0.01, adapter_bytes: 512 };
            let evidence = Evidence {
                held_out: held_out.collect(),
                anchors,
                best_generation: exam.best.as_ref().map(|best| best.digest.to_string()),
                probes: vec![probe; 8],
                candidate: footprint,
                current: footprint,
            };
            self.exams.lock().unwrap().push(exam);
            Ok(evidence)
        })
    }

    /// Others tell each row, but those that say what nobody else does.
    fn fold_scores(
        &self,
        _state: Arc<AppState>,
        exam: FoldExam,
    ) -> BoxFuture<'_, Result<Vec<HeldOutScore>, ExamError>> {
        let score = |row: &pleach::learning::ExamRow| {
            let text = row.value.to_string();
            let (before, after) = match () {
                () if text.contains(LIE) => (-2.0, -3.0),
                () if text.contains(SPOILT) => (-0.5, -3.0),
                () => (-2.0, -0.5),
            };
            HeldOutScore { fold: row.fold as usize, before, after }
        };
        Box::pin(async move { Ok(exam.rows.iter().map(score).collect()) })
    }
}

/// A server whose adapter says `A`, and who trains and judges there.
pub(crate) struct School {
    pub(crate) server: Server,
    pub(crate) teacher: Arc<Teacher>,
    pub(crate) judge: Arc<Judge>,
    /// Rounds that were seen at their end.
    ended: Mutex<Vec<Value>>,
}

pub(crate) fn setup(teacher: &Arc<Teacher>, judge: &Arc<Judge>) -> Setup {
    Setup {
        trainer: Some(Arc::clone(teacher) as _),
        examiner: Some(Arc::clone(judge) as _),
        // Between tokens that take no time any pause of the machine's is a thousandfold.
        step: Duration::from_millis(1),
        capture: true,
        ..Setup::default()
    }
}

impl School {
    /// Whose candidates say `N` and gain `gain`.
    pub(crate) async fn new(gain: f64) -> Self {
        let (teacher, judge) = (Teacher::new('N'), Judge::finds(gain));
        let server = serve(setup(&teacher, &judge)).await;
        write_adapter(&server.root.join("A"), 'A');
        let put = server.put("/v1/adapters/support", &json!({"path": "A"})).await;
        assert_eq!(put.status, 201, "{}", put.text);
        Self { server, teacher, judge, ended: Mutex::default() }
    }

    /// Whose server works on one round at a time.
    pub(crate) async fn of_one_place(gain: f64) -> Self {
        let (teacher, judge) = (Teacher::new('N'), Judge::finds(gain));
        let server = serve(Setup { rounds_max: 1, ..setup(&teacher, &judge) }).await;
        Self { server, teacher, judge, ended: Mutex::default() }
    }

    /// The same without an adapter: the base says `B` under its name.
    pub(crate) async fn without_adapter(gain: f64) -> Self {
        let (teacher, judge) = (Teacher::new('N'), Judge::finds(gain));
        let setup = Setup { tokens: ids("BBBBB"), ..setup(&teacher, &judge) };
        Self { server: serve(setup).await, teacher, judge, ended: Mutex::default() }
    }

    /// Sets a policy of two folds that begins a round after 20 feedbacks, with changes.
    pub(crate) async fn policy(&self, rollout: Value) {
        let policy = policy(rollout);
        let put = self.server.put(POLICY, &policy).await;
        assert_eq!(put.status, 200, "{}", put.text);
    }

    /// Asks as a user; the id and the content of the answer.
    pub(crate) async fn ask(&self, user: &str) -> (String, String) {
        let body = json!({"model": NAME, "safety_identifier": user});
        answered(&self.server.chat(body).await)
    }

    /// Says whether an answer was liked.
    pub(crate) async fn likes(&self, id: &str, user: &str, value: bool) {
        let body =
            json!({"inference_id": id, "metric_name": "liked", "value": value, "user": user});
        let given = self.server.post("/v1/feedback", &body).await;
        assert_eq!(given.status, 200, "{}", given.text);
    }

    /// So many users ask and judge, one of four is not content.
    pub(crate) async fn judged_by(&self, users: std::ops::Range<usize>) {
        for index in users {
            let user = format!("user {index}");
            let (id, _) = self.ask(&user).await;
            self.likes(&id, &user, index % 4 != 0).await;
        }
    }

    /// The newest round.
    pub(crate) async fn round(&self) -> Value {
        self.server.get(ROUNDS).await.json()["data"][0].clone()
    }

    /// Waits until the newest round is in a state. One that has ended otherwise, and was not seen before, never is.
    pub(crate) async fn becomes(&self, state: &str) -> Value {
        until(state, async || {
            let round = self.round().await;
            let is_new = !self.ended.lock().unwrap().contains(&round["id"]);
            let is_over = !round["ended_at"].is_null() && round["state"] != state;
            assert!(!(is_over && is_new), "it did not become {state}: {round}");
            round["state"] == state
        })
        .await;
        let round = self.round().await;
        self.note(&round);
        round
    }

    fn note(&self, round: &Value) {
        if !round["ended_at"].is_null() {
            self.ended.lock().unwrap().push(round["id"].clone());
        }
    }

    /// Decides about the newest round.
    pub(crate) async fn decide(&self, what: &str) -> Reply {
        let id = self.round().await["id"].as_str().unwrap().to_owned();
        let decided =
            self.server.post(&format!("{ROUNDS}/{id}/{what}"), &json!({"reason": "so"})).await;
        self.note(&decided.json());
        decided
    }

    /// The trial of its name as it is in memory, which is written now and then.
    pub(crate) fn on_trial(&self) -> Option<Trial> {
        let space = pleach_adapters::Namespace::new("shared");
        self.server.state.learning.rollouts.trial_of(&space, NAME)
    }

    /// What its adapter says.
    pub(crate) async fn says(&self) -> char {
        self.ask("somebody").await.1.chars().next().unwrap()
    }

    /// Ends the server as if it was killed, and starts another over what it left.
    pub(crate) async fn restart(self) -> Self {
        let Self { server, teacher, judge, ended } = self;
        let tokens = server.script.lock().unwrap().tokens.clone();
        let setup = Setup { tokens, ..setup(&teacher, &judge) };
        let server = server.restart(setup).await;
        Self { server, teacher, judge, ended }
    }

    /// Names that are kept and nobody can ask for.
    pub(crate) fn hidden(&self) -> usize {
        self.server.state.adapters.hidden().len()
    }
}

pub(crate) fn policy(mut rollout: Value) -> Value {
    // Seconds between two tokens, where there is a millisecond: no load of the machine comes to that.
    rollout["guardrails"] = json!({"latency_ratio_max": 1000});
    json!({
        "train_when": {"examples": 20, "age_hours": null},
        "folds": 2,
        "gate": {"examples_min": 8, "groups_min": 4},
        "rollout": rollout,
    })
}

pub(crate) fn answered(reply: &Reply) -> (String, String) {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let reply = reply.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&reply["id"]), text(&reply["choices"][0]["message"]["content"]))
}

/// At once, without a canary and without being watched.
pub(crate) fn at_once() -> Value {
    json!({"canary": [], "watch_requests": 0})
}

/// The method of a request, for lists of them.
pub(crate) const GET: Method = Method::GET;
