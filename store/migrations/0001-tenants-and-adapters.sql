-- Tenants, their keys, generations of adapters, and the aliases that point at them.
--
-- One text for SQLite and PostgreSQL: BIGINT and TEXT only. Times are milliseconds since 1970-01-01 UTC, digests 64 hex
-- digits, flags 0 or 1. A migration that was released is never edited: tests/fixtures/schema holds what it made.

CREATE TABLE tenants (
    id                  TEXT   NOT NULL PRIMARY KEY,
    name                TEXT   NOT NULL UNIQUE,
    weight              BIGINT NOT NULL CHECK (weight > 0),
    priority            BIGINT NOT NULL,
    -- Quotas: NULL is no limit.
    requests_per_minute BIGINT,
    tokens_per_minute   BIGINT,
    concurrent_requests BIGINT,
    adapters            BIGINT,
    adapter_bytes       BIGINT,
    training_jobs       BIGINT,
    queued_requests     BIGINT,
    created_ms          BIGINT NOT NULL,
    disabled_ms         BIGINT
);

-- What belongs to nobody belongs to this row, so that owners are never NULL and unique keys hold for it too.
INSERT INTO tenants (id, name, weight, priority, created_ms) VALUES ('shared', 'shared', 1, 0, 0);

CREATE TABLE api_keys (
    id            TEXT   NOT NULL PRIMARY KEY,
    tenant        TEXT   NOT NULL REFERENCES tenants (id),
    name          TEXT   NOT NULL,
    secret_sha256 TEXT   NOT NULL,
    scopes        TEXT   NOT NULL,
    created_ms    BIGINT NOT NULL,
    expires_ms    BIGINT,
    revoked_ms    BIGINT,
    last_used_ms  BIGINT
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, id);

-- A row is written before its blob appears, and deleted in the transaction that deletes the blob. A blob without a file
-- of a generation is garbage once keep_until_ms has passed.
CREATE TABLE blobs (
    sha256        TEXT   NOT NULL PRIMARY KEY,
    bytes         BIGINT NOT NULL,
    created_ms    BIGINT NOT NULL,
    keep_until_ms BIGINT NOT NULL
);

CREATE TABLE generations (
    owner      TEXT   NOT NULL REFERENCES tenants (id),
    digest     TEXT   NOT NULL,
    metadata   TEXT   NOT NULL,
    origin     TEXT   NOT NULL,
    -- The sum over its files.
    bytes      BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, digest)
);

CREATE TABLE generation_files (
    owner  TEXT   NOT NULL,
    digest TEXT   NOT NULL,
    name   TEXT   NOT NULL,
    sha256 TEXT   NOT NULL REFERENCES blobs (sha256),
    bytes  BIGINT NOT NULL,
    PRIMARY KEY (owner, digest, name),
    FOREIGN KEY (owner, digest) REFERENCES generations (owner, digest)
);
CREATE INDEX generation_files_by_blob ON generation_files (sha256);

CREATE TABLE aliases (
    owner      TEXT   NOT NULL REFERENCES tenants (id),
    name       TEXT   NOT NULL,
    generation TEXT   NOT NULL,
    revision   BIGINT NOT NULL,
    pinned     BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, name),
    FOREIGN KEY (owner, generation) REFERENCES generations (owner, digest)
);
CREATE INDEX aliases_by_generation ON aliases (owner, generation);

-- Outlives alias and generation: a name that comes back goes on with the next revision.
CREATE TABLE alias_moves (
    owner           TEXT   NOT NULL REFERENCES tenants (id),
    name            TEXT   NOT NULL,
    revision        BIGINT NOT NULL,
    from_generation TEXT,
    to_generation   TEXT,
    moved_ms        BIGINT NOT NULL,
    who             TEXT   NOT NULL,
    reason          TEXT   NOT NULL,
    PRIMARY KEY (owner, name, revision)
);
CREATE INDEX alias_moves_from ON alias_moves (owner, from_generation);
CREATE INDEX alias_moves_to ON alias_moves (owner, to_generation);
