-- A client's store. Blobs named state, secrets and value are MessagePack; ids have 16 bytes, hashes 32.
CREATE TABLE account (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE groups (
    number   INTEGER PRIMARY KEY,
    group_id BLOB NOT NULL UNIQUE,
    state    BLOB,
    secrets  BLOB NOT NULL
);
CREATE TABLE events (
    group_number INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    hash         BLOB    NOT NULL,
    kind         INTEGER NOT NULL,
    object_id    BLOB    NOT NULL,
    actor_id     BLOB    NOT NULL,
    parent_id    BLOB    NOT NULL,
    counts       INTEGER NOT NULL,
    erased_at    INTEGER NOT NULL,
    PRIMARY KEY (group_number, seq)
) WITHOUT ROWID;
CREATE INDEX events_by_object ON events (group_number, object_id);
CREATE INDEX events_by_parent ON events (group_number, parent_id, seq) WHERE parent_id != zeroblob(16);
CREATE TABLE expected (
    group_id  BLOB    NOT NULL,
    seq       INTEGER NOT NULL,
    hash      BLOB    NOT NULL,
    source    TEXT    NOT NULL,
    PRIMARY KEY (group_id, seq)
) WITHOUT ROWID;
CREATE TABLE cursors (
    group_id BLOB    NOT NULL,
    name     TEXT    NOT NULL,
    seq      INTEGER NOT NULL,
    hash     BLOB    NOT NULL,
    PRIMARY KEY (group_id, name)
) WITHOUT ROWID;
CREATE TABLE pins (
    user_id        BLOB PRIMARY KEY,
    signing_key    BLOB    NOT NULL,
    rsa_thumbprint BLOB    NOT NULL,
    is_verified    INTEGER NOT NULL
) WITHOUT ROWID;
