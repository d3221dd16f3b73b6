-- Users, their keys and backups.

-- name: find_account_by_name(username)
SELECT id, username, password_hash, token_epoch, disabled_at IS NOT NULL, is_bot, signing_key, rsa_thumbprint
FROM users WHERE username = $1;

-- name: find_account(user_id)
SELECT id, username, password_hash, token_epoch, disabled_at IS NOT NULL, is_bot, signing_key, rsa_thumbprint
FROM users WHERE id = $1;

-- The same, and nobody else changes the account, makes it a member or logs in to it until the transaction ends.
-- name: lock_account(user_id)
SELECT id, username, password_hash, token_epoch, disabled_at IS NOT NULL, is_bot, signing_key, rsa_thumbprint
FROM users WHERE id = $1 FOR NO KEY UPDATE;

-- Who has this id and who has this name, as of one moment: a row for each, one with nulls for nobody. The last column
-- says whether the id is, or was, a user's: what they signed must not become somebody else's.
-- name: find_claims(user_id, username)
SELECT u.id, u.username, u.password_hash, u.token_epoch, u.disabled_at IS NOT NULL, u.is_bot, u.signing_key,
       u.rsa_thumbprint, EXISTS (SELECT 1 FROM user_keys k WHERE k.user_id = $1)
FROM (SELECT 1) AS always LEFT JOIN users u ON u.id = $1 OR u.username = $2;

-- No row where the id or the name is in use.
-- name: insert_account(user_id, username, password_hash, public_key, signing_key, rsa_thumbprint, is_bot)
WITH made AS (
    INSERT INTO users (id, username, password_hash, public_key, signing_key, rsa_thumbprint, is_bot)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT DO NOTHING RETURNING id
)
INSERT INTO user_keys (user_id, signing_key, rsa_thumbprint, public_key)
SELECT id, $5, $6, $4 FROM made RETURNING 1;

-- Every token that was made under an earlier epoch is void.
-- name: set_password(user_id, password_hash)
UPDATE users SET password_hash = $2, token_epoch = token_epoch + 1 WHERE id = $1 RETURNING token_epoch;

-- name: set_disabled(user_id, disabled)
UPDATE users
SET disabled_at = CASE WHEN $2 THEN coalesce(disabled_at, clock_timestamp()) END,
    token_epoch = token_epoch + CASE WHEN $2 THEN 1 ELSE 0 END
WHERE id = $1 RETURNING 1;

-- name: owns_groups(user_id)
SELECT EXISTS (SELECT 1 FROM groups WHERE created_by = $1);

-- Take a user's name off some of their posts, as their deletion would off all of them; how many these were. It waits for
-- nobody, so that it can't deadlock: posts that are locked are in a group that is being deleted, or are erased just now.
-- name: forget_author(user_id, limit)
WITH t AS (
    UPDATE threads SET author_id = NULL
    WHERE id IN (SELECT id FROM threads WHERE author_id = $1 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING 1
), r AS (
    UPDATE replies SET author_id = NULL
    WHERE id IN (SELECT id FROM replies WHERE author_id = $1 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING 1
), a AS (
    UPDATE annotations SET author_id = NULL
    WHERE id IN (SELECT id FROM annotations WHERE author_id = $1 LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING 1
)
SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM r) + (SELECT count(*) FROM a);

-- name: delete_account(relay, user_id, with_groups)
SELECT group_id, kind, object_id, seq, hash, created_us, key_epoch FROM delete_user_v1($1, $2, $3);

-- A user as another one may see them: themselves; who was ever a member of a group that the caller is in now; who
-- knocks at a group that the caller administers. A token sees no more than its groups (null: all) show.
-- name: may_see_user(caller_id, user_id, group_ids)
SELECT $1::UUID = $2::UUID
    OR EXISTS (
        SELECT 1 FROM group_people p JOIN members m ON m.group_id = p.group_id AND m.user_id = $1
        WHERE p.user_id = $2 AND ($3::UUID[] IS NULL OR p.group_id = ANY ($3::UUID[])))
    OR EXISTS (
        SELECT 1 FROM join_requests j JOIN members m ON m.group_id = j.group_id AND m.user_id = $1 AND m.role >= 2
        WHERE j.user_id = $2 AND ($3::UUID[] IS NULL OR j.group_id = ANY ($3::UUID[])));

-- Every key that the user ever had, the newest last; name and kind are null once the account is gone.
-- name: list_user_keys(user_id)
SELECT k.public_key, k.signing_key, to_us(k.created_at), u.username, u.is_bot
FROM user_keys k LEFT JOIN users u ON u.id = k.user_id
WHERE k.user_id = $1 ORDER BY k.created_at;

-- name: get_backup(user_id)
SELECT generation, backup FROM key_backups WHERE user_id = $1;

-- The first generation is 1, and each follows the one before; the same again is no harm. No row for anything else.
-- name: put_backup(user_id, generation, backup)
INSERT INTO key_backups AS k (user_id, generation, backup)
SELECT $1::UUID, $2::BIGINT, $3::BYTEA WHERE $2 = 1 OR EXISTS (SELECT 1 FROM key_backups WHERE user_id = $1)
ON CONFLICT (user_id) DO UPDATE
SET generation = excluded.generation, backup = excluded.backup, updated_at = clock_timestamp()
WHERE k.generation + 1 = excluded.generation OR (k.generation = excluded.generation AND k.backup = excluded.backup)
RETURNING generation;
