-- Sessions and bot tokens. The relay's clock says what has expired.

-- name: insert_session(session_id, user_id, device_name, token_epoch, family_hash, refresh_hash, now_us, expires_at_us)
INSERT INTO sessions (session_id, user_id, device_name, token_epoch, family_hash, refresh_hash, created_at, last_used_at,
                      expires_at)
VALUES ($1, $2, $3, $4, $5, $6, from_us($7), from_us($7), from_us($8));

-- End all live sessions of a user but the `keep` that were used last.
-- name: end_surplus_sessions(user_id, keep, now_us)
UPDATE sessions SET revoked_at = from_us($3)
WHERE session_id IN (
    SELECT session_id FROM sessions
    WHERE user_id = $1 AND revoked_at IS NULL AND expires_at > from_us($3)
    ORDER BY last_used_at DESC, session_id OFFSET $2
)
RETURNING session_id;

-- End one session of a user; a row too where it had ended before.
-- name: end_session(session_id, user_id, now_us)
UPDATE sessions SET revoked_at = coalesce(revoked_at, from_us($3)) WHERE session_id = $1 AND user_id = $2 RETURNING 1;

-- name: find_device_name(session_id)
SELECT device_name FROM sessions WHERE session_id = $1;

-- The session alone, with what makes it live or dead.
-- name: lock_session(session_id)
SELECT s.user_id, s.token_epoch, s.family_hash, s.refresh_hash, s.previous_refresh_hash,
       to_us(s.expires_at), s.revoked_at IS NOT NULL, u.token_epoch, u.disabled_at IS NOT NULL
FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.session_id = $1 FOR UPDATE OF s;

-- name: session_exists(session_id)
SELECT EXISTS (SELECT 1 FROM sessions WHERE session_id = $1);

-- name: set_refresh_hashes(session_id, refresh_hash, previous_refresh_hash, now_us, expires_at_us)
UPDATE sessions
SET refresh_hash = $2, previous_refresh_hash = $3, last_used_at = from_us($4), expires_at = from_us($5)
WHERE session_id = $1;

-- name: list_sessions(user_id, now_us)
SELECT session_id, device_name, to_us(created_at), to_us(last_used_at)
FROM sessions WHERE user_id = $1 AND revoked_at IS NULL AND expires_at > from_us($2)
ORDER BY last_used_at DESC, session_id;

-- All that returning clients need: for each session claimed, by its number from 1, a row for each of the user's groups, one
-- with nulls where there is none; no row unless the session is live. That it was used is noted at most once in `grain_us`,
-- and not while somebody else holds it.
-- name: authenticate_sessions(session_ids, user_ids, token_epochs, now_us, grain_us)
WITH given AS (
    SELECT * FROM unnest($1::UUID[], $2::UUID[], $3::INTEGER[]) WITH ORDINALITY AS g(session_id, user_id, token_epoch, number)
), used AS (
    UPDATE sessions SET last_used_at = from_us($4)
    WHERE session_id IN (
        SELECT s.session_id FROM given g JOIN sessions s ON s.session_id = g.session_id AND s.user_id = g.user_id
        WHERE s.revoked_at IS NULL AND s.last_used_at <= from_us($4 - $5::BIGINT)
        FOR NO KEY UPDATE OF s SKIP LOCKED
    )
)
SELECT g.number, m.group_id, n.encrypted_name, m.role, h.key_epoch, h.rekey_required, h.last_seq, h.head_hash
FROM given g
JOIN sessions s ON s.session_id = g.session_id AND s.user_id = g.user_id
JOIN users u ON u.id = s.user_id
LEFT JOIN members m ON m.user_id = u.id
LEFT JOIN groups n ON n.id = m.group_id
LEFT JOIN group_heads h ON h.group_id = m.group_id
WHERE s.token_epoch = g.token_epoch AND u.token_epoch = g.token_epoch AND u.disabled_at IS NULL
  AND s.revoked_at IS NULL AND s.expires_at > from_us($4)
ORDER BY g.number, m.group_id;

-- The same for a bot's token; whose it is and what it may do stands in each row.
-- name: authenticate_bot(token_id, secret_hash, now_us, grain_us)
WITH used AS (
    UPDATE bot_tokens SET last_used_at = from_us($3)
    WHERE token_id = $1 AND secret_hash = $2 AND (expires_at IS NULL OR expires_at > from_us($3))
      AND (last_used_at IS NULL OR last_used_at <= from_us($3 - $4::BIGINT))
)
SELECT u.id, u.token_epoch, b.scopes, b.group_ids, to_us(b.expires_at),
       m.group_id, g.encrypted_name, m.role, h.key_epoch, h.rekey_required, h.last_seq, h.head_hash
FROM bot_tokens b
JOIN users u ON u.id = b.user_id
LEFT JOIN members m ON m.user_id = u.id AND (cardinality(b.group_ids) = 0 OR m.group_id = ANY (b.group_ids))
LEFT JOIN groups g ON g.id = m.group_id
LEFT JOIN group_heads h ON h.group_id = m.group_id
WHERE b.token_id = $1 AND b.secret_hash = $2 AND u.disabled_at IS NULL
  AND (b.expires_at IS NULL OR b.expires_at > from_us($3))
ORDER BY m.group_id;

-- name: find_bot_token(token_id)
SELECT user_id, name, scopes, group_ids, to_us(expires_at), last_used_at IS NOT NULL FROM bot_tokens WHERE token_id = $1;

-- name: count_bot_tokens(user_id)
SELECT count(*) FROM bot_tokens WHERE user_id = $1;

-- name: delete_expired_bot_tokens(user_id, now_us)
DELETE FROM bot_tokens WHERE user_id = $1 AND expires_at <= from_us($2);

-- name: insert_bot_token(token_id, user_id, name, secret_hash, scopes, group_ids, now_us, expires_at_us)
INSERT INTO bot_tokens (token_id, user_id, name, secret_hash, scopes, group_ids, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, from_us($7), from_us($8));

-- Another secret for a token that was never used.
-- name: replace_bot_secret(token_id, secret_hash)
UPDATE bot_tokens SET secret_hash = $2 WHERE token_id = $1 AND last_used_at IS NULL RETURNING 1;

-- name: list_bot_tokens(user_id)
SELECT token_id, name, scopes, group_ids, to_us(created_at), to_us(expires_at), to_us(last_used_at)
FROM bot_tokens WHERE user_id = $1 ORDER BY created_at, token_id;

-- name: delete_bot_token(token_id, user_id)
DELETE FROM bot_tokens WHERE token_id = $1 AND user_id = $2 RETURNING 1;
