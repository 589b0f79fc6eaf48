//! Every earlier schema, with rows in it, becomes today's; a later one is refused.

use std::{collections::BTreeSet, path::Path};

use pleach_store::{
    AliasChange, Blobs, Expected, KeyCheck, KeyRefused, Origin, Owner, Page, RollBack, RoundState,
    SawGeneration, Seen, Store, StoreError, TenantId,
};
use sqlx::{AnyPool, AssertSqlSafe, Row as _};

use crate::{
    on_both,
    place::{Place, digest, register},
};

on_both!(
    every_earlier_schema_becomes_todays_and_keeps_its_rows,
    a_later_schema_is_refused_by_name,
    many_processes_may_open_a_new_database_at_once,
    a_reopened_database_is_left_as_it_is,
);

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/schema");
const MIGRATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");

/// The numbers of the files of a folder: `0001.sql` or `0001-name.sql`.
fn numbers(folder: &str) -> BTreeSet<i64> {
    let files = std::fs::read_dir(folder).unwrap();
    let number = |name: String| name[..4].parse().unwrap();
    files.map(|file| number(file.unwrap().file_name().into_string().unwrap())).collect()
}

/// What tables and columns there are, as the database tells.
async fn shape(place: &Place, pool: &AnyPool) -> Vec<String> {
    let query = if place.is_sqlite() {
        "SELECT m.name || '.' || c.name || ' ' || c.type || ' ' || c.\"notnull\" || ' ' || c.pk AS shape \
         FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' \
         UNION ALL SELECT 'index ' || name FROM sqlite_master WHERE type = 'index' ORDER BY 1"
    } else {
        "SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable AS shape \
         FROM information_schema.columns WHERE table_schema = 'public' \
         UNION ALL SELECT 'index ' || indexname FROM pg_indexes WHERE schemaname = 'public' \
         ORDER BY 1"
    };
    let rows = sqlx::query(query).fetch_all(pool).await.unwrap();
    rows.iter().map(|row| row.get("shape")).collect()
}

async fn load(pool: &AnyPool, version: i64) {
    let path = Path::new(FIXTURES).join(format!("{version:04}.sql"));
    let sql = std::fs::read_to_string(path).unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

async fn every_earlier_schema_becomes_todays_and_keeps_its_rows(place: Place) {
    let versions = numbers(FIXTURES);
    assert_eq!(versions, numbers(MIGRATIONS), "each schema has a database with rows");
    drop(place.open().await);
    let todays = shape(&place, &place.raw().await).await;
    for version in versions {
        let Some(old) = another(&place) else { return };
        let raw = old.raw().await;
        load(&raw, version).await;
        let store = old.open().await;
        if version >= 4 {
            check_loop(&store).await;
        }
        check_rows(&store).await;
        assert_eq!(shape(&old, &raw).await, todays, "schema {version}");
    }
}

fn another(place: &Place) -> Option<Place> {
    if place.is_sqlite() { Some(Place::sqlite()) } else { Place::postgres() }
}

/// What all fixtures have in common, seen through today's functions. Later ones may have more.
async fn check_rows(store: &Store) {
    let id = TenantId::parse("ten_00000000000000aa").unwrap();
    let tenant = store.tenant(&id).await.unwrap();
    let settings = &tenant.settings;
    assert_eq!((settings.name.as_str(), settings.weight.get(), settings.priority), ("acme", 3, -1));
    assert_eq!(settings.quotas.adapters, Some(10));
    assert_eq!(settings.quotas.tokens_per_minute, None);
    assert_eq!(store.tenants(&Page::FIRST).await.unwrap().items.len(), 1);

    let (live, revoked) = ("00000000000000b1", "00000000000000b2");
    let text = |key: &str| format!("plk_{key}_{}", "ab".repeat(32));
    let KeyCheck::Accepted(key) = store.check_key(&text(live)).await.unwrap() else {
        panic!("a key was refused")
    };
    assert_eq!((key.tenant, key.scopes.to_string()), (id.clone(), "infer,admin".to_owned()));
    assert_eq!(key.last_used_ms, Some(1_700_000_000_000));
    let refused = store.check_key(&text(revoked)).await.unwrap();
    assert_eq!(refused, KeyCheck::Refused(KeyRefused::Revoked));

    let owner = Owner::Tenant(id);
    let generation = store.generation(&owner, &digest(1)).await.unwrap();
    assert_eq!((generation.metadata.rank_max, generation.bytes), (8, 300));
    assert_eq!(generation.origin, Origin::Place { place: "adapters/mia".to_owned() });
    assert_eq!(store.generation_files(&owner, &digest(1)).await.unwrap().len(), 2);
    let shared = store.generation(&Owner::Shared, &digest(1)).await.unwrap();
    assert_eq!(shared.origin, Origin::Merge { parents: vec![digest(2), digest(3)] });

    let alias = store.alias(&owner, "mia").await.unwrap();
    assert_eq!((alias.generation, alias.revision, alias.is_pinned), (digest(1), 2, true));
    let change = AliasChange {
        alias: "mia",
        expected: Expected::Generation(digest(1)),
        who: "test",
        reason: "",
    };
    let back = store.roll_back(&owner, &change, RollBack::Previous).await.unwrap();
    assert_eq!((back.generation, back.revision), (digest(4), 3));
    // New rows beside old ones.
    register(store, &owner, 5).await;
}

/// What fixtures have of the learning loop.
async fn check_loop(store: &Store) {
    let owner = Owner::Tenant(TenantId::parse("ten_00000000000000aa").unwrap());
    let policy = store.policy(&owner, "mia").await.unwrap();
    assert_eq!((policy.revision, &policy.body["is_on"]), (2, &true.into()));
    assert!(store.policy(&owner, "gone").await.is_err());
    let rounds = store.rounds(&owner, "mia", &Page::FIRST).await.unwrap().items;
    let states: Vec<_> = rounds.iter().map(|round| (round.state, round.look)).collect();
    assert_eq!(states, [(RoundState::Building, None), (RoundState::Promoted, Some(1))]);
    assert!(rounds[1].is_approved() && rounds[1].candidate == Some(digest(1)));
    let lineage = store.lineage(&owner, &digest(1)).await.unwrap();
    assert_eq!((lineage.from.parent, lineage.from.seed), (Some(digest(4)), u64::MAX));
    let saw = Seen::Feedback("fb-018bcfe5680000000000000000000005");
    let saw = store.generations_that_saw(&owner, saw).await.unwrap();
    assert_eq!(saw, [SawGeneration { generation: digest(1), is_direct: true, is_kept: true }]);
}

async fn a_later_schema_is_refused_by_name(place: Place) {
    drop(place.open().await);
    let raw = place.raw().await;
    let later =
        "INSERT INTO schema_migrations (version, name, applied_ms) VALUES (9999, 'later', 0)";
    sqlx::query(later).execute(&raw).await.unwrap();
    let blobs = Blobs::in_folder(place.blobs_folder()).unwrap();
    let error = Store::open(&place.database, blobs.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { version: 9999, .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("has schema 9999 (later)"), "{message}");

    sqlx::query("DELETE FROM schema_migrations WHERE version = 9999").execute(&raw).await.unwrap();
    let rename = "UPDATE schema_migrations SET name = 'cats' WHERE version = 1";
    sqlx::query(rename).execute(&raw).await.unwrap();
    let error = Store::open(&place.database, blobs).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherSchema { version: 1, .. }), "{error}");
}

async fn many_processes_may_open_a_new_database_at_once(place: Place) {
    let opened = futures_util::future::join_all((0..6).map(|_| place.open())).await;
    register(&opened[0], &Owner::Shared, 1).await;
    for store in opened {
        assert_eq!(store.generations(&Owner::Shared, &Page::FIRST).await.unwrap().items.len(), 1);
    }
}

async fn a_reopened_database_is_left_as_it_is(place: Place) {
    drop(place.open().await);
    let raw = place.raw().await;
    let before = shape(&place, &raw).await;
    drop(place.open().await);
    assert_eq!(shape(&place, &raw).await, before);
    let steps = sqlx::query("SELECT version FROM schema_migrations").fetch_all(&raw).await.unwrap();
    assert_eq!(steps.len(), numbers(MIGRATIONS).len());
    if place.is_sqlite() {
        let journal = sqlx::query("PRAGMA journal_mode").fetch_one(&raw).await.unwrap();
        assert_eq!(journal.get::<String, _>(0), "wal");
        // It holds digests of keys: only its user may read it.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&place.database).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::in_folder(folder.path()).unwrap();
    let error = Store::open("mysql://user:secret@host/db", blobs.clone()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::UnknownDatabase { scheme } if scheme == "mysql"),
        "{error}"
    );
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "this is no database, and long enough to be told apart".repeat(9))
        .unwrap();
    let error = Store::open(text.to_str().unwrap(), blobs.clone()).await.unwrap_err().to_string();
    assert!(error.contains("notes.txt"), "{error}");
    let nowhere = "postgres://user:secret@localhost/db?host=/no/such/folder";
    let error = Store::open(nowhere, blobs).await.unwrap_err().to_string();
    assert!(error.contains("postgres://localhost/db") && !error.contains("secret"), "{error}");
}
