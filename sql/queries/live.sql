-- What the relay keeps an eye on, and what relays tell one another.

-- name: notify(payload)
SELECT pg_notify('orbital', $1);

-- name: notify_many(payloads)
SELECT pg_notify('orbital', payload) FROM unnest($1::TEXT[]) AS payload;

-- Which of these sessions and bot tokens are no longer good. A bot's token outlives a change of password.
-- name: find_ended_sessions(session_ids, token_epochs, user_ids)
SELECT i.session_id
FROM unnest($1::UUID[], $2::INTEGER[], $3::UUID[]) AS i(session_id, token_epoch, user_id)
LEFT JOIN users u ON u.id = i.user_id
LEFT JOIN sessions s ON s.session_id = i.session_id
LEFT JOIN bot_tokens b ON b.token_id = i.session_id
WHERE u.id IS NULL OR u.disabled_at IS NOT NULL OR (u.token_epoch <> i.token_epoch AND b.token_id IS NULL)
   OR NOT coalesce(s.revoked_at IS NULL AND s.expires_at > clock_timestamp(),
                   coalesce(b.expires_at > clock_timestamp(), b.token_id IS NOT NULL));

-- name: put_cursor(user_id, group_id, name, seq, hash, rewind)
INSERT INTO cursors AS c (user_id, group_id, name, seq, hash) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (user_id, group_id, name) DO UPDATE
SET seq = CASE WHEN $6 OR excluded.seq > c.seq THEN excluded.seq ELSE c.seq END,
    hash = CASE WHEN $6 OR excluded.seq > c.seq THEN excluded.hash ELSE c.hash END,
    updated_at = clock_timestamp()
RETURNING seq, hash;

-- name: get_cursor(user_id, group_id, name)
SELECT c.seq, c.hash FROM members m
LEFT JOIN cursors c ON c.user_id = m.user_id AND c.group_id = m.group_id AND c.name = $3
WHERE m.user_id = $1 AND m.group_id = $2;

-- name: count_other_cursors(user_id, group_id, name)
SELECT count(*) FROM cursors WHERE user_id = $1 AND (group_id, name) <> ($2, $3);
