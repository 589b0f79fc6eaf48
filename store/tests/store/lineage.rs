//! What trained generations came from: known as long as anybody asks, also of what was deleted; and what there is to learn
//! from, which is gone once it is erased.

use std::collections::BTreeMap;

use pleach_store::{
    AliasChange, Erased, Example, ExampleCounts, ExampleKind, Expected, FeedbackKind,
    FeedbackTarget, GenerationDigest, Labelled, LabelledCount, Metadata, NewFeedback, NewFile,
    NewLineage, NewRound, Owner, Page, RoundChange, RoundSignal, RoundState, SawGeneration, Seen,
    Store, StoreError, StoredCompletion, StoredFeedback, StoredRound, time_id,
};
use serde_json::{Value, json};

use crate::{
    on_both,
    place::{Place, digest, register, tenant},
};

on_both!(
    a_lineage_stays_as_it_was_first_put,
    rounds_that_come_to_equal_weights_have_a_lineage_each,
    examples_are_noted_once_and_before_they_are_gone,
    it_is_known_which_generations_saw_what,
    who_is_erased_is_in_no_data_set,
    no_file_of_a_round_outlives_who_was_erased,
    what_was_said_is_found_by_name,
);

const FAR: i64 = 4_000_000_000_000;

fn new_completion(id: String, model: &str, user: Option<&str>) -> StoredCompletion {
    StoredCompletion {
        id,
        model: model.to_owned(),
        generation: None,
        episode: None,
        user_sha256: user.map(str::to_owned),
        metadata: Metadata::new(),
        body: json!({"messages": []}).to_string(),
        created_ms: 1_700_000_000_000,
        expires_ms: FAR,
    }
}

async fn completion(
    store: &Store,
    owner: &Owner,
    model: &str,
    user: Option<&str>,
    episode: Option<&str>,
) -> StoredCompletion {
    let (id, episode) = (time_id("chatcmpl-").unwrap(), episode.map(str::to_owned));
    let made = StoredCompletion { episode, ..new_completion(id, model, user) };
    store.put_completions(&[(owner.clone(), made.clone())]).await.unwrap();
    // The next id is a later one.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    made
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

async fn say(store: &Store, owner: &Owner, feedback: NewFeedback) -> StoredFeedback {
    let made = store.put_feedback(owner, &feedback, false).await.unwrap().0;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    made
}

async fn liked(store: &Store, owner: &Owner, id: &str) -> StoredFeedback {
    say(store, owner, about(id, FeedbackKind::Boolean, json!(true))).await
}

fn of_completion(completion: &StoredCompletion) -> Example {
    let (id, user_sha256) = (completion.id.clone(), completion.user_sha256.clone());
    Example { kind: ExampleKind::Completion, id, user_sha256 }
}

fn of_feedback(feedback: &StoredFeedback) -> Example {
    let (id, user_sha256) = (feedback.id.clone(), feedback.user_sha256.clone());
    Example { kind: ExampleKind::Feedback, id, user_sha256 }
}

/// A round that `p` has and that trains on these.
async fn round(
    store: &Store,
    owner: &Owner,
    name: &str,
    examples: Vec<Example>,
) -> Result<StoredRound, StoreError> {
    let new = NewRound { name, parent: None, rebuild_of: None, progress: Value::Null };
    let made = store.create_round(owner, &new).await.unwrap();
    assert_eq!(
        store.claim_round("p", std::time::Duration::from_mins(1), true).await.unwrap().unwrap().id,
        made.id
    );
    let state = Some(RoundState::Training);
    let step = RoundChange { state, examples, ..RoundChange::default() };
    let told = store.advance_round(&made, "p", &step).await?;
    let RoundSignal::GoOn(now) = told else { panic!("{told:?}") };
    Ok(*now)
}

fn from(n: u64, parent: Option<u64>, round: Option<&str>) -> NewLineage {
    NewLineage {
        generation: digest(n),
        base_sha256: "ab".repeat(32),
        parent: parent.map(digest),
        round: round.map(str::to_owned),
        job: Some("ftjob-1".to_owned()),
        data_sha256: None,
        recipe: json!({"method": "kto", "note": "ü \u{0}"}),
        seed: u64::MAX - n,
    }
}

async fn a_lineage_stays_as_it_was_first_put(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let round = round(&store, &owner, "mia", Vec::new()).await.unwrap();
    let wanted = from(1, Some(9), Some(&round.id));
    for lineage in [&wanted, &NewLineage { parent: None, seed: 1, ..wanted.clone() }] {
        store.put_lineage(&owner, lineage).await.unwrap();
    }
    let found = store.lineage(&owner, &digest(1)).await.unwrap();
    assert_eq!((&found.from, found.verdict.as_ref(), found.is_kept), (&wanted, None, false));
    let foreign = store.lineage(&Owner::Shared, &digest(1)).await.unwrap_err();
    assert!(matches!(foreign, StoreError::NotFound { kind: "lineage", .. }), "{foreign}");
    // The verdict of the round is that of its candidate, and of no other generation.
    store.put_lineage(&owner, &from(2, None, None)).await.unwrap();
    let verdict = Some(json!({"passed": false}));
    for (n, state) in [(1, RoundState::Gating), (2, RoundState::Refused)] {
        let step = RoundChange {
            state: Some(state),
            candidate: Some(digest(n)),
            verdict: verdict.clone(),
            ..RoundChange::default()
        };
        let told = store.advance_round(&round, "p", &step).await.unwrap();
        assert!(matches!(told, RoundSignal::GoOn(_)));
    }
    assert_eq!(store.lineage(&owner, &digest(1)).await.unwrap().verdict, verdict);
    assert_eq!(store.lineage(&owner, &digest(2)).await.unwrap().verdict, None);
    // It is that of the names that have had it, and of its round's.
    let under = async |owner: &Owner, name: &str, n| {
        store.lineage_under(owner, name, &digest(n)).await.is_ok()
    };
    assert!(under(&owner, "mia", 1).await);
    assert!(!under(&owner, "tom", 1).await && !under(&owner, "mia", 2).await);
    assert!(!under(&Owner::Shared, "mia", 1).await);
    // It outlives its generation.
    register(&store, &owner, 1).await;
    let change = AliasChange { alias: "tom", expected: Expected::Absent, who: "test", reason: "" };
    store.move_alias(&owner, &change, &digest(1)).await.unwrap();
    let away = AliasChange { expected: Expected::Any, ..change };
    store.delete_alias(&owner, &away).await.unwrap();
    assert!(under(&owner, "tom", 1).await);
    assert!(store.lineage(&owner, &digest(1)).await.unwrap().is_kept);
    store.retire_generation(&owner, &digest(1)).await.unwrap();
    drop(store);
    let store = place.open().await;
    let found = store.lineage(&owner, &digest(1)).await.unwrap();
    assert_eq!((&found.from, found.is_kept), (&wanted, false));
}

async fn rounds_that_come_to_equal_weights_have_a_lineage_each(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let mut rounds = Vec::new();
    for (name, passed) in [("mia", false), ("tom", true), ("mia", true)] {
        let asked = completion(&store, &owner, name, Some(name), None).await;
        let made = round(&store, &owner, name, vec![of_completion(&asked)]).await.unwrap();
        store.put_lineage(&owner, &from(1, None, Some(&made.id))).await.unwrap();
        for state in [RoundState::Gating, RoundState::Refused] {
            let step = RoundChange {
                state: Some(state),
                candidate: Some(digest(1)),
                verdict: (state == RoundState::Refused).then(|| json!({ "passed": passed })),
                ..RoundChange::default()
            };
            store.advance_round(&made, "p", &step).await.unwrap();
        }
        rounds.push((made.id, asked.id));
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    // Each name is told of its own last round.
    let under = async |name: &str| {
        let found = store.lineage_under(&owner, name, &digest(1)).await.unwrap();
        (found.from.round.unwrap(), found.verdict.unwrap()["passed"] == true)
    };
    assert_eq!(under("mia").await, (rounds[2].0.clone(), true));
    assert_eq!(under("tom").await, (rounds[1].0.clone(), true));
    let first = store.lineage(&owner, &digest(1)).await.unwrap();
    assert_eq!(first.from.round.as_ref(), Some(&rounds[0].0));
    // It has seen what each of them learned from.
    for (_, asked) in &rounds {
        assert_eq!(saw(&store, &owner, Seen::Completion(asked)).await, (vec![1], vec![]));
    }
    assert_eq!(saw(&store, &owner, Seen::User("tom")).await, (vec![1], vec![]));
}

async fn examples_are_noted_once_and_before_they_are_gone(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let mut all = Vec::new();
    // More than one statement takes.
    for n in 0..300 {
        let user = (n % 2 == 0).then_some("ann");
        let made = new_completion(format!("chatcmpl-{n:03}"), "mia", user);
        store.put_completions(&[(owner.clone(), made.clone())]).await.unwrap();
        all.push(of_completion(&made));
    }
    let said = liked(&store, &owner, "chatcmpl-000").await;
    all.push(of_feedback(&said));
    let round = round(&store, &owner, "mia", all.clone()).await.unwrap();
    let again = RoundChange { examples: all.clone(), ..RoundChange::default() };
    store.advance_round(&round, "p", &again).await.unwrap();
    let counts = store.count_examples(&owner, &round.id).await.unwrap();
    assert_eq!(counts, ExampleCounts { completions: 300, feedback: 1 });
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = Page { after: after.as_deref(), rows_max: 100 };
        let listing = store.examples(&owner, &round.id, &page).await.unwrap();
        found.extend(listing.items);
        after = listing.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, all);
    assert_eq!(store.examples(&Owner::Shared, &round.id, &Page::FIRST).await.unwrap().items, []);

    // What went after it was read is not learned from: nothing of the step is written.
    let step = |examples: &[Example]| RoundChange {
        state: Some(RoundState::Gating),
        examples: examples.to_vec(),
        ..RoundChange::default()
    };
    store.withdraw_feedback(&owner, &said.id).await.unwrap();
    let gone = store.advance_round(&round, "p", &step(&all[300..])).await.unwrap_err();
    assert!(matches!(&gone, StoreError::NotFound { kind: "feedback", id } if *id == said.id));
    store.delete_completion(&owner, "chatcmpl-007").await.unwrap();
    let gone = store.advance_round(&round, "p", &step(&all[..9])).await.unwrap_err();
    assert!(
        matches!(gone, StoreError::NotFound { kind: "completion", id } if id == "chatcmpl-007")
    );
    assert_eq!(store.round(&owner, &round.id).await.unwrap().state, RoundState::Training);
    assert_eq!(store.count_examples(&owner, &round.id).await.unwrap(), counts);
}

/// Which saw it, by number, those that did directly first.
async fn saw(store: &Store, owner: &Owner, seen: Seen<'_>) -> (Vec<u64>, Vec<u64>) {
    let found = store.generations_that_saw(owner, seen).await.unwrap();
    by_number(&found)
}

fn by_number(found: &[SawGeneration]) -> (Vec<u64>, Vec<u64>) {
    let number = |digest: GenerationDigest| u64::from_be_bytes(digest.0[..8].try_into().unwrap());
    let numbers = |is_direct| {
        let of = found.iter().filter(move |saw| saw.is_direct == is_direct);
        of.map(|saw| number(saw.generation)).collect()
    };
    (numbers(true), numbers(false))
}

async fn it_is_known_which_generations_saw_what(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let anns = completion(&store, &owner, "mia", Some("ann"), None).await;
    let toms = completion(&store, &owner, "mia", Some("tom"), None).await;
    let by_joe = NewFeedback {
        user_sha256: Some("joe".to_owned()),
        ..about(&anns.id, FeedbackKind::Boolean, json!(true))
    };
    let joes = say(&store, &owner, by_joe).await;
    let first = vec![of_completion(&anns), of_feedback(&joes)];
    let first = round(&store, &owner, "mia", first).await.unwrap();
    // The user of this one is not noted with the example.
    let second = vec![Example { user_sha256: None, ..of_completion(&toms) }];
    let second = round(&store, &owner, "tom", second).await.unwrap();
    // 1 and 2 are of the first round, 3 of the second and goes on from 2, 4 from 3, and 5 from another.
    for lineage in [
        from(1, None, Some(&first.id)),
        from(2, None, Some(&first.id)),
        from(3, Some(2), Some(&second.id)),
        from(4, Some(3), None),
        from(5, Some(6), None),
    ] {
        store.put_lineage(&owner, &lineage).await.unwrap();
    }
    store.put_lineage(&Owner::Shared, &from(7, Some(2), Some(&first.id))).await.unwrap();
    let saw = async |seen| saw(&store, &owner, seen).await;
    assert_eq!(saw(Seen::Completion(&anns.id)).await, (vec![1, 2], vec![3, 4]));
    assert_eq!(saw(Seen::Feedback(&joes.id)).await, (vec![1, 2], vec![3, 4]));
    assert_eq!(saw(Seen::User("joe")).await, (vec![1, 2], vec![3, 4]));
    assert_eq!(saw(Seen::User("ann")).await, (vec![1, 2], vec![3, 4]));
    assert_eq!(saw(Seen::Completion(&toms.id)).await, (vec![3], vec![4]));
    assert_eq!(saw(Seen::User("tom")).await, (vec![3], vec![4]));
    for nothing in [Seen::Completion(&joes.id), Seen::Feedback(&anns.id), Seen::User("tim")] {
        assert_eq!(saw(nothing).await, (vec![], vec![]));
    }
    assert_eq!(
        store.generations_that_saw(&Owner::Shared, Seen::User("ann")).await.unwrap(),
        [],
        "another's round is none"
    );
    // It is known of what is deleted, and of what is there no more.
    register(&store, &owner, 2).await;
    store.withdraw_feedback(&owner, &joes.id).await.unwrap();
    store.delete_completion(&owner, &anns.id).await.unwrap();
    let found = store.generations_that_saw(&owner, Seen::Feedback(&joes.id)).await.unwrap();
    assert_eq!(by_number(&found), (vec![1, 2], vec![3, 4]));
    let kept: Vec<_> = found.iter().filter(|saw| saw.is_kept).map(|saw| saw.generation).collect();
    assert_eq!(kept, [digest(2)]);
    assert_eq!(saw(Seen::Completion(&anns.id)).await, (vec![1, 2], vec![3, 4]));
}

async fn who_is_erased_is_in_no_data_set(place: Place) {
    let store = place.open_keeping(std::time::Duration::ZERO).await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let mut files = Vec::new();
    let mut rounds = Vec::new();
    for (name, user) in [("old", "ann"), ("new", "ann"), ("toms", "tom")] {
        let asked = completion(&store, &owner, "mia", Some(user), None).await;
        let made = round(&store, &owner, name, vec![of_completion(&asked)]).await.unwrap();
        let blob = store.put_blob(format!("what {user} said for {name}")).await.unwrap();
        let (filename, purpose) = ("rows".to_owned(), "fine-tune".to_owned());
        let new = NewFile { owner: owner.clone(), filename, purpose, blob, keep_ms: None };
        let file = store.create_file(&new).await.unwrap();
        let step = RoundChange { file: Some(file.id.clone()), ..RoundChange::default() };
        store.advance_round(&made, "p", &step).await.unwrap();
        files.push(file);
        rounds.push(made);
    }
    store.put_lineage(&owner, &from(1, None, Some(&rounds[0].id))).await.unwrap();
    let failed = RoundChange { state: Some(RoundState::Failed), ..RoundChange::default() };
    store.advance_round(&rounds[0], "p", &failed).await.unwrap();

    let erased = store.erase_user(&owner, "ann").await.unwrap();
    assert_eq!((erased.completions, by_number(&erased.generations)), (2, (vec![1], vec![])));
    assert_eq!(erased.rounds, std::slice::from_ref(&rounds[1].id));
    let RoundSignal::Ended(ended) =
        store.advance_round(&rounds[1], "p", &RoundChange::default()).await.unwrap()
    else {
        panic!("a round goes on with what was erased")
    };
    assert_eq!((ended.state, &*ended.decisions[0].by), (RoundState::Cancelled, "erasure"));
    assert_eq!(store.round(&owner, &rounds[0].id).await.unwrap().state, RoundState::Failed);
    assert!(!store.round(&owner, &rounds[2].id).await.unwrap().state.is_final());
    for file in &files[..2] {
        assert!(store.file(&owner, &file.id).await.is_err());
        assert!(store.read_blob(&file.blob, 99).await.is_err(), "the text is still there");
    }
    assert!(store.file(&owner, &files[2].id).await.is_ok());
    // Nobody is named any more, and again is no error.
    let raw = place.raw().await;
    let named = "SELECT id FROM round_examples WHERE user_sha256 = 'ann'";
    assert_eq!(sqlx::query(named).fetch_all(&raw).await.unwrap().len(), 0);
    assert_eq!(store.erase_user(&owner, "ann").await.unwrap(), Erased::default());
    let example = &store.examples(&owner, &rounds[0].id, &Page::FIRST).await.unwrap().items[0];
    assert_eq!(saw(&store, &owner, Seen::Completion(&example.id)).await, (vec![1], vec![]));
}

/// Of a data set that nothing is known of yet, and of parts of data sets.
async fn no_file_of_a_round_outlives_who_was_erased(place: Place) {
    let store = place.open_keeping(std::time::Duration::ZERO).await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let mut files = Vec::new();
    let mut rounds = Vec::new();
    for (name, user) in [("anns", "ann"), ("toms", "tom"), ("building", "ann")] {
        let asked = completion(&store, &owner, "mia", Some(user), None).await;
        let made = if name == "building" {
            let new = NewRound { name, parent: None, rebuild_of: None, progress: Value::Null };
            let made = store.create_round(&owner, &new).await.unwrap();
            store.claim_round("p", std::time::Duration::from_mins(1), true).await.unwrap();
            made
        } else {
            round(&store, &owner, name, vec![of_completion(&asked)]).await.unwrap()
        };
        for part in ["all", "a part"] {
            let blob = store.put_blob(format!("{part} of what {user} said for {name}")).await;
            let (filename, purpose) = ("rows".to_owned(), "fine-tune".to_owned());
            let blob = blob.unwrap();
            let new = NewFile { owner: owner.clone(), filename, purpose, blob, keep_ms: None };
            files.push(store.create_file_of_round(&new, &made.id).await.unwrap());
        }
        rounds.push(made);
    }
    assert_eq!(store.erase_user(&owner, "ann").await.unwrap().rounds, [rounds[0].id.clone()]);
    for (index, file) in files.iter().enumerate() {
        let is_there = store.file(&owner, &file.id).await.is_ok();
        assert_eq!(is_there, [2, 3].contains(&index), "{index}");
        assert_eq!(store.read_blob(&file.blob, 99).await.is_ok(), is_there, "{index}");
    }
    // The round that was building has nothing to begin with: it builds again.
    let (state, file) = (Some(RoundState::Training), Some(files[4].id.clone()));
    let step = RoundChange { state, file, ..RoundChange::default() };
    let gone = store.advance_round(&rounds[2], "p", &step).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound { kind: "file", .. }), "{gone}");
    assert_eq!(store.round(&owner, &rounds[2].id).await.unwrap().state, RoundState::Building);
}

async fn what_was_said_is_found_by_name(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let first = completion(&store, &owner, "mia", None, Some("e1")).await;
    let second = completion(&store, &owner, "mia", None, Some("e1")).await;
    let silent = completion(&store, &owner, "mia", None, None).await;
    let third = completion(&store, &owner, "mia", None, None).await;
    let toms = completion(&store, &owner, "tom", None, None).await;
    let others = completion(&store, &Owner::Shared, "mia", None, None).await;
    let liked_first = liked(&store, &owner, &first.id).await;
    let better = NewFeedback {
        rejected: Some(silent.id.clone()),
        ..about(&third.id, FeedbackKind::Comparison, json!({}))
    };
    let better = say(&store, &owner, better).await;
    let episode = NewFeedback {
        target: FeedbackTarget::Episode("e1".to_owned()),
        ..about("", FeedbackKind::Float, json!(0.5))
    };
    let episode = say(&store, &owner, episode).await;
    say(&store, &owner, about(&silent.id, FeedbackKind::Comment, json!("x"))).await;
    let taken_back = liked(&store, &owner, &silent.id).await;
    store.withdraw_feedback(&owner, &taken_back.id).await.unwrap();
    let of_toms = liked(&store, &owner, &toms.id).await;
    liked(&store, &Owner::Shared, &others.id).await;

    let all = [
        Labelled { completion: third.clone(), feedback: vec![better.clone()] },
        Labelled { completion: second.clone(), feedback: vec![episode.clone()] },
        Labelled {
            completion: first.clone(),
            feedback: vec![liked_first.clone(), episode.clone()],
        },
    ];
    let listing = store.labelled(&owner, "mia", &Page::FIRST).await.unwrap();
    assert_eq!((&listing.items[..], &listing.next), (&all[..], &None));
    let page = Page { after: None, rows_max: 2 };
    let listing = store.labelled(&owner, "mia", &page).await.unwrap();
    assert_eq!((&listing.items[..], listing.next.as_ref()), (&all[..2], Some(&second.id)));
    let page = Page { after: listing.next.as_deref(), rows_max: 2 };
    let listing = store.labelled(&owner, "mia", &page).await.unwrap();
    assert_eq!((&listing.items[..], &listing.next), (&all[2..], &None));
    assert_eq!(store.labelled(&owner, "nobody", &Page::FIRST).await.unwrap().items, []);

    let count = async |name: &str, after: Option<&str>| {
        store.count_labelled(&owner, name, after).await.unwrap()
    };
    let counted = |feedback, oldest: &StoredFeedback, newest: &StoredFeedback| LabelledCount {
        feedback,
        oldest_ms: Some(oldest.created_ms),
        newest: Some(newest.id.clone()),
    };
    assert_eq!(count("mia", None).await, counted(3, &liked_first, &episode));
    assert_eq!(count("mia", Some(&liked_first.id)).await, counted(2, &better, &episode));
    assert_eq!(count("mia", Some(&episode.id)).await, LabelledCount::default());
    assert_eq!(count("tom", None).await, counted(1, &of_toms, &of_toms));
    // What is over is not learned from.
    let raw = place.raw().await;
    sqlx::query("UPDATE completions SET expires_ms = 1").execute(&raw).await.unwrap();
    assert_eq!(store.labelled(&owner, "mia", &Page::FIRST).await.unwrap().items, []);
    assert_eq!(count("mia", None).await, LabelledCount::default());
}
