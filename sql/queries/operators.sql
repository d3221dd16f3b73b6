-- What the command line asks of a database. Whoever reads these rows runs the relay: they see more than any member, and
-- still no plaintext.

-- ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: read_server()
SELECT current_setting('server_version'), current_setting('server_version_num')::INTEGER, clock_timestamp();

-- What this database user may not do to the tables of the schema, as "verb on table".
-- name: list_missing_privileges()
SELECT p.verb || ' on ' || t.tablename
FROM pg_tables t, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p(verb)
WHERE t.schemaname = 'public' AND t.tablename NOT IN ('schema_versions', '_pogo_migration', '_pogo_version')
  AND NOT has_table_privilege(format('%I.%I', t.schemaname, t.tablename), p.verb)
ORDER BY 1;

-- name: read_fact(name)
SELECT value FROM relay_facts WHERE name = $1;

-- ── users ────────────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: list_users_as_operator(after_username, limit)
SELECT u.id, u.username, u.is_bot, u.created_at, u.disabled_at,
       (SELECT count(*) FROM members m WHERE m.user_id = u.id),
       (SELECT count(*) FROM sessions s
        WHERE s.user_id = u.id AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp() AND s.token_epoch = u.token_epoch)
       + (SELECT count(*) FROM bot_tokens b WHERE b.user_id = u.id AND coalesce(b.expires_at > clock_timestamp(), TRUE)),
       greatest((SELECT max(s.last_used_at) FROM sessions s WHERE s.user_id = u.id),
                (SELECT max(b.last_used_at) FROM bot_tokens b WHERE b.user_id = u.id))
FROM users u WHERE u.username > $1 ORDER BY u.username LIMIT $2;

-- ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: list_groups_as_operator(after_group_id, limit)
SELECT g.id, u.username, (SELECT count(*) FROM members m WHERE m.group_id = g.id), h.last_seq, h.key_epoch,
       h.rekey_required, coalesce(q.media_count, 0), coalesce(q.total_bytes, 0), g.created_at, e.created_at
FROM groups g
JOIN users u ON u.id = g.created_by
JOIN group_heads h ON h.group_id = g.id
LEFT JOIN group_quotas q ON q.group_id = g.id
LEFT JOIN events e ON e.group_id = g.id AND e.seq = h.last_seq
WHERE g.id > $1 ORDER BY g.id LIMIT $2;

-- A group, or what is left of a deleted one. Bytes are those of ciphertexts, as they are stored.
-- name: find_group_as_operator(group_id)
SELECT h.group_id, u.username, g.created_at, h.deleted_at, h.last_seq, h.head_hash, h.key_epoch, h.rekey_required,
       g.history, g.knocking,
       (SELECT count(*) FROM invites i
        WHERE i.group_id = h.group_id AND i.revoked_at IS NULL AND coalesce(i.expires_at > clock_timestamp(), TRUE)
          AND coalesce(i.uses < i.max_uses, TRUE)),
       (SELECT count(*) FROM join_requests j WHERE j.group_id = h.group_id),
       (SELECT count(*) FROM bans b WHERE b.group_id = h.group_id)
FROM group_heads h
LEFT JOIN groups g ON g.id = h.group_id
LEFT JOIN users u ON u.id = g.created_by
WHERE h.group_id = $1;

-- name: measure_group_as_operator(group_id)
SELECT 'threads', count(*), coalesce(sum(octet_length(encrypted_title) + octet_length(encrypted_body)), 0)::BIGINT
FROM threads WHERE group_id = $1
UNION ALL
SELECT 'replies', count(*), coalesce(sum(octet_length(encrypted_body)), 0)::BIGINT FROM replies WHERE group_id = $1
UNION ALL
SELECT 'annotations', count(*), coalesce(sum(octet_length(encrypted_body)), 0)::BIGINT FROM annotations WHERE group_id = $1
UNION ALL
SELECT 'media', count(*), coalesce(sum(size_bytes), 0)::BIGINT FROM media WHERE group_id = $1;

-- name: list_members_as_operator(group_id)
SELECT u.username, m.user_id, m.role, u.is_bot, m.joined_at
FROM members m JOIN users u ON u.id = m.user_id WHERE m.group_id = $1 ORDER BY m.role DESC, u.username;

-- ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Sessions and bot tokens that are good, of one user or (null) of all; the newest first.
-- name: list_sessions_as_operator(username)
SELECT 'session', s.session_id, u.username, s.device_name, s.created_at, s.last_used_at, s.expires_at
FROM sessions s JOIN users u ON u.id = s.user_id
WHERE ($1::TEXT IS NULL OR u.username = $1) AND s.revoked_at IS NULL AND s.expires_at > clock_timestamp()
  AND s.token_epoch = u.token_epoch AND u.disabled_at IS NULL
UNION ALL
SELECT 'token', b.token_id, u.username, b.name, b.created_at, b.last_used_at, b.expires_at
FROM bot_tokens b JOIN users u ON u.id = b.user_id
WHERE ($1::TEXT IS NULL OR u.username = $1) AND coalesce(b.expires_at > clock_timestamp(), TRUE) AND u.disabled_at IS NULL
ORDER BY 5 DESC;

-- name: find_session_owner(session_id)
SELECT 'session', user_id FROM sessions WHERE session_id = $1
UNION ALL
SELECT 'token', user_id FROM bot_tokens WHERE token_id = $1;

-- ── media ────────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Where the database names blobs whose names begin so: files, uploads, and what is to be deleted. In one statement: a
-- name passes from one to the next within a transaction.
-- name: list_named_blobs(prefix)
SELECT storage_url, 'file', id, group_id, size_bytes FROM media WHERE starts_with(storage_url, $1)
UNION ALL
SELECT storage_url, 'upload', media_id, group_id, NULL FROM uploads WHERE starts_with(storage_url, $1)
UNION ALL
SELECT storage_url, 'deletion', NULL, NULL, NULL FROM blob_deletions WHERE starts_with(storage_url, $1);

-- Which of these files there still are.
-- name: list_files_among(media_ids)
SELECT id FROM media WHERE id = ANY ($1::UUID[]);

-- name: count_media_as_operator()
SELECT (SELECT count(*) FROM media), (SELECT count(*) FROM uploads),
    (SELECT count(*) FROM blob_deletions WHERE NOT is_deleted);

-- Quotas that are not the sum of what they count, beside that sum.
-- name: list_skewed_quotas(limit)
SELECT q.group_id, q.total_bytes, q.media_count, coalesce(s.bytes, 0), coalesce(s.files, 0)
FROM group_quotas q
LEFT JOIN (
    SELECT f.group_id, sum(f.size_bytes)::BIGINT AS bytes, count(*)::INTEGER AS files
    FROM (SELECT group_id, size_bytes FROM media UNION ALL SELECT group_id, size_bytes FROM uploads) f
    GROUP BY f.group_id
) s ON s.group_id = q.group_id
WHERE (q.total_bytes, q.media_count) IS DISTINCT FROM (coalesce(s.bytes, 0), coalesce(s.files, 0))
ORDER BY q.group_id LIMIT $1;

-- Two statements of one transaction: the second must see what the first has waited for.

-- name: lock_quota(group_id)
SELECT 1 FROM group_quotas WHERE group_id = $1 FOR UPDATE;

-- name: mend_quota(group_id)
UPDATE group_quotas q
SET (total_bytes, media_count) = (
        SELECT coalesce(sum(f.size_bytes), 0)::BIGINT, count(*)::INTEGER
        FROM (SELECT size_bytes FROM media WHERE group_id = $1 UNION ALL SELECT size_bytes FROM uploads WHERE group_id = $1) f),
    updated_at = clock_timestamp()
WHERE q.group_id = $1;

-- name: read_quota_as_operator(group_id)
SELECT total_bytes, media_count, max_bytes, max_media_count FROM group_quotas WHERE group_id = $1;

-- Null leaves a limit as it is.
-- name: set_quota_limits(group_id, max_bytes, max_files)
UPDATE group_quotas
SET max_bytes = coalesce($2, max_bytes), max_media_count = coalesce($3, max_media_count), updated_at = clock_timestamp()
WHERE group_id = $1
RETURNING total_bytes, media_count, max_bytes, max_media_count;

-- Every upload under way: their bytes are in a store that is given up.
-- name: drop_uploads()
DELETE FROM uploads;

-- ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Heads after a group id, each beside the last event that its log has: seen at one moment.
-- name: list_logs_as_operator(after_group_id, limit)
SELECT h.group_id, h.last_seq, h.head_hash, h.deleted_at IS NOT NULL,
       (SELECT coalesce(max(e.seq), 0) FROM events e WHERE e.group_id = h.group_id)
FROM group_heads h WHERE h.group_id > $1 ORDER BY h.group_id LIMIT $2;

-- name: find_log_as_operator(group_id)
SELECT h.group_id, h.last_seq, h.head_hash, h.deleted_at IS NOT NULL,
       (SELECT coalesce(max(e.seq), 0) FROM events e WHERE e.group_id = h.group_id)
FROM group_heads h WHERE h.group_id = $1;

-- name: count_logs_as_operator()
SELECT count(*), coalesce(sum(CASE WHEN deleted_at IS NULL THEN last_seq ELSE 1 END), 0)::BIGINT FROM group_heads;

-- A page of a log, with whether the content was erased on purpose.
-- name: read_log_as_operator(group_id, after_seq, up_to_seq, limit)
SELECT v.*, coalesce(o.erased, FALSE)
FROM event_rows v LEFT JOIN objects o ON o.object_id = v.object_id AND o.group_id = v.group_id
WHERE v.group_id = $1 AND v.seq > $2 AND v.seq <= $3 ORDER BY v.seq LIMIT $4;

-- Groups that have events and no head: one look at the index a group, however long the logs are.
-- name: list_headless_logs()
WITH RECURSIVE logs AS (
    (SELECT group_id FROM events ORDER BY group_id LIMIT 1)
    UNION ALL
    SELECT (SELECT e.group_id FROM events e WHERE e.group_id > l.group_id ORDER BY e.group_id LIMIT 1)
    FROM logs l WHERE l.group_id IS NOT NULL
)
SELECT l.group_id FROM logs l
WHERE l.group_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM group_heads h WHERE h.group_id = l.group_id);
