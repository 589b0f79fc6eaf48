//! Completions and feedback: found by whom they belong to and by nobody else, and gone with all that hangs on them.

use std::collections::BTreeMap;

use pleach_store::{
    CompletionFilter, Erased, FeedbackFilter, FeedbackKind, FeedbackTarget, IdempotencyKey,
    Metadata, NewFeedback, Order, Owner, Page, Store, StoreError, StoredCompletion, time_id,
};
use serde_json::{Value, json};

use crate::{
    on_both,
    place::{Place, digest, tenant},
};

on_both!(
    completions_are_found_by_model_and_pairs,
    what_is_erased_takes_all_that_hangs_on_it,
    what_is_over_goes_a_little_at_a_time,
    feedback_comes_back_as_it_was_given,
    a_key_has_one_effect,
    a_metric_is_of_one_kind,
);

const FAR: i64 = 4_000_000_000_000;

fn completion(n: usize, user: Option<&str>, episode: Option<&str>) -> StoredCompletion {
    let metadata = Metadata::from([
        ("n".to_owned(), n.to_string()),
        ("parity".to_owned(), (n % 2).to_string()),
    ]);
    StoredCompletion {
        id: format!("{}-{n}", time_id("chatcmpl-").unwrap()),
        model: if n.is_multiple_of(3) { "three" } else { "other" }.to_owned(),
        generation: n.is_multiple_of(2).then(|| digest(n as u64)),
        episode: episode.map(str::to_owned),
        user_sha256: user.map(str::to_owned),
        metadata,
        body: json!({"messages": ["ü and \u{0}"], "n": n}).to_string(),
        created_ms: 1_700_000_000_000,
        expires_ms: FAR,
    }
}

async fn put(store: &Store, owner: &Owner, completion: StoredCompletion) -> String {
    let id = completion.id.clone();
    store.put_completions(&[(owner.clone(), completion)]).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    id
}

fn about(id: &str, kind: FeedbackKind, value: Value) -> NewFeedback {
    NewFeedback {
        target: FeedbackTarget::Completion { id: id.to_owned(), choice: 0 },
        metric: kind.name().to_owned(),
        kind,
        value,
        rejected: None,
        tags: BTreeMap::new(),
        user_sha256: None,
        idempotency: None,
    }
}

async fn completions_are_found_by_model_and_pairs(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let mut made = Vec::new();
    for n in 0..7 {
        let new = completion(n, None, None);
        put(&store, &owner, new.clone()).await;
        made.push(new);
    }
    drop(store);
    let store = place.open().await;
    assert_eq!(store.completion(&owner, &made[4].id).await.unwrap(), made[4]);
    assert!(store.completion(&Owner::Shared, &made[4].id).await.is_err());
    let found = async |model: Option<&str>, pairs: &[(&str, &str)], rows_max, order| {
        let metadata = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let filter =
            CompletionFilter { model: model.map(str::to_owned), metadata: metadata.collect() };
        let page = Page { after: None, rows_max };
        let listing = store.completions(&owner, &filter, &page, order).await.unwrap();
        let numbers = listing.items.iter().map(|completion| completion.metadata["n"].clone());
        (numbers.collect::<String>(), listing.next.is_some())
    };
    let (up, down) = (Order::Ascending, Order::Descending);
    assert_eq!(found(None, &[], 9, up).await, ("0123456".to_owned(), false));
    assert_eq!(found(None, &[], 3, down).await, ("654".to_owned(), true));
    assert_eq!(found(Some("three"), &[], 9, up).await, ("036".to_owned(), false));
    assert_eq!(found(None, &[("parity", "1")], 2, up).await, ("13".to_owned(), true));
    let both = [("parity", "0"), ("n", "4")];
    assert_eq!(found(Some("other"), &both, 9, down).await, ("4".to_owned(), false));
    assert_eq!(found(Some("three"), &both, 9, down).await, (String::new(), false));

    let pairs = Metadata::from([("new".to_owned(), "'; --".to_owned())]);
    let changed = store.set_completion_metadata(&owner, &made[4].id, &pairs).await.unwrap();
    assert_eq!(changed.metadata, pairs);
    let filter = CompletionFilter { model: None, metadata: pairs };
    let listing = store.completions(&owner, &filter, &Page::FIRST, up).await.unwrap();
    assert_eq!(listing.items, [changed]);
    let other = store.set_completion_metadata(&Owner::Shared, &made[4].id, &Metadata::new()).await;
    assert!(matches!(other, Err(StoreError::NotFound { kind: "completion", .. })), "{other:?}");
}

async fn what_is_erased_takes_all_that_hangs_on_it(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let joes = put(&store, &owner, completion(1, Some("joe"), Some("e1"))).await;
    let anns = put(&store, &owner, completion(2, Some("ann"), None)).await;
    let others = put(&store, &Owner::Shared, completion(3, Some("joe"), Some("e1"))).await;
    let say = async |owner: &Owner, feedback: NewFeedback| {
        store.put_feedback(owner, &feedback, false).await.unwrap().0.id
    };
    let comment = |id: &str| about(id, FeedbackKind::Comment, json!("x"));
    say(&owner, comment(&joes)).await;
    let kept = say(&owner, comment(&anns)).await;
    let joe = Some("joe".to_owned());
    say(&owner, NewFeedback { user_sha256: joe, ..comment(&anns) }).await;
    let worse = NewFeedback {
        rejected: Some(joes.clone()),
        ..about(&anns, FeedbackKind::Comparison, json!({}))
    };
    say(&owner, worse).await;
    let episode = FeedbackTarget::Episode("e1".to_owned());
    say(&owner, NewFeedback { target: episode, ..comment("") }).await;
    say(&Owner::Shared, comment(&others)).await;

    let erased = store.erase_user(&owner, "joe").await.unwrap();
    assert_eq!(erased, Erased { completions: 1, feedback: 4, ..Erased::default() });
    assert_eq!(store.erase_user(&owner, "joe").await.unwrap(), Erased::default());
    assert!(store.completion(&owner, &joes).await.is_err());
    assert!(!store.has_episode(&owner, "e1").await.unwrap());
    assert!(store.has_episode(&Owner::Shared, "e1").await.unwrap());
    let left = async |owner: &Owner| {
        let filter = FeedbackFilter::default();
        store.all_feedback(owner, filter, &Page::FIRST, Order::Ascending).await.unwrap().items
    };
    let ids: Vec<_> = left(&owner).await.into_iter().map(|feedback| feedback.id).collect();
    assert_eq!(ids, [kept]);
    assert_eq!(left(&Owner::Shared).await.len(), 1);

    store.delete_completion(&owner, &anns).await.unwrap();
    assert_eq!(left(&owner).await, []);
    assert!(store.delete_completion(&owner, &anns).await.is_err());
    // Time does the same.
    let raw = place.raw().await;
    sqlx::query("UPDATE completions SET expires_ms = 1").execute(&raw).await.unwrap();
    assert!(store.completion(&Owner::Shared, &others).await.is_err());
    assert!(!store.has_episode(&Owner::Shared, "e1").await.unwrap());
    assert_eq!(store.sweep_expired().await.unwrap().completions, 1);
    assert_eq!(left(&Owner::Shared).await, []);
    let pairs = sqlx::query("SELECT * FROM metadata").fetch_all(&raw).await.unwrap();
    assert_eq!(pairs.len(), 0);
}

async fn what_is_over_goes_a_little_at_a_time(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    for owner in [&owner, &Owner::Shared] {
        let mut all = Vec::new();
        for n in 0..450 {
            let episode = (n < 10).then_some("e1");
            let id = format!("chatcmpl-{n:03}");
            all.push((owner.clone(), StoredCompletion { id, ..completion(n, None, episode) }));
        }
        store.put_completions(&all).await.unwrap();
        let worse = NewFeedback {
            rejected: Some("chatcmpl-449".to_owned()),
            ..about("chatcmpl-000", FeedbackKind::Comparison, json!({}))
        };
        let episode = FeedbackTarget::Episode("e1".to_owned());
        let of_episode =
            NewFeedback { target: episode, ..about("", FeedbackKind::Comment, json!("")) };
        for feedback in [worse, of_episode] {
            store.put_feedback(owner, &feedback, false).await.unwrap();
        }
    }
    let raw = place.raw().await;
    let run = async |query: &'static str| sqlx::raw_sql(query).execute(&raw).await.unwrap();
    // Tenants' go first here; one of the operator's is not over.
    run("UPDATE completions SET expires_ms = CASE WHEN owner = 'shared' THEN 2 ELSE 1 END").await;
    run("UPDATE completions SET expires_ms = 4000000000000 \
         WHERE owner = 'shared' AND id = 'chatcmpl-007'")
    .await;
    let count = async |table: &str| {
        let query = format!("SELECT CAST(COUNT(*) AS BIGINT) FROM {table}");
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(query)).fetch_one(&raw).await.unwrap()
    };
    if place.is_sqlite() {
        // What fails in the end leaves what was done by then.
        run("CREATE TRIGGER full BEFORE DELETE ON completions WHEN OLD.owner = 'shared' \
             AND OLD.id = 'chatcmpl-440' BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
        .await;
        store.sweep_expired().await.unwrap_err();
        assert_eq!((count("completions").await, count("feedback").await), (50, 2));
        run("DROP TRIGGER full").await;
        assert_eq!(store.sweep_expired().await.unwrap().completions, 49);
    } else {
        assert_eq!(store.sweep_expired().await.unwrap().completions, 899);
    }
    assert_eq!(count("completions").await, 1);
    // That of the episode of which something is left.
    assert_eq!(count("feedback").await, 1);
    assert_eq!(count("metadata").await, 2);
    assert_eq!(store.sweep_expired().await.unwrap().completions, 0);
}

async fn feedback_comes_back_as_it_was_given(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let id = put(&store, &owner, completion(1, None, Some("e1"))).await;
    let values = [
        (FeedbackKind::Boolean, json!(true)),
        (FeedbackKind::Float, json!(-0.125)),
        (FeedbackKind::Comparison, json!({"choice": 1})),
        (FeedbackKind::Demonstration, json!("ü \"x\" \u{0}")),
        (FeedbackKind::Comment, json!("")),
    ];
    for (kind, value) in values {
        let tags = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let (made, is_new) = store
            .put_feedback(&owner, &NewFeedback { tags, ..about(&id, kind, value) }, false)
            .await
            .unwrap();
        assert!(is_new);
        assert_eq!(store.feedback(&owner, &made.id).await.unwrap(), made);
        let value = json!("changed");
        let changed = store.change_feedback(&owner, &made.id, Some(&value), None).await.unwrap();
        assert_eq!((&changed.value, &changed.tags), (&value, &made.tags));
        assert_eq!(store.feedback(&owner, &made.id).await.unwrap(), changed);
        let withdrawn = store.withdraw_feedback(&owner, &made.id).await.unwrap();
        assert!(withdrawn.withdrawn_ms.is_some() && withdrawn.value == Value::Null);
        assert_eq!(store.withdraw_feedback(&owner, &made.id).await.unwrap(), withdrawn);
        let late = store.change_feedback(&owner, &made.id, Some(&value), None).await;
        assert!(matches!(late, Err(StoreError::WrongState { .. })), "{late:?}");
        let foreign = store.withdraw_feedback(&Owner::Shared, &made.id).await;
        assert!(matches!(foreign, Err(StoreError::NotFound { kind: "feedback", .. })));
    }
    let (dry, _) = store
        .put_feedback(&owner, &about(&id, FeedbackKind::Comment, json!("x")), true)
        .await
        .unwrap();
    assert!(store.feedback(&owner, &dry.id).await.is_err());
    let foreign = about(&id, FeedbackKind::Comment, json!("x"));
    let foreign = store.put_feedback(&Owner::Shared, &foreign, false).await;
    assert!(matches!(foreign, Err(StoreError::NotFound { kind: "completion", .. })));
    let filter = FeedbackFilter { metric: Some("float"), ..FeedbackFilter::default() };
    let found = store.all_feedback(&owner, filter, &Page::FIRST, Order::Descending).await.unwrap();
    assert_eq!(found.items.len(), 1);
}

async fn a_key_has_one_effect(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    let id = put(&store, &owner, completion(1, None, None)).await;
    let with_key = |request: &str| NewFeedback {
        idempotency: Some(IdempotencyKey {
            key: "k".to_owned(),
            request_sha256: request.to_owned(),
        }),
        ..about(&id, FeedbackKind::Comment, json!("x"))
    };
    let wanted = with_key("r1");
    let at_once = (0..6).map(|_| store.put_feedback(&owner, &wanted, false));
    let made: Vec<_> = futures_util::future::join_all(at_once).await;
    let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    assert_eq!(made.iter().filter(|(_, is_new)| *is_new).count(), 1);
    assert!(made.iter().all(|(feedback, _)| *feedback == made[0].0));
    let reused = store.put_feedback(&owner, &with_key("r2"), false).await.unwrap_err();
    assert!(matches!(reused, StoreError::KeyReused { key } if key == "k"));
    // Another's key is another key; and many have none.
    let other = Owner::Tenant(tenant(&store, "one").await);
    let id = put(&store, &other, completion(2, None, None)).await;
    let theirs =
        NewFeedback { target: FeedbackTarget::Completion { id, choice: 0 }, ..with_key("r2") };
    assert!(store.put_feedback(&other, &theirs, false).await.unwrap().1);
    for _ in 0..2 {
        let without = NewFeedback { idempotency: None, ..wanted.clone() };
        assert!(store.put_feedback(&owner, &without, false).await.unwrap().1);
    }
}

async fn a_metric_is_of_one_kind(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    let id = put(&store, &owner, completion(1, None, None)).await;
    let of = |kind, value| NewFeedback { metric: "liked".to_owned(), ..about(&id, kind, value) };
    store.put_feedback(&owner, &of(FeedbackKind::Float, json!(1.0)), true).await.unwrap();
    store.put_feedback(&owner, &of(FeedbackKind::Boolean, json!(true)), false).await.unwrap();
    let error = store.put_feedback(&owner, &of(FeedbackKind::Float, json!(1.0)), false).await;
    assert!(
        matches!(error, Err(StoreError::MetricKind { metric, kind }) if metric == "liked" && kind == "boolean")
    );
    let other = Owner::Tenant(tenant(&store, "one").await);
    let theirs = put(&store, &other, completion(2, None, None)).await;
    let float = NewFeedback {
        metric: "liked".to_owned(),
        ..about(&theirs, FeedbackKind::Float, json!(1.0))
    };
    store.put_feedback(&other, &float, false).await.unwrap();
}
