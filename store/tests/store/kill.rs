//! `kill -9` at random moments: what was acknowledged is there, and nothing is there by half.
//!
//! The test starts itself again as a writer, which changes a store in a loop and prints a line after each change that
//! was acknowledged. Rounds on each database: 20, or what `PLEACH_KILL_ROUNDS` says.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use pleach_store::{
    AliasChange, BlobDigest, Blobs, Expected, GenerationDigest, KeyCheck, KeyRefused, NewApiKey,
    NewLineage, NewRound, Owner, RoundChange, RoundSignal, RoundState, Scope, Store, StoreError,
    StoreOptions, StoredRound, TenantId,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::place::{Place, digest, registration, tenant};

const ROUNDS: &str = "PLEACH_KILL_ROUNDS";
/// Set for a writer: the database, the folder of blobs, and its round.
const WRITER: [&str; 3] = ["PLEACH_KILL_DATABASE", "PLEACH_KILL_BLOBS", "PLEACH_KILL_ROUND"];
/// Aliases that a writer moves in turn.
const N_ALIASES: u64 = 3;
/// Largest file of a generation: enough for two parts of an upload.
const FILE_BYTES_MAX: u64 = 9 << 20;

/// What writers were told to be durable.
#[derive(Default)]
struct Acknowledged {
    /// Bytes of the one file of each, and the number that its content is made of.
    generations: HashMap<GenerationDigest, (u64, u64)>,
    /// Where each alias pointed at each revision.
    moves: HashMap<String, Vec<(i64, GenerationDigest)>>,
    purged: Vec<GenerationDigest>,
    /// Revision and state of rounds.
    rounds: HashMap<String, (i64, String)>,
    keys: Vec<String>,
    /// Keys that were to be revoked next.
    lost_keys: Vec<String>,
    revoked_keys: Vec<String>,
}

mod sqlite {
    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_acknowledged_is_missing() {
        if !super::is_writer().await {
            super::check_rounds(super::Place::sqlite(), "sqlite").await;
        }
    }
}

mod postgres {
    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_acknowledged_is_missing() {
        if !super::is_writer().await
            && let Some(place) = super::Place::postgres()
        {
            super::check_rounds(place, "postgres").await;
        }
    }
}

/// Writes until it is killed, if this process was started for that.
async fn is_writer() -> bool {
    if let [Ok(database), Ok(blobs), Ok(round)] = WRITER.map(std::env::var) {
        write_until_killed(&database, &blobs, round.parse().unwrap()).await;
        return true;
    }
    false
}

async fn check_rounds(place: Place, half: &str) {
    let test = format!("kill::{half}::nothing_acknowledged_is_missing");
    let rounds = std::env::var(ROUNDS).map_or(20, |rounds| rounds.parse().unwrap());
    let owner = Owner::Tenant(tenant(&place.open().await, "writer").await);
    let mut lines = Vec::new();
    for round in 0..rounds {
        let new_lines = killed_at_random(&place, &test, round);
        let store = place.open().await;
        check(&store, &owner, &Acknowledged::new(&new_lines)).await;
        check_no_half_blob(&place.blobs_folder());
        store.close().await.unwrap();
        lines.extend(new_lines);
    }
    let all = Acknowledged::new(&lines);
    assert!(all.generations.len() > rounds, "the writers hardly wrote");
    // What killed writers left is found and deleted, and nothing else.
    let raw = place.raw().await;
    sqlx::query("UPDATE blobs SET keep_until_ms = 0").execute(&raw).await.unwrap();
    let store = place.open_keeping(Duration::ZERO).await;
    check(&store, &owner, &all).await;
    check_no_garbage(&place).await;
}

/// Starts a writer and kills it some time after some acknowledgements; what it acknowledged.
fn killed_at_random(place: &Place, test: &str, round: usize) -> Vec<String> {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(WRITER[0], &place.database)
        .env(WRITER[1], place.blobs_folder())
        .env(WRITER[2], round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let random: [u8; 2] = random();
    let mut acknowledged = Vec::new();
    while acknowledged.len() < usize::from(random[0] % 16) {
        let Some(line) = lines.next() else { panic!("the writer ended: {:?}", writer.wait()) };
        acknowledged.extend(acknowledgement(&line.unwrap()));
    }
    std::thread::sleep(Duration::from_micros(u64::from(random[1]) * 150));
    kill(&mut writer);
    // What it still printed before it died.
    acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| acknowledgement(&line)));
    acknowledged
}

fn kill(writer: &mut Child) {
    writer.kill().unwrap();
    let status = writer.wait().unwrap();
    assert_eq!(status.code(), None, "the writer ended by itself: {status}");
}

/// A whole line: a cut one has no full stop at its end.
fn acknowledgement(line: &str) -> Option<String> {
    // The harness may have begun the line.
    let (_, line) = line.split_once("done ")?;
    line.strip_suffix('.').map(str::to_owned)
}

async fn write_until_killed(database: &str, blobs: &str, round: u64) {
    // Garbage is collected all the time, too.
    let options = StoreOptions { blob_keep: Duration::from_secs(2) };
    let blobs = Blobs::in_folder(blobs).unwrap();
    let store = Store::open_with(database, blobs, options).await.unwrap();
    let tenant = store.find_tenant("writer").await.unwrap().unwrap().id;
    let owner = Owner::Tenant(tenant.clone());
    let done = |what: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "done {what}.").unwrap();
        out.flush().unwrap();
    };
    for n in (round << 32).. {
        // Mostly small ones.
        let bytes = u64::from_le_bytes(random()) % if n % 11 == 3 { FILE_BYTES_MAX } else { 9000 };
        let blob = store.put_blob(content(n, bytes)).await.unwrap();
        let wanted = registration(&owner, n, vec![("weights".to_owned(), blob)]);
        let name = format!("alias{}", n % N_ALIASES);
        let change = AliasChange {
            alias: &name,
            expected: Expected::Any,
            who: "writer",
            reason: "to be killed",
        };
        let alias = store.register(&wanted, Some(&change)).await.unwrap().alias.unwrap();
        done(format!("register {} {n} {bytes} {name} {}", wanted.digest, alias.revision));
        if n % 4 == 1 {
            let other = AliasChange { alias: "other", ..change };
            let moved = store.move_alias(&owner, &other, &wanted.digest).await.unwrap();
            done(format!("move {} other {}", wanted.digest, moved.revision));
        }
        if n % 5 == 4 {
            let old = digest(n - 4);
            match store.purge_generation(&owner, &old).await {
                Ok(()) => done(format!("purge {old}")),
                // An alias is still there, or the number is of an earlier round.
                Err(StoreError::GenerationInUse { .. } | StoreError::UnknownGeneration { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if n % 2 == 0 {
            let round = move_round(&store, &owner, n).await;
            done(format!("round {} {} {}", round.id, round.revision, round.state.name()));
        }
        if n % 6 == 2 {
            done(format!("key {}", make_key(&store, &tenant).await));
        }
        if n % 6 == 5 {
            let text = make_key(&store, &tenant).await;
            done(format!("lose {text}"));
            let id = text.split('_').nth(1).unwrap();
            store.revoke_key(&tenant, id).await.unwrap();
            done(format!("revoke {text}"));
        }
    }
}

/// Begins a round, or brings one that is open one step on; as it is then.
async fn move_round(store: &Store, owner: &Owner, n: u64) -> StoredRound {
    let new = NewRound { name: "looped", parent: None, rebuild_of: None, progress: json!(n) };
    match store.create_round(owner, &new).await {
        Ok(made) => return made,
        // Of this writer, or of one that was killed.
        Err(StoreError::RoundOpen { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let round = store.claim_round("writer", Duration::ZERO, true).await.unwrap().unwrap();
    let mut step = RoundChange { progress: Some(json!(n)), ..RoundChange::default() };
    let way = [
        RoundState::Building,
        RoundState::Training,
        RoundState::Gating,
        RoundState::Canary,
        RoundState::Promoted,
    ];
    step.state = way.into_iter().skip_while(|state| *state != round.state).nth(1);
    if step.state == Some(RoundState::Gating) {
        let lineage = NewLineage {
            generation: digest(n),
            base_sha256: "0".repeat(64),
            parent: None,
            round: Some(round.id.clone()),
            job: None,
            data_sha256: None,
            recipe: json!({}),
            seed: n,
        };
        store.put_lineage(owner, &lineage).await.unwrap();
        step.candidate = Some(lineage.generation);
    } else if step.state == Some(RoundState::Canary) {
        step.verdict = Some(json!({ "n": n }));
    }
    let told = store.advance_round(&round, "writer", &step).await.unwrap();
    let RoundSignal::GoOn(now) = told else { panic!("{told:?}") };
    *now
}

async fn make_key(store: &Store, tenant: &TenantId) -> String {
    let key = NewApiKey {
        tenant: tenant.clone(),
        name: "k".to_owned(),
        scopes: Scope::ALL.into_iter().collect(),
        expires_ms: None,
    };
    store.create_key(key).await.unwrap().1.reveal()
}

impl Acknowledged {
    fn new(lines: &[String]) -> Self {
        let mut all = Self::default();
        for line in lines {
            all.note(line);
        }
        all
    }

    fn note(&mut self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        let mut moved = |generation: &str, alias: &str, revision: &str| {
            let moves = self.moves.entry(alias.to_owned()).or_default();
            moves.push((revision.parse().unwrap(), generation.parse().unwrap()));
        };
        match words[..] {
            ["register", generation, n, bytes, alias, revision] => {
                moved(generation, alias, revision);
                let of = (bytes.parse().unwrap(), n.parse().unwrap());
                self.generations.insert(generation.parse().unwrap(), of);
            }
            ["move", generation, alias, revision] => moved(generation, alias, revision),
            ["purge", generation] => self.purged.push(generation.parse().unwrap()),
            ["round", id, revision, state] => {
                let told = (revision.parse().unwrap(), state.to_owned());
                self.rounds.insert(id.to_owned(), told);
            }
            ["key", text] => self.keys.push(text.to_owned()),
            ["lose", text] => self.lost_keys.push(text.to_owned()),
            ["revoke", text] => self.revoked_keys.push(text.to_owned()),
            _ => panic!("{line:?} is no acknowledgement"),
        }
    }
}

async fn check(store: &Store, owner: &Owner, acknowledged: &Acknowledged) {
    for (generation, (bytes, n)) in &acknowledged.generations {
        // Its purge may have been done and not yet told.
        let Ok(files) = store.generation_files(owner, generation).await else {
            assert!(may_be_purged(*n), "generation {generation} is missing");
            continue;
        };
        let read = store.read_blob(&files[0].blob, u64::MAX).await.unwrap();
        assert!(read == content(*n, *bytes), "generation {generation} has other bytes");
    }
    for generation in &acknowledged.purged {
        assert!(store.generation(owner, generation).await.is_err(), "{generation} came back");
    }
    for (alias, moves) in &acknowledged.moves {
        let now = store.alias(owner, alias).await.unwrap();
        let last = moves.iter().map(|(revision, _)| *revision).max().unwrap();
        assert!(now.revision >= last, "alias {alias} went back to {}", now.revision);
        // What it points at is whole, whether or not that move was acknowledged.
        let files = store.generation_files(owner, &now.generation).await.unwrap();
        store.read_blob(&files[0].blob, u64::MAX).await.unwrap();
        // The log has the last ones.
        let oldest = now.revision - 1000;
        for (revision, generation) in moves.iter().filter(|(revision, _)| *revision > oldest) {
            let entry = store.alias_moves(owner, alias, Some(revision + 1), 1).await.unwrap();
            assert_eq!((entry[0].revision, entry[0].to), (*revision, Some(*generation)));
        }
    }
    for (id, (revision, state)) in &acknowledged.rounds {
        let now = store.round(owner, id).await.unwrap();
        assert!(now.revision >= *revision, "round {id} went back to {}", now.revision);
        assert!(now.revision > *revision || now.state.name() == state, "{now:?}, not {state}");
        check_no_half_round(store, owner, &now).await;
    }
    for text in &acknowledged.keys {
        assert!(matches!(store.check_key(text).await.unwrap(), KeyCheck::Accepted(_)));
    }
    for text in &acknowledged.lost_keys {
        // Its revocation may have been done and not yet told.
        let found = store.check_key(text).await.unwrap();
        let is_known =
            matches!(found, KeyCheck::Accepted(_) | KeyCheck::Refused(KeyRefused::Revoked));
        assert!(is_known, "{found:?}");
    }
    for text in &acknowledged.revoked_keys {
        let found = store.check_key(text).await.unwrap();
        assert_eq!(found, KeyCheck::Refused(KeyRefused::Revoked));
    }
}

/// What is written with a state is there with it.
async fn check_no_half_round(store: &Store, owner: &Owner, round: &StoredRound) {
    let is_judged = matches!(round.state, RoundState::Canary | RoundState::Promoted);
    let is_trained = is_judged || round.state == RoundState::Gating;
    assert_eq!(round.candidate.is_some(), is_trained, "{round:?}");
    assert_eq!(round.look.is_some(), is_trained, "{round:?}");
    assert_eq!(round.verdict.is_some(), is_judged, "{round:?}");
    assert_eq!(round.ended_ms.is_some(), round.state.is_final(), "{round:?}");
    if let Some(candidate) = round.candidate {
        let lineage = store.lineage(owner, &candidate).await.unwrap();
        assert_eq!(lineage.verdict, round.verdict, "{round:?}");
    }
}

/// Writers purge the generations whose number is followed by one that ends a group of five.
fn may_be_purged(n: u64) -> bool {
    (n + 4) % 5 == 4
}

/// Every file under its final name has the content that its name says.
fn check_no_half_blob(blobs: &Path) {
    for path in blob_files(blobs) {
        let found = BlobDigest(Sha256::digest(std::fs::read(&path).unwrap()).into());
        assert_eq!(path.file_name().unwrap().to_string_lossy(), found.to_string());
    }
}

/// Every blob is a generation's, and there are no unfinished uploads.
async fn check_no_garbage(place: &Place) {
    let raw = place.raw().await;
    let rows = sqlx::query("SELECT DISTINCT sha256 FROM generation_files").fetch_all(&raw).await;
    let mut used: Vec<String> =
        rows.unwrap().iter().map(|row| sqlx::Row::get(row, "sha256")).collect();
    let files = blob_files(&place.blobs_folder());
    let mut found: Vec<_> =
        files.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    used.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, used);
    assert_eq!(std::fs::read_dir(place.blobs_folder().join("incoming")).unwrap().count(), 0);
}

fn blob_files(blobs: &Path) -> Vec<std::path::PathBuf> {
    let Ok(folders) = std::fs::read_dir(blobs.join("sha256")) else { return Vec::new() };
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

/// Bytes that no other number has.
fn content(n: u64, bytes: u64) -> Vec<u8> {
    let mut content = n.to_le_bytes().to_vec();
    let length = usize::try_from(bytes).unwrap() + content.len();
    content.resize_with(length, || 0x5a);
    content
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
