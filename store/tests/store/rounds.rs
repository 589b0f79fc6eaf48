//! Rounds: every way from one state to another that there is and none that there is not; one of a name at a time; one
//! process at a time, and another when that is dead.

use std::time::Duration;

use pleach_store::{
    Decision, JobError, NewFile, NewRound, Owner, Page, RoundChange, RoundSignal, RoundState,
    Store, StoreError, StoredFile, StoredRound,
};
use serde_json::{Value, json};

use crate::{
    on_both,
    place::{Place, digest, tenant},
};

on_both!(
    a_round_goes_its_way,
    there_is_no_other_way,
    what_is_decided_is_obeyed,
    a_name_has_one_round_at_a_time,
    a_process_that_died_is_followed_by_another,
    what_has_ended_is_left_to_do_until_somebody_says_that_it_is_done,
    files_of_a_round_are_known_and_are_made_while_it_is_open,
    the_data_set_of_an_open_round_stays,
);

/// Long enough for no process to be taken for dead.
const SILENCE: Duration = Duration::from_mins(1);

fn wanted(name: &str) -> NewRound<'_> {
    NewRound { name, parent: Some(digest(1)), rebuild_of: None, progress: Value::Null }
}

fn to(state: RoundState) -> RoundChange {
    RoundChange { state: Some(state), ..RoundChange::default() }
}

/// Moves a round that `p1` has.
async fn go(store: &Store, round: &StoredRound, change: &RoundChange) -> StoredRound {
    let told = store.advance_round(round, "p1", change).await.unwrap();
    let RoundSignal::GoOn(now) = told else { panic!("{told:?}") };
    *now
}

/// A new round of `name` that `p1` has, in a state.
async fn new_in(store: &Store, owner: &Owner, name: &str, states: &[RoundState]) -> StoredRound {
    let made = store.create_round(owner, &wanted(name)).await.unwrap();
    let claimed = store.claim_round("p1", SILENCE, true).await.unwrap().unwrap();
    assert_eq!(claimed.id, made.id);
    let mut round = made;
    for state in states {
        if round.state == RoundState::AwaitingApproval {
            store.decide_round(owner, &round.id, Decision::Approve, "ann", "").await.unwrap();
        }
        round = go(store, &round, &to(*state)).await;
    }
    round
}

/// A file that a round makes.
async fn file_of(store: &Store, round: &StoredRound) -> Result<StoredFile, StoreError> {
    let blob = store.put_blob("rows").await.unwrap();
    let (filename, purpose) = ("rows".to_owned(), "fine-tune".to_owned());
    let new = NewFile { owner: round.owner.clone(), filename, purpose, blob, keep_ms: None };
    store.create_file_of_round(&new, &round.id).await
}

/// The shortest way to each state.
fn way_to(state: RoundState) -> &'static [RoundState] {
    use RoundState::{
        AwaitingApproval, Building, Canary, Failed, Gating, Promoted, Refused, RolledBack, Shadow,
        Skipped, Training,
    };
    match state {
        Building => &[],
        Training => &[Training],
        Gating => &[Training, Gating],
        AwaitingApproval => &[Training, Gating, AwaitingApproval],
        Shadow => &[Training, Gating, Shadow],
        Canary => &[Training, Gating, Canary],
        Promoted => &[Training, Gating, Promoted],
        Refused => &[Training, Gating, Refused],
        RolledBack => &[Training, Gating, Canary, RolledBack],
        Failed => &[Failed],
        Skipped => &[Skipped],
        RoundState::Vetoed | RoundState::Cancelled => panic!("these are decided"),
    }
}

async fn a_round_goes_its_way(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let rebuild =
        NewRound { rebuild_of: Some(digest(9)), progress: json!({"n": 0}), ..wanted("mia") };
    let made = store.create_round(&owner, &rebuild).await.unwrap();
    assert_eq!((made.state, made.revision, made.look), (RoundState::Building, 1, None));
    assert_eq!((made.parent, made.rebuild_of), (Some(digest(1)), Some(digest(9))));
    let claimed = store.claim_round("p1", SILENCE, true).await.unwrap().unwrap();
    assert_eq!(claimed, made);
    assert_eq!(store.claim_round("p1", SILENCE, true).await.unwrap(), None, "it has one already");
    let gone = RoundChange { file: Some("file-1".to_owned()), ..to(RoundState::Training) };
    let refused = store.advance_round(&made, "p1", &gone).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotFound { kind: "file", .. }), "{refused}");
    let file = file_of(&store, &made).await.unwrap().id;
    let step = RoundChange {
        file: Some(file.clone()),
        progress: Some(json!({"rows": 7, "text": "ü \u{0}"})),
        ..to(RoundState::Training)
    };
    let round = go(&store, &made, &step).await;
    assert_eq!((round.state, round.revision), (RoundState::Training, 2));
    let round = go(&store, &round, &RoundChange::default()).await;
    assert_eq!((round.file.as_deref(), &round.progress["text"]), (Some(&*file), &json!("ü \u{0}")));
    let step = RoundChange { candidate: Some(digest(2)), ..to(RoundState::Gating) };
    let round = go(&store, &round, &step).await;
    assert_eq!((round.candidate, round.look), (Some(digest(2)), Some(1)));
    // Said again, it is the same look.
    assert_eq!(go(&store, &round, &to(RoundState::Gating)).await.look, Some(1));
    let verdict = json!({"passed": true});
    let step = RoundChange { verdict: Some(verdict.clone()), ..to(RoundState::Shadow) };
    let round = go(&store, &round, &step).await;
    let round = go(&store, &round, &to(RoundState::Canary)).await;
    let done = go(&store, &round, &to(RoundState::Promoted)).await;
    assert!(done.ended_ms >= Some(done.created_ms) && done.state.is_final());
    let ended = store.advance_round(&round, "p1", &to(RoundState::Failed)).await.unwrap();
    assert_eq!(ended, RoundSignal::Ended(Box::new(done.clone())));
    drop(store);
    let store = place.open().await;
    assert_eq!(store.round(&owner, &done.id).await.unwrap(), done);
    assert_eq!((done.verdict, done.file.as_deref()), (Some(verdict), Some(&*file)));
    let foreign = store.round(&Owner::Shared, &done.id).await.unwrap_err();
    assert!(matches!(foreign, StoreError::NotFound { kind: "round", .. }), "{foreign}");
    assert_eq!(store.looks(&owner, "mia").await.unwrap(), 1);
    assert_eq!(store.looks(&Owner::Shared, "mia").await.unwrap(), 0);
}

async fn there_is_no_other_way(place: Place) {
    use RoundState::{
        AwaitingApproval, Building, Canary, Failed, Gating, Promoted, Refused, RolledBack, Shadow,
        Skipped, Training,
    };
    let store = place.open().await;
    let owner = Owner::Shared;
    let ways = [
        (Building, vec![Training, Skipped, Failed]),
        (Training, vec![Gating, Failed]),
        (Gating, vec![AwaitingApproval, Shadow, Canary, Promoted, Refused, Failed]),
        // Until somebody has approved.
        (AwaitingApproval, vec![Failed]),
        (Shadow, vec![Canary, Promoted, RolledBack, Failed]),
        (Canary, vec![Promoted, RolledBack, Failed]),
    ];
    for (from, there) in ways {
        let name = from.name();
        let round = new_in(&store, &owner, name, way_to(from)).await;
        for wrong in RoundState::ALL {
            if wrong == from || there.contains(&wrong) {
                continue;
            }
            let error = store.advance_round(&round, "p1", &to(wrong)).await.unwrap_err();
            let told = error.to_string();
            assert!(matches!(error, StoreError::WrongState { kind: "round", .. }), "{told}");
            assert!(told.contains(from.name()), "{told}");
        }
        assert_eq!(store.round(&owner, &round.id).await.unwrap(), round, "nothing was written");
        let error = JobError { code: "x".to_owned(), message: "ü".to_owned(), param: None };
        let failed = RoundChange { error: Some(error.clone()), ..to(Failed) };
        let mut round = go(&store, &round, &failed).await;
        assert_eq!(round.error, Some(error));
        for right in there {
            assert!(round.ended_ms.is_some());
            round = new_in(&store, &owner, name, way_to(from)).await;
            round = go(&store, &round, &to(right)).await;
            assert_eq!(round.state, right);
            if !right.is_final() {
                round = go(&store, &round, &to(Failed)).await;
            }
        }
    }
    // Approved, it goes on.
    for right in [Shadow, Canary, Promoted] {
        let way = [way_to(AwaitingApproval), &[right]].concat();
        let round = new_in(&store, &owner, "approved", &way).await;
        assert_eq!(round.state, right);
        store.decide_round(&owner, &round.id, Decision::Veto, "ann", "").await.unwrap();
    }
}

async fn what_is_decided_is_obeyed(place: Place) {
    use RoundState::{AwaitingApproval, Building, Canary, Promoted, RolledBack, Shadow};
    let store = place.open().await;
    let owner = Owner::Shared;
    let can = |decision, state: RoundState| match decision {
        Decision::Approve => state == AwaitingApproval,
        Decision::Veto => matches!(state, AwaitingApproval | Shadow | Canary | Promoted),
        Decision::Cancel => !state.is_final(),
        Decision::RollBack => state == Promoted,
    };
    for state in RoundState::ALL {
        if matches!(state, RoundState::Vetoed | RoundState::Cancelled) {
            continue;
        }
        for decision in [Decision::Approve, Decision::Veto, Decision::Cancel, Decision::RollBack] {
            let round = new_in(&store, &owner, "mia", way_to(state)).await;
            let decided = store.decide_round(&owner, &round.id, decision, "ann", "because").await;
            if can(decision, state) {
                let decided = decided.unwrap();
                let expected = match decision {
                    Decision::Approve => state,
                    Decision::Veto => RoundState::Vetoed,
                    Decision::Cancel => RoundState::Cancelled,
                    Decision::RollBack => RolledBack,
                };
                assert_eq!(decided.state, expected);
                let last = decided.decisions.last().unwrap();
                assert_eq!((last.decision, &*last.by, &*last.reason), (decision, "ann", "because"));
                assert_eq!(store.round(&owner, &round.id).await.unwrap(), decided);
                if decided.state.is_final() {
                    let told = store.advance_round(&round, "p1", &to(RoundState::Failed)).await;
                    assert_eq!(told.unwrap(), RoundSignal::Ended(Box::new(decided)));
                }
            } else {
                let error = decided.unwrap_err();
                assert!(matches!(error, StoreError::WrongState { kind: "round", .. }), "{error}");
                assert_eq!(store.round(&owner, &round.id).await.unwrap(), round);
            }
            let now = store.round(&owner, &round.id).await.unwrap();
            if !now.state.is_final() {
                store.decide_round(&owner, &round.id, Decision::Cancel, "", "").await.unwrap();
            }
        }
    }
    // What waits for somebody needs no process; once approved, it goes on with any.
    let round = new_in(&store, &owner, "mia", way_to(AwaitingApproval)).await;
    store.release_round(&round, "p1").await.unwrap();
    assert_eq!(store.claim_round("p2", SILENCE, true).await.unwrap(), None);
    let approved = store.decide_round(&owner, &round.id, Decision::Approve, "a", "").await.unwrap();
    assert!(approved.is_approved() && !round.is_approved());
    let again = store.decide_round(&owner, &round.id, Decision::Approve, "b", "").await;
    assert!(matches!(again, Err(StoreError::WrongState { .. })), "{again:?}");
    assert_eq!(store.claim_round("p2", SILENCE, true).await.unwrap(), Some(approved));
    let gone_on = store.advance_round(&round, "p2", &to(Canary)).await.unwrap();
    assert!(matches!(gone_on, RoundSignal::GoOn(now) if now.state == Canary));
    // Of what only waits anybody takes care, also of what somebody died over.
    let died = store.claim_round("p3", Duration::ZERO, false).await.unwrap().unwrap();
    assert_eq!(died.id, round.id);
    let worked = store.create_round(&owner, &wanted("other")).await.unwrap();
    store.claim_round("p2", SILENCE, true).await.unwrap().unwrap();
    let waiting = store.claim_round("p1", Duration::ZERO, false).await.unwrap();
    assert_eq!(waiting.map(|waiting| waiting.id), Some(round.id.clone()));
    store.decide_round(&owner, &worked.id, Decision::Cancel, "", "").await.unwrap();
    let vetoed = store.decide_round(&owner, &round.id, Decision::Veto, "b", "no").await.unwrap();
    let who: Vec<_> = vetoed.decisions.iter().map(|decided| &*decided.by).collect();
    assert_eq!(who, ["a", "b"]);
    // Another's round is nobody's.
    let round = new_in(&store, &owner, "mia", way_to(Building)).await;
    let other = Owner::Tenant(tenant(&store, "one").await);
    let foreign = store.decide_round(&other, &round.id, Decision::Cancel, "", "").await;
    assert!(matches!(foreign, Err(StoreError::NotFound { kind: "round", .. })), "{foreign:?}");
}

async fn a_name_has_one_round_at_a_time(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let at_once = (0..6).map(|_| async { store.create_round(&owner, &wanted("mia")).await });
    let made = futures_util::future::join_all(at_once).await;
    let (made, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    let [Ok(first)] = &made[..] else { panic!("{made:?}") };
    for error in refused {
        let error = error.unwrap_err();
        assert!(
            matches!(&error, StoreError::RoundOpen { name, id } if name == "mia" && *id == first.id),
            "{error}"
        );
    }
    // Other names, and others' names, are others.
    let others = store.create_round(&Owner::Shared, &wanted("mia")).await.unwrap();
    let tom = store.create_round(&owner, &wanted("tom")).await.unwrap();
    let open = store.open_rounds(&Page::FIRST).await.unwrap().items;
    assert_eq!(open.len(), 3);
    store.decide_round(&owner, &first.id, Decision::Cancel, "", "").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let second = store.create_round(&owner, &wanted("mia")).await.unwrap();
    let ids = async |page: &Page<'_>| {
        let listing = store.rounds(&owner, "mia", page).await.unwrap();
        (listing.items.into_iter().map(|round| round.id).collect::<Vec<_>>(), listing.next)
    };
    let newest = ids(&Page { after: None, rows_max: 1 }).await;
    assert_eq!(newest, (vec![second.id.clone()], Some(second.id.clone())));
    let rest = ids(&Page { after: newest.1.as_deref(), rows_max: 9 }).await;
    assert_eq!(rest, (vec![first.id.clone()], None));
    // Oldest first, each in its turn, and one process may have them all.
    let mut claimed = Vec::new();
    while let Some(round) = store.claim_round("p1", SILENCE, true).await.unwrap() {
        claimed.push(round.id);
    }
    let mut expected = vec![others.id, tom.id, second.id];
    expected.sort_unstable();
    assert_eq!(claimed, expected);
    assert_eq!(store.beat_rounds("p1", &claimed).await.unwrap(), 3);
    assert_eq!(store.beat_rounds("p1", &claimed[..1]).await.unwrap(), 1);
    assert_eq!(store.beat_rounds("p1", &[]).await.unwrap(), 0);
    assert_eq!(store.beat_rounds("p2", &claimed).await.unwrap(), 0);
    // Looks are counted for each name.
    let gating = [RoundState::Training, RoundState::Gating];
    for (n, name) in [(1, "a"), (1, "b"), (2, "a"), (3, "a")] {
        let round = new_in(&store, &owner, name, &gating).await;
        assert_eq!(round.look, Some(n), "{name}");
        go(&store, &round, &to(RoundState::Refused)).await;
    }
    let skipped = new_in(&store, &owner, "a", &[RoundState::Skipped]).await;
    assert_eq!((skipped.look, store.looks(&owner, "a").await.unwrap()), (None, 3));
}

async fn a_process_that_died_is_followed_by_another(place: Place) {
    let store = place.open().await;
    let made = store.create_round(&Owner::Shared, &wanted("mia")).await.unwrap();
    // Of many that ask at once one has it.
    let claims = (0..6).map(|n| {
        let store = store.clone();
        async move { store.claim_round(&format!("p{n}"), SILENCE, true).await.unwrap() }
    });
    let claimed = futures_util::future::join_all(claims).await;
    assert_eq!(claimed.iter().flatten().count(), 1);
    let first = format!("p{}", claimed.iter().position(Option::is_some).unwrap());
    let training = to(RoundState::Training);
    let told = store.advance_round(&made, &first, &training).await.unwrap();
    assert!(matches!(told, RoundSignal::GoOn(_)));
    // However late it is by any clock: who begins to look has not been silent to it, and who beats is not.
    let short = Duration::from_millis(40);
    assert_eq!(store.claim_round("follower", short, true).await.unwrap(), None);
    tokio::time::sleep(short).await;
    store.beat_rounds(&first, std::slice::from_ref(&made.id)).await.unwrap();
    assert_eq!(store.claim_round("follower", short, true).await.unwrap(), None);
    tokio::time::sleep(short).await;
    let follower = store.claim_round("follower", short, true).await.unwrap().unwrap();
    assert_eq!((&follower.id, follower.state), (&made.id, RoundState::Training));
    // The first one was only slow: it finds out, and changes nothing.
    let gating = to(RoundState::Gating);
    assert_eq!(store.advance_round(&made, &first, &gating).await.unwrap(), RoundSignal::Lost);
    assert_eq!(store.beat_rounds(&first, std::slice::from_ref(&made.id)).await.unwrap(), 0);
    store.release_round(&made, &first).await.unwrap();
    assert_eq!(store.round(&Owner::Shared, &made.id).await.unwrap(), follower);
    assert_eq!(store.claim_round("third", SILENCE, true).await.unwrap(), None);
    let told = store.advance_round(&made, "follower", &gating).await.unwrap();
    assert!(matches!(told, RoundSignal::GoOn(now) if now.state == RoundState::Gating));
    // Let go of, it is the next one's at once; of one who has time for it.
    store.release_round(&made, "follower").await.unwrap();
    assert_eq!(store.claim_round("third", SILENCE, false).await.unwrap(), None);
    assert_eq!(store.claim_round("third", SILENCE, true).await.unwrap().unwrap().id, made.id);
}

async fn what_has_ended_is_left_to_do_until_somebody_says_that_it_is_done(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let left = async || -> Vec<String> {
        let listing = store.rounds_not_done(&Page::FIRST).await.unwrap();
        listing.items.into_iter().map(|round| round.id).collect()
    };
    let open = new_in(&store, &owner, "open", &[]).await;
    let failed = new_in(&store, &owner, "failed", &[RoundState::Failed]).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let promoted = new_in(&store, &owner, "mia", way_to(RoundState::Promoted)).await;
    assert_eq!(left().await, [failed.id.clone(), promoted.id.clone()]);
    let page = Page { after: Some(&failed.id), rows_max: 1 };
    assert_eq!(store.rounds_not_done(&page).await.unwrap().items, std::slice::from_ref(&promoted));
    for round in [&open, &failed, &promoted] {
        store.round_done(round).await.unwrap();
    }
    assert_eq!(left().await, Vec::<String>::new());
    // Taken back, there is more to do, whatever was done; and what was about the promotion does not end it.
    let id = &promoted.id;
    let vetoed = store.decide_round(&owner, id, Decision::Veto, "ann", "").await.unwrap();
    assert_eq!(left().await, std::slice::from_ref(id));
    store.round_done(&promoted).await.unwrap();
    assert_eq!(left().await, std::slice::from_ref(id));
    store.round_done(&vetoed).await.unwrap();
    assert_eq!(left().await, Vec::<String>::new());
    store.decide_round(&owner, &open.id, Decision::Cancel, "ann", "").await.unwrap();
    assert_eq!(left().await, std::slice::from_ref(&open.id));
}

async fn files_of_a_round_are_known_and_are_made_while_it_is_open(place: Place) {
    let store = place.open().await;
    let owner = Owner::Tenant(tenant(&store, "one").await);
    let round = new_in(&store, &owner, "mia", &[]).await;
    let other = new_in(&store, &owner, "tom", &[]).await;
    let made = [file_of(&store, &round).await.unwrap(), file_of(&store, &round).await.unwrap()];
    file_of(&store, &other).await.unwrap();
    assert_eq!(store.files_of_round(&owner, &round.id).await.unwrap(), made);
    assert_eq!(store.files_of_round(&Owner::Shared, &round.id).await.unwrap(), []);
    store.delete_file(&owner, &made[0].id).await.unwrap();
    assert_eq!(store.files_of_round(&owner, &round.id).await.unwrap(), made[1..]);
    // Another's round is nobody's, and whoever comes too late makes none.
    let foreign = StoredRound { owner: Owner::Shared, ..round.clone() };
    store.decide_round(&owner, &round.id, Decision::Cancel, "", "").await.unwrap();
    for round in [&foreign, &round] {
        let refused = file_of(&store, round).await.unwrap_err();
        assert!(matches!(refused, StoreError::NotFound { kind: "open round", .. }), "{refused}");
    }
}

async fn the_data_set_of_an_open_round_stays(place: Place) {
    let store = place.open().await;
    let owner = Owner::Shared;
    let blob = store.put_blob("rows").await.unwrap();
    let (filename, purpose) = ("rows".to_owned(), "fine-tune".to_owned());
    let new = NewFile { owner: owner.clone(), filename, purpose, blob, keep_ms: Some(0) };
    let file = store.create_file(&new).await.unwrap().id;
    let round = new_in(&store, &owner, "mia", &[]).await;
    let step = RoundChange { file: Some(file.clone()), ..to(RoundState::Training) };
    go(&store, &round, &step).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    assert_eq!(store.sweep_expired().await.unwrap().files, 0);
    assert_eq!(
        store.file(&owner, &file).await.unwrap().id,
        file,
        "its time is over, the round not"
    );
    let raw = place.raw().await;
    sqlx::query("UPDATE files SET expires_ms = NULL").execute(&raw).await.unwrap();
    let refused = store.delete_file(&owner, &file).await.unwrap_err();
    assert!(matches!(&refused, StoreError::FileInUse { job, .. } if *job == round.id), "{refused}");
    store.decide_round(&owner, &round.id, Decision::Cancel, "", "").await.unwrap();
    store.delete_file(&owner, &file).await.unwrap();
}
