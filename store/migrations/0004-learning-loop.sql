-- The learning loop: what is wanted of it, its rounds, and what each trained generation came from.

CREATE TABLE policies (
    owner      TEXT   NOT NULL REFERENCES tenants (id),
    -- An adapter's, whether or not there is one by now.
    name       TEXT   NOT NULL,
    -- JSON. NULL is deleted: the row stays, so that a policy which comes back goes on with the next revision.
    body       TEXT,
    revision   BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, name)
);

CREATE TABLE rounds (
    owner        TEXT   NOT NULL REFERENCES tenants (id),
    id           TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    -- building, training, gating, awaiting_approval, shadow or canary; promoted, refused, vetoed, rolled_back, failed,
    -- skipped or cancelled.
    state        TEXT   NOT NULL,
    -- Generations. None is a foreign key: a round is still known when they are gone.
    rebuild_of   TEXT,
    parent       TEXT,
    candidate    TEXT,
    -- The data set.
    file         TEXT,
    -- JSON: how far it is, and what came of the gate.
    progress     TEXT   NOT NULL,
    verdict      TEXT,
    -- Code, message and parameter of a failure.
    error        TEXT,
    -- JSON: who decided what, when and why, in order.
    decisions    TEXT   NOT NULL,
    -- Whether one of these approves.
    approved     BIGINT NOT NULL DEFAULT 0,
    -- The how-manieth of its name that reached the gate.
    look         BIGINT,
    -- The process that runs it, and when that was last heard of.
    runner       TEXT,
    heartbeat_ms BIGINT,
    revision     BIGINT NOT NULL,
    created_ms   BIGINT NOT NULL,
    updated_ms   BIGINT NOT NULL,
    -- NULL is open.
    ended_ms     BIGINT,
    PRIMARY KEY (owner, id)
);
CREATE INDEX rounds_by_name ON rounds (owner, name, id);
CREATE UNIQUE INDEX rounds_open ON rounds (owner, name) WHERE ended_ms IS NULL;
CREATE INDEX rounds_by_file ON rounds (owner, file);

-- What a round's data set was made of: ids and digests, no text. They stay when completions and feedback go.
CREATE TABLE round_examples (
    owner       TEXT NOT NULL,
    round       TEXT NOT NULL,
    -- completion or feedback.
    kind        TEXT NOT NULL,
    id          TEXT NOT NULL,
    -- Of who asked, or said it: 64 hex digits. NULL once that user was erased.
    user_sha256 TEXT,
    PRIMARY KEY (owner, round, kind, id),
    FOREIGN KEY (owner, round) REFERENCES rounds (owner, id)
);
-- With the round, so that it needs no row: SQLite would take the primary key, which needs none, and read all of an owner's.
CREATE INDEX round_examples_by_id ON round_examples (owner, kind, id, round);
CREATE INDEX round_examples_by_user ON round_examples (owner, user_sha256);

-- What trained generations came from. A row outlives its generation: others may have been trained from that.
CREATE TABLE lineage (
    owner       TEXT   NOT NULL REFERENCES tenants (id),
    generation  TEXT   NOT NULL,
    -- Of the base's file: 64 hex digits.
    base_sha256 TEXT   NOT NULL,
    -- The generation that training began from; NULL is none.
    parent      TEXT,
    round       TEXT,
    job         TEXT,
    -- Of all rows that were learned from: 64 hex digits.
    data_sha256 TEXT,
    -- JSON: method and settings.
    recipe      TEXT   NOT NULL,
    -- 64 bits, as a signed number.
    seed        BIGINT NOT NULL,
    -- JSON, of the gate.
    verdict     TEXT,
    created_ms  BIGINT NOT NULL,
    PRIMARY KEY (owner, generation)
);
CREATE INDEX lineage_by_parent ON lineage (owner, parent);
CREATE INDEX lineage_by_round ON lineage (owner, round);

-- What was answered under a name, for learning from it.
CREATE INDEX completions_by_model ON completions (owner, model, id);
