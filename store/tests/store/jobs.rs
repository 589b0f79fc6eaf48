//! Training jobs: every way from one status to another that there is and none that there is not; one process at a time, and
//! another when that is dead.

use std::time::Duration;

use pleach_store::{
    EventLevel, JobEnd, JobError, JobEvent, JobReport, JobSignal, JobStatus, Metadata,
    NewCheckpoint, NewFile, NewJob, Order, Owner, Page, Quotas, Store, StoreError, StoredJob,
    TenantSettings,
};
use serde_json::json;

use crate::{
    on_both,
    place::{Place, tenant},
};

on_both!(
    a_job_goes_its_way_and_tells_about_it,
    what_has_ended_or_is_not_paused_stays,
    a_process_that_died_is_followed_by_another,
    files_of_a_job_stay_and_its_state_goes,
    jobs_are_limited_and_listed_by_pairs,
    owners_take_turns,
);

/// Long enough for no process to be taken for dead.
const SILENCE: Duration = Duration::from_mins(1);

async fn file(store: &Store, owner: &Owner) -> String {
    let blob = store.put_blob("rows").await.unwrap();
    let (filename, purpose) = ("rows".to_owned(), "fine-tune".to_owned());
    let new = NewFile { owner: owner.clone(), filename, purpose, blob, keep_ms: None };
    store.create_file(&new).await.unwrap().id
}

fn wanted(training_file: &str) -> NewJob {
    NewJob {
        model: "tiny".to_owned(),
        training_file: training_file.to_owned(),
        validation_file: None,
        spec: json!({"seed": 7}).to_string(),
        metadata: Metadata::from([("a".to_owned(), "b".to_owned())]),
    }
}

async fn new_job(store: &Store, owner: &Owner) -> StoredJob {
    let file = file(store, owner).await;
    store.create_job(owner, &wanted(&file)).await.unwrap()
}

fn moves_to(status: JobStatus) -> JobReport {
    JobReport { status: Some(status), ..JobReport::default() }
}

async fn messages(store: &Store, job: &StoredJob) -> Vec<String> {
    let events = store.job_events(&job.owner, &job.id, &Page::FIRST).await.unwrap().items;
    events.into_iter().map(|event| event.event.message).collect()
}

async fn a_job_goes_its_way_and_tells_about_it(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let job = new_job(&store, &owner).await;
    assert_eq!(store.job(&owner, &job.id).await.unwrap(), job);
    assert_eq!(store.claim_job("p1", SILENCE).await.unwrap(), Some(job.clone()));
    assert_eq!(store.claim_job("p1", SILENCE).await.unwrap(), None, "it has one already");
    let report = async |report: JobReport| store.report_job(&job, "p1", &report).await.unwrap();
    assert_eq!(report(moves_to(JobStatus::Queued)).await, JobSignal::GoOn);
    assert_eq!(report(moves_to(JobStatus::Running)).await, JobSignal::GoOn);
    let metrics = json!({"step": 1, "train_loss": 2.5});
    let checkpoint =
        NewCheckpoint { step: 1, model: "ft:x:ckpt-step-1".to_owned(), metrics: metrics.clone() };
    let step = JobReport {
        events: vec![
            JobEvent { metrics: Some(metrics.clone()), ..JobEvent::info("Step 1/2") },
            JobEvent { level: EventLevel::Warn, ..JobEvent::info("ü") },
        ],
        checkpoint: Some(checkpoint),
        trained_tokens: Some(9),
        estimated_finish_ms: Some(77),
        ..JobReport::default()
    };
    // A step that is done again after an interruption is one checkpoint.
    for _ in 0..2 {
        assert_eq!(report(step.clone()).await, JobSignal::GoOn);
    }
    let running = store.job(&owner, &job.id).await.unwrap();
    assert_eq!((running.status, running.trained_tokens), (JobStatus::Running, Some(9)));
    assert!(running.started_ms >= Some(job.created_ms) && running.estimated_finish_ms == Some(77));
    let checkpoints = store.job_checkpoints(&owner, &job.id, &Page::FIRST).await.unwrap().items;
    assert_eq!(checkpoints.len(), 1);
    assert_eq!((checkpoints[0].step, &checkpoints[0].metrics), (1, &metrics));

    let blob = store.put_blob("step,loss").await.unwrap();
    let (filename, purpose) = ("results.csv".to_owned(), "fine-tune-results".to_owned());
    let results = NewFile { owner: owner.clone(), filename, purpose, blob, keep_ms: None };
    let fine_tuned_model = "ft:x".to_owned();
    let end = JobEnd::Succeeded { fine_tuned_model, trained_tokens: 18, results };
    assert!(store.finish_job(&job, "p1", &end).await.unwrap());
    assert!(!store.finish_job(&job, "p1", &end).await.unwrap(), "once is enough");
    drop(store);
    let store = place.open().await;
    let done = store.job(&owner, &job.id).await.unwrap();
    assert_eq!((done.status, done.trained_tokens), (JobStatus::Succeeded, Some(18)));
    assert_eq!(done.fine_tuned_model.as_deref(), Some("ft:x"));
    assert!(done.finished_ms.is_some() && done.estimated_finish_ms.is_none());
    let results = store.file(&owner, done.result_file.as_deref().unwrap()).await.unwrap();
    assert_eq!(store.read_blob(&results.blob, 99).await.unwrap(), b"step,loss");

    let told = messages(&store, &job).await;
    assert_eq!(told.len(), 8);
    assert_eq!(told[0], "The job has successfully completed");
    assert_eq!(told[1], "New fine-tuned model created: ft:x");
    assert_eq!(told[7], format!("Created fine-tuning job: {}", job.id));
    let page = Page { after: Some("5"), rows_max: 2 };
    let listing = store.job_events(&owner, &job.id, &page).await.unwrap();
    let numbers: Vec<_> = listing.items.iter().map(|event| event.number).collect();
    assert_eq!((numbers, listing.next.as_deref()), (vec![4, 3], Some("3")));
    assert_eq!(listing.items[0].event.level, EventLevel::Warn);
    assert_eq!(listing.items[1].event.metrics, Some(metrics));
    for error in [
        store.job(&Owner::Shared, &job.id).await.unwrap_err(),
        store.job_events(&Owner::Shared, &job.id, &Page::FIRST).await.unwrap_err(),
        store.job_checkpoints(&Owner::Shared, &job.id, &Page::FIRST).await.unwrap_err(),
        store.cancel_job(&Owner::Shared, &job.id).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NotFound { kind: "job", .. }), "{error}");
    }
}

async fn what_has_ended_or_is_not_paused_stays(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    let status = async |job: &StoredJob| store.job(&owner, &job.id).await.unwrap().status;
    let refused = |result: Result<StoredJob, StoreError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::WrongState { kind: "job", .. }), "{error}");
    };
    // Before anybody ran it.
    let early = new_job(&store, &owner).await;
    refused(store.resume_job(&owner, &early.id).await);
    store.pause_job(&owner, &early.id).await.unwrap();
    refused(store.pause_job(&owner, &early.id).await);
    assert_eq!(store.claim_job("p1", SILENCE).await.unwrap(), None, "it is paused");
    let resumed = store.resume_job(&owner, &early.id).await.unwrap();
    assert_eq!(resumed.status, JobStatus::ValidatingFiles, "its files were not read");
    // While it runs: the process is told with its next report, and the state that it then tells is kept.
    let job = store.claim_job("p1", SILENCE).await.unwrap().unwrap();
    store.report_job(&job, "p1", &moves_to(JobStatus::Running)).await.unwrap();
    store.pause_job(&owner, &job.id).await.unwrap();
    let state = store.put_blob("state").await.unwrap();
    let report = JobReport { state: Some(state), ..moves_to(JobStatus::Running) };
    assert_eq!(store.report_job(&job, "p1", &report).await.unwrap(), JobSignal::Pause);
    store.release_job(&job, "p1").await.unwrap();
    assert_eq!(status(&job).await, JobStatus::Paused);
    let resumed = store.resume_job(&owner, &job.id).await.unwrap();
    assert_eq!((resumed.status, resumed.state), (JobStatus::Queued, Some(state.digest)));
    let again = store.claim_job("p2", SILENCE).await.unwrap().unwrap();
    assert_eq!(again.id, job.id);
    // Its end is for good.
    store.cancel_job(&owner, &job.id).await.unwrap();
    assert_eq!(store.report_job(&job, "p2", &report).await.unwrap(), JobSignal::Stop);
    let failed = JobError { code: "x".to_owned(), message: "m".to_owned(), param: None };
    assert!(!store.finish_job(&job, "p2", &JobEnd::Failed(failed.clone())).await.unwrap());
    for result in [
        store.cancel_job(&owner, &job.id).await,
        store.pause_job(&owner, &job.id).await,
        store.resume_job(&owner, &job.id).await,
    ] {
        refused(result);
    }
    assert_eq!(status(&job).await, JobStatus::Cancelled);
    // A paused one can be cancelled, and one can fail.
    let paused = new_job(&store, &owner).await;
    store.pause_job(&owner, &paused.id).await.unwrap();
    store.cancel_job(&owner, &paused.id).await.unwrap();
    let bad = new_job(&store, &owner).await;
    assert_eq!(store.claim_job("p1", SILENCE).await.unwrap().unwrap().id, bad.id);
    assert!(store.finish_job(&bad, "p1", &JobEnd::Failed(failed.clone())).await.unwrap());
    let bad = store.job(&owner, &bad.id).await.unwrap();
    assert_eq!((bad.status, bad.error), (JobStatus::Failed, Some(failed)));
}

async fn a_process_that_died_is_followed_by_another(place: Place) {
    let store = place.open().await;
    let job = new_job(&store, &Owner::Shared).await;
    // Of many that ask at once one has it.
    let claims = (0..6).map(|n| {
        let store = store.clone();
        async move { store.claim_job(&format!("p{n}"), SILENCE).await.unwrap() }
    });
    let claimed = futures_util::future::join_all(claims).await;
    assert_eq!(claimed.iter().flatten().count(), 1);
    let n = claimed.iter().position(Option::is_some).unwrap();
    let first = format!("p{n}");
    let state = store.put_blob("half").await.unwrap();
    let report = JobReport { state: Some(state), ..moves_to(JobStatus::Running) };
    assert_eq!(store.report_job(&job, &first, &report).await.unwrap(), JobSignal::GoOn);
    // However late it is by any clock: who begins to look has not been silent to it, and who reports is not.
    let short = Duration::from_millis(40);
    assert_eq!(store.claim_job("follower", short).await.unwrap(), None);
    tokio::time::sleep(short).await;
    let heard = store.report_job(&job, &first, &JobReport::default()).await.unwrap();
    assert_eq!(heard, JobSignal::GoOn);
    assert_eq!(store.claim_job("follower", short).await.unwrap(), None);
    tokio::time::sleep(short).await;
    let follower = store.claim_job("follower", short).await.unwrap().unwrap();
    assert_eq!((follower.status, follower.state), (JobStatus::Running, Some(state.digest)));
    assert_eq!(store.read_blob(&state.digest, 9).await.unwrap(), b"half");
    // The first one was only slow: it finds out.
    assert_eq!(store.report_job(&job, &first, &report).await.unwrap(), JobSignal::Stop);
    store.release_job(&job, &first).await.unwrap();
    let report = moves_to(JobStatus::Running);
    assert_eq!(store.report_job(&job, "follower", &report).await.unwrap(), JobSignal::GoOn);
}

async fn files_of_a_job_stay_and_its_state_goes(place: Place) {
    let store = place.open_keeping(std::time::Duration::ZERO).await;
    let owner = Owner::Shared;
    let job = new_job(&store, &owner).await;
    let refused = store.delete_file(&owner, &job.training_file).await.unwrap_err();
    assert!(matches!(refused, StoreError::FileInUse { job: by, .. } if by == job.id));
    store.claim_job("p1", SILENCE).await.unwrap();
    let mut states = Vec::new();
    for text in ["one", "two"] {
        let state = store.put_blob(text).await.unwrap();
        let report = JobReport { state: Some(state), ..JobReport::default() };
        store.report_job(&job, "p1", &report).await.unwrap();
        states.push(state);
    }
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    store.sweep_blobs().await.unwrap();
    assert!(store.read_blob(&states[0].digest, 9).await.is_err(), "a later one has replaced it");
    assert_eq!(store.read_blob(&states[1].digest, 9).await.unwrap(), b"two");
    store.cancel_job(&owner, &job.id).await.unwrap();
    assert!(store.read_blob(&states[1].digest, 9).await.is_err());
    store.delete_file(&owner, &job.training_file).await.unwrap();
    assert_eq!(store.job(&owner, &job.id).await.unwrap().training_file, job.training_file);
    let files = store.files(&owner, None, &Page::FIRST, Order::Ascending).await.unwrap();
    assert_eq!(files.items, []);
}

async fn owners_take_turns(place: Place) {
    let store = place.open().await;
    let owners = [
        Owner::Tenant(tenant(&store, "many").await),
        Owner::Tenant(tenant(&store, "one").await),
        Owner::Shared,
    ];
    let mut jobs = Vec::new();
    for index in [0, 0, 0, 1, 2, 1] {
        jobs.push(new_job(&store, &owners[index]).await);
        // Ids of one millisecond have no order.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let begin = async |expected: usize, does_start: bool| {
        let job = store.claim_job("p1", SILENCE).await.unwrap().unwrap();
        let found = jobs.iter().position(|other| other.id == job.id).unwrap();
        assert_eq!(found, expected, "of {:?}", jobs.iter().map(|job| &job.owner));
        if does_start {
            store.report_job(&job, "p1", &moves_to(JobStatus::Running)).await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        job
    };
    begin(0, true).await;
    // One whose files turn out to be bad was a turn, too.
    let bad = begin(3, false).await;
    let error = JobError { code: "x".to_owned(), message: "m".to_owned(), param: None };
    store.finish_job(&bad, "p1", &JobEnd::Failed(error)).await.unwrap();
    begin(4, true).await;
    let interrupted = begin(1, true).await;
    store.release_job(&interrupted, "p1").await.unwrap();
    begin(1, true).await;
    begin(5, true).await;
    begin(2, true).await;
    assert_eq!(store.claim_job("p1", SILENCE).await.unwrap(), None);
}

async fn jobs_are_limited_and_listed_by_pairs(place: Place) {
    let store = place.open().await;
    let quotas = Quotas { training_jobs: Some(2), ..Quotas::default() };
    let settings = TenantSettings { quotas, ..TenantSettings::named("few") };
    let owner = Owner::Tenant(store.create_tenant(settings).await.unwrap().id);
    let first = new_job(&store, &owner).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let second = new_job(&store, &owner).await;
    let wanted = wanted(&first.training_file);
    let refused = store.create_job(&owner, &wanted).await.unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::QuotaExceeded { quota: "training jobs", limit: 2, wanted: 3, .. }
        ),
        "{refused}"
    );
    store.cancel_job(&owner, &first.id).await.unwrap();
    let without = NewJob { metadata: Metadata::new(), ..wanted.clone() };
    let third = store.create_job(&owner, &without).await.unwrap();
    let ids = async |pairs: &Metadata, page: &Page<'_>| {
        let listing = store.jobs(&owner, pairs, page).await.unwrap();
        listing.items.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    let all = [third.id, second.id.clone(), first.id.clone()];
    assert_eq!(ids(&Metadata::new(), &Page::FIRST).await, all);
    let page = Page { after: Some(&all[0]), rows_max: 1 };
    assert_eq!(ids(&Metadata::new(), &page).await, std::slice::from_ref(&second.id));
    assert_eq!(ids(&wanted.metadata, &Page::FIRST).await, [second.id, first.id]);
    let other = Owner::Tenant(tenant(&store, "other").await);
    let foreign = store.create_job(&other, &wanted).await.unwrap_err();
    assert!(matches!(foreign, StoreError::NotFound { kind: "file", .. }), "{foreign}");
}
