-- The durable log, keys, invites and credentials
-- depends: 0001_seed
-- oldest relay: 0.1.0

-- migrate: apply

ALTER TABLE users
    ADD COLUMN signing_key BYTEA NOT NULL,
    ADD COLUMN rsa_thumbprint BYTEA NOT NULL,
    ADD COLUMN is_bot BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN token_epoch INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN disabled_at TIMESTAMPTZ;

ALTER TABLE groups
    ADD COLUMN history SMALLINT NOT NULL DEFAULT 1,
    ADD COLUMN name_key_epoch INTEGER NOT NULL DEFAULT 1,
    ADD COLUMN knocking BOOLEAN NOT NULL DEFAULT TRUE;

ALTER TABLE members ADD COLUMN role SMALLINT NOT NULL DEFAULT 1 CHECK (role BETWEEN 1 AND 3);

-- The content of erased posts is the empty string; what is left of them is in events.
ALTER TABLE threads
    ADD COLUMN seq BIGINT NOT NULL,
    ADD COLUMN key_epoch INTEGER NOT NULL,
    ADD COLUMN erased_at TIMESTAMPTZ;
CREATE INDEX idx_threads_group_seq ON threads(group_id, seq);

-- A reply's group_id needs no foreign key: its thread has one, and the append function checks that they agree. Nor an
-- index with seq: the log is read through events, a thread's replies through (thread_id, seq).
ALTER TABLE replies
    ADD COLUMN group_id UUID NOT NULL,
    ADD COLUMN seq BIGINT NOT NULL,
    ADD COLUMN key_epoch INTEGER NOT NULL,
    ADD COLUMN erased_at TIMESTAMPTZ;
CREATE INDEX idx_replies_thread_seq ON replies(thread_id, seq);

ALTER TABLE media
    ADD COLUMN group_id UUID NOT NULL,
    ADD COLUMN seq BIGINT NOT NULL,
    ADD COLUMN key_epoch INTEGER NOT NULL;
CREATE INDEX idx_media_group_seq ON media(group_id, seq);

CREATE TABLE annotations (
    id UUID PRIMARY KEY,
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    target_id UUID NOT NULL,
    author_id UUID REFERENCES users(id) ON DELETE SET NULL,
    encrypted_body TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    seq BIGINT NOT NULL,
    key_epoch INTEGER NOT NULL,
    erased_at TIMESTAMPTZ
);
CREATE INDEX idx_annotations_author ON annotations(author_id);

-- The row whose lock orders a group's log. It stays as a tombstone when the group is deleted, hence no foreign key:
-- a reused group id is refused, and a subscriber can be told that the group is gone.
CREATE TABLE group_heads (
    group_id UUID PRIMARY KEY,
    last_seq BIGINT NOT NULL DEFAULT 0,
    head_hash BYTEA NOT NULL DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000',
    key_epoch INTEGER NOT NULL DEFAULT 1,
    roster_seq BIGINT NOT NULL DEFAULT 0,
    rekey_required BOOLEAN NOT NULL DEFAULT FALSE,
    deleted_at TIMESTAMPTZ
) WITH (fillfactor = 50);

-- The log. No foreign keys: it outlives accounts. Of a deleted group the last event stays, as part of the tombstone.
CREATE TABLE events (
    group_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    kind SMALLINT NOT NULL,
    object_id UUID NOT NULL,
    actor_id UUID NOT NULL,
    parent_id UUID,
    key_epoch INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    field_hashes BYTEA NOT NULL,
    content_hash BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    statement BYTEA,
    signature BYTEA,
    PRIMARY KEY (group_id, seq)
);

-- Every id that a client made for something in a log: posts and statements. An id means one thing, as long as its group is there.
CREATE TABLE objects (
    object_id UUID PRIMARY KEY,
    group_id UUID NOT NULL,
    seq BIGINT NOT NULL,
    author_id UUID NOT NULL,
    kind SMALLINT NOT NULL,
    erased BOOLEAN NOT NULL DEFAULT FALSE
);

-- Every key that a user ever had, so that old signatures verify after a replacement or a deletion.
CREATE TABLE user_keys (
    user_id UUID NOT NULL,
    signing_key BYTEA NOT NULL,
    rsa_thumbprint BYTEA NOT NULL,
    public_key JSONB NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, signing_key, rsa_thumbprint)
);

-- Every wrap of a group key that was ever made for somebody; members.encrypted_group_key is the newest.
CREATE TABLE group_keys (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    key_epoch INTEGER NOT NULL,
    encrypted_group_key TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX idx_group_keys_member ON group_keys(group_id, user_id, key_epoch);
CREATE INDEX idx_group_keys_user ON group_keys(user_id);

CREATE TABLE invites (
    invite_id UUID PRIMARY KEY,
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    invite_code VARCHAR(8) NOT NULL UNIQUE CHECK (invite_code ~ '^[A-Za-z0-9]{8}$'),
    invite_key BYTEA NOT NULL,
    sealed_group_key BYTEA,
    key_epoch INTEGER NOT NULL,
    created_by UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    expires_at TIMESTAMPTZ,
    max_uses BIGINT,
    uses BIGINT NOT NULL DEFAULT 0,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX idx_invites_group ON invites(group_id);
CREATE INDEX idx_invites_created_by ON invites(created_by);

CREATE TABLE join_requests (
    request_id UUID PRIMARY KEY,
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    invite_id UUID REFERENCES invites(invite_id) ON DELETE SET NULL,
    invite_signature BYTEA,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (group_id, user_id)
);
CREATE INDEX idx_join_requests_user ON join_requests(user_id);

CREATE TABLE bans (
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX idx_bans_user ON bans(user_id);

-- A login and its family of refresh tokens, of which the newest and the one before are known (as SHA-256).
CREATE TABLE sessions (
    session_id UUID PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    device_name TEXT NOT NULL,
    token_epoch INTEGER NOT NULL,
    family_hash BYTEA NOT NULL,
    refresh_hash BYTEA NOT NULL,
    previous_refresh_hash BYTEA,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    last_used_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    expires_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX idx_sessions_user ON sessions(user_id);
CREATE INDEX idx_sessions_expires ON sessions(expires_at);

CREATE TABLE bot_tokens (
    token_id UUID PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    secret_hash BYTEA NOT NULL,
    scopes TEXT[] NOT NULL,
    group_ids UUID[] NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    expires_at TIMESTAMPTZ,
    last_used_at TIMESTAMPTZ
);
CREATE INDEX idx_bot_tokens_user ON bot_tokens(user_id);

CREATE TABLE key_backups (
    user_id UUID PRIMARY KEY REFERENCES users(id) ON DELETE CASCADE,
    generation BIGINT NOT NULL,
    backup BYTEA NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE cursors (
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    seq BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, group_id, name)
);
CREATE INDEX idx_cursors_group ON cursors(group_id);

-- Failed logins by account and by address; `subject` says which of the two it is.
CREATE TABLE login_attempts (
    subject TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    blocked_until TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX idx_login_attempts_updated ON login_attempts(updated_at);

-- What all relays on this database must agree on, such as the fingerprint of the token-signing keys.
CREATE TABLE relay_facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- migrate: rollback

DROP TABLE relay_facts;
DROP TABLE login_attempts;
DROP TABLE cursors;
DROP TABLE key_backups;
DROP TABLE bot_tokens;
DROP TABLE sessions;
DROP TABLE bans;
DROP TABLE join_requests;
DROP TABLE invites;
DROP TABLE group_keys;
DROP TABLE user_keys;
DROP TABLE objects;
DROP TABLE events;
DROP TABLE group_heads;
DROP TABLE annotations;
DROP INDEX idx_media_group_seq;
ALTER TABLE media DROP COLUMN group_id, DROP COLUMN seq, DROP COLUMN key_epoch;
DROP INDEX idx_replies_thread_seq;
ALTER TABLE replies DROP COLUMN group_id, DROP COLUMN seq, DROP COLUMN key_epoch, DROP COLUMN erased_at;
DROP INDEX idx_threads_group_seq;
ALTER TABLE threads DROP COLUMN seq, DROP COLUMN key_epoch, DROP COLUMN erased_at;
ALTER TABLE members DROP COLUMN role;
ALTER TABLE groups DROP COLUMN history, DROP COLUMN name_key_epoch, DROP COLUMN knocking;
ALTER TABLE users
    DROP COLUMN signing_key, DROP COLUMN rsa_thumbprint, DROP COLUMN is_bot, DROP COLUMN token_epoch, DROP COLUMN disabled_at;
