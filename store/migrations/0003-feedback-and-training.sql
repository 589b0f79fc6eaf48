-- Files to train on, completions that are kept, feedback on them, and training jobs.
--
-- Ids of all of these begin with the time at which they were made, so their order is that of their making. What a row
-- needs and nobody looks for is JSON.

-- Of files and unfinished uploads; NULL is no limit.
ALTER TABLE tenants ADD COLUMN file_bytes BIGINT;
-- Whether completions are kept that did not ask for it.
ALTER TABLE tenants ADD COLUMN capture BIGINT NOT NULL DEFAULT 0;
-- For how many days completions are kept, and feedback on them with them.
ALTER TABLE tenants ADD COLUMN keep_days BIGINT NOT NULL DEFAULT 30;

CREATE TABLE files (
    owner      TEXT   NOT NULL REFERENCES tenants (id),
    id         TEXT   NOT NULL,
    filename   TEXT   NOT NULL,
    purpose    TEXT   NOT NULL,
    sha256     TEXT   NOT NULL REFERENCES blobs (sha256),
    bytes      BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    PRIMARY KEY (owner, id)
);
CREATE INDEX files_by_blob ON files (sha256);
CREATE INDEX files_by_end ON files (expires_ms);

CREATE TABLE uploads (
    owner       TEXT   NOT NULL REFERENCES tenants (id),
    id          TEXT   NOT NULL,
    filename    TEXT   NOT NULL,
    purpose     TEXT   NOT NULL,
    -- As announced.
    bytes       BIGINT NOT NULL,
    -- pending, completed or cancelled.
    status      TEXT   NOT NULL,
    -- What it became.
    file        TEXT,
    created_ms  BIGINT NOT NULL,
    expires_ms  BIGINT NOT NULL,
    -- How long the file is to be kept after it was made.
    file_keep_ms BIGINT,
    PRIMARY KEY (owner, id)
);
CREATE INDEX uploads_by_end ON uploads (expires_ms);

CREATE TABLE upload_parts (
    owner      TEXT   NOT NULL,
    upload     TEXT   NOT NULL,
    id         TEXT   NOT NULL,
    sha256     TEXT   NOT NULL REFERENCES blobs (sha256),
    bytes      BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, upload, id),
    FOREIGN KEY (owner, upload) REFERENCES uploads (owner, id)
);
CREATE INDEX upload_parts_by_blob ON upload_parts (sha256);

CREATE TABLE completions (
    owner       TEXT   NOT NULL REFERENCES tenants (id),
    id          TEXT   NOT NULL,
    -- What the request called it.
    model       TEXT   NOT NULL,
    -- NULL is the plain base.
    generation  TEXT,
    episode     TEXT,
    -- Of the end user's name: 64 hex digits.
    user_sha256 TEXT,
    -- Messages, choices, and the tokens that were sampled.
    body        TEXT   NOT NULL,
    -- All pairs; for looking them up they are in the table metadata, too.
    metadata    TEXT   NOT NULL,
    created_ms  BIGINT NOT NULL,
    expires_ms  BIGINT NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE INDEX completions_by_episode ON completions (owner, episode);
CREATE INDEX completions_by_user ON completions (owner, user_sha256);
CREATE INDEX completions_by_end ON completions (expires_ms);

-- Pairs that clients attach to a completion or a job.
CREATE TABLE metadata (
    owner  TEXT NOT NULL REFERENCES tenants (id),
    object TEXT NOT NULL,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (owner, object, name)
);

-- What was said first of a metric decides what may be said of it.
CREATE TABLE metrics (
    owner      TEXT   NOT NULL REFERENCES tenants (id),
    name       TEXT   NOT NULL,
    -- boolean or float.
    kind       TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, name)
);

CREATE TABLE feedback (
    owner           TEXT   NOT NULL REFERENCES tenants (id),
    id              TEXT   NOT NULL,
    -- One of these two.
    completion      TEXT,
    episode         TEXT,
    -- Which of the completion's answers.
    choice          BIGINT NOT NULL,
    -- Of a comparison: the other answer's completion.
    rejected        TEXT,
    metric          TEXT   NOT NULL,
    -- boolean, float, comparison, demonstration or comment.
    kind            TEXT   NOT NULL,
    value           TEXT   NOT NULL,
    tags            TEXT   NOT NULL,
    -- Of who gave it: 64 hex digits.
    user_sha256     TEXT,
    idempotency_key TEXT,
    -- Of the request with that key.
    request_sha256  TEXT,
    created_ms      BIGINT NOT NULL,
    updated_ms      BIGINT NOT NULL,
    -- Nothing is left of its value since then.
    withdrawn_ms    BIGINT,
    PRIMARY KEY (owner, id),
    UNIQUE (owner, idempotency_key),
    FOREIGN KEY (owner, completion) REFERENCES completions (owner, id),
    FOREIGN KEY (owner, rejected) REFERENCES completions (owner, id)
);
CREATE INDEX feedback_by_completion ON feedback (owner, completion);
CREATE INDEX feedback_by_rejected ON feedback (owner, rejected);
CREATE INDEX feedback_by_episode ON feedback (owner, episode);
CREATE INDEX feedback_by_user ON feedback (owner, user_sha256);

CREATE TABLE jobs (
    owner               TEXT   NOT NULL REFERENCES tenants (id),
    id                  TEXT   NOT NULL,
    -- validating_files, queued, running, paused, succeeded, failed or cancelled.
    status              TEXT   NOT NULL,
    model               TEXT   NOT NULL,
    training_file       TEXT   NOT NULL,
    validation_file     TEXT,
    -- Suffix, method, hyper-parameters, seed.
    spec                TEXT   NOT NULL,
    -- As that of completions.
    metadata            TEXT   NOT NULL,
    fine_tuned_model    TEXT,
    result_file         TEXT,
    trained_tokens      BIGINT,
    -- Code, message and parameter of a failure.
    error               TEXT,
    -- What a training that was interrupted goes on from.
    state_sha256        TEXT   REFERENCES blobs (sha256),
    -- The process that runs it, and when that was last heard of.
    runner              TEXT,
    heartbeat_ms        BIGINT,
    created_ms          BIGINT NOT NULL,
    started_ms          BIGINT,
    finished_ms         BIGINT,
    estimated_finish_ms BIGINT,
    PRIMARY KEY (owner, id)
);
CREATE INDEX jobs_by_status ON jobs (status, id);
CREATE INDEX jobs_by_state ON jobs (state_sha256);

CREATE TABLE job_events (
    owner      TEXT   NOT NULL,
    job        TEXT   NOT NULL,
    number     BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    level      TEXT   NOT NULL,
    -- message or metrics.
    kind       TEXT   NOT NULL,
    message    TEXT   NOT NULL,
    data       TEXT   NOT NULL,
    PRIMARY KEY (owner, job, number),
    FOREIGN KEY (owner, job) REFERENCES jobs (owner, id)
);

CREATE TABLE job_checkpoints (
    owner      TEXT   NOT NULL,
    job        TEXT   NOT NULL,
    id         TEXT   NOT NULL,
    step       BIGINT NOT NULL,
    -- The name that it is served by.
    model      TEXT   NOT NULL,
    metrics    TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, job, id),
    UNIQUE (owner, job, step),
    FOREIGN KEY (owner, job) REFERENCES jobs (owner, id)
);
