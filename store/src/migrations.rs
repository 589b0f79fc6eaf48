//! The schema, in numbered steps. Each runs once, all that are due in one transaction when a database is opened.
//!
//! To change the schema: add `migrations/NNNN-name.sql`, one SQL for both databases, a line in [`MIGRATIONS`], and
//! `tests/fixtures/schema/NNNN.sql`, a database of that schema with rows in it; tests migrate from each of these.
//! SQLite cannot switch foreign keys off inside a transaction, so a table that others point at is altered, not rebuilt.

use sqlx::{Any, Row as _, Transaction};

use crate::{
    clock::now_ms,
    database::{Database, Kind},
    error::StoreError,
};

/// One step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migration {
    /// From 1, without gaps.
    pub(crate) version: i64,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

/// All steps, oldest first.
pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "tenants-and-adapters",
        sql: include_str!("../migrations/0001-tenants-and-adapters.sql"),
    },
    Migration {
        version: 2,
        name: "alias-history",
        sql: include_str!("../migrations/0002-alias-history.sql"),
    },
    Migration {
        version: 3,
        name: "feedback-and-training",
        sql: include_str!("../migrations/0003-feedback-and-training.sql"),
    },
    Migration {
        version: 4,
        name: "learning-loop",
        sql: include_str!("../migrations/0004-learning-loop.sql"),
    },
    Migration {
        version: 5,
        name: "loose-ends",
        sql: include_str!("../migrations/0005-loose-ends.sql"),
    },
];

/// Any number, the same in every process: one migrates, the others wait and find it done.
const POSTGRES_LOCK: &str = "SELECT pg_advisory_xact_lock(7309725394)";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS schema_migrations (
    version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_ms BIGINT NOT NULL)";

/// Brings the database to the last of `migrations`. If one fails, none of them happened.
pub(crate) async fn migrate(
    database: &Database,
    migrations: &[Migration],
) -> Result<(), StoreError> {
    let action = format!("read the schema of {}", database.place);
    let failed = |source| StoreError::database(&action, source);
    let mut change = database.begin(&action).await?;
    if database.kind == Kind::Postgres {
        sqlx::query(POSTGRES_LOCK).execute(&mut *change).await.map_err(failed)?;
    }
    sqlx::query(TABLE).execute(&mut *change).await.map_err(failed)?;
    let done = versions_done(&mut change, database, migrations).await?;
    for migration in migrations.iter().filter(|migration| migration.version > done) {
        let Migration { version, name, sql } = *migration;
        let action = format!("bring {} to schema {version} ({name})", database.place);
        let failed = |source| StoreError::database(&action, source);
        sqlx::raw_sql(sql).execute(&mut *change).await.map_err(failed)?;
        sqlx::query(
            "INSERT INTO schema_migrations (version, name, applied_ms) VALUES ($1, $2, $3)",
        )
        .bind(version)
        .bind(name)
        .bind(now_ms())
        .execute(&mut *change)
        .await
        .map_err(failed)?;
    }
    change.commit().await.map_err(failed)
}

/// The last version that the database has, 0 if it is new.
async fn versions_done(
    change: &mut Transaction<'static, Any>,
    database: &Database,
    migrations: &[Migration],
) -> Result<i64, StoreError> {
    let action = format!("read the schema of {}", database.place);
    let failed = |source| StoreError::database(&action, source);
    let rows = sqlx::query("SELECT version, name FROM schema_migrations ORDER BY version DESC")
        .fetch_all(&mut **change)
        .await
        .map_err(failed)?;
    let place = || database.place.to_string();
    // The last one first, so that what is too new is told by its last schema.
    for row in &rows {
        let version: i64 = row.try_get("version").map_err(failed)?;
        let found: String = row.try_get("name").map_err(failed)?;
        let known = migrations.iter().find(|migration| migration.version == version);
        let Some(known) = known else {
            let known = migrations.last().map_or(0, |migration| migration.version);
            return Err(StoreError::NewerSchema { place: place(), version, name: found, known });
        };
        if known.name != found {
            let expected = known.name.to_owned();
            return Err(StoreError::OtherSchema { place: place(), version, found, expected });
        }
    }
    rows.first().map_or(Ok(0), |row| row.try_get("version").map_err(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Migration = Migration {
        version: 1,
        name: "first",
        sql: "CREATE TABLE cats (name TEXT NOT NULL); INSERT INTO cats (name) VALUES ('Mia');",
    };
    const SECOND: Migration = Migration {
        version: 2,
        name: "second",
        sql: "ALTER TABLE cats ADD COLUMN lives BIGINT NOT NULL DEFAULT 9;
              UPDATE cats SET lives = 7 WHERE name = 'Mia';",
    };
    const FAILS: Migration = Migration {
        version: 3,
        name: "fails",
        sql: "CREATE TABLE dogs (name TEXT NOT NULL); INSERT INTO cows (name) VALUES ('Berta');",
    };

    /// The same steps on a new SQLite file, and on a new PostgreSQL database where there is a server.
    async fn on_both(check: impl AsyncFn(Database)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a file?.sqlite");
        check(Database::open(path.to_str().unwrap()).await.unwrap()).await;
        if let Some(server) = pleach_test_setup::postgres() {
            check(Database::open(&server.new_database()).await.unwrap()).await;
        }
    }

    async fn lives(database: &Database) -> Result<i64, sqlx::Error> {
        let query = sqlx::query("SELECT lives FROM cats WHERE name = 'Mia'");
        query.fetch_one(database.readers()).await?.try_get("lives")
    }

    #[tokio::test]
    async fn each_step_runs_once_and_keeps_the_rows() {
        on_both(async |database| {
            migrate(&database, &[FIRST]).await.unwrap();
            migrate(&database, &[FIRST]).await.unwrap();
            assert!(lives(&database).await.is_err());
            migrate(&database, &[FIRST, SECOND]).await.unwrap();
            migrate(&database, &[FIRST, SECOND]).await.unwrap();
            assert_eq!(lives(&database).await.unwrap(), 7);
            database.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_step_that_fails_takes_back_all_of_this_run() {
        on_both(async |database| {
            migrate(&database, &[FIRST]).await.unwrap();
            let error = migrate(&database, &[FIRST, SECOND, FAILS]).await.unwrap_err().to_string();
            assert!(error.contains("to schema 3 (fails)"), "{error}");
            assert!(lives(&database).await.is_err(), "step 2 stayed");
            let dogs = sqlx::query("SELECT name FROM dogs").fetch_all(database.readers()).await;
            assert!(dogs.is_err(), "half of step 3 stayed");
            migrate(&database, &[FIRST, SECOND]).await.unwrap();
            assert_eq!(lives(&database).await.unwrap(), 7);
            database.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn two_that_open_at_once_migrate_once() {
        on_both(async |database| {
            let steps = [FIRST, SECOND];
            let (one, two) = tokio::join!(migrate(&database, &steps), migrate(&database, &steps));
            one.unwrap();
            two.unwrap();
            assert_eq!(lives(&database).await.unwrap(), 7);
            database.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_newer_or_foreign_is_refused_by_name() {
        on_both(async |database| {
            migrate(&database, &[FIRST, SECOND]).await.unwrap();
            let newer = migrate(&database, &[FIRST]).await.unwrap_err();
            assert!(
                matches!(&newer, StoreError::NewerSchema { version: 2, known: 1, name, .. } if name == "second"),
                "{newer}"
            );
            assert!(newer.to_string().contains(&*database.place), "{newer}");
            let other = Migration { name: "another", ..FIRST };
            let foreign = migrate(&database, &[other, SECOND]).await.unwrap_err();
            assert!(matches!(foreign, StoreError::OtherSchema { version: 1, .. }), "{foreign}");
            assert_eq!(lives(&database).await.unwrap(), 7);
            database.close().await;
        })
        .await;
    }

    #[test]
    fn numbers_have_no_gaps() {
        let versions: Vec<_> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        let expected: Vec<_> = (1..).take(MIGRATIONS.len()).collect();
        assert_eq!(versions, expected);
    }
}
