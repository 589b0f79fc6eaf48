-- What the learning loop leaves to be done, and by whom that is known.

-- When nothing was left to do about a round that has ended: what it kept is gone, and what was promoted is watched no longer.
-- NULL is not yet, so that what fails is done later, by whichever process lives.
ALTER TABLE rounds ADD COLUMN done_ms BIGINT;
CREATE INDEX rounds_to_end ON rounds (id) WHERE ended_ms IS NOT NULL AND done_ms IS NULL;

-- Grow while the process that runs it lives. When that was last heard of is a time of whoever looks: no two machines' clocks
-- are compared.
ALTER TABLE rounds ADD COLUMN beats BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rounds DROP COLUMN heartbeat_ms;
ALTER TABLE jobs ADD COLUMN beats BIGINT NOT NULL DEFAULT 0;

-- The round that made it, of its data set or a part of that; NULL is a file that somebody sent.
ALTER TABLE files ADD COLUMN round TEXT;
CREATE INDEX files_by_round ON files (owner, round);
-- `ROUND.jsonl`, and `ROUND-without-FOLD.jsonl`. An id has 38 characters.
UPDATE files SET round = SUBSTR(filename, 1, 38) WHERE filename LIKE 'round-%.jsonl' AND EXISTS (SELECT 1 FROM rounds
    WHERE rounds.owner = files.owner AND rounds.id = SUBSTR(files.filename, 1, 38));

-- Rounds that come to equal weights have a row each: what they learned from, and how they were judged, is their own.
ALTER TABLE lineage RENAME TO lineage_before;
CREATE TABLE lineage (
    owner       TEXT   NOT NULL REFERENCES tenants (id),
    generation  TEXT   NOT NULL,
    -- Of the base's file: 64 hex digits.
    base_sha256 TEXT   NOT NULL,
    -- The generation that training began from; NULL is none.
    parent      TEXT,
    -- Empty is none.
    round       TEXT   NOT NULL,
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
    CONSTRAINT lineage_of_round PRIMARY KEY (owner, generation, round)
);
INSERT INTO lineage (owner, generation, base_sha256, parent, round, job, data_sha256, recipe, seed, verdict, created_ms)
    SELECT owner, generation, base_sha256, parent, COALESCE(round, ''), job, data_sha256, recipe, seed, verdict, created_ms
    FROM lineage_before;
DROP TABLE lineage_before;
CREATE INDEX lineage_by_parent ON lineage (owner, parent);
CREATE INDEX lineage_by_round ON lineage (owner, round);
